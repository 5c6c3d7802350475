//! Goes over the codes and scales that GPTQ left, group by group, and takes every change that lessens the output error.
//!
//! GPTQ never looks back: a column is rounded before those after it are known. Coordinate descent on the same objective does,
//! as Behdin et al. do from scratch in *QuantEase* (2023). With `e = w - q` the errors of a row, `H` damped as for GPTQ and
//! `r = e H`:
//!
//! 1. changing the weight of column `k` by `d` changes `e H e^T` by `d^2 H[k, k] - 2 d r[k]`, so the best value of that
//!    weight, all others as they are, is `q[k] + r[k] / H[k, k]`: it is rounded, and taken if the error falls;
//! 2. changing the scale of a group whose codes are `c` steps from the zero point by `d` changes it by
//!    `d^2 c H c^T - 2 d c r^T` over the group's columns: the best `d` is rounded to a scale that can be stored, and taken
//!    if the error falls;
//! 3. a group is gone over a few times, then the other columns' `r` learn of it in one product, and the next group follows.
//!
//! The error can only fall, so no limit is needed but the number of sweeps. Floor 2.

use super::rows::RoundedRow;
use super::{BLOCK, Grid, Prepared};
use crate::quant::linalg::{Matrix, add_product};
use crate::quant::qparams::QParams;
use crate::task::Pace;

/// Times that a group is gone over before the next: the second time sees the new scale. More were not tried.
const LOCAL_SWEEPS: usize = 2;

/// Improves `rows`, whose original weights are `weights`, `[n, cols]`, in the order of the input. Returns what is left of
/// the output error, with the Hessian as it was before damping.
pub(super) async fn polish(
    prepared: &Prepared<'_>,
    grid: Grid,
    weights: &[f32],
    rows: &mut [RoundedRow],
    sweeps: usize,
    pace: &mut Pace,
) -> f64 {
    let Grid { cols, group_size, .. } = grid;
    let count = rows.len();
    let hessian = &prepared.damped;
    let mut errors: Vec<f32> = Vec::with_capacity(weights.len());
    for (row, weights) in rows.iter().zip(weights.chunks_exact(cols)) {
        errors.extend(weights.iter().enumerate().map(|(column, w)| w - row.value(grid, column)));
    }
    // r = e H, row by row.
    let mut pull = vec![0.0; errors.len()];
    for start in (0..cols).step_by(BLOCK) {
        let width = BLOCK.min(cols - start);
        let part = Matrix::new(&hessian[start..], cols, width, cols);
        add_product(1.0, Matrix::new(&errors, count, cols, cols), part, &mut pull[start..], cols);
        pace.spend((count * cols * width) as u64).await;
    }

    // Scales of groups that do not fit a block stay as they are.
    let fits = group_size <= BLOCK;
    let width = if fits { group_size } else { BLOCK };
    let mut change = Vec::new();
    for _ in 0..sweeps {
        let mut changed = false;
        for start in (0..cols).step_by(width) {
            let end = (start + width).min(cols);
            change.clear();
            change.resize(count * (end - start), 0.0);
            for (index, (row, change)) in
                rows.iter_mut().zip(change.chunks_exact_mut(end - start)).enumerate()
            {
                let span = index * cols + start..index * cols + end;
                let errors = &mut errors[span.clone()];
                change.copy_from_slice(errors);
                let mut group = Group {
                    grid,
                    hessian,
                    start,
                    codes: &mut row.codes[start..end],
                    params: &mut row.params[start / group_size],
                    errors,
                    pull: pull[span].to_vec(),
                };
                for _ in 0..LOCAL_SWEEPS {
                    let codes = group.sweep_codes();
                    let scale = fits && group.refit_scale();
                    changed |= codes || scale;
                    if !codes && !scale {
                        break;
                    }
                }
                for (change, e) in change.iter_mut().zip(group.errors.iter()) {
                    *change = e - *change;
                }
                pace.spend((2 * LOCAL_SWEEPS * (end - start) * (end - start)) as u64).await;
            }
            let change = Matrix::new(&change, count, end - start, end - start);
            let h = Matrix::new(&hessian[start * cols..], end - start, cols, cols);
            add_product(1.0, change, h, &mut pull, cols);
            pace.spend((count * (end - start) * cols) as u64).await;
        }
        if !changed {
            break;
        }
    }
    let damped: f64 = errors.iter().zip(&pull).map(|(&e, &r)| f64::from(e) * f64::from(r)).sum();
    damped - f64::from(prepared.ridge) * errors.iter().map(|&e| f64::from(e) * f64::from(e)).sum::<f64>()
}

/// A group of one row (or a block of a group that is longer), while it is gone over.
struct Group<'a> {
    grid: Grid,
    /// `[cols, cols]`, damped
    hessian: &'a [f32],
    /// Its first column.
    start: usize,
    codes: &'a mut [u8],
    params: &'a mut QParams,
    /// `w - q`
    errors: &'a mut [f32],
    /// `e H`, of this group's columns.
    pull: Vec<f32>,
}

impl Group<'_> {
    /// Row `k` of the group's block of the Hessian.
    fn hessian_row(&self, k: usize) -> &[f32] {
        let cols = self.grid.cols;
        &self.hessian[(self.start + k) * cols + self.start..][..self.codes.len()]
    }

    /// Step 1 for every column. Whether anything changed.
    fn sweep_codes(&mut self) -> bool {
        let mut changed = false;
        for k in 0..self.codes.len() {
            let curvature = self.hessian_row(k)[k];
            let value = self.params.decode(self.codes[k]);
            let code = self.params.encode(value + self.pull[k] / curvature, self.grid.bits);
            let d = self.params.decode(code) - value;
            let gain = 2.0 * d * self.pull[k] - d * d * curvature;
            // Not for NaN either, which a curvature of 0 makes.
            if code != self.codes[k] && gain > 0.0 {
                self.codes[k] = code;
                self.errors[k] -= d;
                let row = &self.hessian[(self.start + k) * self.grid.cols + self.start..][..self.codes.len()];
                for (r, h) in self.pull.iter_mut().zip(row) {
                    *r -= d * h;
                }
                changed = true;
            }
        }
        changed
    }

    /// Step 2. Whether the scale changed.
    fn refit_scale(&mut self) -> bool {
        let zero_point = f32::from(self.params.zero_point);
        let steps: Vec<f32> = self.codes.iter().map(|&code| f32::from(code) - zero_point).collect();
        // c H, over the group's columns.
        let mut product = vec![0.0f32; steps.len()];
        for (k, &c) in steps.iter().enumerate().filter(|(_, c)| **c != 0.0) {
            for (value, h) in product.iter_mut().zip(self.hessian_row(k)) {
                *value += c * h;
            }
        }
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (slope, curvature) = (dot(&steps, &self.pull), dot(&steps, &product));
        let wanted = self.params.scale + slope / curvature;
        // A scale keeps its sign: beyond zero every code would be far from the nearest.
        if !(wanted * self.params.scale > 0.0 && wanted.is_finite()) {
            return false;
        }
        let Ok(scale) = self.grid.scale_type.round(wanted) else { return false };
        let d = scale - self.params.scale;
        if d == 0.0 || 2.0 * d * slope - d * d * curvature <= 0.0 {
            return false;
        }
        self.params.scale = scale;
        for ((e, c), (r, p)) in self.errors.iter_mut().zip(&steps).zip(self.pull.iter_mut().zip(&product)) {
            *e -= d * c;
            *r -= d * p;
        }
        true
    }
}
