//! Rounds rows of a matrix to nearest and by GPTQ, in steps.

use super::refine::refine;
use super::{BLOCK, Grid, Prepared};
use crate::error::{Context, Result};
use crate::quant::column_order;
use crate::quant::linalg::{Matrix, add_product};
use crate::quant::qparams::{QParams, encode_group, non_finite_weight, range};
use crate::task::Pace;
use multiversion::multiversion;
use std::ops::Range;

/// Estimated cost of the scale search for each weight of a group, in multiply-adds. About 38 scales are tried.
const SEARCH_WORK: u64 = 256;
/// Estimated cost of rounding a weight.
const ROUND_WORK: u64 = 8;

/// Rows rounded together.
pub(super) struct RoundedRows {
    pub(super) gptq: Vec<RoundedRow>,
    pub(super) rtn: Vec<RoundedRow>,
    pub(super) sums: Sums,
}

/// A rounded row.
pub(super) struct RoundedRow {
    /// `[cols]`, in input order.
    pub(super) codes: Vec<u8>,
    /// `[groups]`
    pub(super) params: Vec<QParams>,
}

/// Sums over rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Output error of GPTQ's rows.
    pub(super) gptq: f64,
    /// Output error of rounding to nearest.
    pub(super) rtn: f64,
    /// Output of the original rows.
    pub(super) signal: f64,
    /// Whether a number in GPTQ was not finite.
    pub(super) failed: bool,
}

impl RoundedRows {
    /// `weights` is `[n, cols]`, starting at row `first_row` of the matrix.
    pub(super) async fn run(
        prepared: &Prepared<'_>,
        grid: Grid,
        weights: &[f32],
        first_row: usize,
        pace: &mut Pace,
    ) -> Result<Self> {
        let cols = grid.cols;
        let mut sums = Sums::default();
        let rtn = weights
            .chunks_exact(cols)
            .enumerate()
            .map(|(index, row)| nearest(grid, row, first_row + index))
            .collect::<Result<Vec<_>>>()?;
        pace.spend(ROUND_WORK * weights.len() as u64).await;
        let mut ordered = prepared.gather(weights);
        prepared.compensate_drift(weights, &mut ordered, pace).await;
        // The target weights.
        let mut wanted = prepared.scatter(&ordered);
        sums.signal = prepared.output_square(&ordered, pace).await;
        let errors: Vec<f32> = wanted
            .chunks_exact(cols)
            .zip(&rtn)
            .flat_map(|(row, rounded)| row.iter().enumerate().map(|(col, w)| w - rounded.value(grid, col)))
            .collect();
        sums.rtn = prepared.output_square(&prepared.gather(&errors), pace).await;
        for row in ordered.chunks_exact_mut(cols) {
            for (w, &dead) in row.iter_mut().zip(&prepared.dead) {
                if dead {
                    *w = 0.0;
                }
            }
        }
        let mut rounding = Rounding::new(prepared, grid, ordered, pace).await?;
        rounding.run(pace).await;
        sums.gptq = rounding.error;
        sums.failed = rounding.failed;
        if prepared.refinement_passes > 0 && !rounding.failed {
            for (place, _) in prepared.dead.iter().enumerate().filter(|(_, dead)| **dead) {
                wanted.iter_mut().skip(prepared.column(place)).step_by(cols).for_each(|w| *w = 0.0);
            }
            sums.gptq =
                refine(prepared, grid, &wanted, &mut rounding.rows, prepared.refinement_passes, pace).await;
        }
        Ok(Self { gptq: rounding.rows, rtn, sums })
    }
}

impl RoundedRow {
    /// The weight in column `col`, with groups in input order.
    pub(super) fn value(&self, grid: Grid, col: usize) -> f32 {
        self.params[col / grid.group_size].decode(self.codes[col])
    }
}

fn nearest(grid: Grid, row: &[f32], row_index: usize) -> Result<RoundedRow> {
    let mut codes = vec![0; grid.cols];
    let mut params = Vec::with_capacity(grid.cols.div_ceil(grid.group_size));
    for (group, (weights, codes)) in
        row.chunks(grid.group_size).zip(codes.chunks_mut(grid.group_size)).enumerate()
    {
        let first_col = group * grid.group_size;
        let (min, max) = range(weights)
            .map_err(|index| non_finite_weight(weights[index], row_index, first_col + index))?;
        let q = QParams::from_range(min, max, grid.bits, grid.symmetric, grid.scale_type)
            .context_with(|| format!("row {row_index}, columns from {first_col}"))?;
        encode_group(weights, q.scale, q.zero_point, grid.bits.midpoint(), grid.bits.max_code(), codes);
        params.push(q);
    }
    Ok(RoundedRow { codes, params })
}

