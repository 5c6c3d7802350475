//! AWQ compared with direct sums over inputs.

use super::fold::{HeadGrouping, divide_norm, divide_rows};
use super::*;
use crate::dtype::DType;
use crate::quant::dequantize;
use crate::quant::qparams::{QParams, range};
use crate::quant::scheme::Bits;
use proptest::prelude::*;
use rand_pcg::Pcg32;
use rand_pcg::rand_core::{Rng, SeedableRng};

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = Pcg32::seed_from_u64(seed);
    (0..len).map(|_| (0..4).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).sum()).collect()
}

/// Inputs with features of very different sizes and correlated neighbours.
fn inputs(cols: usize, tokens: usize, seed: u64) -> Vec<f32> {
    let source = random(cols * tokens + 1, seed);
    let value = |i: usize| (source[i] + 0.5 * source[i + 1]) * [0.1, 1.0, 0.3, 6.0, 0.5][i % cols % 5];
    (0..cols * tokens).map(value).collect()
}

fn hessian(x: &[f32], cols: usize) -> Hessian {
    let mut sum = vec![0.0; cols * cols];
    for x in x.chunks(cols) {
        for i in 0..cols {
            for j in 0..cols {
                sum[i * cols + j] += x[i] * x[j];
            }
        }
    }
    Hessian::new(cols, sum, (x.len() / cols) as u64)
}

fn mean(x: &[f32], cols: usize) -> Vec<f32> {
    let tokens = (x.len() / cols) as f32;
    (0..cols).map(|col| x.iter().skip(col).step_by(cols).map(|v| v.abs()).sum::<f32>() / tokens).collect()
}

/// Mean over tokens of the squared length of `x (w - q)^T`.
fn output_error(x: &[f32], w: &[f32], q: &[f32], cols: usize) -> f64 {
    let mut sum = 0.0;
    for x in x.chunks(cols) {
        for (w, q) in w.chunks(cols).zip(q.chunks(cols)) {
            let dot: f64 = (0..cols).map(|k| f64::from(x[k]) * (f64::from(w[k]) - f64::from(q[k]))).sum();
            sum += dot * dot;
        }
    }
    sum / (x.len() / cols) as f64
}

/// `Q(W s) / s`, spelled out.
fn rounded(w: &[f32], scales: &[f32], group_size: usize, bits: Bits, symmetric: bool) -> Vec<f32> {
    let mut out = Vec::new();
    for row in w.chunks(scales.len()) {
        let scaled: Vec<f32> = row.iter().zip(scales).map(|(w, s)| w * s).collect();
        for group in scaled.chunks(group_size) {
            let (min, max) = range(group).unwrap();
            let q = QParams::from_range(min, max, bits, symmetric, ScaleType::F32).unwrap();
            out.extend(group.iter().map(|&w| q.decode(q.encode(w, bits))));
        }
    }
    let columns = out.len();
    (0..columns).map(|i| out[i] / scales[i % scales.len()]).collect()
}

fn scheme(bits: Bits, group_size: usize, symmetric: bool) -> Scheme {
    Scheme::Integer { bits, granularity: Granularity::Group(group_size), symmetric }
}

fn quantize(
    w: &[f32],
    scheme: Scheme,
    scales: &[f32],
    moments: &Moments,
    clipping: Option<&Clipping>,
) -> AwqOutcome {
    let (rows, cols) = (w.len() / scales.len(), scales.len());
    let measure = Measure::ErrorAndSignal(moments);
    let mut quantizer =
        AwqQuantizer::new(scheme, (rows, cols), scales, measure, clipping, ScaleType::F32).unwrap();
    // Two chunks, as a checkpoint is read.
    let middle = rows / 2 * cols;
    quantizer.push_rows(&w[..middle]).unwrap();
    quantizer.push_rows(&w[middle..]).unwrap();
    quantizer.finish().unwrap()
}

/// The weights of a packed matrix divided by its column scales.
fn effective(tensor: &PackedTensor, scales: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; tensor.rows() * tensor.cols()];
    dequantize::rows(tensor, 0..tensor.rows(), &mut out);
    out.iter().enumerate().map(|(i, w)| w / scales[i % scales.len()]).collect()
}

/// Largest relative difference of sums in `f32` and `f64`. Measured: 2e-6.
const ROUNDING: f64 = 1e-4;

