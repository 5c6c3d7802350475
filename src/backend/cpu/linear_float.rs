//! `W x` with `f32` activations, in three kernels:
//! - [`Dot`]: one token by weights of any format, dequantized in registers.
//! - [`Expand`]: dequantizes a block of rows for many tokens.
//! - [`Multiply`]: many tokens by rows of floats.
//!
//! A dot product has one vector of partial sums and takes the columns in order, whatever the number of tokens and rows
//! in its tile. A token therefore gives the same bits alone and in a batch.

use super::columns::{Columns, UNIT};
use super::parallel::Tiles;
use super::rows::{F32Row, FloatMatrix, FloatRow};
use super::simd::{Kernel, Simd, for_each_part};
use std::ops::Range;

/// Rows of a register tile.
pub(super) const TILE_ROWS: usize = 4;

/// Units that a tile sums before its partial sums are stored. The tokens then stay in the L1 cache for all rows: 512
/// columns of four tokens are 8 KiB.
const DEPTH: usize = 16;

/// Maximum rows of a [`Multiply`] task, which stores as many partial sums per token.
pub(super) const MAX_ROWS: usize = 32;

/// Destination of a task's results.
#[derive(Clone, Copy)]
pub(super) struct OutputColumns<'a> {
    /// `[count, rows of all parts]`
    pub(super) y: &'a Tiles<'a>,
    /// The column of the matrix's row 0.
    pub(super) column: usize,
    /// `[rows]` of the matrix
    pub(super) bias: Option<&'a [f32]>,
}

impl OutputColumns<'_> {
    /// Stores the result of one row and one token.
    ///
    /// # Safety
    /// No other task may have the same row and token.
    #[inline(always)]
    pub(super) unsafe fn put(&self, row: usize, token: usize, sum: f32) {
        let bias = self.bias.map_or(0.0, |bias| bias[row]);
        // SAFETY: the caller's promise.
        unsafe { self.y.set(token, self.column + row, sum + bias) };
    }
}

impl OutputColumns<'_> {
    /// Adds the bias to the sums of some rows and one token, and stores the results.
    ///
    /// # Safety
    /// As for [`OutputColumns::put`].
    pub(super) unsafe fn put_run(&self, rows: Range<usize>, token: usize, sums: &mut [f32]) {
        let sums = &mut sums[..rows.len()];
        if let Some(bias) = self.bias {
            for (sum, bias) in sums.iter_mut().zip(&bias[rows.clone()]) {
                *sum += bias;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.y.set_run(token, self.column + rows.start, sums) };
    }

    /// As [`OutputColumns::put_run`], for the rows of a tile from `row` on. Rows from `end` on are dropped.
    ///
    /// # Safety
    /// As for [`OutputColumns::put`].
    #[inline(always)]
    pub(super) unsafe fn put_tile(&self, row: usize, end: usize, token: usize, mut sums: [f32; TILE_ROWS]) {
        if row + TILE_ROWS > end {
            for (row, sum) in (row..end).zip(sums) {
                // SAFETY: the caller's promise.
                unsafe { self.put(row, token, sum) };
            }
            return;
        }
        if let Some(bias) = self.bias {
            for (sum, bias) in sums.iter_mut().zip(&bias[row..row + TILE_ROWS]) {
                *sum += bias;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.y.set_array(token, self.column + row, sums) };
    }
}

/// Some rows of a matrix times one token.
pub(super) struct Dot<'a, M> {
    pub(super) matrix: &'a M,
    pub(super) columns: Columns,
    pub(super) rows: Range<usize>,
    pub(super) token: usize,
    /// `[units]`: this token
    pub(super) x: &'a [[f32; UNIT]],
    pub(super) target: OutputColumns<'a>,
}

impl<M: FloatMatrix> Kernel for Dot<'_, M> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone().step_by(TILE_ROWS) {
            // A tile that ends beyond the last row repeats that row and drops the results: less code than narrower
            // tiles.
            let rows: [M::Row<'_>; TILE_ROWS] =
                std::array::from_fn(|r| self.matrix.row((row + r).min(self.rows.end - 1)));
            let mut sums = [[s.splat(0.0)]; TILE_ROWS];
            if self.columns.units_per_group == 1 {
                // The same computation with one unit per group as a constant: with groups of 32, a nested loop costs a
                // third of the time.
                for unit in 0..self.columns.units {
                    sums = tile(s, rows, [self.x], unit, unit..unit + 1, sums);
                }
            } else {
                for group in 0..self.columns.groups {
                    sums = tile(s, rows, [self.x], group, self.columns.group_units(group), sums);
                }
            }
            for (row, [sum]) in (row..self.rows.end).zip(sums) {
                // SAFETY: tasks differ in rows or tokens.
                unsafe { self.target.put(row, self.token, s.reduce(sum)) };
            }
        }
    }
}

/// Dequantizes some rows of a matrix.
pub(super) struct Expand<'a, M> {
    pub(super) matrix: &'a M,
    pub(super) columns: Columns,
    pub(super) rows: Range<usize>,
    /// `[rows, units]`
    pub(super) out: &'a mut [[f32; UNIT]],
}