impl Prepared<'_> {
    /// Rows with columns in the factor's order.
    fn gather(&self, rows: &[f32]) -> Vec<f32> {
        let cols = self.factor.size;
        match &self.columns {
            None => rows.to_vec(),
            Some(columns) => rows
                .chunks_exact(cols)
                .flat_map(|row| columns.iter().map(move |&column| row[column as usize]))
                .collect(),
        }
    }

    /// The inverse of [`gather`](Self::gather).
    fn scatter(&self, ordered: &[f32]) -> Vec<f32> {
        let cols = self.factor.size;
        let Some(columns) = &self.columns else { return ordered.to_vec() };
        let mut rows = vec![0.0; ordered.len()];
        for (row, ordered) in rows.chunks_exact_mut(cols).zip(ordered.chunks_exact(cols)) {
            column_order::scatter(ordered, columns, row);
        }
        rows
    }

    /// Adds the correction for original inputs to `ordered`, the `weights` in the factor's order:
    /// `w C H^-1`, with `C` the mean of `(x_o - x) x^T`. [`Drift`](crate::quant::Drift) holds it transposed.
    async fn compensate_drift(&self, weights: &[f32], ordered: &mut [f32], pace: &mut Pace) {
        let Some(drift) = self.drift else { return };
        let cols = self.factor.size;
        let count = weights.len() / cols;
        let mut lost = vec![0.0; weights.len()];
        for start in (0..cols).step_by(BLOCK) {
            let width = BLOCK.min(cols - start);
            let part = Matrix::new(&drift.mean()[start * cols..], width, cols, cols).transposed();
            add_product(1.0, Matrix::new(weights, count, cols, cols), part, &mut lost[start..], cols);
            pace.spend((count * cols * width) as u64).await;
        }
        let mut lost = self.gather(&lost);
        self.factor.solve(&mut lost, pace).await;
        for (w, change) in ordered.iter_mut().zip(&lost) {
            *w += change;
        }
    }

    /// Sum over the rows of `e H e^T` with the undamped Hessian. `rows` is in the factor's order.
    async fn output_square(&self, rows: &[f32], pace: &mut Pace) -> f64 {
        let cols = self.factor.size;
        let count = rows.len() / cols;
        let mut product = vec![0.0; rows.len()];
        for start in (0..cols).step_by(BLOCK) {
            let end = (start + BLOCK).min(cols);
            // The factor is zero below its diagonal.
            let upper = Matrix::new(&self.factor.upper[start..], end, end - start, cols);
            add_product(1.0, Matrix::new(rows, count, end, cols), upper, &mut product[start..], cols);
            pace.spend((count * end * (end - start)) as u64).await;
        }
        let mut sum = 0.0;
        for (row, product) in rows.chunks_exact(cols).zip(product.chunks_exact(cols)) {
            for k in 0..cols {
                let (e, v) = (f64::from(row[k]), f64::from(product[k]));
                sum += f64::from(self.factor.diagonal[k]) * v * v - f64::from(self.added[k]) * e * e;
            }
        }
        sum
    }
}

/// The column-by-column rounding of rows.
struct Rounding<'a> {
    prepared: &'a Prepared<'a>,
    grid: Grid,
    /// `[n, cols]`: weights in the factor's order.
    weights: Vec<f32>,
    /// `[n, cols]`: `w - q` of finished columns, 0 of others.
    errors: Vec<f32>,
    rows: Vec<RoundedRow>,
    /// Whether all groups' parameters are known in advance.
    fixed: bool,
    error: f64,
    failed: bool,
}

impl<'a> Rounding<'a> {
    async fn new(prepared: &'a Prepared<'a>, grid: Grid, weights: Vec<f32>, pace: &mut Pace) -> Result<Self> {
        let cols = grid.cols;
        let fixed = grid.group_size >= cols || prepared.has_static_groups();
        let mut importance = vec![0.0; cols];
        for (place, &d) in prepared.factor.diagonal.iter().enumerate() {
            importance[prepared.column(place)] = d;
        }
        let mut rows = Vec::with_capacity(weights.len() / cols);
        for row in weights.chunks_exact(cols) {
            let mut params = vec![QParams { scale: 1.0, zero_point: 0 }; cols.div_ceil(grid.group_size)];
            if fixed {
                let mut stored = vec![0.0; cols];
                for (place, &w) in row.iter().enumerate() {
                    stored[prepared.column(place)] = w;
                }
                let groups = stored.chunks(grid.group_size).zip(importance.chunks(grid.group_size));
                for (params, (weights, importance)) in params.iter_mut().zip(groups) {
                    *params = grid.params(weights, importance)?;
                }
                pace.spend(SEARCH_WORK * cols as u64).await;
            }
            rows.push(RoundedRow { codes: vec![0; cols], params });
        }
        let errors = vec![0.0; weights.len()];
        Ok(Self { prepared, grid, weights, errors, rows, fixed, error: 0.0, failed: false })
    }