#[test]
fn the_search_finds_the_ratio_of_least_output_error() {
    for (cols, group_size, bits, symmetric) in
        [(60, 20, Bits::Four, true), (70, 32, Bits::Four, false), (40, 40, Bits::Three, false)]
    {
        let x = inputs(cols, 200, 3);
        let w = random(40 * cols, 5);
        let moments = Moments::new(&hessian(&x, cols));
        let mut search = ScaleSearch::new(mean(&x, cols));
        let mut losses = Vec::new();
        while let Some(candidate) = search.next_candidate() {
            let outcome =
                quantize(&w, scheme(bits, group_size, symmetric), &candidate.scales, &moments, None);
            let q = rounded(&w, &candidate.scales, group_size, bits, symmetric);
            let expected = output_error(&x, &w, &q, cols);
            assert!((outcome.error / expected - 1.0).abs() < ROUNDING, "{} {expected}", outcome.error);
            let signal = output_error(&x, &w, &vec![0.0; w.len()], cols);
            assert!((outcome.signal / signal - 1.0).abs() < ROUNDING);
            assert_eq!(effective(&outcome.tensor, &candidate.scales), q);
            search.report(outcome.error);
            losses.push((expected, candidate));
        }
        assert_eq!(losses.len(), RATIOS);
        assert_eq!(losses[0].1, ScaleCandidate { ratio: 0.0, scales: vec![1.0; cols] });
        let (least, best) = losses.iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        assert_eq!(search.best(), *best);
        assert!(best.ratio > 0.0 && *least < 0.9 * losses[0].0, "{least} of {}", losses[0].0);
    }
}

#[test]
fn scales_are_powers_of_the_mean_around_one() {
    let mut search = ScaleSearch::new(vec![4.0, 1.0, 0.25, 16.0]);
    let candidate = std::iter::from_fn(|| search.next_candidate()).nth(10).unwrap();
    assert_eq!(candidate.ratio, 0.5);
    // 2, 1, 0.5 and 4, divided by sqrt(4 * 0.5)
    for (found, expected) in candidate.scales.iter().zip([2f32, 1.0, 0.5, 4.0]) {
        assert!((found - expected / 2f32.sqrt()).abs() < 1e-6, "{found} {expected}");
    }
    search.report(f64::NAN);
    assert_eq!(search.best().ratio, 0.0, "a loss that is no number never wins");
}

#[test]
fn clipping_takes_the_range_of_least_error_of_the_groups_output() {
    let (cols, group_size) = (50, 20);
    let x = inputs(cols, 300, 8);
    let h = hessian(&x, cols);
    let moments = Moments::new(&h);
    let w = random(30 * cols, 9);
    let scales: Vec<f32> = (0..cols).map(|col| 0.5 + (col % 4) as f32).collect();
    for (bits, symmetric) in [(Bits::Four, false), (Bits::Three, true)] {
        let clipping = Clipping::new(&h, &scales, group_size);
        let scheme = scheme(bits, group_size, symmetric);
        let outcome = quantize(&w, scheme, &scales, &moments, Some(&clipping));
        let found = effective(&outcome.tensor, &scales);
        let mut clipped = 0;
        for (row, found) in w.chunks(cols).zip(found.chunks(cols)) {
            for start in (0..cols).step_by(group_size) {
                let columns = start..cols.min(start + group_size);
                // The output error of this group alone.
                let error = |values: &[f32]| {
                    let mut q = row.to_vec();
                    q[columns.clone()].copy_from_slice(values);
                    output_error(&x, row, &q, cols)
                };
                let scaled: Vec<f32> = columns.clone().map(|k| row[k] * scales[k]).collect();
                let (min, max) = range(&scaled).unwrap();
                let errors: Vec<f64> = (0..21)
                    .map(|step| {
                        let part = 1.0 - 0.5 * step as f32 / 20.0;
                        let q = QParams::from_range(min * part, max * part, bits, symmetric, ScaleType::F32)
                            .unwrap();
                        let values: Vec<f32> = columns
                            .clone()
                            .map(|k| q.decode(q.encode(row[k] * scales[k], bits)) / scales[k])
                            .collect();
                        error(&values)
                    })
                    .collect();
                let least = errors.iter().copied().fold(f64::INFINITY, f64::min);
                let taken = error(&found[columns.clone()]);
                assert!(taken <= least * (1.0 + ROUNDING) + 1e-12, "{taken} above {least}");
                clipped += usize::from(taken < errors[0]);
            }
        }
        assert!(clipped > 20, "{clipped} groups were clipped");
    }
}

#[test]
fn folding_into_a_norm_changes_no_output() {
    let cols = 48;
    let (x, w) = (random(20 * cols, 1), random(10 * cols, 2));
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let bf16 = |v: f32| half::bf16::from_f32(v).to_f32();
        let norm: Vec<f32> = random(cols, 3).iter().map(|v| bf16(1.0 + v)).collect();
        let mut scales: Vec<f32> = random(cols, 4).iter().map(|v| 1.5 + v).collect();
        let wanted = scales.clone();
        let divided = divide_norm(&norm, dtype, &mut scales).unwrap();
        for (row, x) in x.chunks(cols).enumerate() {
            for w in w.chunks(cols) {
                let before: f64 = (0..cols).map(|k| f64::from(x[k] * norm[k]) * f64::from(w[k])).sum();
                let after: f64 =
                    (0..cols).map(|k| f64::from(x[k] * divided[k]) * f64::from(w[k] * scales[k])).sum();
                assert!((before - after).abs() < 1e-5, "{dtype}, row {row}: {before} became {after}");
            }
        }
        assert!(scales.iter().zip(&wanted).all(|(s, wanted)| (s / wanted - 1.0).abs() < 0.005));
        let mut again = scales.clone();
        let twice = divide_norm(&norm, dtype, &mut again).unwrap();
        assert!(twice.iter().zip(&divided).all(|(a, b)| (a / b - 1.0).abs() < 1e-6), "{dtype}");
    }
    // A norm of 0 gives no input. A quotient beyond the type's range cannot be stored.
    let mut scales = [4.0, 1e-6, 2.0];
    assert_eq!(divide_norm(&[0.0, 1.0, 1.0], DType::F16, &mut scales).unwrap(), [0.0, 1.0, 0.5]);
    assert_eq!(scales, [1.0, 1.0, 2.0]);
}

