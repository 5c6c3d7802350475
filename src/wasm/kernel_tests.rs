//! Kernel tests, to run in the browsers and runtimes that the package supports. Not in the published package.

use super::error::to_js;
use super::values::{JsResult, to_value};
use crate::backend::cpu::check_kernels;
use crate::backend::gpu::{GpuBackend, GpuOptions, tests};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

/// The names of the GPU tests.
#[wasm_bindgen(js_name = gpuTests)]
pub fn gpu_tests() -> JsResult<JsValue> {
    to_value(tests::NAMES)
}

/// The adapter under test, and its fast kernels, as text.
///
/// # Errors
/// `no_device` without an adapter.
#[wasm_bindgen(js_name = gpuUnderTest)]
pub async fn gpu_under_test() -> JsResult<String> {
    let gpu =
        GpuBackend::new(&GpuOptions { software: true, ..GpuOptions::default() }).await.map_err(to_js)?;
    Ok(format!("{}; {}", gpu.adapter(), gpu.fast_kernels().join(", ")))
}

/// Runs one of [`gpu_tests`]. A failing test panics, which ends the module.
#[wasm_bindgen(js_name = runGpuTest)]
pub async fn run_gpu_test(name: String) {
    tests::run(&name).await;
}

/// Compares the CPU kernels in use with portable code; returns the number of comparisons and the largest difference.
///
/// # Errors
/// `wrong_result`, naming the kernel.
#[wasm_bindgen(js_name = checkCpuKernels)]
pub fn check_cpu_kernels(seed: u32) -> JsResult<Vec<f64>> {
    let (comparisons, worst) = check_kernels(seed).map_err(to_js)?;
    Ok(vec![comparisons as f64, worst])
}
