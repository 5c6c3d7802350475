//! `C += A B` in floats, at the processor's speed. Not for the forward pass, whose sums have an order of their own.
//!
//! As in Goto, van de Geijn, *Anatomy of High-Performance Matrix Multiplication*, 2008:
//! 1. `B` is copied into panels of two vectors of columns, all rows of one behind the other.
//! 2. A task has a band of `C`. For [`DEPTH`] terms of its sums at a time it copies what `A` has of them into panels of
//!    [`TILE_ROWS`] rows.
//! 3. For each two panels a tile of `C` is added up in registers, and then added to what is there.
//!
//! A sum takes its terms in order, [`DEPTH`] of them at a time: nothing of it depends on the cut into bands. Floor 4.

use crate::backend::cpu::columns::UNIT;
use crate::backend::cpu::parallel::Workers;
use crate::backend::cpu::simd::{Isa, Kernel, Simd};
use crate::quant::linalg::Matrix;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a register tile, which is two vectors wide: with a row of `B` and an element of `A` they fill 16 registers.
const TILE_ROWS: usize = 6;
/// Terms of a sum that are added up in registers: a panel of them stays in a first-level cache.
const DEPTH: usize = 256;
/// Most rows of a band: their panels stay in a second-level cache.
const BAND: usize = 96;

thread_local! {
    /// Panels of `B`; kept because they are too large to clear each time.
    static RIGHT: RefCell<Vec<[f32; UNIT]>> = const { RefCell::new(Vec::new()) };
    /// Panels of a band of `A`.
    static LEFT: RefCell<Vec<[f32; TILE_ROWS]>> = const { RefCell::new(Vec::new()) };
}

/// `c += a b`, with `c` of rows `stride` elements apart.
///
/// # Panics
/// When the shapes do not fit together or `c` is too short.
pub(super) fn add_product(
    isa: Isa,
    workers: &Workers,
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    stride: usize,
) {
    let (rows, depth, columns) = (a.rows(), a.cols(), b.cols());
    assert_eq!(depth, b.rows(), "the inner sizes of a product are equal");
    if rows == 0 || columns == 0 || depth == 0 {
        return;
    }
    let len = (rows - 1) * stride + columns;
    assert!(columns <= stride && len <= c.len(), "the result has room for every row");
    let width = 2 * isa.lanes();
    let units = depth.div_ceil(UNIT / width);
    let mut kept = RIGHT.take();
    let needed = columns.div_ceil(width) * units;
    if kept.len() < needed {
        kept.resize(needed, [0.0; UNIT]);
    }
    let panels = &mut kept[..needed];
    workers.run_chunks(panels, units, depth * columns, |index, panel| {
        isa.run(Right { b, first: index * width, panel });
    });
    let work = rows.saturating_mul(depth).saturating_mul(columns);
    let bands = rows.div_ceil(BAND).next_multiple_of(workers.threads());
    let band = rows.div_ceil(bands).next_multiple_of(TILE_ROWS);
    workers.run_chunks(&mut c[..len], band * stride, work, |index, c| {
        let rows = index * band..rows.min((index + 1) * band);
        isa.run(Band { a, rows, panels, units, columns, c, stride });
    });
    RIGHT.set(kept);
}

/// Copies the columns from `first` on into a panel.
struct Right<'a> {
    b: Matrix<'a>,
    first: usize,
    /// `[units]`
    panel: &'a mut [[f32; UNIT]],
}

impl Kernel for Right<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { b, first, panel } = self;
        let (rows, units, panel) = (0..b.rows(), panel.len(), panel.as_flattened_mut());
        match S::LANES {
            4 => pack(b, rows, first, panel.as_chunks_mut::<8>().0, units * 4),
            8 => pack(b, rows, first, panel.as_chunks_mut::<16>().0, units * 2),
            16 => pack(b, rows, first, panel.as_chunks_mut::<32>().0, units),
            _ => unreachable!("vectors have four, eight or sixteen elements"),
        }
    }
}

/// Copies some rows of the columns from `first` on into panels of `WIDTH` columns, `[panels, len]`; what is left of them is 0.
#[inline(always)]
fn pack<const WIDTH: usize>(
    from: Matrix<'_>,
    rows: Range<usize>,
    first: usize,
    panels: &mut [[f32; WIDTH]],
    len: usize,
) {
    let columns = || (first..from.cols()).step_by(WIDTH);
    if from.cols() - first < panels.len() / len * WIDTH || rows.len() < len {
        panels.fill([0.0; WIDTH]);
    }
    // Whichever elements are neighbours are read together.
    if from.row(rows.start).is_none() {
        for (panel, first) in panels.chunks_exact_mut(len).zip(columns()) {
            for (place, column) in (first..from.cols().min(first + WIDTH)).enumerate() {
                let Some(values) = from.column(column) else { break };
                for (out, value) in panel.iter_mut().zip(&values[rows.clone()]) {
                    out[place] = *value;
                }
            }
        }
    }
    for (index, row) in rows.enumerate() {
        let Some(values) = from.row(row) else { break };
        for (out, first) in panels[index..].iter_mut().step_by(len).zip(columns()) {
            match values[first..].first_chunk() {
                Some(values) => *out = *values,
                None => out[..values.len() - first].copy_from_slice(&values[first..]),
            }
        }
    }
}

