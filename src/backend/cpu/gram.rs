//! Gram matrices of activations, for Hessians: `X^T X` on and above the diagonal.

use super::amx::{Region, Split};
use super::parallel::Workers;
use super::split_product::{self, Side, Sum};
use crate::error::Result;
use crate::quant::linalg::{Matrix, add_product};
use std::ops::Range;

/// Columns per task: rows of the result.
const BAND: usize = 128;

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
        // Panels begin at the first requested column, so that the diagonal runs through whole blocks.
        let side = |columns| Side::columns(Region::new(x, width, count, width).part(0..count, columns));
        let sum = Sum { rows: out, stride: width, column: columns.start, is_symmetric: true };
        return split_product::add_product(
            workers,
            split,
            side(columns.clone()),
            side(columns.start..width),
            sum,
        );
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

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    /// Largest error, divided by the number of products (each at most 1): a few units in the last place of `f32`.
    /// Measured 1.4e-7, with split products 1.6e-7.
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
            // More right panels than are packed at a time.
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
