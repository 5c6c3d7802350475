//! How often the quantized and the dequantized form of a model predict the same next token.

use super::residency::is_single_precision;
use super::walk;
use super::windows::{Dataset, WindowOptions};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::names::Linear;
use crate::model::{CausalLm, Checkpoint, LoadOptions};
use crate::quant::{ActivationGrid, Activations};
use crate::task::Control;
use serde::Serialize;

/// Required agreement of the two forms. They differ only by the rounding of dequantized weights to the stored type.
pub const REQUIRED_AGREEMENT: f64 = 0.995;

/// The compared checkpoints.
#[derive(Clone, Copy)]
pub struct Forms<'a> {
    /// The quantized checkpoint, with codes and scales.
    pub quantized: &'a Checkpoint,
    /// The result of `dequantize` on it.
    pub dequantized: &'a Checkpoint,
    /// The checkpoint before quantization.
    pub original: Option<&'a Checkpoint>,
}

/// Fractions of positions at which two models predict the same next token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Name of the text.
    pub text: String,
    /// Predicted tokens.
    pub tokens: u64,
    /// Quantized against dequantized, at the activation precision of the quantized folder. INT8 uses the symmetric grid
    /// up to 127 on both sides. A value below `required` is a bug.
    pub quantized_dequantized: f64,
    /// The same with `f32` activations on both sides.
    pub quantized_dequantized_f32: f64,
    /// The lower limit of both.
    pub required: f64,
    /// Original against dequantized, the retention; null without an original.
    pub retention: Option<f64>,
    /// The lower limit of `retention`.
    pub min_retention: f64,
    /// Whether the retention reaches its limit. It judges the quantization, not the dequantization.
    pub retained: Option<bool>,
}

/// Measures all agreements.
///
/// # Errors
/// `invalid_argument` for a limit outside 0 to 1; `invalid_checkpoint` if the two forms agree on less than
/// [`REQUIRED_AGREEMENT`]; errors of reading and running.
pub async fn measure<B: Backend>(
    forms: Forms<'_>,
    data: &Dataset,
    windows: &WindowOptions,
    min_retention: f64,
    mut new_backend: impl FnMut() -> B,
    control: &dyn Control,
) -> Result<Agreement> {
    check_share(min_retention)?;
    let exact = LoadOptions { activations: Some(Activations::F32), ..LoadOptions::default() };
    let mut load = async |checkpoint: &Checkpoint, options: LoadOptions| {
        CausalLm::load(new_backend(), checkpoint, options, control).await
    };
    let activations = forms.quantized.module(&Linear::Q.module(0))?.activations();
    // On the full INT8 range, a token's largest activation lies on a rounding tie if it is negative. Noise of f32 sums
    // then decides how it is rounded: two equal models agreed on only 0.98. This check is about weights.
    let alike = LoadOptions {
        activations: Some(activations),
        grid: Some(ActivationGrid::Absmax127),
        ..LoadOptions::default()
    };
    let mut quantized = load(forms.quantized, alike).await?;
    let mut dequantized = load(forms.dequantized, alike).await?;
    let same = share(&mut quantized, &mut dequantized, data, windows, control).await?;
    if same.0 < REQUIRED_AGREEMENT {
        let rounded = activations == Activations::Int8 && !is_single_precision(forms.dequantized)?;
        let hint = if rounded {
            "; INT8 activations magnify the rounding of weights to 16 bits: try F32"
        } else {
            ""
        };
        return Err(Error::invalid_checkpoint(format!(
            "expected quantized and dequantized model to agree on {REQUIRED_AGREEMENT} of all predictions but found \
             {:.4}{hint}",
            same.0
        )));
    }
    let mut in_f32 = same;
    if activations != Activations::F32 {
        quantized = load(forms.quantized, exact).await?;
        dequantized = load(forms.dequantized, exact).await?;
        in_f32 = share(&mut quantized, &mut dequantized, data, windows, control).await?;
    }
    drop(quantized);
    let retention = match forms.original {
        Some(original) => {
            let mut original = load(original, exact).await?;
            Some(share(&mut original, &mut dequantized, data, windows, control).await?.0)
        }
        None => None,
    };
    Ok(Agreement {
        text: data.name.clone(),
        tokens: same.1,
        quantized_dequantized: same.0,
        quantized_dequantized_f32: in_f32.0,
        required: REQUIRED_AGREEMENT,
        retention,
        min_retention,
        retained: retention.map(|share| share >= min_retention),
    })
}

/// Refuses a limit that is not between 0 and 1.
///
/// # Errors
/// `invalid_argument`.
pub fn check_share(min_retention: f64) -> Result<()> {
    if (0.0..=1.0).contains(&min_retention) {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("expected a retention between 0 and 1 but found {min_retention}")))
}

/// The fraction of equal predictions, and the number of predicted tokens.
async fn share<B: Backend>(
    first: &mut CausalLm<B>,
    second: &mut CausalLm<B>,
    data: &Dataset,
    windows: &WindowOptions,
    control: &dyn Control,
) -> Result<(f64, u64)> {
    let compared = walk::compare(first, second, data, windows, control).await?;
    Ok((compared.divergence.top1_agreement(), compared.original.tokens()))
}
