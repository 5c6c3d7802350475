//! Scales, clips and rounds rows of a matrix, in steps.

use super::{Clipping, Measure, Moments};
use crate::error::{Context, Result};
use crate::quant::linalg::{Matrix, add_product};
use crate::quant::qparams::{QParams, ScaleType, encode_group, non_finite_weight, range};
use crate::quant::scheme::Bits;
use crate::task::Pace;

/// Number of clipping ranges, including the full one.
const CLIP_STEPS: usize = 21;
/// Largest relative reduction of a range.
const MAX_SHRINK: f32 = 0.5;
/// Columns between two products.
const BLOCK: usize = 128;
/// Estimated cost of rounding a weight, in multiply-adds.
const ROUND_WORK: u64 = 8;

/// The rounding of rows.
#[derive(Clone, Copy)]
pub(super) struct Grid<'a> {
    pub(super) bits: Bits,
    pub(super) symmetric: bool,
    pub(super) cols: usize,
    pub(super) group_size: usize,
    pub(super) scale_type: ScaleType,
    pub(super) scales: &'a [f32],
    pub(super) measure: Measure<'a>,
    pub(super) clipping: Option<&'a Clipping>,
}

/// Rows rounded together.
pub(super) struct ClippedRows {
    /// `[rows, cols]`
    pub(super) codes: Vec<u8>,
    /// `[rows, groups]`
    pub(super) params: Vec<QParams>,
    /// `[rows, cols]`: the original weights.
    pub(super) weights: Vec<f32>,
    /// `[rows, cols]`: the rounded weights without column scales; empty if nothing is measured.
    pub(super) effective: Vec<f32>,
    /// Squared output error, sum over rows.
    pub(super) error: f64,
    /// Squared output, sum over rows.
    pub(super) signal: f64,
}

impl ClippedRows {
    /// `weights` is `[n, cols]`, starting at row `first_row` of the matrix.
    pub(super) async fn run(
        grid: Grid<'_>,
        weights: Vec<f32>,
        first_row: usize,
        pace: &mut Pace,
    ) -> Result<Self> {
        let Grid { cols, group_size, .. } = grid;
        let mut codes = vec![0; weights.len()];
        let moments = grid.measure.moments();
        let mut effective = vec![0.0; if moments.is_some() { weights.len() } else { 0 }];
        let mut params = Vec::with_capacity(weights.len().div_ceil(group_size));
        let mut scaled = vec![0.0; cols];
        let mut trials = Trials::default();
        for (index, row) in weights.chunks_exact(cols).enumerate() {
            let place = index * cols;
            for ((scaled, w), scale) in scaled.iter_mut().zip(row).zip(grid.scales) {
                *scaled = w * scale;
            }
            for start in (0..cols).step_by(group_size) {
                let end = cols.min(start + group_size);
                let group = &scaled[start..end];
                let codes = &mut codes[place + start..place + end];
                let found = range(group)
                    .map_err(|column| non_finite_weight(group[column], first_row + index, start + column))?;
                let q = grid
                    .params(group, found, start / group_size, &mut trials, pace)
                    .await
                    .context_with(|| format!("row {}, columns from {start}", first_row + index))?;
                grid.encode(group, q, codes);
                if moments.is_some() {
                    let out = &mut effective[place + start..place + end];
                    for ((value, &code), scale) in out.iter_mut().zip(&*codes).zip(&grid.scales[start..end]) {
                        *value = q.decode(code) / scale;
                    }
                }
                params.push(q);
            }
            pace.spend(ROUND_WORK * cols as u64).await;
        }
        let (mut error, mut signal) = (0.0, 0.0);
        if let Some(moments) = moments {
            let errors: Vec<f32> = weights.iter().zip(&effective).map(|(w, q)| w - q).collect();
            error = moments.output_square(&errors, pace).await;
            if let Measure::ErrorAndSignal(_) = grid.measure {
                signal = moments.output_square(&weights, pace).await;
            }
        }
        Ok(Self { codes, params, weights, effective, error, signal })
    }
}

