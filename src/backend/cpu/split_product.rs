//! Whole matrix products on the [matrix unit](super::amx).
//!
//! The dimension that is summed over is split into blocks, so that the operands that a task reads repeatedly stay in
//! the L2 cache. The number of tasks depends on the number of threads; the order of a sum does not.

use super::amx::{Block, EDGE, Region, Split, Step, Terms};
use super::parallel::Workers;
use crate::error::Result;
use std::cell::RefCell;
use std::ops::Range;

/// Steps of a panel: the length that is summed at a time.
const INNER_STEPS: usize = 16;
/// Steps of the right panels that are packed at a time: 6 MiB, which all threads read.
const RIGHT_STEPS: usize = 1024;
/// Maximum left panels of a task: with one right panel they fit in the L2 cache while the task goes through all right
/// panels.
const LEFT_PANELS: usize = 8;
/// Tasks per thread if tasks differ in length.
const UNEVEN_TASKS: usize = 4;

/// Bytes kept for products on `threads` threads, with results of at most `width` columns.
pub(super) fn kept_bytes(width: usize, threads: usize) -> usize {
    let right = (width.div_ceil(EDGE) * INNER_STEPS).min(RIGHT_STEPS);
    (right + threads * LEFT_PANELS * INNER_STEPS) * size_of::<Step>()
}

/// One operand of a product. One of its dimensions is the result's (rows of the left, columns of the right operand);
/// the other is summed over.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    region: Region<'a>,
    /// Whether the operand's rows are the result's dimension.
    is_rows: bool,
    /// One factor for each term of a sum.
    factors: Option<&'a [f32]>,
}

impl<'a> Side<'a> {
    /// `[result, sum]`
    #[cfg(any(test, feature = "train"))]
    pub(super) fn rows(region: Region<'a>) -> Self {
        Self { region, is_rows: true, factors: None }
    }

    /// `[sum, result]`
    pub(super) fn columns(region: Region<'a>) -> Self {
        Self { region, is_rows: false, factors: None }
    }

    /// The same operand with a factor for each term of a sum.
    #[cfg(any(test, feature = "train"))]
    pub(super) fn times(self, factors: Option<&'a [f32]>) -> Self {
        Self { factors, ..self }
    }

    /// Rows or columns that this operand gives the result.
    fn len(&self) -> usize {
        if self.is_rows { self.region.rows() } else { self.region.cols() }
    }

    /// Number of terms of each sum.
    fn inner(&self) -> usize {
        if self.is_rows { self.region.cols() } else { self.region.rows() }
    }

    /// Packs the panel that begins at `first`, for the terms `inner`. Returns how many parts its numbers have.
    fn panel(
        &self,
        split: &Split,
        is_right: bool,
        first: usize,
        inner: Range<usize>,
        panel: &mut [Step],
    ) -> usize {
        let Self { region, is_rows, factors } = *self;
        let span = first..self.len().min(first + EDGE);
        let factors = factors.map(|factors| &factors[inner.clone()]);
        let parts = if is_rows {
            split.amx.split_rows(region.part(span, inner), factors, panel, Terms::Six)
        } else {
            split.amx.split_columns(region.part(inner, span), factors, panel)
        };
        if is_rows == is_right {
            split.amx.turn(panel, Terms::Six);
        }
        parts
    }
}

/// Destination that a product is added to.
pub(super) struct Sum<'a> {
    /// Rows of `stride` elements, as many as the left operand has.
    pub(super) rows: &'a mut [f32],
    pub(super) stride: usize,
    /// Position of the result's first column.
    pub(super) column: usize,
    /// Whether blocks of 32 below the diagonal may be left out.
    pub(super) is_symmetric: bool,
}

thread_local! {
    /// Left panels of a task, kept because allocating memory costs about as much as filling it.
    static LEFT: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
}

