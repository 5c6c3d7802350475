//! `W x` with activations rounded to INT8 per token: integer dot products, then scales (Ma et al. 2024, W1.58A8).
//!
//! 1. `q = round(x * s)` with `s = 127 / max(absmax(x), 1e-5)`, halves to even, as BitNet's published code does.
//! 2. For each group `sum (code - zero_point) q`, in exact 32-bit integers: the dot product of the unsigned codes
//!    starts from `-zero_point * sum q`.
//! 3. The result is `sum / s * scale`. With several groups, `sum over groups (sum * scale) / s`.
//!
//! Departures: (a) in step 3 with several groups each lane's integers are scaled and added as `f32` before the lanes
//! are added up, which saves a reduction per group; with one scale per row nothing is rounded before the end.
//! (b) A token with a NaN or an infinity gives NaN, where the published code gives an arbitrary number.
//! Floor 4.

use super::columns::{Columns, UNIT};
use super::linear_float::{TILE_ROWS, Target};
use super::memory::Aligned;
use super::rows::{CodeMatrix, CodeRow, FloatMatrix, Width};
use super::simd::{Kernel, Simd};
use crate::error::Result;
use std::ops::Range;

/// Columns of a group up to which a dot product cannot leave 32 bits: `255 * 127 * 2^16 < 2^31`.
pub(super) const MAX_GROUP: usize = 1 << 16;

/// Smallest absolute maximum: what keeps a token of zeros from dividing by zero.
const SMALLEST_ABSMAX: f32 = 1e-5;

/// Activations of some tokens, rounded.
pub(super) struct QuantizedTokens {
    pub(super) columns: Columns,
    /// `[count, units, 32]`
    values: Aligned<i8>,
    /// Sums of the values of each group, `[count, groups]`
    sums: Vec<i32>,
    /// `[count]`: what the activations were multiplied with
    scales: Vec<f32>,
}

impl QuantizedTokens {
    /// Rounds the rows of `x`, `[count, columns.cols]`.
    pub(super) fn new(x: &[f32], columns: Columns) -> Result<Self> {
        let count = x.len() / columns.cols;
        let mut values = Aligned::zeroed(count * columns.padded())?;
        let mut sums = vec![0; count * columns.groups];
        let mut scales = vec![0.0; count];
        let rows = values.chunks_exact_mut(columns.padded()).zip(sums.chunks_exact_mut(columns.groups));
        for ((x, scale), (values, sums)) in x.chunks_exact(columns.cols).zip(&mut scales).zip(rows) {
            let factor = 127.0 / absmax(x).max(SMALLEST_ABSMAX);
            for ((span, at), sum) in columns.group_spans().zip(sums) {
                *sum = round(&x[span.clone()], factor, &mut values[at..at + span.len()]);
            }
            *scale = if x.iter().all(|v| v.is_finite()) { factor } else { f32::NAN };
        }
        Ok(Self { columns, values, sums, scales })
    }
}

/// Rounds one token's activations to INT8 and back, by the rule of [`QuantizedTokens`].
pub(super) fn round_trip(x: &mut [f32]) {
    let factor = 127.0 / absmax(x).max(SMALLEST_ABSMAX);
    for x in x {
        // NaN and infinity stay what they are.
        if x.is_finite() {
            *x = rounded(*x, factor) / factor;
        }
    }
}

/// `x * factor` rounded to an integer, halves to even.
fn rounded(x: f32, factor: f32) -> f32 {
    // Adding and subtracting this leaves no fraction bits of a small number, in the processor's own rounding: to even.
    const MAGIC: f32 = 12_582_912.0;
    ((x * factor).clamp(-128.0, 127.0) + MAGIC) - MAGIC
}

fn absmax(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks.iter().map(|chunk| &chunk[..]).chain([tail]) {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(v.abs());
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// Rounds `x * factor` to integers, halves to even; returns their sum.
fn round(x: &[f32], factor: f32, out: &mut [i8]) -> i32 {
    let mut sum = 0;
    for (out, x) in out.iter_mut().zip(x) {
        *out = rounded(*x, factor) as i8;
        sum += i32::from(*out);
    }
    sum
}

/// Some rows of a matrix times some tokens.
pub(super) struct Int8Task<'a, W: Width, const ASYMMETRIC: bool> {
    pub(super) matrix: &'a CodeMatrix<'a, W, ASYMMETRIC>,
    pub(super) rows: Range<usize>,
    pub(super) tokens: Range<usize>,
    pub(super) x: &'a QuantizedTokens,
    pub(super) target: Target<'a>,
}

/// One rounded token.
#[derive(Clone, Copy)]
struct Token<'a> {
    values: &'a [[i8; UNIT]],
    sums: &'a [i32],
    scale: f32,
}

