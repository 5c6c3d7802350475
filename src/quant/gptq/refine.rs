//! Refinement passes over GPTQ's codes and scales, by coordinate descent on the output error.
//!
//! GPTQ rounds a column before later ones are known. Coordinate descent on the same objective revises it. Behdin et al.
//! use it from scratch in *QuantEase* (2023). With `e = w - q` the errors of a row, `H` damped as for GPTQ and
//! `r = e H`:
//!
//! 1. changing the weight of column `k` by `d` changes `e H e^T` by `d^2 H[k, k] - 2 d r[k]`, so the best value of that
//!    weight, with all others fixed, is `q[k] + r[k] / H[k, k]`. It is rounded, and kept if the error falls;
//! 2. changing the scale of a group whose codes are `c` steps from the zero point by `d` changes it by
//!    `d^2 c H c^T - 2 d c r^T` over the group's columns. The best `d` is rounded to a storable scale, and kept
//!    if the error falls;
//! 3. a group is refined a few times, then one product updates the other columns' `r`, and the next group follows.
//!
//! The error can only fall, so the number of passes is the only limit.

use super::rows::RoundedRow;
use super::{BLOCK, Grid, Prepared};
use crate::quant::linalg::{Matrix, add_product};
use crate::quant::qparams::QParams;
use crate::task::Pace;
use multiversion::multiversion;

/// Sweeps over a group before the next one. The second sweep uses the new scale. More were not tried.
const LOCAL_SWEEPS: usize = 2;

/// Refines `rows` with the original `weights`, `[n, cols]`, in input order. Returns the remaining
/// output error with the undamped Hessian.
pub(super) async fn refine(
    prepared: &Prepared<'_>,
    grid: Grid,
    weights: &[f32],
    rows: &mut [RoundedRow],
    refinement_passes: usize,
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

    // Scales of groups that do not fit a block are not changed.
    let fits = group_size <= BLOCK;
    let width = if fits { group_size } else { BLOCK };
    let mut change = Vec::new();
    let mut steps = Vec::new();
    let mut products = Vec::new();
    for _ in 0..refinement_passes {
        let mut changed = false;
        for start in (0..cols).step_by(width) {
            let end = (start + width).min(cols);
            let corner = &hessian[start * cols + start..];
            let block = Matrix::new(corner, end - start, end - start, cols);
            let mut groups: Vec<Group<'_>> = Vec::with_capacity(count);
            change.clear();
            for ((row, errors), pull) in
                rows.iter_mut().zip(errors.chunks_exact_mut(cols)).zip(pull.chunks_exact(cols))
            {
                let errors = &mut errors[start..end];
                change.extend_from_slice(errors);
                groups.push(Group {
                    grid,
                    hessian: corner,
                    codes: &mut row.codes[start..end],
                    params: &mut row.params[start / group_size],
                    errors,
                    pull: pull[start..end].to_vec(),
                    settled: false,
                });
            }
            for _ in 0..LOCAL_SWEEPS {
                for group in groups.iter_mut().filter(|group| !group.settled) {
                    group.settled = !group.sweep_codes();
                }
                pace.spend((count * (end - start) * (end - start)) as u64).await;
                if fits {
                    // c H of every row, over the group's columns.
                    steps.clear();
                    groups.iter().for_each(|group| steps.extend(group.steps()));
                    products.clear();
                    products.resize(steps.len(), 0.0);
                    let left = Matrix::new(&steps, count, end - start, end - start);
                    add_product(1.0, left, block, &mut products, end - start);
                    let rows = steps.chunks_exact(end - start).zip(products.chunks_exact(end - start));
                    for (group, (steps, product)) in groups.iter_mut().zip(rows) {
                        group.settled &= !group.refit_scale(steps, product);
                    }
                    pace.spend((count * (end - start) * (end - start)) as u64).await;
                }
                changed |= groups.iter().any(|group| !group.settled);
            }
            for (change, group) in change.chunks_exact_mut(end - start).zip(&groups) {
                for (change, e) in change.iter_mut().zip(group.errors.iter()) {
                    *change = e - *change;
                }
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

/// A group of one row, or a block of a longer group, in refinement.
struct Group<'a> {
    grid: Grid,
    /// The group's block of the damped Hessian: rows `cols` elements apart.
    hessian: &'a [f32],
    codes: &'a mut [u8],
    params: &'a mut QParams,
    /// `w - q`
    errors: &'a mut [f32],
    /// `e H` of this group's columns.
    pull: Vec<f32>,
    /// Whether the last sweep changed nothing.
    settled: bool,
}

impl Group<'_> {
    /// Step 1 for every column. Returns whether anything changed.
    fn sweep_codes(&mut self) -> bool {
        let Self { grid, hessian, codes, params, errors, pull, .. } = self;
        sweep_codes(*grid, hessian, **params, codes, errors, pull)
    }

    /// The steps of each code from the zero point.
    fn steps(&self) -> impl Iterator<Item = f32> {
        let zero_point = f32::from(self.params.zero_point);
        self.codes.iter().map(move |&code| f32::from(code) - zero_point)
    }

    /// Step 2, given the codes' `steps` and their `product` with the group's block. Returns whether the scale changed.
    fn refit_scale(&mut self, steps: &[f32], product: &[f32]) -> bool {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (slope, curvature) = (dot(steps, &self.pull), dot(steps, product));
        let wanted = self.params.scale + slope / curvature;
        // A scale keeps its sign, because beyond zero every code would be far from the nearest.
        if !(wanted * self.params.scale > 0.0 && wanted.is_finite()) {
            return false;
        }
        let Ok(scale) = self.grid.scale_type.round(wanted) else { return false };
        let d = scale - self.params.scale;
        if d == 0.0 || 2.0 * d * slope - d * d * curvature <= 0.0 {
            return false;
        }
        self.params.scale = scale;
        for ((e, c), (r, p)) in self.errors.iter_mut().zip(steps).zip(self.pull.iter_mut().zip(product)) {
            *e -= d * c;
            *r -= d * p;
        }
        true
    }
}

/// See [`Group::sweep_codes`].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sweep_codes(
    grid: Grid,
    hessian: &[f32],
    params: QParams,
    codes: &mut [u8],
    errors: &mut [f32],
    pull: &mut [f32],
) -> bool {
    let mut changed = false;
    for k in 0..codes.len() {
        let row = &hessian[k * grid.cols..][..codes.len()];
        let curvature = row[k];
        let value = params.decode(codes[k]);
        let code = params.encode(value + pull[k] / curvature, grid.bits);
        let d = params.decode(code) - value;
        let gain = 2.0 * d * pull[k] - d * d * curvature;
        // Also excludes NaN, from a curvature of 0.
        if code != codes[k] && gain > 0.0 {
            codes[k] = code;
            errors[k] -= d;
            for (r, h) in pull.iter_mut().zip(row) {
                *r -= d * h;
            }
            changed = true;
        }
    }
    changed
}
