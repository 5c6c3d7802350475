//! `W x` with activations rounded to INT8 per token: integer dot products, then scales (Ma et al. 2024, W1.58A8).
//!
//! 1. `q = round(x * s)`, halves to even, with the `s` of an [`ActivationGrid`].
//! 2. For each group `sum (code - zero_point) q`, in exact 32-bit integers: the dot product of the unsigned codes
//!    starts from `-zero_point * sum q`.
//! 3. The result is `sum / s * scale`. With several groups, `sum over groups (sum * scale) / s`.
//! 4. Where groups have minimums, `sum over groups (minimum * sum q) / s` is added.
//!
//! Departures:
//! 1. In step 3 with several groups, each lane's integers are scaled and added as `f32` before the lanes are added.
//!    This saves a reduction per group. With one scale per row nothing is rounded before the end.
//! 2. A token with a NaN or an infinity gives NaN, where the published code gives an arbitrary number.

use super::columns::{Columns, UNIT};
use super::linear_float::{OutputColumns, TILE_ROWS};
use super::memory::Aligned;
use super::parallel::Workers;
use super::rows::{CodeMatrix, CodeRow, FloatMatrix, MINIMUMS};
use super::simd::{Kernel, Simd};
use crate::error::Result;
use crate::quant::ActivationGrid;
use multiversion::multiversion;
use std::ops::Range;

/// Maximum columns of a group: its dot product fits in 32 bits, `255 * 128 * 2^16 < 2^31`.
pub(super) const MAX_GROUP: usize = 1 << 16;

/// Tokens rounded per task.
const TASK_TOKENS: usize = 16;
/// Lower bound of the absolute maximum: a token of zeros must not divide by zero.
const SMALLEST_ABSMAX: f32 = 1e-5;

/// Activations of some tokens, rounded to INT8.
pub(super) struct QuantizedTokens {
    pub(super) columns: Columns,
    pub(super) grid: ActivationGrid,
    /// `[count, units, 32]`
    values: Aligned<i8>,
    /// Sums of the values of each group, `[count, groups]`
    sums: Vec<i32>,
    /// `[count]`: divisors of the integers
    scales: Vec<f32>,
}

impl QuantizedTokens {
    /// Rounds the rows of `x`, `[count, columns.cols]`.
    pub(super) fn new(workers: &Workers, x: &[f32], columns: Columns, grid: ActivationGrid) -> Result<Self> {
        let count = x.len() / columns.cols;
        let mut values = Aligned::zeroed(count * columns.padded())?;
        let mut sums = vec![0; count * columns.groups];
        let mut scales = vec![0.0; count];
        let rows = values.chunks_exact_mut(columns.padded()).zip(sums.chunks_exact_mut(columns.groups));
        let rows = x.chunks_exact(columns.cols).zip(&mut scales).zip(rows);
        let mut rows: Vec<_> = rows.collect();
        workers.run_chunks(&mut rows, TASK_TOKENS, x.len() * 4, |_, rows| {
            for ((x, scale), (values, sums)) in rows {
                **scale = quantize(x, columns, grid, values, sums);
            }
        });
        Ok(Self { columns, grid, values, sums, scales })
    }
}

impl QuantizedTokens {
    /// The integers of some tokens, `[tokens, units]`.
    pub(super) fn integers(&self, tokens: Range<usize>, out: &mut [[f32; UNIT]]) {
        let units = self.columns.units;
        let values: &[[i8; UNIT]] = self.values.as_chunks().0;
        for (out, values) in out.iter_mut().zip(&values[tokens.start * units..tokens.end * units]) {
            for (out, value) in out.iter_mut().zip(values) {
                *out = f32::from(*value);
            }
        }
    }

    /// Divisor of each token's integers; NaN if an activation was NaN or infinite.
    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Number of tokens.
    pub(super) fn count(&self) -> usize {
        self.scales.len()
    }

    /// Values, sums and divisor of one token.
    #[inline(always)]
    fn token(&self, token: usize) -> Token<'_> {
        let Columns { units, groups, .. } = self.columns;
        Token {
            values: &self.values.as_chunks().0[token * units..(token + 1) * units],
            sums: &self.sums[token * groups..(token + 1) * groups],
            scale: self.scales[token],
        }
    }
}

