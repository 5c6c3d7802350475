//! Activations prepared for a product: padded, rounded, or split for the matrix unit.

use super::amx::{Amx, EDGE, Region, Split, Step, Terms};
use super::columns::{Columns, UNIT};
use super::linear_int8::{QuantizedTokens, round_trip};
use super::memory::Aligned;
use super::parallel::Workers;
use super::weight::{Data, Part};
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{ActivationGrid, column_order};
use std::borrow::Cow;
use std::cell::RefCell;

thread_local! {
    /// A block of dequantized rows; kept between tasks because it is too large to clear each time.
    pub(super) static BLOCK: RefCell<Vec<[f32; UNIT]>> = const { RefCell::new(Vec::new()) };
}

/// Grows `kept` to `len` elements where it is shorter; returns the first `len`.
pub(super) fn at_least<T: Copy>(kept: &mut Vec<T>, len: usize, zero: T) -> &mut [T] {
    if kept.len() < len {
        kept.resize(len, zero);
    }
    &mut kept[..len]
}

/// Activations in the form that one part's kernel reads.
pub(super) struct Input<'a> {
    /// As [`Part::order`]: a part with act-order multiplies activations in the order of its stored columns.
    order: Option<&'a [u32]>,
    pub(super) values: Values<'a>,
}

pub(super) enum Values<'a> {
    /// `[count, units, 32]`. `rounded` is the INT8 grid that the values lie on, if any.
    F32 {
        columns: Columns,
        rounded: Option<ActivationGrid>,
        values: Floats<'a>,
    },
    Int8(QuantizedTokens),
    /// The same integers as left panels of 32 tokens, each `[units]`. Trailing panels may be unused.
    Int8Split {
        amx: Amx,
        tokens: QuantizedTokens,
        panels: Vec<Step>,
    },
    /// `f32` values as left panels of 32 tokens, each `[units]`. Trailing panels may be unused.
    Split {
        amx: Amx,
        /// The panels hold the parts that these products read.
        terms: Terms,
        columns: Columns,
        panels: Vec<Step>,
    },
}

/// Padded rows, or the caller's rows if they need no padding.
pub(super) enum Floats<'a> {
    Borrowed(&'a [f32]),
    Padded(Aligned<f32>),
}

impl Floats<'_> {
    pub(super) fn units(&self) -> &[[f32; UNIT]] {
        match self {
            Self::Borrowed(x) => x.as_chunks().0,
            Self::Padded(x) => x.as_chunks().0,
        }
    }
}

impl Input<'_> {
    /// Whether this part can multiply it.
    pub(super) fn serves(&self, part: &Part) -> bool {
        let fits = match &self.values {
            Values::F32 { columns, rounded, .. } => {
                !meets_int8(part) && *rounded == part.grid && *columns == part.columns
            }
            Values::Split { columns, .. } => part.grid.is_none() && *columns == part.columns,
            Values::Int8(tokens) => {
                meets_int8(part) && Some(tokens.grid) == part.grid && tokens.columns == part.columns
            }
            Values::Int8Split { tokens, .. } => {
                exact_scales(part).is_some()
                    && Some(tokens.grid) == part.grid
                    && tokens.columns == part.columns
            }
        };
        fits && self.order == part.order.as_deref()
    }
}

/// Whether a part multiplies integers. For other weights, such as dense ones, activations are rounded to INT8 and back.
fn meets_int8(part: &Part) -> bool {
    part.grid.is_some() && matches!(part.data, Data::Packed(_))
}

/// Whether the matrix unit can multiply the integers of this part.
#[cfg(test)]
pub(super) fn is_exact(part: &Part) -> bool {
    exact_scales(part).is_some()
}

/// The scale of each row, if the matrix unit sums this part's integer products exactly.
fn exact_scales(part: &Part) -> Option<&[f32]> {
    /// All integers up to this one are `f32` values.
    const EXACT: usize = 1 << 24;
    let Data::Packed(packed) = &part.data else { return None };
    let largest = match packed.unit_bytes() {
        8 => 3,
        16 => 15,
        _ => 255,
    };
    let fits = part.grid.is_some() && part.columns.padded() <= EXACT / (128 * largest);
    packed.scales_of_rows(part.columns).filter(|_| fits)
}

