//! Tests of linear steps and embeddings, for every format.

use super::operands::{Random, TestMatrix, buffer, formats, ids, load, read, some, worst, zeros};
use super::{gpu, gpu_with};
use crate::backend::cpu::CpuBackend;
use crate::backend::gpu::GpuOptions;
use crate::backend::gpu::variants::Variant;
use crate::backend::{Backend, DeviceOps, WeightFormat};
use crate::dtype::DType;
use crate::quant::{ActivationGrid, Activations, Bits, Granularity, Scheme};

/// Largest deviation from the `f64` reference, as a share of `sum |w x|`. Measured 1.5e-7 on lavapipe.
const F32_TOLERANCE: f64 = 1e-6;
/// As [`F32_TOLERANCE`], for INT8 activations, which the reference rounds by the same rule. Measured 1.4e-7 on
/// lavapipe.
const INT8_TOLERANCE: f64 = 1e-6;

/// Grid of INT8 activations, unless a test sets another.
const GRID: ActivationGrid = ActivationGrid::Absmax127;

/// `(expected, sum of magnitudes)` for each element of `y`.
fn reference(parts: &[TestMatrix], x: &[f32], int8: bool) -> Vec<(f64, f64)> {
    let mut expected = Vec::new();
    for x in x.chunks_exact(parts[0].cols) {
        let absmax = x.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let factor = 127.0 / absmax.max(1e-5);
        let x: Vec<f64> = x
            .iter()
            .map(|&v| match int8 {
                true => f64::from((v * factor).round_ties_even()) / f64::from(factor),
                false => f64::from(v),
            })
            .collect();
        for part in parts {
            for (row, weights) in part.values.chunks_exact(part.cols).enumerate() {
                let bias = part.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
                let products = weights.iter().zip(&x).map(|(w, x)| w * x);
                let (sum, size) = products.fold((bias, bias.abs()), |(s, a), p| (s + p, a + p.abs()));
                expected.push((sum, size));
            }
        }
    }
    expected
}

async fn run<B: Backend>(
    backend: &mut B,
    parts: &[TestMatrix],
    x: &[f32],
    activations: Activations,
) -> Vec<f32> {
    run_on_grid(backend, parts, x, activations, GRID).await
}

async fn run_on_grid<B: Backend>(
    backend: &mut B,
    parts: &[TestMatrix],
    x: &[f32],
    activations: Activations,
    grid: ActivationGrid,
) -> Vec<f32> {
    let count = x.len() / parts[0].cols;
    let rows: usize = parts.iter().map(|part| part.rows).sum();
    let weight = load(backend, parts, activations, grid).await;
    let x = buffer(backend, x);
    let mut y = zeros(backend, count * rows);
    backend.linear(&x, count, &weight, &mut y).unwrap();
    read(backend, &y, count * rows).await
}

pub(super) async fn every_format_agrees_with_the_reference_and_the_cpu() {
    let base = GpuOptions { software: true, base_kernels: true, ..GpuOptions::default() };
    let (Some(mut gpu), Some(mut base)) = (gpu().await, gpu_with(&base).await) else { return };
    let by_subgroups = gpu.variants.has(Variant::Subgroups);
    let mut cpu = CpuBackend::new();
    let mut random = Random::new(1);
    let mut most = [0.0f64; 2];
    // Rows, columns, tokens: ones, primes, partial tiles, whole tiles, and sizes just beside them.
    let shapes =
        [(1, 1, 1), (5, 7, 1), (31, 172, 3), (64, 128, 8), (33, 129, 33), (97, 331, 13), (130, 256, 40)];
    for (index, format) in formats().into_iter().enumerate() {
        for &(rows, cols, count) in some(&shapes, index) {
            for activations in [Activations::F32, Activations::Int8] {
                let parts = [TestMatrix::random(&mut random, rows, cols, format)];
                let x = random.floats(count * cols);
                let int8 = activations == Activations::Int8;
                let expected = reference(&parts, &x, int8);
                let found = run(&mut gpu, &parts, &x, activations).await;
                if int8 || by_subgroups {
                    let plain = run(&mut base, &parts, &x, activations).await;
                    let case = format!("{format:?} {rows} x {cols}, {count} tokens");
                    assert_eq!(found, plain, "{case}: integers have no rounding, and sums have one order");
                }
                let error = worst(&found, &expected);
                let limit = if int8 { INT8_TOLERANCE } else { F32_TOLERANCE };
                let case = format!("{format:?} {rows} x {cols}, {count} tokens, {activations:?}");
                assert!(error < limit, "{case}: {error:.2e}");
                let twin = run(&mut cpu, &parts, &x, activations).await;
                let between: Vec<(f64, f64)> =
                    twin.iter().zip(&expected).map(|(&twin, &(_, size))| (f64::from(twin), size)).collect();
                assert!(worst(&found, &between) < limit, "{case}: the CPU differs");
                most[usize::from(int8)] = most[usize::from(int8)].max(error);
            }
        }
    }
    println!("linear: largest errors {:.2e} with f32, {:.2e} with INT8", most[0], most[1]);
}