/// Rounds a token; returns the divisor of its integers.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn quantize(x: &[f32], columns: Columns, grid: ActivationGrid, values: &mut [i8], sums: &mut [i32]) -> f32 {
    let rounding = Rounding::of(x, grid);
    for ((span, at), sum) in columns.group_spans().zip(sums) {
        let (x, out) = (&x[span.clone()], &mut values[at..at + span.len()]);
        // One loop per rule, so that no loop has a branch.
        *sum = match rounding {
            Rounding::Times(factor) => round(x, out, |x| x * factor),
            Rounding::Over(step) => round(x, out, |x| x / step),
        };
    }
    // No early exit, so that the loop is vectorized.
    if x.iter().fold(true, |finite, v| finite & v.is_finite()) { rounding.factor() } else { f32::NAN }
}

/// How one token's activations become integers.
#[derive(Clone, Copy)]
enum Rounding {
    Times(f32),
    /// Not the reciprocal: `-absmax / step` lies on a tie, which must round as compressed-tensors' own division does.
    /// (With the lowest code for every `-absmax`, 28% of logits equaled transformers' instead of 73%.)
    Over(f32),
}

impl Rounding {
    #[inline(always)]
    fn of(x: &[f32], grid: ActivationGrid) -> Self {
        let absmax = absmax(x);
        match grid {
            ActivationGrid::Absmax127 => Self::Times(127.0 / absmax.max(SMALLEST_ABSMAX)),
            ActivationGrid::FullRange => {
                let step = absmax / 127.5;
                Self::Over(if step == 0.0 { f32::EPSILON } else { step })
            }
        }
    }

    /// Divisor of the integers.
    fn factor(self) -> f32 {
        match self {
            Self::Times(factor) => factor,
            Self::Over(step) => 1.0 / step,
        }
    }
}

/// Rounds one token's activations to INT8 and back, by the rule of [`QuantizedTokens`].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn round_trip(x: &mut [f32], grid: ActivationGrid) {
    let rounding = Rounding::of(x, grid);
    // NaN and infinity stay unchanged.
    let keep = |x: f32, rounded: f32| if x.is_finite() { rounded } else { x };
    match rounding {
        Rounding::Times(factor) => x.iter_mut().for_each(|x| *x = keep(*x, rounded(*x * factor) / factor)),
        Rounding::Over(step) => x.iter_mut().for_each(|x| *x = keep(*x, rounded(*x / step) * step)),
    }
}

/// Rounds `x` to integers in place and returns their scale; NaN if a value is NaN or infinite.
#[cfg(feature = "train")]
pub(super) fn round_to_codes(x: &mut [f32], grid: ActivationGrid) -> f32 {
    let rounding = Rounding::of(x, grid);
    if !x.iter().fold(true, |finite, v| finite & v.is_finite()) {
        x.fill(0.0);
        return f32::NAN;
    }
    match rounding {
        Rounding::Times(factor) => x.iter_mut().for_each(|x| *x = rounded(*x * factor)),
        Rounding::Over(step) => x.iter_mut().for_each(|x| *x = rounded(*x / step)),
    }
    1.0 / rounding.factor()
}

/// Adding this to a small number rounds it to an integer, halves to even.
const MAGIC: f32 = 12_582_912.0;

/// [`MAGIC`] plus the nearest INT8 integer, halves to even.
#[inline(always)]
fn shifted(x: f32) -> f32 {
    x.clamp(-128.0, 127.0) + MAGIC
}

/// The nearest INT8 integer, halves to even.
#[inline(always)]
pub(super) fn rounded(x: f32) -> f32 {
    shifted(x) - MAGIC
}

/// The nearest integer of a number below `2^22`, halves to even.
#[inline(always)]
pub(super) fn nearest(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

#[inline(always)]
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

/// Scales and rounds to integers, halves to even; returns their sum.
#[inline(always)]
fn round(x: &[f32], out: &mut [i8], scaled: impl Fn(f32) -> f32) -> i32 {
    let mut sum = 0;
    for (out, x) in out.iter_mut().zip(x) {
        // The integer is in the last bits. No check for NaN is needed: a token with NaN has a NaN scale.
        *out = shifted(scaled(*x)).to_bits() as i8;
        sum += i32::from(*out);
    }
    sum
}

/// Some rows of a matrix times some tokens.
pub(super) struct Int8Task<'a, const N: usize, const OFFSET: u8> {
    pub(super) matrix: &'a CodeMatrix<'a, N, OFFSET>,
    pub(super) rows: Range<usize>,
    pub(super) tokens: Range<usize>,
    pub(super) x: &'a QuantizedTokens,
    pub(super) target: OutputColumns<'a>,
}

