//! Matrix products on the matrix unit of newer Intel processors (AMX), several times as fast as with their vector
//! instructions.
//!
//! The unit multiplies `bfloat16` numbers and accumulates in `f32`. Each number is therefore split into three
//! `bfloat16` parts, `high + middle + low`, which hold its 24 bits. A product is the sum of the six significant
//! products of parts. It is as exact as an `f32` product; only the order of summation differs. Magnitudes below
//! `2^-102` may count as 0, and infinities become NaN. [`Terms::Three`] adds three products of parts, where fewer
//! digits are enough.
//!
//! Operands are packed into panels: 32 rows of either side, divided into [`Step`]s of 32 columns. A product sums over
//! the columns. A left panel keeps its rows; a right panel is transposed, as the unit requires.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod absent;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86_64;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) use absent::Amx;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use x86_64::Amx;

use super::columns::UNIT;
use crate::error::{Error, ErrorCode, Result};
use std::ops::Range;

/// Rows of a panel, and columns of a step.
pub(super) const EDGE: usize = UNIT;
/// Rows of a tile, and its columns. A column is a pair of numbers.
const TILE: usize = 16;

/// One register of the unit: sixteen rows of sixteen pairs. In a left panel, pair `p` of row `r` holds columns `2 p`
/// and `2 p + 1` of row `r`. In a right panel, pair and row are exchanged.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([[u32; TILE]; TILE]);

/// 32 columns of a panel: the high, middle and low parts of its first sixteen rows, then of its second sixteen.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Step([[Tile; PARTS]; 2]);

/// Parts of a number.
const PARTS: usize = 3;

/// Which products of the parts of two numbers are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terms {
    /// All significant products.
    Six,
    /// The same sum, for right sides without low parts.
    Five,
    /// The same sum, for right sides with high parts only, such as codes of up to 8 bits.
    Codes,
    /// High with high, high with middle, middle with high: half the work, and 16 bits of 24. Low parts are not read.
    Three,
    /// High with high, for numbers without other parts: integers of at most 8 bits. Their sums are exact below `2^24`.
    One,
}

impl Terms {
    /// Number of parts that these products read.
    fn parts(self) -> usize {
        match self {
            Self::Six | Self::Five | Self::Codes => PARTS,
            Self::Three => 2,
            Self::One => 1,
        }
    }

    /// Reduces six products to fewer with the same sum, for right sides of `right` parts.
    pub(super) fn of(self, right: usize) -> Self {
        match (self, right) {
            (Self::Six, 1) => Self::Codes,
            (Self::Six, 2) => Self::Five,
            _ => self,
        }
    }
}

/// A rectangular region of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Region<'a> {
    /// Begins with the region's first element.
    values: &'a [f32],
    /// Elements from one row to the next.
    stride: usize,
    rows: usize,
    cols: usize,
}

impl<'a> Region<'a> {
    /// `rows` x `cols` elements from the start of `values`, with rows `stride` elements apart.
    pub(super) fn new(values: &'a [f32], stride: usize, rows: usize, cols: usize) -> Self {
        let fits = cols <= stride && (rows == 0 || (rows - 1) * stride + cols <= values.len());
        assert!(fits, "a region ends outside its matrix");
        Self { values, stride, rows, cols }
    }

    /// Whole rows that are already padded.
    pub(super) fn padded(rows: &'a [[f32; UNIT]], units: usize) -> Self {
        let width = units * UNIT;
        Self::new(rows.as_flattened(), width, rows.len() / units.max(1), width)
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// A part of this region.
    pub(super) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a region ends outside its matrix");
        let first = rows.start * self.stride + cols.start;
        Self::new(&self.values[first.min(self.values.len())..], self.stride, rows.len(), cols.len())
    }
}

impl Step {
    /// All zero.
    pub(super) const ZERO: Self = Self([[Tile([[0; TILE]; TILE]); PARTS]; 2]);
}

/// Products of a left and a right panel: element `[i][j]` belongs to row `i` of the left and row `j` of the right
/// panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [[f32; EDGE]; EDGE]);

impl Block {
    /// All zero.
    pub(super) const ZERO: Self = Self([[0.0; EDGE]; EDGE]);
}

/// The unit, and memory for operands that are shared by tasks.
pub(super) struct Split {
    pub(super) amx: Amx,
    /// Products that linear layers add, `Six` or `Three`. Fewer than six suffice if no weight of a task has a low part.
    pub(super) terms: Terms,
    /// Kept between products: allocating memory costs about as much as the product.
    pub(super) shared: Vec<Step>,
}

impl Split {
    /// Some if the processor has the unit and the operating system permits its use.
    pub(super) fn detect() -> Option<Self> {
        Amx::detect().map(|amx| Self { amx, terms: Terms::Six, shared: Vec::new() })
    }