/// Buffers for the ranges, `[CLIP_STEPS, columns]`.
#[derive(Default)]
struct Trials {
    params: Vec<QParams>,
    codes: Vec<u8>,
    errors: Vec<f32>,
    products: Vec<f32>,
}

impl Grid<'_> {
    fn encode(&self, weights: &[f32], q: QParams, codes: &mut [u8]) {
        let (midpoint, max_code) = (self.bits.midpoint(), self.bits.max_code());
        encode_group(weights, q.scale, q.zero_point, midpoint, max_code, codes);
    }

    /// Scale and zero point of a group with the range `min..=max`.
    async fn params(
        &self,
        weights: &[f32],
        (min, max): (f32, f32),
        group: usize,
        trials: &mut Trials,
        pace: &mut Pace,
    ) -> Result<QParams> {
        let whole = QParams::from_range(min, max, self.bits, self.symmetric, self.scale_type)?;
        let Some(clipping) = self.clipping.filter(|_| min < max) else { return Ok(whole) };
        let len = weights.len();
        trials.params.clear();
        trials.codes.resize(len, 0);
        trials.errors.resize(CLIP_STEPS * len, 0.0);
        for (step, errors) in trials.errors.chunks_exact_mut(len).enumerate() {
            let part = 1.0 - MAX_SHRINK * step as f32 / (CLIP_STEPS - 1) as f32;
            let q = QParams::from_range(min * part, max * part, self.bits, self.symmetric, self.scale_type)?;
            self.encode(weights, q, &mut trials.codes);
            for ((error, w), &code) in errors.iter_mut().zip(weights).zip(&trials.codes) {
                *error = w - q.decode(code);
            }
            trials.params.push(q);
        }
        trials.products.clear();
        trials.products.resize(CLIP_STEPS * len, 0.0);
        pace.spend(ROUND_WORK * (CLIP_STEPS * len) as u64).await;
        for start in (0..len).step_by(BLOCK) {
            let width = BLOCK.min(len - start);
            let errors = Matrix::new(&trials.errors, CLIP_STEPS, len, len);
            let block = Matrix::new(&clipping.blocks[group][start..], len, width, len);
            add_product(1.0, errors, block, &mut trials.products[start..], len);
            pace.spend((CLIP_STEPS * len * width) as u64).await;
        }
        let (mut best, mut least) = (whole, f32::INFINITY);
        let pairs = trials.errors.chunks_exact(len).zip(trials.products.chunks_exact(len));
        for ((errors, products), &q) in pairs.zip(&trials.params) {
            let cost: f32 = errors.iter().zip(products).map(|(e, p)| e * p).sum();
            if cost < least {
                (best, least) = (q, cost);
            }
        }
        Ok(best)
    }
}

impl Moments {
    /// Sum over the rows of `e H e^T`.
    pub(super) async fn output_square(&self, rows: &[f32], pace: &mut Pace) -> f64 {
        let cols = self.size;
        let count = rows.len() / cols;
        let mut products = vec![0.0; count * BLOCK.min(cols)];
        let mut sum = 0.0;
        for start in (0..cols).step_by(BLOCK) {
            let end = (start + BLOCK).min(cols);
            let products = &mut products[..count * (end - start)];
            products.fill(0.0);
            // Below the diagonal there are zeros.
            let upper = Matrix::new(&self.upper[start..], end, end - start, cols);
            add_product(1.0, Matrix::new(rows, count, end, cols), upper, products, end - start);
            for (row, products) in rows.chunks_exact(cols).zip(products.chunks_exact(end - start)) {
                let pairs = row[start..end].iter().zip(products);
                sum += pairs.map(|(&e, &p)| f64::from(e) * f64::from(p)).sum::<f64>();
            }
            pace.spend((count * end * (end - start)) as u64).await;
        }
        2.0 * sum
    }
}
