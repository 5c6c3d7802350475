//! Tests that a device with wrong results is detected before they are used.

use super::operands::{Random, TestMatrix, buffer, load, read, zeros};
use super::{gpu, gpu_with};
use crate::backend::gpu::kernels::{Kernel, all};
use crate::backend::gpu::variants::{Variant, Variants};
use crate::backend::gpu::{GpuBackend, GpuOptions, Sabotage};
use crate::backend::{Backend, DeviceOps, Norm, WeightDesc, WeightFormat};
use crate::dtype::DType;
use crate::error::{Error, ErrorCode};
use crate::quant::codings::Codebook;
use crate::quant::{ActivationGrid, Activations, Bits, Granularity, Scheme};

/// Largest deviation of a product from the base kernels'. A fused norm sums in another order than its base, so an
/// activation may round to the other neighbour. That changes a product by the weight's scale, at most 0.03, times the
/// activation step, about 0.014 for values below 2. Measured on lavapipe, where none did: 6e-8.
const ROUNDING_TOLERANCE: f32 = 0.05;

/// The variants that a kernel implements; empty for a base kernel.
fn needs(kernel: &Kernel) -> impl Iterator<Item = Variant> {
    Variant::ALL.into_iter().filter(|variant| match variant {
        Variant::PackedDot => kernel.name.contains(".packed"),
        Variant::RoundingNorm => kernel.name.starts_with("add_rms_norm.quantize"),
        Variant::Subgroups => kernel.name.ends_with(".subgroups"),
        Variant::HalfTiles => kernel.name.ends_with(".half"),
    })
}

/// The largest subset of the `offered` variants with which `kernel` itself still runs; `None` if there is none.
fn variants_of(kernel: &Kernel, offered: Variants) -> Option<Variants> {
    let needed: Vec<Variant> = needs(kernel).collect();
    let replaces = |variant: &Variant| match variant {
        Variant::PackedDot => kernel.name.starts_with("linear_int8.mat"),
        Variant::RoundingNorm => ["add_rms_norm", "linear_int8.quantize"].contains(&kernel.name),
        Variant::Subgroups => kernel.subgroups.is_some(),
        Variant::HalfTiles => kernel.name == "linear_float.matmul",
    };
    let others = Variant::ALL.into_iter().filter(|variant| !needed.contains(variant));
    let variants = others.filter(replaces).fold(offered, Variants::without);
    needed.iter().all(|&variant| offered.has(variant)).then_some(variants)
}

fn with(sabotage: Sabotage) -> GpuOptions {
    GpuOptions { software: true, sabotage: Some(sabotage), ..GpuOptions::default() }
}

async fn load_everything(gpu: &mut GpuBackend) -> Result<(), Error> {
    let int4 = Scheme::Integer { bits: Bits::Four, granularity: Granularity::Group(32), symmetric: false };
    let codebook = WeightFormat::Packed(Codebook::Iq4Nl.into());
    for format in [WeightFormat::Dense(DType::F16), WeightFormat::Packed(int4.into()), codebook] {
        for (activations, grid) in [
            (Activations::F32, ActivationGrid::Absmax127),
            (Activations::Int8, ActivationGrid::Absmax127),
            (Activations::Int8, ActivationGrid::FullRange),
        ] {
            let desc = WeightDesc { rows: 1, cols: 100, format, activations, grid, bias: false };
            crate::backend::gpu::self_check::weight(gpu, &desc).await?;
        }
    }
    Ok(())
}

pub(super) async fn a_kernel_that_does_nothing_is_found_out() {
    let Some(gpu) = gpu().await else { return };
    let offered = gpu.variants;
    for kernel in all() {
        let Some(variants) = variants_of(kernel, offered) else { continue };
        let result = match GpuBackend::with_variants(&with(Sabotage::Idle(kernel.name)), |_| variants).await {
            Ok(mut gpu) => match gpu.capabilities().replaced.first() {
                // The kernel is a variant that was replaced when the device was opened.
                Some(told) => Err(Error::new(ErrorCode::WrongResult, told.clone())),
                None => load_everything(&mut gpu).await,
            },
            Err(error) => Err(error),
        };
        let error = result.err().unwrap_or_else(|| panic!("{} was trusted", kernel.name));
        assert_eq!(error.code(), ErrorCode::WrongResult, "{}: {error}", kernel.name);
        let step =
            kernel.name.split('.').next().unwrap().trim_end_matches("_float").trim_end_matches("_int8");
        assert!(error.to_string().contains(step), "{}: {error}", kernel.name);
    }
}

