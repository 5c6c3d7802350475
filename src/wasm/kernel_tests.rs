//! The kernels' own tests, for the browsers and programs that the package runs in. Not in the package that is published.

use super::error::to_js;
use super::values::{JsResult, to_value};
use crate::backend::cpu::check_kernels;
use crate::backend::gpu::{GpuBackend, GpuOptions, tests};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

/// The GPU's tests by name.
#[wasm_bindgen(js_name = gpuTests)]
pub fn gpu_tests() -> JsResult<JsValue> {
    to_value(tests::NAMES)
}

/// The adapter on which they run, and its fast kernels, in words.
///
/// # Errors
/// `no_device` where there is none.
#[wasm_bindgen(js_name = gpuUnderTest)]
pub async fn gpu_under_test() -> JsResult<String> {
    let gpu =
        GpuBackend::new(&GpuOptions { software: true, ..GpuOptions::default() }).await.map_err(to_js)?;
    Ok(format!("{}; {}", gpu.adapter(), gpu.fast_kernels().join(", ")))
}

/// Runs one of [`gpu_tests`]. A test that fails panics, as tests do, and with it ends the module.
#[wasm_bindgen(js_name = runGpuTest)]
pub async fn run_gpu_test(name: String) {
    tests::run(&name).await;
}

/// Compares the processor's kernels in use with portable code; how many comparisons that were, and the largest difference.
///
/// # Errors
/// `wrong_result` with the kernel that computes wrong.
#[wasm_bindgen(js_name = checkCpuKernels)]
pub fn check_cpu_kernels(seed: u32) -> JsResult<Vec<f64>> {
    let (comparisons, worst) = check_kernels(seed).map_err(to_js)?;
    Ok(vec![comparisons as f64, worst])
}