impl<'a> Input<'a> {
    /// Splits the tokens for the matrix unit, if `part` multiplies them unrounded or as integers with exact sums.
    pub(super) fn split(self, split: &mut Split, workers: &Workers, part: &Part) -> Result<Self> {
        let values = match self.values {
            Values::F32 { columns, rounded: None, values } => {
                let rows = values.units();
                let panel = columns.units * EDGE;
                let needed = rows.len().div_ceil(panel) * columns.units;
                let mut panels = split.panels(needed)?;
                workers.run_chunks(&mut panels[..needed], columns.units, rows.len() * UNIT, |index, out| {
                    let rows = &rows[index * panel..];
                    let rows = Region::padded(&rows[..panel.min(rows.len())], columns.units);
                    split.amx.split_rows(rows, None, out, split.terms);
                });
                Values::Split { amx: split.amx, terms: split.terms, columns, panels }
            }
            Values::Int8(tokens) if exact_scales(part).is_some() => {
                let (units, count) = (tokens.columns.units, tokens.count());
                let needed = count.div_ceil(EDGE) * units;
                let mut panels = split.panels(needed)?;
                workers.run_chunks(&mut panels[..needed], units, count * units * UNIT, |index, out| {
                    let mine = index * EDGE..count.min((index + 1) * EDGE);
                    let mut kept = BLOCK.take();
                    let block = at_least(&mut kept, mine.len() * units, [0.0; UNIT]);
                    tokens.integers(mine, block);
                    split.amx.split_rows(Region::padded(block, units), None, out, Terms::One);
                    BLOCK.set(kept);
                });
                Values::Int8Split { amx: split.amx, tokens, panels }
            }
            values => values,
        };
        Ok(Self { values, ..self })
    }
}

impl<'a> Input<'a> {
    /// Brings `x` into the form that the kernel of `part` reads.
    pub(super) fn prepare(workers: &Workers, x: &'a [f32], part: &'a Part) -> Result<Self> {
        let order = part.order.as_deref();
        let values = match order {
            None => arrange(workers, Cow::Borrowed(x), part)?,
            Some(order) => {
                let cols = part.columns.cols;
                let mut gathered = Vec::new();
                gathered.try_reserve_exact(x.len()).map_err(|_| {
                    Error::new(
                        ErrorCode::OutOfMemory,
                        format!("{} activations do not fit in memory", x.len()),
                    )
                })?;
                gathered.resize(x.len(), 0.0);
                for (x, gathered) in x.chunks_exact(cols).zip(gathered.chunks_exact_mut(cols)) {
                    column_order::gather(x, order, gathered);
                }
                arrange(workers, Cow::Owned(gathered), part)?
            }
        };
        Ok(Self { order, values })
    }
}

/// Pads or rounds `x` for the kernel of `part`. `x` is in the order of the part's columns.
fn arrange<'a>(workers: &Workers, x: Cow<'a, [f32]>, part: &Part) -> Result<Values<'a>> {
    let columns = part.columns;
    let rounded = part.grid;
    if let (Data::Packed(_), Some(grid)) = (&part.data, rounded) {
        return Ok(Values::Int8(QuantizedTokens::new(workers, &x, columns, grid)?));
    }
    if let (true, None, Cow::Borrowed(x)) = (columns.is_plain(), rounded, &x) {
        return Ok(Values::F32 { columns, rounded, values: Floats::Borrowed(x) });
    }
    let mut padded = Aligned::zeroed(x.len() / columns.cols * columns.padded())?;
    for (x, padded) in x.chunks_exact(columns.cols).zip(padded.chunks_exact_mut(columns.padded())) {
        columns.spread(x, padded);
        if let Some(grid) = rounded {
            round_trip(padded, grid);
        }
    }
    Ok(Values::F32 { columns, rounded, values: Floats::Padded(padded) })
}