impl<M: FloatMatrix> Kernel for Expand<'_, M> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, out) in self.rows.zip(self.out.chunks_exact_mut(self.columns.units)) {
            let row = self.matrix.row(row);
            for group in 0..self.columns.groups {
                let shared = row.group(s, group);
                for unit in self.columns.group_units(group) {
                    let values = row.unit(s, unit);
                    for_each_part!(part of S {
                        s.store(M::Row::part(s, shared, values, part), &mut out[unit], part);
                    });
                }
            }
        }
    }
}

/// Some rows of floats times some tokens.
pub(super) struct Multiply<'a> {
    /// `[rows, units]`: only the rows of this task
    pub(super) matrix: &'a [[f32; UNIT]],
    pub(super) units: usize,
    pub(super) rows: Range<usize>,
    pub(super) tokens: Range<usize>,
    /// `[count, units]`
    pub(super) x: &'a [[f32; UNIT]],
    pub(super) target: OutputColumns<'a>,
}

impl Kernel for Multiply<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(self.rows.len() <= MAX_ROWS, "more rows than partial sums");
        let mut token = self.tokens.start;
        while token < self.tokens.end {
            let tokens = (self.tokens.end - token).min(S::TILE_TOKENS);
            match tokens {
                1 => self.column_of_tiles::<S, 1>(s, token),
                2 => self.column_of_tiles::<S, 2>(s, token),
                3 => self.column_of_tiles::<S, 3>(s, token),
                _ => self.column_of_tiles::<S, 4>(s, token),
            }
            token += tokens;
        }
    }
}

impl Multiply<'_> {
    /// All rows times the `T` tokens from `token` on.
    #[inline(always)]
    fn column_of_tiles<S: Simd, const T: usize>(&self, s: S, token: usize) {
        let units = self.units;
        let mut x = [&self.x[token * units..(token + 1) * units]; T];
        for t in 1..T {
            x[t] = &self.x[(token + t) * units..(token + t + 1) * units];
        }
        let quads = (0..self.rows.len()).step_by(TILE_ROWS);
        if units <= DEPTH {
            for quad in quads {
                let sums = tile(s, self.tile_rows(quad), x, 0, 0..units, [[s.splat(0.0); T]; TILE_ROWS]);
                self.put(s, quad, token, &sums);
            }
            return;
        }
        let mut aside = [[[s.splat(0.0); T]; TILE_ROWS]; MAX_ROWS / TILE_ROWS];
        let mut start = 0;
        while start < units {
            let end = (start + DEPTH).min(units);
            for (quad, sums) in quads.clone().zip(&mut aside) {
                *sums = tile(s, self.tile_rows(quad), x, 0, start..end, *sums);
            }
            start = end;
        }
        for (quad, sums) in quads.zip(&aside) {
            self.put(s, quad, token, sums);
        }
    }

    /// The tile of rows from `quad` on. As in [`Dot`], the last row fills up the last tile.
    #[inline(always)]
    fn tile_rows(&self, quad: usize) -> [F32Row<'_>; TILE_ROWS] {
        let row = |r: usize| (quad + r).min(self.rows.len() - 1) * self.units;
        let mut rows = [F32Row(&self.matrix[row(0)..row(0) + self.units]); TILE_ROWS];
        for r in 1..TILE_ROWS {
            rows[r] = F32Row(&self.matrix[row(r)..row(r) + self.units]);
        }
        rows
    }

    /// Stores the results of a tile.
    #[inline(always)]
    fn put<S: Simd, const T: usize>(&self, s: S, quad: usize, token: usize, sums: &[[S::F32; T]; TILE_ROWS]) {
        for t in 0..T {
            let sums = s.reduce_four([sums[0][t], sums[1][t], sums[2][t], sums[3][t]]);
            // SAFETY: tasks differ in rows or tokens.
            unsafe { self.target.put_tile(self.rows.start + quad, self.rows.end, token + t, sums) };
        }
    }
}

/// Adds the products of some units of one group to the partial sums of `R` rows and `T` tokens.
#[inline(always)]
fn tile<S: Simd, W: FloatRow, const R: usize, const T: usize>(
    s: S,
    rows: [W; R],
    x: [&[[f32; UNIT]]; T],
    group: usize,
    units: Range<usize>,
    mut sums: [[S::F32; T]; R],
) -> [[S::F32; T]; R] {
    let mut shared = [rows[0].group(s, group); R];
    for r in 1..R {
        shared[r] = rows[r].group(s, group);
    }
    for unit in units {
        let mut values = [rows[0].unit(s, unit); R];
        for r in 1..R {
            values[r] = rows[r].unit(s, unit);
        }
        for_each_part!(part of S {
            let mut inputs = [s.load(&x[0][unit], part); T];
            for t in 1..T {
                inputs[t] = s.load(&x[t][unit], part);
            }
            for r in 0..R {
                let w = W::part(s, shared[r], values[r], part);
                for t in 0..T {
                    sums[r][t] = s.mul_add(w, inputs[t], sums[r][t]);
                }
            }
        });
    }
    sums
}
