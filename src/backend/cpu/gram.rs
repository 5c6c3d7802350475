//! Products of the columns of activations, for Hessians: `X^T X`, on and above the diagonal. Floor 4.

use super::amx::{Block, EDGE, Split, Step, Terms};
use super::parallel::Workers;
use crate::error::Result;
use crate::quant::linalg::{Matrix, add_product};
use std::ops::Range;

/// Columns whose products one task adds up.
const BAND: usize = 128;

/// Steps of the right panels that are there at a time, where products are split: 3 MiB, which all threads read.
const RIGHT_STEPS: usize = 512;
/// Left panels of a task then: with a right one they stay in a second-level cache while all right ones go by.
const LEFT_PANELS: usize = 8;
/// Bytes that are kept for them.
pub(super) const SPLIT_BYTES: usize = RIGHT_STEPS * size_of::<Step>();

/// See [`crate::backend::Backend::gram`]. `x` is `[count, width]`, `out` `[columns.len(), width]`.
///
/// # Errors
/// `out_of_memory`
pub(super) fn gram(
    workers: &Workers,
    split: Option<&mut Split>,
    x: &[f32],
    width: usize,
    columns: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let count = x.len().checked_div(width).unwrap_or(0);
    if count == 0 || columns.is_empty() {
        return Ok(());
    }
    if let Some(split) = split {
        return split_gram(workers, split, x, width, columns, out);
    }
    let work = count * columns.len() * (width - columns.start);
    workers.run_chunks(out, BAND * width, work, |band, out| {
        let first = columns.start + band * BAND;
        let rows = out.len() / width;
        let left = Matrix::new(&x[first..], count, rows, width).transposed();
        let right = Matrix::new(&x[first..], count, width - first, width);
        add_product(1.0, left, right, &mut out[first..], width);
    });
    Ok(())
}

/// The same with split products. Panels begin at the first of the columns, so that the diagonal goes through whole blocks.
fn split_gram(
    workers: &Workers,
    split: &mut Split,
    x: &[f32],
    width: usize,
    columns: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let amx = split.amx;
    let count = x.len() / width;
    let steps = count.div_ceil(EDGE);
    let lot = (RIGHT_STEPS / steps).max(1) * EDGE;
    for start in (columns.start..width).step_by(lot) {
        let end = width.min(start + lot);
        let needed = (end - start).div_ceil(EDGE) * steps;
        let mut kept = split.panels(needed)?;
        let right = &mut kept[..needed];
        workers.run_chunks(right, steps, count * (end - start), |index, panel| {
            amx.split_columns(x, width, start + index * EDGE, panel);
        });
        // Rows of the result that have columns here on or above the diagonal.
        let rows = columns.len().min(end - columns.start);
        let work = count * rows * (end - start);
        workers.run_chunks(&mut out[..rows * width], LEFT_PANELS * EDGE * width, work, |index, out| {
            let first = columns.start + index * LEFT_PANELS * EDGE;
            let panels = (out.len() / width).div_ceil(EDGE);
            let mut left = vec![Step::ZERO; panels * steps];
            for (panel, first) in left.chunks_exact_mut(steps).zip((first..).step_by(EDGE)) {
                amx.split_columns(x, width, first, panel);
                amx.turn(panel, Terms::Six);
            }
            let tiles = amx.tiles();
            let mut products = Block::ZERO;
            for (right, column) in right.chunks_exact(steps).zip((start..end).step_by(EDGE)) {
                let span = column..width.min(column + EDGE);
                let rows = left.chunks_exact(steps).zip(out.chunks_mut(EDGE * width));
                for ((left, out), row) in rows.zip((first..).step_by(EDGE)) {
                    if row > column {
                        break;
                    }
                    tiles.multiply(left, right, Terms::Six, &mut products);
                    for (out, products) in out.chunks_exact_mut(width).zip(&products.0) {
                        for (out, product) in out[span.clone()].iter_mut().zip(products) {
                            *out += product;
                        }
                    }
                }
            }
        });
        split.shared = kept;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    /// Largest error over the number of products, each at most 1: some units in the last place of `f32`. Measured
    /// 1.4e-7, with split products 1.6e-7.
    const GRAM_ERROR: f64 = 2e-6;

    #[test]
    fn sums_are_those_of_single_products() {
        check(None);
    }

    #[test]
    fn split_products_are_as_exact() {
        match Split::detect() {
            Some(split) => check(Some(split)),
            None => println!("skipped: this processor has no AMX"),
        }
    }

    fn check(mut split: Option<Split>) {
        let mut worst = 0.0f64;
        let mut random = Random::new(1);
        for (count, width, columns) in [
            (1, 1, 0..1),
            (7, 5, 1..4),
            (33, 130, 0..130),
            (100, 129, 60..129),
            (2, 64, 64..64),
            (0, 3, 0..3),
            // More right panels than are there at a time.
            (512, 1100, 40..90),
            (520, 1090, 1060..1090),
        ] {
            let x = random.floats(count * width);
            let workers = Workers::new(Some(2));
            let mut out = vec![1.0; columns.len() * width];
            gram(&workers, split.as_mut(), &x, width, columns.clone(), &mut out).unwrap();
            for i in columns.clone() {
                for j in i..width {
                    let sum: f64 =
                        x.chunks(width).map(|x| f64::from(x[i]) * f64::from(x[j])).sum::<f64>() + 1.0;
                    let error =
                        (f64::from(out[(i - columns.start) * width + j]) - sum).abs() / (count as f64 + 1.0);
                    worst = worst.max(error);
                    assert!(error < GRAM_ERROR, "{count} x {width}, {i}, {j}: {error:e}");
                }
            }
        }
        println!("worst error {worst:e}");
    }
}
