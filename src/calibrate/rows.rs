//! Brings the rows of a matrix from the checkpoint to a quantizer, as it wants them.

use super::method::{LayerContext, ModuleTarget};
use crate::error::Result;
use crate::model::weights::DenseRows;
use crate::parallel;
use crate::quant::row_queue::rows_at_once;
use crate::quant::{PackedTensor, RowQuantizer, WeightError};
use crate::task::{self, Control};
use std::ops::Range;

/// Quantizes all `rows`, reading about as many at once as are worked on at once. `report` hears how many were read.
///
/// # Errors
/// Whatever reading and the quantizer meet.
pub async fn quantize_rows(
    rows: &mut DenseRows<'_>,
    quantizer: &mut impl RowQuantizer,
    control: &dyn Control,
    report: impl Fn(usize),
) -> Result<()> {
    rows.by_few(rows_at_once(parallel::lanes()));
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

/// How far packed weights are from those of a module.
///
/// # Errors
/// Whatever reading meets.
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
