//! Streams the rows of a matrix from the checkpoint to a quantizer.

use super::method::{LayerContext, ModuleTarget};
use crate::error::Result;
use crate::model::weights::DenseRows;
use crate::parallel;
use crate::quant::row_queue::rows_at_once;
use crate::quant::{PackedTensor, RowQuantizer, WeightError};
use crate::task::{self, Control};
use std::ops::Range;

/// Quantizes all `rows`. Reads about as many rows at once as are quantized in parallel. `report` receives the number of
/// rows read so far.
///
/// # Errors
/// Errors of reading and of the quantizer.
pub async fn quantize_rows(
    rows: &mut DenseRows<'_>,
    quantizer: &mut impl RowQuantizer,
    control: &dyn Control,
    report: impl Fn(usize),
) -> Result<()> {
    rows.limit_rows(rows_at_once(parallel::lanes()));
    while let Some((range, values)) = rows.next().await? {
        quantizer.take_rows(values);
        while !quantizer.wants_rows() {
            quantizer.step()?;
            task::yield_point(control).await?;
        }
        report(range.end);
    }
    while quantizer.step()? {
        task::yield_point(control).await?;
    }
    Ok(())
}

/// The error of packed weights against the weights of a module.
///
/// # Errors
/// Errors of reading.
pub async fn weight_error(
    context: LayerContext<'_>,
    target: &ModuleTarget<'_>,
    packed: &PackedTensor,
) -> Result<WeightError> {
    let mut error = WeightError::default();
    let add = |rows: Range<usize>, values: &[f32]| {
        error.add_rows(values, packed, rows);
        Ok(())
    };
    DenseRows::new(context.checkpoint, target.source)?.for_each(context.control, add).await?;
    Ok(error)
}