#[test]
fn folding_into_rows_changes_the_groups_scales_alone() {
    let (rows, cols) = (12, 20);
    let w = random(rows * cols, 6);
    let moments = Moments::new(&hessian(&inputs(cols, 30, 1), cols));
    let tensor = quantize(&w, scheme(Bits::Four, 8, false), &vec![1.0; cols], &moments, None).tensor;
    let by: Vec<f32> = random(rows, 7).iter().map(|v| 1.5 + v).collect();
    let divided = divide_rows(&tensor, &by).unwrap();
    assert_eq!((divided.codes(), divided.zero_points()), (tensor.codes(), tensor.zero_points()));
    let (before, after) = (effective(&tensor, &vec![1.0; cols]), effective(&divided, &vec![1.0; cols]));
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!((before / by[index / cols] - after).abs() < 1e-6);
    }
    let tiny = vec![1e-42; rows];
    assert_eq!(divide_rows(&tensor, &tiny).unwrap_err().code(), crate::error::ErrorCode::NonFinite);
}

#[test]
fn heads_that_share_a_row_of_v_share_its_scale() {
    // Four heads of two features; heads 0 and 1 share, and 2 and 3.
    let grouping = HeadGrouping { heads: 4, kv_heads: 2, head_dim: 2 };
    let mut values = [1.0, 10.0, 3.0, 30.0, 5.0, 50.0, 7.0, 70.0];
    grouping.average(&mut values);
    assert_eq!(values, [2.0, 20.0, 2.0, 20.0, 6.0, 60.0, 6.0, 60.0]);
    assert_eq!(grouping.of_rows(&values), [2.0, 20.0, 6.0, 60.0]);
}

#[test]
fn what_is_not_finite_is_refused() {
    let cols = 8;
    let scales = vec![1.0; cols];
    let four = scheme(Bits::Four, 4, true);
    let mut quantizer =
        AwqQuantizer::new(four, (2, cols), &scales, Measure::Nothing, None, ScaleType::F16).unwrap();
    let mut w = random(2 * cols, 1);
    w[cols + 5] = f32::NAN;
    let error = quantizer.push_rows(&w).unwrap_err();
    assert_eq!(error.to_string(), "expected finite weights but found NaN at row 1, column 5");
    let ternary = Scheme::Ternary { granularity: Granularity::Tensor };
    assert!(AwqQuantizer::new(ternary, (2, cols), &scales, Measure::Nothing, None, ScaleType::F16).is_err());
}

proptest! {
    #[test]
    fn numbers_stay_numbers(
        w in prop::collection::vec(prop_oneof![Just(0f32), -1f32..1.0, -1000f32..1000.0], 24),
        x in prop::collection::vec(prop_oneof![Just(0f32), -1f32..1.0, -1e6f32..1e6], 60),
        norm in prop::collection::vec(prop_oneof![Just(0f32), -2f32..2.0, 1e-6f32..1e-3], 6),
        bits in prop::sample::select(vec![Bits::Two, Bits::Four, Bits::Eight]),
        symmetric: bool,
    ) {
        let cols = 6;
        let h = hessian(&x, cols);
        let moments = Moments::new(&h);
        let norm: Vec<f32> = norm.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect();
        let mut search = ScaleSearch::new(mean(&x, cols));
        while let Some(mut candidate) = search.next_candidate() {
            prop_assert!(candidate.scales.iter().all(|s| s.is_finite() && *s > 0.0));
            let divided = divide_norm(&norm, DType::F16, &mut candidate.scales).unwrap();
            prop_assert!(divided.iter().all(|v| v.is_finite()));
            for ((divided, norm), scale) in divided.iter().zip(&norm).zip(&candidate.scales) {
                prop_assert!(scale.is_finite() && *scale > 0.0);
                prop_assert!((divided * scale - norm).abs() <= 1e-6 * norm.abs());
            }
            let clipping = Clipping::new(&h, &candidate.scales, 4);
            let outcome = quantize(&w, scheme(bits, 4, symmetric), &candidate.scales, &moments, Some(&clipping));
            prop_assert!(outcome.error.is_finite() && outcome.signal.is_finite());
            prop_assert!(effective(&outcome.tensor, &candidate.scales).iter().all(|w| w.is_finite()));
            search.report(outcome.error);
        }
    }
}
