//! AWQ on the layers that share an input: finds their scales, rounds them, and folds the scales into what comes before.
//!
//! While the samples are walked through the model, layers hold `Q(W s) / s` and the input is as it was: the same outputs
//! as after folding, so nothing that is in scratch needs to change. Candidates are tried as they would be stored, `Q(W s)`, with
//! their input divided by `s`. Floor 8.

use super::Found;
use crate::artifact::records::CalibrationRecord;
use crate::backend::Backend;
use crate::calibrate::Walk;
use crate::calibrate::awq::{SHARES, Shared, Target, quantize, search};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::block::LinearInput;
use crate::model::names::{BlockNorm, Linear};
use crate::model::weights::{WeightSource, read_vector};
use crate::pipeline::kept;
use crate::pipeline::select::{Method, ModulePlan};
use crate::quant::awq::fold::{Sharing, divide_norm, divide_rows};
use crate::quant::awq::{AwqOutcome, Clipping, Measure, Moments};
use crate::quant::{Granularity, Hessian, PackedTensor};

/// What makes the input of a site, feature by feature.
enum Before {
    /// A norm.
    Norm { tensor: String, weight: Vec<f32>, dtype: DType },
    /// The rows of a linear layer.
    Rows { linear: Linear, sharing: Option<Sharing>, tensor: PackedTensor },
}

/// Scales and what they are folded into.
struct Folded {
    /// `[cols]`
    scales: Vec<f32>,
    ratio: Option<f32>,
    reason: Option<String>,
}

/// Quantizes the layers that read the site at which `walk` stands, and lets the samples go on through them unless there
/// is nothing left to go to.
pub(super) async fn quantize_site<B: Backend>(
    walk: &mut Walk<'_, B>,
    shared: Shared<'_>,
    plans: &[ModulePlan],
    layer: usize,
    (site, hessian, mean): (LinearInput, &Hessian, Vec<f32>),
    is_last: bool,
    found: &mut Found<'_>,
) -> Result<()> {
    let modules: Vec<(Linear, String)> =
        site.linears().iter().map(|&linear| (linear, linear.module(layer))).collect();
    let targets: Vec<Target<'_>> = modules
        .iter()
        .filter_map(|(linear, module)| {
            let plan = plans.iter().find(|plan| plan.module == *module)?;
            Some(Target { linear: *linear, module, shape: (plan.rows, plan.cols), scheme: plan.scheme? })
        })
        .collect();
    if targets.is_empty() {
        return Ok(());
    }
    let moments = Moments::in_steps(hessian).run(shared.control).await?;
    let folded = fold(walk, shared, layer, (site, mean), &targets, &moments, found).await?;
    let mut tensors = Vec::new();
    for target in &targets {
        walk.report_quantizing(SHARES - 1, SHARES, target.module, shared.control);
        let (outcome, record) = finish(shared, target, &folded, hessian, &moments).await?;
        found.keep(target.module, &outcome.tensor, Some(record), outcome.weights).await?;
        tensors.push((target.linear, outcome.tensor));
    }
    if is_last {
        return Ok(());
    }
    // Before the new weights come.
    drop(shared.row_memory.take());
    let replaced: Vec<_> = tensors
        .iter()
        .map(|(linear, tensor)| (*linear, WeightSource::Scaled(tensor, &folded.scales)))
        .collect();
    walk.replace(&replaced).await
}