pub(super) async fn parts_of_one_or_several_formats_stand_side_by_side() {
    let Some(mut gpu) = gpu().await else { return };
    let mut random = Random::new(2);
    let int4 = |group| {
        let granularity = Granularity::Group(group);
        WeightFormat::Packed(Scheme::Integer { bits: Bits::Four, granularity, symmetric: false }.into())
    };
    let (f32, f16) = (WeightFormat::Dense(DType::F32), WeightFormat::Dense(DType::F16));
    for formats in [vec![f16; 3], vec![int4(32); 3], vec![int4(32), int4(48), f32], vec![f16, f32]] {
        for count in [1, 11] {
            let rows = [24, 8, 9];
            let parts: Vec<TestMatrix> = formats
                .iter()
                .zip(rows)
                .map(|(&f, rows)| TestMatrix::random(&mut random, rows, 96, f))
                .collect();
            let x = random.floats(count * 96);
            for activations in [Activations::F32, Activations::Int8] {
                let expected = reference(&parts, &x, activations == Activations::Int8);
                // Loading runs the self-checks, which must not be counted below.
                load(&mut gpu, &parts, activations, GRID).await;
                let before = gpu.dispatches().unwrap();
                let found = run(&mut gpu, &parts, &x, activations).await;
                assert!(worst(&found, &expected) < F32_TOLERANCE, "{formats:?} {activations:?}");
                if activations == Activations::F32 && formats.windows(2).all(|pair| pair[0] == pair[1]) {
                    assert_eq!(gpu.dispatches().unwrap() - before, 1, "parts alike are one dispatch");
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) async fn the_other_grid_of_activations_is_that_of_the_cpu() {
    let (Some(mut gpu), mut cpu) = (gpu().await, CpuBackend::new()) else { return };
    let mut random = Random::new(7);
    let int8 = Scheme::Integer { bits: Bits::Eight, granularity: Granularity::Channel, symmetric: true };
    for format in [WeightFormat::Dense(DType::F16), WeightFormat::Packed(int8.into())] {
        for count in [1, 10] {
            let parts = [TestMatrix::random(&mut random, 20, 131, format)];
            let mut x = random.floats(count * 131);
            // The largest magnitude of either sign is on a tie. A token of zeros has its own grid.
            x[5] = if count == 1 { -2.0 } else { 2.0 };
            if count > 1 {
                x[131..262].fill(0.0);
            }
            let grid = ActivationGrid::FullRange;
            let found = run_on_grid(&mut gpu, &parts, &x, Activations::Int8, grid).await;
            let twin = run_on_grid(&mut cpu, &parts, &x, Activations::Int8, grid).await;
            let sizes = reference(&parts, &x, false);
            let expected: Vec<(f64, f64)> =
                twin.iter().zip(&sizes).map(|(&twin, &(_, size))| (f64::from(twin), size)).collect();
            assert!(worst(&found, &expected) < INT8_TOLERANCE, "{format:?} {count}");
        }
    }
}

pub(super) async fn a_norm_that_rounds_makes_what_norm_and_rounding_make() {
    /// Deviation of a product, as a share of `sum |w x|`. Sums of squares are added in another order, and an activation
    /// may round to the other neighbour. Measured 1.4e-7 on lavapipe, where none did.
    const TOLERANCE: f64 = 0.01;
    let base = GpuOptions { software: true, base_kernels: true, ..GpuOptions::default() };
    let (Some(mut gpu), Some(mut base)) = (gpu().await, gpu_with(&base).await) else { return };
    let mut random = Random::new(8);
    let mut most = 0.0f64;
    let cases = [(172, 1, GRID), (43, 9, ActivationGrid::FullRange), (1030, 3, GRID), (1, 2, GRID)];
    for (index, format) in formats().into_iter().enumerate() {
        for &(cols, count, grid) in some(&cases, index) {
            let parts = [TestMatrix::random(&mut random, 9, cols, format)];
            let (x, delta) = (random.floats(count * cols), random.floats(count * cols));
            let w = random.floats(cols);
            let run = async |b: &mut crate::backend::gpu::GpuBackend| {
                let weight = load(b, &parts, Activations::Int8, grid).await;
                let norm = crate::backend::Norm { weight: buffer(b, &w), width: cols, epsilon: 1e-5 };
                let (mut residual, delta) = (buffer(b, &x), buffer(b, &delta));
                let (mut normed, mut y) = (zeros(b, count * cols), zeros(b, count * 9));
                let before = b.dispatches().unwrap();
                b.add_rms_norm(&mut residual, Some(&delta), count, norm.as_ref(), &mut normed).unwrap();
                b.linear(&normed, count, &weight, &mut y).unwrap();
                let y = read(b, &y, count * 9).await;
                let dispatches = b.dispatches().unwrap() - before;
                (read(b, &residual, count * cols).await, read(b, &normed, count * cols).await, y, dispatches)
            };
            let (fast, plain) = (run(&mut gpu).await, run(&mut base).await);
            let case = format!("{format:?} {cols} columns, {count} tokens");
            assert_eq!(fast.0, plain.0, "{case}");
            let pairs: Vec<(f64, f64)> =
                plain.1.iter().map(|&v| (f64::from(v), f64::from(v).abs())).collect();
            assert!(worst(&fast.1, &pairs) < F32_TOLERANCE, "{case}: the norm differs");
            let sizes = reference(&parts, &plain.1, false);
            let pairs: Vec<(f64, f64)> =
                plain.2.iter().zip(&sizes).map(|(&y, &(_, size))| (f64::from(y), size)).collect();
            most = most.max(worst(&fast.2, &pairs));
            assert!(most < TOLERANCE, "{case}: {most:.2e}");
            // Other weights take activations that are rounded and restored, which is a separate kernel and not fused.
            let affine = matches!(format, WeightFormat::Packed(coding) if coding.affine().is_some());
            let saved = u64::from(affine);
            assert_eq!(fast.3 + saved, plain.3, "{case}");
        }
    }
    println!("a norm that rounds: largest deviation of a product {most:.2e}");
}

pub(super) async fn columns_in_another_order_are_refused() {
    let Some(mut gpu) = gpu().await else { return };
    let scheme = Scheme::Integer { bits: Bits::Four, granularity: Granularity::Group(2), symmetric: true };
    let scales = crate::quant::Scales::F32(vec![1.0; 2]);
    let tensor = crate::quant::PackedTensor::new(scheme, 1, 4, vec![0x4321], scales, None).unwrap();
    let tensor = crate::quant::QuantizedTensor::from(tensor.with_column_order(vec![2, 0, 3, 1]).unwrap());
    let desc = crate::backend::WeightDesc {
        rows: 1,
        cols: 4,
        format: WeightFormat::Packed(scheme.into()),
        activations: Activations::F32,
        grid: GRID,
        bias: false,
    };
    let mut builder = gpu.begin_weight(&[desc]).unwrap();
    let view = crate::backend::WeightView::Packed(tensor.rows_view(0..1));
    let error = gpu.put_rows(&mut builder, 0, 0..1, view).unwrap_err();
    assert_eq!(error.code(), crate::error::ErrorCode::UnsupportedFormat);
}

pub(super) async fn weights_over_one_binding_are_split() {
    let options = GpuOptions { software: true, max_binding_bytes: Some(64 << 10), ..GpuOptions::default() };
    let Some(mut gpu) = gpu_with(&options).await else { return };
    let mut random = Random::new(3);
    let int4 = Scheme::Integer { bits: Bits::Four, granularity: Granularity::Group(20), symmetric: false };
    for format in [WeightFormat::Dense(DType::F32), WeightFormat::Packed(int4.into())] {
        let matrix = TestMatrix::random(&mut random, 2003, 100, format);
        let tokens = [0, 2002, 1000, 163, 164];
        let mut parts = [matrix];
        let x = random.floats(3 * 100);
        let expected = reference(&parts, &x, false);
        assert!(worst(&run(&mut gpu, &parts, &x, Activations::F32).await, &expected) < F32_TOLERANCE);
        parts[0].bias = None;
        let weight = load(&mut gpu, &parts, Activations::F32, ActivationGrid::Absmax127).await;
        let ids = ids(&mut gpu, &tokens);
        let mut out = zeros(&mut gpu, tokens.len() * 100);
        gpu.embed(&ids, tokens.len(), &weight, &mut out).unwrap();
        for (i, found) in read(&mut gpu, &out, tokens.len() * 100).await.into_iter().enumerate() {
            assert_eq!(found, parts[0].values[tokens[i / 100] as usize * 100 + i % 100] as f32);
        }
    }
    // A row that exceeds one binding cannot be split.
    let wide = TestMatrix::random(&mut random, 1, 20_000, WeightFormat::Dense(DType::F32));
    let desc = crate::backend::WeightDesc {
        rows: 1,
        cols: wide.cols,
        format: wide.format,
        activations: Activations::F32,
        grid: ActivationGrid::Absmax127,
        bias: false,
    };
    let error = gpu.begin_weight(&[desc]).err().expect("too wide");
    assert_eq!(error.code(), crate::error::ErrorCode::OutOfMemory);
}

pub(super) async fn more_rows_than_one_dimension_has_workgroups() {
    let Some(mut gpu) = gpu().await else { return };
    let mut random = Random::new(4);
    // With such short rows a workgroup has 64 of them: 65,536 workgroups and some more.
    let rows = 65_536 * 64 + 129;
    let parts = [TestMatrix::random(&mut random, rows, 4, WeightFormat::Dense(DType::F16))];
    let x = random.floats(4);
    let expected = reference(&parts, &x, false);
    assert!(worst(&run(&mut gpu, &parts, &x, Activations::F32).await, &expected) < F32_TOLERANCE);
}

pub(super) async fn embeddings_of_every_format_are_exact() {
    let Some(mut gpu) = gpu().await else { return };
    let mut random = Random::new(5);
    let (rows, cols, tokens) = (11, 172, [3, 0, 10, 3]);
    for format in formats() {
        let matrix = TestMatrix::random(&mut random, rows, cols, format).without_bias();
        let table =
            load(&mut gpu, std::slice::from_ref(&matrix), Activations::F32, ActivationGrid::Absmax127).await;
        let ids = ids(&mut gpu, &tokens);
        let mut out = zeros(&mut gpu, tokens.len() * cols);
        gpu.embed(&ids, tokens.len(), &table, &mut out).unwrap();
        for (i, found) in read(&mut gpu, &out, tokens.len() * cols).await.into_iter().enumerate() {
            let expected = matrix.values[tokens[i / cols] as usize * cols + i % cols];
            assert_eq!(found, expected as f32, "{format:?} element {i}");
        }
    }
}

pub(super) async fn broken_numbers_stay_visible() {
    let Some(mut gpu) = gpu().await else { return };
    let mut random = Random::new(6);
    let cases = [(f32::NAN, 1), (f32::INFINITY, 1), (f32::NAN, 9), (f32::INFINITY, 9)];
    for (index, format) in formats().into_iter().enumerate() {
        for activations in [Activations::F32, Activations::Int8] {
            for &(broken, count) in some(&cases, index) {
                let parts = [TestMatrix::random(&mut random, 6, 40, format)];
                let mut x = random.floats(count * 40);
                x[(count - 1) * 40 + 17] = broken;
                let y = run(&mut gpu, &parts, &x, activations).await;
                // Infinity times a weight of zero is NaN, but another weight may keep the sum infinite.
                let visible = y[(count - 1) * 6..].iter().any(|v| !v.is_finite());
                assert!(visible, "{format:?} {activations:?} {broken} {count}: {y:?}");
            }
        }
    }
    let table = TestMatrix::random(&mut random, 4, 8, WeightFormat::Dense(DType::F32)).without_bias();
    let table = load(&mut gpu, &[table], Activations::F32, ActivationGrid::Absmax127).await;
    let ids = ids(&mut gpu, &[3, 4]);
    let mut out = zeros(&mut gpu, 16);
    gpu.embed(&ids, 2, &table, &mut out).unwrap();
    let out = read(&mut gpu, &out, 16).await;
    assert!(out[..8].iter().all(|v| v.is_finite()) && out[8..].iter().all(|v| v.is_nan()), "{out:?}");
}