/// One rounded token.
#[derive(Clone, Copy)]
struct Token<'a> {
    values: &'a [[i8; UNIT]],
    sums: &'a [i32],
    scale: f32,
}

impl<const N: usize, const OFFSET: u8> Kernel for Int8Task<'_, N, OFFSET> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone().step_by(TILE_ROWS) {
            row_of_tiles(s, &self, row);
        }
    }
}

/// The tile of rows from `row` on, with all tokens.
#[inline(always)]
fn row_of_tiles<S: Simd, const N: usize, const OFFSET: u8>(s: S, task: &Int8Task<'_, N, OFFSET>, row: usize) {
    // A tile that ends beyond the last row repeats that row and drops the results: less code than narrower tiles.
    let rows: [CodeRow<'_, N, OFFSET>; TILE_ROWS] =
        std::array::from_fn(|r| task.matrix.row((row + r).min(task.rows.end - 1)));
    let (Range { start, end }, units) = (task.tokens.clone(), task.x.columns.units);
    let pairs = (start..end.saturating_sub(1)).step_by(2);
    // Codes that several tokens share are unpacked once.
    if pairs.len() > 0 {
        let mut unpacked = vec![rows[0].codes(s, 0); TILE_ROWS * units];
        for r in 0..TILE_ROWS {
            for unit in 0..units {
                unpacked[r * units + unit] = rows[r].codes(s, unit);
            }
        }
        let codes = std::array::from_fn(|r| &unpacked[r * units..(r + 1) * units]);
        for token in pairs {
            tile::<S, _, N, OFFSET, 2>(s, task, row, (&rows, codes), token);
        }
    }
    if (end - start) % 2 == 1 {
        tile::<S, _, N, OFFSET, 1>(s, task, row, (&rows, rows), end - 1);
    }
}

/// The codes of a row, unit by unit.
trait Codes<S: Simd>: Copy {
    fn codes(self, s: S, unit: usize) -> S::Bytes;
}

impl<S: Simd, const N: usize, const OFFSET: u8> Codes<S> for CodeRow<'_, N, OFFSET> {
    #[inline(always)]
    fn codes(self, s: S, unit: usize) -> S::Bytes {
        self.codes(s, unit)
    }
}

/// Codes that are already unpacked.
impl<S: Simd> Codes<S> for &[S::Bytes] {
    #[inline(always)]
    fn codes(self, _: S, unit: usize) -> S::Bytes {
        self[unit]
    }
}

/// Rows of a tile: their scales and offsets, and their codes.
type Rows<'a, C, const N: usize, const OFFSET: u8> =
    (&'a [CodeRow<'a, N, OFFSET>; TILE_ROWS], [C; TILE_ROWS]);

/// Writes the dot products of the rows from `row` on with `T` tokens.
#[inline(always)]
fn tile<S: Simd, C: Codes<S>, const N: usize, const OFFSET: u8, const T: usize>(
    s: S,
    task: &Int8Task<'_, N, OFFSET>,
    row: usize,
    (rows, codes): Rows<'_, C, N, OFFSET>,
    token: usize,
) {
    let columns = task.x.columns;
    let mut x = [task.x.token(token); T];
    for t in 1..T {
        x[t] = task.x.token(token + t);
    }
    let mut out = [[0.0; TILE_ROWS]; T];
    if columns.groups == 1 {
        let ints = group_dots(s, (rows, codes), x, 0, 0..columns.units);
        for t in 0..T {
            let sums = s.reduce_four_ints([ints[0][t], ints[1][t], ints[2][t], ints[3][t]]);
            for r in 0..TILE_ROWS {
                out[t][r] = sums[r] as f32 / x[t].scale * rows[r].scale(0);
                if OFFSET == MINIMUMS {
                    out[t][r] += x[t].sums[0] as f32 / x[t].scale * rows[r].minimum(0);
                }
            }
        }
    } else {
        let mut sums = [[s.no_sums(); T]; TILE_ROWS];
        for group in 0..columns.groups {
            let units = columns.group_units(group);
            // The same computation with one unit per group as a constant.
            let ints = if columns.units_per_group == 1 {
                group_dots(s, (rows, codes), x, group, group..group + 1)
            } else {
                group_dots(s, (rows, codes), x, group, units)
            };
            for r in 0..TILE_ROWS {
                let scale = rows[r].scale(group);
                for t in 0..T {
                    sums[r][t] = s.add_scaled(sums[r][t], ints[r][t], scale);
                    if OFFSET == MINIMUMS {
                        out[t][r] += x[t].sums[group] as f32 * rows[r].minimum(group);
                    }
                }
            }
        }
        for r in 0..TILE_ROWS {
            for t in 0..T {
                out[t][r] = (s.reduce_sums(sums[r][t]) + out[t][r]) / x[t].scale;
            }
        }
    }
    for (t, out) in out.into_iter().enumerate() {
        // SAFETY: tasks differ in rows or tokens.
        unsafe { task.target.put_tile(row, task.rows.end, token + t, out) };
    }
}

