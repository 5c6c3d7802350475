//! Initial values of quantized layers: their weights rounded to nearest, the codes of another method, or learned scales
//! of an earlier stage.

use super::optimizer::Trainable;
use crate::backend::Train;
use crate::error::{Context, Error, Result};
use crate::model::Checkpoint;
use crate::model::trained::{Parameter, Stored};
use crate::quant::Scales;
use std::collections::BTreeMap;

/// Initial values of quantized layers.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// The weights, with the scales of round-to-nearest.
    Nearest,
    /// The dequantized values of this checkpoint's codes, with its scales.
    Codes(&'a Checkpoint),
    /// The weights, with these scales by module name.
    Scales(&'a BTreeMap<String, Vec<f32>>),
}

impl Start<'_> {
    /// Sets the parameters' initial values; with `learned`, scales become parameters too. The running weights change
    /// with the next `refresh_weights`.
    ///
    /// # Errors
    /// `invalid_checkpoint` naming a module whose codes differ from the requested scheme or shape; errors of reading.
    pub async fn initialize<B: Train>(self, of: &mut impl Trainable<B>, learned: bool) -> Result<()> {
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
            parameter.set_scales(backend, &scales, true)?;
        }
        Ok(())
    }
}

/// Sets a parameter to the dequantized values of a module's codes, and returns their scales.
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
            "expected {scheme} codes of {} x {} in column order but found {} of {} x {}",
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