/// A norm and three linear steps, one with INT8 activations, for one token and for several.
async fn normed_linear(gpu: &mut GpuBackend) -> Vec<f32> {
    let ternary = WeightFormat::Packed(Scheme::Ternary { granularity: Granularity::Tensor }.into());
    let mut random = Random::new(2);
    let grid = ActivationGrid::Absmax127;
    let matrix = [TestMatrix::random(&mut random, 70, 96, ternary)];
    let weight = load(gpu, &matrix, Activations::Int8, grid).await;
    let matrix = [TestMatrix::random(&mut random, 70, 96, WeightFormat::Dense(DType::F16))];
    let exact = load(gpu, &matrix, Activations::F32, grid).await;
    let matrix = [TestMatrix::random(&mut random, 70, 96, WeightFormat::Packed(Codebook::Iq4Nl.into()))];
    let coded = load(gpu, &matrix, Activations::F32, grid).await;
    let norm = Norm { weight: buffer(gpu, &random.floats(96)), width: 96, epsilon: 1e-5 };
    let mut results = Vec::new();
    for count in [1, 12] {
        let mut residual = buffer(gpu, &random.floats(count * 96));
        let (mut normed, mut y) = (zeros(gpu, count * 96), zeros(gpu, count * 70));
        gpu.add_rms_norm(&mut residual, None, count, norm.as_ref(), &mut normed).unwrap();
        for weight in [&weight, &exact, &coded] {
            gpu.linear(&normed, count, weight, &mut y).unwrap();
            results.extend(read(gpu, &y, count * 70).await);
        }
    }
    results
}

pub(super) async fn a_variant_that_fails_is_replaced_and_the_answer_stays_right() {
    let base = GpuOptions { software: true, base_kernels: true, ..GpuOptions::default() };
    let Some(mut base) = gpu_with(&base).await else { return };
    let right = normed_linear(&mut base).await;
    assert!(base.capabilities().replaced.is_empty());
    let mut untouched = gpu().await.unwrap();
    let dispatches = async |gpu: &mut GpuBackend| {
        let before = gpu.dispatches().unwrap();
        normed_linear(gpu).await;
        gpu.dispatches().unwrap() - before
    };
    normed_linear(&mut untouched).await;
    assert!(untouched.capabilities().replaced.is_empty(), "{:?}", untouched.capabilities().replaced);
    let fewest = dispatches(&mut untouched).await;
    assert_eq!(fewest, 8, "two norms that round, six products");
    for kernel in all() {
        let Some(variants) = variants_of(kernel, untouched.variants) else { continue };
        if needs(kernel).next().is_none() {
            continue;
        }
        let kernel = kernel.name;
        for (sabotage, why) in
            [(Sabotage::Idle(kernel), "the GPU computes"), (Sabotage::Invalid(kernel), "was refused")]
        {
            let mut gpu = GpuBackend::with_variants(&with(sabotage), |_| variants).await.unwrap();
            let found = normed_linear(&mut gpu).await;
            let difference = found.iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{sabotage:?}: largest deviation {difference:.2e}");
            assert!(difference < ROUNDING_TOLERANCE, "{sabotage:?}: {difference}");
            let replaced = gpu.capabilities().replaced.clone();
            let [told] = &replaced[..] else { panic!("{sabotage:?}: {replaced:?}") };
            assert!(told.contains("are replaced by their base") && told.contains(why), "{told}");
            // Another backend on the same device has the same results of self-checks.
            let mut other = gpu.sibling().unwrap();
            let rounding = kernel.starts_with("add_rms_norm.quantize");
            let expected = if rounding { fewest + 2 } else { fewest };
            assert_eq!(dispatches(&mut other).await, expected, "{sabotage:?}");
            assert_eq!(other.capabilities().replaced, replaced);
        }
    }
}

pub(super) async fn each_format_is_checked_once() {
    let Some(mut gpu) = gpu_with(&GpuOptions { software: true, ..GpuOptions::default() }).await else {
        return;
    };
    let matrix = || [TestMatrix::random(&mut Random::new(1), 10, 40, WeightFormat::Dense(DType::F32))];
    let before = gpu.dispatches();
    load(&mut gpu, &matrix(), Activations::F32, ActivationGrid::Absmax127).await;
    let checked = gpu.dispatches();
    assert!(checked > before);
    load(&mut gpu, &matrix(), Activations::F32, ActivationGrid::Absmax127).await;
    assert_eq!(gpu.dispatches(), checked);
}