/// Some rows of a product.
struct Band<'a> {
    a: Matrix<'a>,
    rows: Range<usize>,
    /// Those of the right operand, `[panels, units]`
    panels: &'a [[f32; UNIT]],
    units: usize,
    /// Of the result.
    columns: usize,
    /// Those rows of the result, `stride` elements apart.
    c: &'a mut [f32],
    stride: usize,
}

impl Kernel for Band<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { a, rows, panels, units, columns, c, stride } = self;
        // Taken out rather than borrowed: a closure would not be compiled for the vector instructions.
        let mut kept = LEFT.take();
        let (a, width) = (a.transposed(), 2 * S::LANES);
        let steps = UNIT / width;
        for start in (0..units).step_by(DEPTH / steps) {
            let end = units.min(start + DEPTH / steps);
            let terms = start * steps..a.rows().min(end * steps);
            let panel = (end - start) * steps;
            let needed = rows.len().div_ceil(TILE_ROWS) * panel;
            if kept.len() < needed {
                kept.resize(needed, [0.0; TILE_ROWS]);
            }
            let left = &mut kept[..needed];
            // Rows behind the band are dropped with those of its last tile.
            pack(a, terms, rows.start, left, panel);
            for (right, first) in panels.chunks_exact(units).zip((0..columns).step_by(width)) {
                let span = first..columns.min(first + width);
                for (left, c) in left.chunks_exact(panel).zip(c.chunks_mut(TILE_ROWS * stride)) {
                    let sums = tile(s, left, &right[start..end]);
                    add_tile(s, &sums, c, stride, span.clone());
                }
            }
        }
        LEFT.set(kept);
    }
}

/// The products of two panels.
#[inline(always)]
fn tile<S: Simd>(s: S, left: &[[f32; TILE_ROWS]], right: &[[f32; UNIT]]) -> [[S::F32; 2]; TILE_ROWS] {
    let steps = UNIT / (2 * S::LANES);
    let mut sums = [[s.splat(0.0); 2]; TILE_ROWS];
    for (unit, left) in right.iter().zip(left.chunks_exact(steps)) {
        for step in 0..steps {
            let right = [s.load(unit, 2 * step), s.load(unit, 2 * step + 1)];
            for row in 0..TILE_ROWS {
                let left = s.splat(left[step][row]);
                for vector in 0..2 {
                    sums[row][vector] = s.mul_add(left, right[vector], sums[row][vector]);
                }
            }
        }
    }
    sums
}

/// Adds a tile to some columns of the first rows of `c`.
#[inline(always)]
fn add_tile<S: Simd>(
    s: S,
    sums: &[[S::F32; 2]; TILE_ROWS],
    c: &mut [f32],
    stride: usize,
    columns: Range<usize>,
) {
    for (sums, c) in sums.iter().zip(c.chunks_mut(stride)) {
        let mut unit = [0.0; UNIT];
        s.store(sums[0], &mut unit, 0);
        s.store(sums[1], &mut unit, 1);
        let c = &mut c[columns.clone()];
        if c.len() == 2 * S::LANES {
            // The same, but the compiler sees how many they are.
            for (c, sum) in c.iter_mut().zip(&unit[..2 * S::LANES]) {
                *c += sum;
            }
        } else {
            for (c, sum) in c.iter_mut().zip(&unit) {
                *c += sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::testing::Random;

    /// Largest deviation from sums in double precision, over the sum of magnitudes. Measured 1.3e-7.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn products_are_those_of_double_precision() {
        let mut random = Random::new(1);
        let mut worst = 0.0f64;
        let sizes = [(1, 1, 1), (5, 3, 7), (6, 256, 16), (7, 257, 33), (200, 31, 50), (97, 600, 35)];
        for ((rows, depth, columns), transposed) in sizes.into_iter().zip([false, true].into_iter().cycle()) {
            let (a, b) = (random.floats(rows * depth), random.floats(depth * columns));
            let before = random.floats(rows * (columns + 2));
            let matrix = |data, rows, columns| {
                if transposed {
                    Matrix::new(data, columns, rows, rows).transposed()
                } else {
                    Matrix::new(data, rows, columns, columns)
                }
            };
            let at = |data: &[f32], (rows, columns): (usize, usize), i: usize, j: usize| {
                f64::from(data[if transposed { j * rows + i } else { i * columns + j }])
            };
            for isa in Isa::available() {
                let found = [1, 3].map(|threads| {
                    let mut c = before.clone();
                    let (a, b) = (matrix(&a, rows, depth), matrix(&b, depth, columns));
                    add_product(isa, &Workers::new(Some(threads)), a, b, &mut c, columns + 2);
                    c
                });
                assert_eq!(found[0], found[1], "bits depend on the threads");
                for (index, (&found, &before)) in found[0].iter().zip(&before).enumerate() {
                    let (i, j) = (index / (columns + 2), index % (columns + 2));
                    let mut sum = f64::from(before);
                    let mut size = sum.abs() + 1e-9;
                    for k in 0..if j < columns { depth } else { 0 } {
                        let term = at(&a, (rows, depth), i, k) * at(&b, (depth, columns), k, j);
                        (sum, size) = (sum + term, size + term.abs());
                    }
                    worst = worst.max((f64::from(found) - sum).abs() / size);
                }
            }
        }
        println!("largest deviation {worst:.1e}");
        assert!(worst < TOLERANCE, "{worst:e}");
    }
}