/// `sum (code - zero_point) q` over a group, as partial sums.
#[inline(always)]
fn group_dots<S: Simd, C: Codes<S>, const N: usize, const OFFSET: u8, const T: usize>(
    s: S,
    (rows, codes): Rows<'_, C, N, OFFSET>,
    x: [Token<'_>; T],
    group: usize,
    units: Range<usize>,
) -> [[S::Ints; T]; TILE_ROWS] {
    let mut ints = [[s.start(0); T]; TILE_ROWS];
    for r in 0..TILE_ROWS {
        let zero = i32::from(rows[r].zero(group));
        for t in 0..T {
            ints[r][t] = s.start(x[t].sums[group].wrapping_mul(-zero));
        }
    }
    if N == 32 {
        for unit in units {
            for r in 0..TILE_ROWS {
                let codes = codes[r].codes(s, unit);
                for t in 0..T {
                    ints[r][t] = s.dot::<false>(ints[r][t], codes, &x[t].values[unit]);
                }
            }
        }
        return ints;
    }
    // A unit adds at most two products to each narrow sum.
    let largest_code = if N == 8 { 3 } else { 15 };
    let room = (S::NARROW / (2 * 128 * largest_code)) as usize;
    let mut start = units.start;
    while start < units.end {
        let end = units.end.min(start.saturating_add(room));
        let mut narrow = [[s.no_narrow(); T]; TILE_ROWS];
        for unit in start..end {
            for r in 0..TILE_ROWS {
                let codes = codes[r].codes(s, unit);
                for t in 0..T {
                    narrow[r][t] = s.dot_narrow(narrow[r][t], codes, &x[t].values[unit]);
                }
            }
        }
        for r in 0..TILE_ROWS {
            for t in 0..T {
                ints[r][t] = s.add_narrow(ints[r][t], narrow[r][t]);
            }
        }
        start = end;
    }
    ints
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of `compute_dynamic_scales_and_zp` and `fake_quantize` of compressed-tensors 0.20.
    #[test]
    fn the_full_range_is_that_of_compressed_tensors() {
        let cases: [([f32; 8], [i8; 8], f32); 4] = [
            (
                [-1.0, 0.5, 0.25, -0.125, 0.996, 0.0, 1e-9, 0.742_187_5],
                [-127, 64, 32, -16, 127, 0, 0, 95],
                0.007_843_138,
            ),
            // The lowest code is reached; 127.5 is clamped.
            (
                [0.3, -0.7, 0.7, 0.1, -0.2, 0.35, 0.002_745_098_2, -0.6],
                [55, -128, 127, 18, -36, 64, 1, -109],
                0.005_490_196,
            ),
            (
                [3.0, -2.9999, 1.5, -1.5, 0.011_764_706, 0.035_294_12, 2.0, -1.0],
                [127, -127, 64, -64, 0, 2, 85, -42],
                0.023_529_412,
            ),
            ([0.0; 8], [0; 8], f32::EPSILON),
        ];
        for (x, codes, step) in cases {
            let tokens = QuantizedTokens::new(
                &Workers::new(Some(1)),
                &x,
                Columns::new(x.len(), x.len()),
                ActivationGrid::FullRange,
            )
            .unwrap();
            assert_eq!(tokens.values[..8], codes, "{x:?}");
            assert_eq!(tokens.sums[0], codes.iter().map(|&code| i32::from(code)).sum::<i32>());
            assert_eq!(tokens.scales[0], 1.0 / step);
            let mut back = x;
            round_trip(&mut back, ActivationGrid::FullRange);
            assert_eq!(back, codes.map(|code| f32::from(code) * step), "{x:?}");
        }
    }
}