impl<W: Width, const ASYMMETRIC: bool> Kernel for Int8Task<'_, W, ASYMMETRIC> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone().step_by(TILE_ROWS) {
            row_of_tiles(s, &self, row);
        }
    }
}

/// The tiles of the rows from `row` on.
#[inline(always)]
fn row_of_tiles<S: Simd, W: Width, const ASYMMETRIC: bool>(
    s: S,
    task: &Int8Task<'_, W, ASYMMETRIC>,
    row: usize,
) {
    // A tile that ends beyond the last row takes that row again and drops it: less code than narrower tiles.
    let rows = std::array::from_fn(|r| task.matrix.row((row + r).min(task.rows.end - 1)));
    let mut token = task.tokens.start;
    while token + 2 <= task.tokens.end {
        tile::<S, W, ASYMMETRIC, TILE_ROWS, 2>(s, task, row, rows, token);
        token += 2;
    }
    if token < task.tokens.end {
        tile::<S, W, ASYMMETRIC, TILE_ROWS, 1>(s, task, row, rows, token);
    }
}

/// The dot products of `R` rows with `T` tokens, into the result.
#[inline(always)]
fn tile<S: Simd, W: Width, const ASYMMETRIC: bool, const R: usize, const T: usize>(
    s: S,
    task: &Int8Task<'_, W, ASYMMETRIC>,
    row: usize,
    rows: [CodeRow<'_, W, ASYMMETRIC>; R],
    token: usize,
) {
    let columns = task.x.columns;
    let x: [Token<'_>; T] = std::array::from_fn(|t| {
        let t = token + t;
        Token {
            values: &task.x.values.as_chunks().0[t * columns.units..(t + 1) * columns.units],
            sums: &task.x.sums[t * columns.groups..(t + 1) * columns.groups],
            scale: task.x.scales[t],
        }
    });
    let mut out = [[0.0; T]; R];
    if columns.groups == 1 {
        let ints = group_dots(s, rows, x, 0, 0..columns.units);
        for r in 0..R {
            for t in 0..T {
                out[r][t] = s.reduce_ints(ints[r][t]) as f32 / x[t].scale * rows[r].scale(0);
            }
        }
    } else {
        let mut sums = [[s.no_sums(); T]; R];
        for group in 0..columns.groups {
            let units = columns.group_units(group);
            // As below, but the compiler sees that a group is a unit.
            let ints = if columns.units_per_group == 1 {
                group_dots(s, rows, x, group, group..group + 1)
            } else {
                group_dots(s, rows, x, group, units)
            };
            for r in 0..R {
                let scale = rows[r].scale(group);
                for t in 0..T {
                    sums[r][t] = s.add_scaled(sums[r][t], ints[r][t], scale);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                out[r][t] = s.reduce_sums(sums[r][t]) / x[t].scale;
            }
        }
    }
    for (row, out) in (row..task.rows.end).zip(&out) {
        for (t, out) in out.iter().enumerate() {
            // SAFETY: tasks differ in rows or tokens.
            unsafe { task.target.put(row, token + t, *out) };
        }
    }
}

/// `sum (code - zero_point) q` over a group, as partial sums.
#[inline(always)]
fn group_dots<S: Simd, W: Width, const ASYMMETRIC: bool, const R: usize, const T: usize>(
    s: S,
    rows: [CodeRow<'_, W, ASYMMETRIC>; R],
    x: [Token<'_>; T],
    group: usize,
    units: Range<usize>,
) -> [[S::Ints; T]; R] {
    let mut ints = [[s.start(0); T]; R];
    for r in 0..R {
        let zero = i32::from(rows[r].zero(group));
        for t in 0..T {
            ints[r][t] = s.start(x[t].sums[group].wrapping_mul(-zero));
        }
    }
    for unit in units {
        for r in 0..R {
            let codes = rows[r].codes(s, unit);
            for t in 0..T {
                ints[r][t] = if W::NARROW {
                    s.dot::<true>(ints[r][t], codes, &x[t].values[unit])
                } else {
                    s.dot::<false>(ints[r][t], codes, &x[t].values[unit])
                };
            }
        }
    }
    ints
}