/// `out += left right`
///
/// # Errors
/// `out_of_memory`
pub(super) fn add_product(
    workers: &Workers,
    split: &mut Split,
    left: Side<'_>,
    right: Side<'_>,
    out: Sum<'_>,
) -> Result<()> {
    assert_eq!(left.inner(), right.inner(), "the inner sizes of a product are equal");
    let Sum { rows: out, stride, column: shift, is_symmetric } = out;
    let (height, width, inner) = (left.len(), right.len(), left.inner());
    assert!(out.len() == height * stride && shift + width <= stride, "the result has room for every row");
    let panels = height.div_ceil(EDGE);
    if panels == 0 || width == 0 {
        return Ok(());
    }
    // Tasks of equal size: one per thread. Tasks of a triangle differ in size, so that more of them balance the load.
    let tasks = workers.threads() * if is_symmetric { UNEVEN_TASKS } else { 1 };
    let each = panels.div_ceil(tasks);
    let each = each.div_ceil(each.div_ceil(LEFT_PANELS));
    for from in (0..inner).step_by(INNER_STEPS * EDGE) {
        let terms = from..inner.min(from + INNER_STEPS * EDGE);
        let steps = terms.len().div_ceil(EDGE);
        let lot = (RIGHT_STEPS / steps) * EDGE;
        for start in (0..width).step_by(lot) {
            let columns = start..width.min(start + lot);
            // Rows with an element of these columns on or above the diagonal.
            let height = if is_symmetric { height.min(columns.end) } else { height };
            let mut kept = split.panels(columns.len().div_ceil(EDGE) * steps)?;
            let shared = &mut kept[..columns.len().div_ceil(EDGE) * steps];
            let mut tasks: Vec<(&mut [Step], usize)> =
                shared.chunks_mut(steps).map(|panel| (panel, 0)).collect();
            let work = terms.len() * columns.len();
            workers.run_chunks(&mut tasks, 1, work, |index, task| {
                let (panel, parts) = &mut task[0];
                *parts = right.panel(split, true, start + index * EDGE, terms.clone(), panel);
            });
            let panels: Vec<(&[Step], Terms)> =
                tasks.into_iter().map(|(panel, parts)| (&*panel, Terms::Six.of(parts))).collect();
            let work = work * height;
            workers.run_chunks(&mut out[..height * stride], each * EDGE * stride, work, |index, out| {
                let first = index * each * EDGE;
                let mut kept = LEFT.take();
                let needed = (out.len() / stride).div_ceil(EDGE) * steps;
                if kept.len() < needed {
                    kept.resize(needed, Step::ZERO);
                }
                let mine = &mut kept[..needed];
                for (panel, row) in mine.chunks_exact_mut(steps).zip((first..).step_by(EDGE)) {
                    left.panel(split, false, row, terms.clone(), panel);
                }
                let tiles = split.amx.tiles();
                let mut products = Block::ZERO;
                for (&(right, needed), column) in panels.iter().zip(columns.clone().step_by(EDGE)) {
                    let span = shift + column..shift + columns.end.min(column + EDGE);
                    let rows = mine.chunks_exact(steps).zip(out.chunks_mut(EDGE * stride));
                    for ((left, out), row) in rows.zip((first..).step_by(EDGE)) {
                        if is_symmetric && row > column {
                            break;
                        }
                        tiles.multiply(left, right, needed, &mut products);
                        for (out, products) in out.chunks_exact_mut(stride).zip(&products.0) {
                            for (out, product) in out[span.clone()].iter_mut().zip(products) {
                                *out += product;
                            }
                        }
                    }
                }
                LEFT.set(kept);
            });
            split.shared = kept;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    /// Largest error, relative to the sum of magnitudes. Measured 1.9e-7.
    const RELATIVE_TOLERANCE: f64 = 5e-7;

    /// A matrix inside a larger one, and access to its elements.
    fn side(
        values: &[f32],
        len: usize,
        inner: usize,
        is_rows: bool,
    ) -> (Side<'_>, impl Fn(usize, usize) -> f64) {
        let (rows, cols) = if is_rows { (len, inner) } else { (inner, len) };
        let stride = cols + 3;
        let region = Region::new(&values[2..], stride, rows, cols);
        let at = move |i: usize, k: usize| {
            let (row, col) = if is_rows { (i, k) } else { (k, i) };
            f64::from(values[2 + row * stride + col])
        };
        (if is_rows { Side::rows(region) } else { Side::columns(region) }, at)
    }

    #[test]
    fn sums_are_those_of_single_products_however_the_sides_lie() {
        let Some(mut split) = Split::detect() else {
            println!("skipped: this processor has no AMX");
            return;
        };
        let mut random = Random::new(3);
        let mut worst = 0.0f64;
        for (height, width, inner) in
            [(1, 1, 1), (33, 31, 40), (70, 129, 65), (290, 40, 30), (34, 1100, 1030), (3, 5, 2200)]
        {
            for (left_rows, right_rows, bits) in [
                (true, true, !0),
                (true, false, !0xFF),
                (true, true, !0xFFFF),
                (false, true, !0xFF),
                (false, false, !0),
            ] {
                let room = |len: usize| (len + 3) * (inner + 3) + 5;
                let a = random.floats(room(height));
                let mut b = random.floats(room(width));
                b.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits() & bits));
                let factors = random.floats(inner);
                let factors = (bits == !0xFF).then_some(&factors[..]);
                let (left, a) = side(&a, height, inner, left_rows);
                let left = left.times(factors);
                let (right, b) = side(&b, width, inner, right_rows);
                let stride = width + 4;
                let mut all: Vec<Vec<f32>> = Vec::new();
                for threads in [1, 3] {
                    let mut out = vec![1.0; height * stride];
                    let sum = Sum { rows: &mut out, stride, column: 2, is_symmetric: false };
                    add_product(&Workers::new(Some(threads)), &mut split, left, right, sum).unwrap();
                    all.push(out);
                }
                assert_eq!(all[0], all[1], "threads change sums");
                for (i, row) in all[0].chunks_exact(stride).enumerate() {
                    assert_eq!(
                        [row[0], row[1], row[stride - 2], row[stride - 1]],
                        [1.0; 4],
                        "beside the result"
                    );
                    for (j, &found) in row[2..2 + width].iter().enumerate() {
                        let factor = |k| factors.map_or(1.0, |factors: &[f32]| f64::from(factors[k]));
                        let products = (0..inner).map(|k| a(i, k) * factor(k) * b(j, k));
                        let (sum, size) = products.fold((1.0, 1.0), |(s, size), p| (s + p, size + p.abs()));
                        worst = worst.max((f64::from(found) - sum).abs() / size);
                    }
                }
            }
        }
        println!("worst relative error {worst:e}");
        assert!(worst < RELATIVE_TOLERANCE, "{worst:e}");
    }
}
