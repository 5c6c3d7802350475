//! Where layers that are quantized begin: at their weights rounded to nearest, at codes that another method found, or on scales that
//! were learned before.

use super::optimizer::Trained;
use crate::backend::Train;
use crate::error::{Context, Error, Result};
use crate::model::Checkpoint;
use crate::model::trained::{Parameter, Stored};
use crate::quant::Scales;
use std::collections::BTreeMap;

/// Where quantized layers begin.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// At the weights, on the scales that rounding them to nearest takes.
    Nearest,
    /// At what the codes of this checkpoint stand for, on its scales.
    Codes(&'a Checkpoint),
    /// At the weights, on these scales by the names of modules.
    Scales(&'a BTreeMap<String, Vec<f32>>),
}

impl Start<'_> {
    /// Makes parameters begin there; `learned`: scales are parameters too. What they are runs after it was brought.
    ///
    /// # Errors
    /// `invalid_checkpoint` naming the module whose codes are others than were asked for; whatever reading meets.
    pub async fn give<B: Train>(self, of: &mut impl Trained<B>, learned: bool) -> Result<()> {
        let (backend, parameters) = of.trained();
        for parameter in parameters {
            let Stored::Packed { .. } = parameter.stored else { continue };
            let module = parameter.tensor.strip_suffix(".weight").unwrap_or(&parameter.tensor).to_owned();
            let scales = match self {
                Self::Nearest => None,
                Self::Codes(checkpoint) => {
                    let found = codes(backend, parameter, checkpoint, &module).await;
                    Some(found.context_with(|| format!("module `{module}` of {}", checkpoint.name()))?)
                }
                Self::Scales(scales) => scales.get(&module).cloned(),
            };
            if !learned {
                continue;
            }
            let scales = match scales {
                Some(scales) => scales,
                None => match parameter.codes(backend).await? {
                    Some(codes) => f32s(codes.scales()),
                    None => continue,
                },
            };
            parameter.hold_scales(backend, &scales, true)?;
        }
        Ok(())
    }
}

/// Gives a parameter the values of a module's codes, and returns their scales.
async fn codes<B: Train>(
    backend: &mut B,
    parameter: &mut Parameter<B>,
    checkpoint: &Checkpoint,
    module: &str,
) -> Result<Vec<f32>> {
    let Stored::Packed { scheme, .. } = parameter.stored else { return Ok(Vec::new()) };
    let found = checkpoint.layout().read_packed(checkpoint.store(), module).await?;
    let shape = (found.rows(), found.cols());
    let affine = found.affine().filter(|affine| affine.scheme() == scheme && affine.column_order().is_none());
    let (Some(affine), true) = (affine, shape == (parameter.rows, parameter.cols)) else {
        return Err(Error::invalid_checkpoint(format!(
            "expected {scheme} codes of {} x {}, each in its column, but found {} of {} x {}",
            parameter.rows,
            parameter.cols,
            found.coding(),
            shape.0,
            shape.1
        )));
    };
    let mut values = vec![0.0; parameter.len()];
    found.decode_rows(0..shape.0, &mut values);
    parameter.set(backend, &values)?;
    Ok(f32s(affine.scales()))
}

fn f32s(scales: &Scales) -> Vec<f32> {
    (0..scales.len()).map(|index| scales.get(index)).collect()
}