    async fn run(&mut self, pace: &mut Pace) {
        let Grid { cols, group_size, .. } = self.grid;
        let block = if self.fixed || group_size <= BLOCK {
            BLOCK / group_size.min(BLOCK) * group_size.min(BLOCK)
        } else {
            group_size
        };
        let factor = &self.prepared.factor;
        let mut targets = Vec::new();
        for start in (0..cols).step_by(block) {
            let end = (start + block).min(cols);
            let width = end - start;
            targets.clear();
            for row in self.weights.chunks_exact(cols) {
                targets.extend_from_slice(&row[start..end]);
            }
            // Errors propagated from columns before the block.
            let before = Matrix::new(&self.errors, self.rows.len(), start, cols);
            let upper = Matrix::new(&factor.upper[start..], start, width, cols);
            add_product(1.0, before, upper, &mut targets, width);
            pace.spend((self.rows.len() * start * width) as u64).await;
            let weight_work = (width / 2) as u64 + if self.fixed { ROUND_WORK } else { SEARCH_WORK };
            for (row, targets) in targets.chunks_exact_mut(width).enumerate() {
                self.round_block(row, start, targets);
                pace.spend(weight_work * width as u64).await;
            }
        }
        for (row, errors) in self.errors.chunks_exact(cols).enumerate() {
            let added: f64 = errors
                .iter()
                .zip(&self.prepared.added)
                .map(|(&e, &added)| f64::from(added) * f64::from(e) * f64::from(e))
                .sum();
            self.error -= added;
            self.failed |= self.rows[row].params.iter().any(|params| !params.scale.is_finite());
        }
    }

    /// Rounds the columns from `start` on of one row. `targets` are their unrounded values, and are overwritten.
    fn round_block(&mut self, row: usize, start: usize, targets: &mut [f32]) {
        let Self { prepared, grid, fixed, .. } = *self;
        let cols = grid.cols;
        let weights = &self.weights[row * cols + start..row * cols + start + targets.len()];
        let errors = &mut self.errors[row * cols + start..row * cols + start + targets.len()];
        let rounded = &mut self.rows[row];
        let mut sum = 0.0;
        let mut from = 0;
        while from < targets.len() {
            let mut end = targets.len();
            if !fixed {
                let place = start + from;
                end = end.min(from + grid.group_size - place % grid.group_size);
                if place.is_multiple_of(grid.group_size) {
                    let wanted = best_values(prepared, place, &weights[from..end], &targets[from..end]);
                    match grid.params(&wanted, &prepared.factor.diagonal[place..place + wanted.len()]) {
                        Ok(params) => rounded.params[prepared.group(place)] = params,
                        Err(_) => {
                            self.failed = true;
                            return;
                        }
                    }
                }
            }
            match round_columns(prepared, grid, start, from..end, weights, rounded, targets, errors) {
                Some(error) => sum += error,
                None => {
                    self.failed = true;
                    return;
                }
            }
            from = end;
        }
        self.error += sum;
    }
}

/// Rounds columns of a block with known parameters, and propagates their errors within the block. The
/// block begins at `start`. Returns the output error, or `None` if a number is not finite.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
#[allow(clippy::too_many_arguments, reason = "one loop, compiled several times")]
fn round_columns(
    prepared: &Prepared<'_>,
    grid: Grid,
    start: usize,
    columns: Range<usize>,
    weights: &[f32],
    rounded: &mut RoundedRow,
    targets: &mut [f32],
    errors: &mut [f32],
) -> Option<f64> {
    let mut sum = 0.0;
    for i in columns {
        let place = start + i;
        let column = prepared.column(place);
        let params = rounded.params[prepared.group(place)];
        let target = targets[i];
        if !target.is_finite() {
            return None;
        }
        let code = params.encode(target, grid.bits);
        let value = params.decode(code);
        rounded.codes[column] = code;
        let error = weights[i] - value;
        errors[i] = error;
        let rounding = f64::from(target - value);
        sum += f64::from(prepared.factor.diagonal[place]) * rounding * rounding;
        let upper = &prepared.factor.upper[place * grid.cols + place + 1..][..targets.len() - i - 1];
        for (target, u) in targets[i + 1..].iter_mut().zip(upper) {
            *target += error * u;
        }
    }
    Some(sum)
}

/// The best unrounded weights of a group from `place` on, given the errors before the group.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn best_values(prepared: &Prepared<'_>, place: usize, weights: &[f32], targets: &[f32]) -> Vec<f32> {
    let cols = prepared.factor.size;
    let mut shift: Vec<f32> = targets.iter().zip(weights).map(|(t, w)| t - w).collect();
    for m in 0..shift.len() {
        let (done, later) = shift.split_at_mut(m + 1);
        let upper = &prepared.factor.upper[(place + m) * cols + place + m + 1..][..later.len()];
        for (y, u) in later.iter_mut().zip(upper) {
            *y -= done[m] * u;
        }
    }
    for (y, w) in shift.iter_mut().zip(weights) {
        *y += w;
    }
    shift
}