    /// Takes the memory for panels of at least `steps` steps in total. Their content is arbitrary.
    ///
    /// # Errors
    /// `out_of_memory`
    pub(super) fn panels(&mut self, steps: usize) -> Result<Vec<Step>> {
        let mut panels = std::mem::take(&mut self.shared);
        if panels.len() < steps {
            panels.try_reserve_exact(steps - panels.len()).map_err(|_| {
                Error::new(
                    ErrorCode::OutOfMemory,
                    format!("{steps} blocks of 32 x 32 split activations do not fit in memory"),
                )
            })?;
            panels.resize(steps, Step::ZERO);
        }
        Ok(panels)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    /// Largest deviation from the sum in `f64`, relative to the sum of magnitudes. Measured 1.9e-7.
    const RELATIVE_TOLERANCE: f64 = 5e-7;

    fn amx() -> Option<Amx> {
        let amx = Amx::detect();
        if amx.is_none() {
            println!("skipped: this processor has no AMX");
        }
        amx
    }

    /// Returns the largest error.
    fn check(
        left: impl Fn(usize, usize) -> f32,
        right: impl Fn(usize, usize) -> f32,
        cols: usize,
        found: &Block,
    ) -> f64 {
        let mut worst = 0.0f64;
        for (i, row) in found.0.iter().enumerate() {
            for (j, &found) in row.iter().enumerate() {
                let (mut sum, mut size) = (0.0, 1e-30);
                for k in 0..cols {
                    let product = f64::from(left(i, k)) * f64::from(right(j, k));
                    sum += product;
                    size += product.abs();
                }
                let error = (f64::from(found) - sum).abs() / size;
                worst = worst.max(error);
                assert!(
                    error < RELATIVE_TOLERANCE,
                    "{cols} columns, {i}, {j}: {found}, not {sum}: {error:e}"
                );
            }
        }
        worst
    }

    #[test]
    fn panels_of_rows_and_of_columns_multiply_as_they_should() {
        let Some(amx) = amx() else { return };
        let mut worst = 0.0f64;
        let mut random = Random::new(1);
        for (left_rows, right_rows, units) in [(32, 32, 1), (1, 32, 2), (32, 17, 3), (5, 1, 40)] {
            let cols = units * EDGE;
            let (left, right) = (random.floats(left_rows * cols), random.floats(right_rows * cols));
            let row = |values: &[f32], row, col| values.get(row * cols + col).copied().unwrap_or(0.0);
            let (mut a, mut b) = (vec![Step::ZERO; units], vec![Step::ZERO; units]);
            amx.split_rows(Region::new(&left, cols, left_rows, cols), None, &mut a, Terms::Six);
            let right_side = Region::new(&right, cols, right_rows, cols);
            assert_eq!(amx.split_rows(right_side, None, &mut b, Terms::Six), 3);
            amx.turn(&mut b, Terms::Six);
            let mut found = Block::ZERO;
            amx.tiles().multiply(&a, &b, Terms::Six, &mut found);
            worst = worst.max(check(|i, k| row(&left, i, k), |j, k| row(&right, j, k), cols, &found));
        }
        for (count, width, first) in [(1, 1, 0), (33, 70, 0), (64, 70, 32), (100, 70, 64), (7, 64, 32)] {
            let x = random.floats(count * width);
            let mut panel = vec![Step::ZERO; usize::div_ceil(count, EDGE)];
            let columns = first..width.min(first + EDGE);
            let columns = Region::new(&x, width, count, width).part(0..count, columns);
            assert_eq!(amx.split_columns(columns, None, &mut panel), 3);
            let mut turned = panel.clone();
            amx.turn(&mut turned, Terms::Six);
            let mut found = Block::ZERO;
            amx.tiles().multiply(&turned, &panel, Terms::Six, &mut found);
            let at = |col: usize, token: usize| {
                if first + col < width { x[token * width + first + col] } else { 0.0 }
            };
            worst = worst.max(check(at, at, count, &found));
        }
        println!("worst relative error {worst:e}");
    }

    #[test]
    fn numbers_of_few_bits_need_fewer_parts() {
        let Some(amx) = amx() else { return };
        let mut random = Random::new(2);
        // Not a whole number of steps.
        let cols = 4 * EDGE + 9;
        let left = random.floats(EDGE * cols);
        // Clears the last 8 or 16 of the 24 significant bits.
        for (parts, terms, none) in [(2, Terms::Five, 0xFF), (1, Terms::Codes, 0xFFFF)] {
            let mut right = random.floats(EDGE * cols);
            for (index, value) in right.iter_mut().enumerate() {
                *value = if index % 7 == 0 { -0.0 } else { f32::from_bits(value.to_bits() & !none) };
            }
            let region = |values| Region::new(values, cols, EDGE, cols);
            let (mut a, mut b) = (vec![Step::ZERO; 5], vec![Step::ZERO; 5]);
            amx.split_rows(region(&left), None, &mut a, Terms::Six);
            assert_eq!(amx.split_rows(region(&right), None, &mut b, Terms::Six), parts);
            assert_eq!(Terms::Six.of(parts), terms);
            amx.turn(&mut b, Terms::Six);
            let (mut whole, mut found) = (Block::ZERO, Block::ZERO);
            amx.tiles().multiply(&a, &b, Terms::Six, &mut whole);
            amx.tiles().multiply(&a, &b, terms, &mut found);
            assert_eq!(found.0, whole.0);
            check(|i, k| left[i * cols + k], |j, k| right[j * cols + k], cols, &found);
        }
    }

    #[test]
    fn what_is_no_number_is_never_lost() {
        let Some(amx) = amx() else { return };
        for broken in [f32::NAN, f32::from_bits(0x7FFF_FFFF), f32::from_bits(0xFF80_0001), f32::INFINITY] {
            let mut rows = [[1.0; UNIT]; EDGE];
            let mut left = [Step::ZERO];
            amx.split_rows(Region::padded(&rows, 1), None, &mut left, Terms::Six);
            rows[3][5] = broken;
            let mut right = [Step::ZERO];
            assert_eq!(amx.split_rows(Region::padded(&rows, 1), None, &mut right, Terms::Six), 3);
            amx.turn(&mut right, Terms::Six);
            let mut found = Block::ZERO;
            amx.tiles().multiply(&left, &right, Terms::Six, &mut found);
            for row in found.0 {
                for (j, value) in row.into_iter().enumerate() {
                    assert_eq!(value.is_nan(), j == 3, "{broken}: {value}");
                }
            }
        }
    }
}