/// Finds the scales of the site and divides by them what comes before it.
async fn fold<B: Backend>(
    walk: &mut Walk<'_, B>,
    shared: Shared<'_>,
    layer: usize,
    (site, mut mean): (LinearInput, Vec<f32>),
    targets: &[Target<'_>],
    moments: &Moments,
    found: &mut Found<'_>,
) -> Result<Folded> {
    let without = |reason: &str| {
        let reason = Some(format!("columns are not scaled: {reason}"));
        Ok(Folded { scales: vec![1.0; targets[0].shape.1], ratio: None, reason })
    };
    if targets.len() < site.linears().len() {
        return without("another layer with the same input is not quantized");
    }
    let checkpoint = shared.checkpoint;
    let Some(before) = before(shared, layer, site, found).await? else {
        return without("the layer before is not quantized");
    };
    match before {
        Before::Norm { tensor, weight, dtype } => {
            let fit = |scales: &mut [f32]| divide_norm(&weight, dtype, scales).map(drop);
            let best = search(walk, shared, targets, mean, moments, fit).await?;
            let mut scales = best.scales;
            let divided = divide_norm(&weight, dtype, &mut scales)?;
            kept::save_vector(found.scratch, &tensor, &divided).await?;
            found.vectors.insert(tensor);
            Ok(Folded { scales, ratio: Some(best.ratio), reason: None })
        }
        Before::Rows { linear, sharing, tensor } => {
            if let Some(sharing) = sharing {
                sharing.average(&mut mean);
            }
            if tensor.scheme().granularity() == Granularity::Tensor {
                return without("the layer before has one scale for all its rows");
            }
            let best = search(walk, shared, targets, mean, moments, |_| Ok(())).await?;
            let rows = sharing.map_or_else(|| best.scales.clone(), |sharing| sharing.of_rows(&best.scales));
            let Ok(divided) = divide_rows(&tensor, &rows) else {
                return without("the layer before cannot hold the scales");
            };
            let module = linear.module(layer);
            kept::save(found.scratch, &module, &divided).await?;
            if linear.has_bias(checkpoint.config()) {
                let bias = format!("{module}.bias");
                let values = read_vector(checkpoint, &bias, rows.len()).await?;
                let divided: Vec<f32> =
                    values.iter().zip(&rows).map(|(value, scale)| value / scale).collect();
                kept::save_vector(found.scratch, &bias, &divided).await?;
                found.vectors.insert(bias);
            }
            Ok(Folded { scales: best.scales, ratio: Some(best.ratio), reason: None })
        }
    }
}

/// What makes the input of a site; `None` where that is a layer that is not quantized.
async fn before(
    shared: Shared<'_>,
    layer: usize,
    site: LinearInput,
    found: &Found<'_>,
) -> Result<Option<Before>> {
    let checkpoint = shared.checkpoint;
    let config = checkpoint.config();
    let norm = match site {
        LinearInput::Qkv => Some(BlockNorm::Input),
        LinearInput::GateUp => Some(BlockNorm::PostAttention),
        LinearInput::O => config.sub_norms.then_some(BlockNorm::AttentionSub),
        LinearInput::Down => config.sub_norms.then_some(BlockNorm::MlpSub),
    };
    if let Some(norm) = norm {
        let tensor = format!("{}.weight", norm.module(layer));
        let weight = read_vector(checkpoint, &tensor, norm.width(config)).await?;
        let dtype = checkpoint.store().require(&tensor)?.dtype;
        return Ok(Some(Before::Norm { tensor, weight, dtype }));
    }
    let (linear, sharing) =
        if site == LinearInput::O { (Linear::V, Some(sharing(config))) } else { (Linear::Up, None) };
    let module = linear.module(layer);
    if found.format(&module).is_none() {
        return Ok(None);
    }
    Ok(Some(Before::Rows { linear, sharing, tensor: found.load(&module).await? }))
}

fn sharing(config: &ModelConfig) -> Sharing {
    Sharing {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}

/// Rounds one layer, with clipping where that helps.
async fn finish(
    shared: Shared<'_>,
    target: &Target<'_>,
    folded: &Folded,
    hessian: &Hessian,
    moments: &Moments,
) -> Result<(AwqOutcome, CalibrationRecord)> {
    let ones = vec![1.0; folded.scales.len()];
    let rounded = quantize(shared, target, &ones, None, Measure::ErrorAndSignal(moments)).await?;
    let measure = Measure::ErrorAndWeights(moments);
    let scaled = quantize(shared, target, &folded.scales, None, measure).await?;
    let mut kept = scaled;
    let mut clipped = false;
    // Clipping q and k moves the attention of every token; the authors leave them alone.
    if !matches!(target.linear, Linear::Q | Linear::K) {
        let group_size = target.scheme.granularity().group_size(target.shape.1);
        let clipping = Clipping::in_steps(hessian, &folded.scales, group_size).run(shared.control).await?;
        let outcome = quantize(shared, target, &folded.scales, Some(&clipping), measure).await?;
        if outcome.error < kept.error {
            (kept, clipped) = (outcome, true);
        }
    }
    let share = |error: f64| if rounded.signal > 0.0 { error / rounded.signal } else { 0.0 };
    let record = CalibrationRecord {
        method: Method::Awq.name().to_owned(),
        output_error: Some(share(kept.error)),
        rtn_output_error: Some(share(rounded.error)),
        damping: None,
        ratio: folded.ratio,
        clipped: Some(clipped),
        reason: folded.reason.clone(),
    };
    Ok((kept, record))
}
