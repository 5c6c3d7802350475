//! A device that computes wrong is found out before its results are used. Floor 4.

use super::operands::{Matrix, Random, load};
use super::{gpu, gpu_with};
use crate::backend::gpu::kernels::ALL;
use crate::backend::gpu::{GpuBackend, GpuOptions, Sabotage};
use crate::backend::{Backend, WeightDesc, WeightFormat};
use crate::dtype::DType;
use crate::error::{Error, ErrorCode};
use crate::quant::{ActivationGrid, Activations, Bits, Granularity, Scheme};
use crate::task::block_on;

fn load_everything(gpu: &mut GpuBackend) -> Result<(), Error> {
    let int4 = Scheme::Integer { bits: Bits::Four, granularity: Granularity::Group(32), symmetric: false };
    for format in [WeightFormat::Dense(DType::F16), WeightFormat::Packed(int4)] {
        for (activations, grid) in [
            (Activations::F32, ActivationGrid::Absmax127),
            (Activations::Int8, ActivationGrid::Absmax127),
            (Activations::Int8, ActivationGrid::FullRange),
        ] {
            let desc = WeightDesc { rows: 1, cols: 100, format, activations, grid, bias: false };
            block_on(crate::backend::gpu::self_check::weight(gpu, &desc))?;
        }
    }
    Ok(())
}

#[test]
fn a_kernel_that_does_nothing_is_found_out() {
    let Some(_) = gpu() else { return };
    for kernel in ALL {
        let sabotage = Some(Sabotage::Idle(kernel.name));
        let options = GpuOptions { software: true, sabotage, ..GpuOptions::default() };
        let result = block_on(GpuBackend::new(&options)).and_then(|mut gpu| load_everything(&mut gpu));
        let error = result.err().unwrap_or_else(|| panic!("{} was trusted", kernel.name));
        assert_eq!(error.code(), ErrorCode::WrongResult, "{}: {error}", kernel.name);
        let step =
            kernel.name.split('.').next().unwrap().trim_end_matches("_float").trim_end_matches("_int8");
        assert!(error.to_string().contains(step), "{}: {error}", kernel.name);
    }
}

#[test]
fn each_format_is_checked_once() {
    let Some(mut gpu) = gpu_with(&GpuOptions { software: true, ..GpuOptions::default() }) else { return };
    let matrix = || [Matrix::random(&mut Random::new(1), 10, 40, WeightFormat::Dense(DType::F32))];
    let before = gpu.dispatches();
    load(&mut gpu, &matrix(), Activations::F32, ActivationGrid::Absmax127);
    let checked = gpu.dispatches();
    assert!(checked > before);
    load(&mut gpu, &matrix(), Activations::F32, ActivationGrid::Absmax127);
    assert_eq!(gpu.dispatches(), checked);
}
