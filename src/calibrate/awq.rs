//! AWQ on the layers that share an input: searches their scales for the least error of the output of attention, MLP or
//! layer, rounds the layers, and folds the scales into the preceding norm or linear layer.
//!
//! During the walk, layers hold `Q(W s) / s` and the input is not divided. The outputs are the same as after folding,
//! so the activations in scratch stay valid. Candidates are tried in their stored form, `Q(W s)`, with the input
//! divided by `s`. The maths is in [`quant::awq`](crate::quant::awq).

use super::method::{
    CalibratedMethod, CalibrationRecord, InputContext, LayerContext, ModuleTarget, QuantizedLayer,
};
use super::modules::CalibratedModules;
use super::rtn::round_measured;
use super::walk::{InputStatistics, Statistics, Walk};
use crate::backend::Backend;
use crate::error::Result;
use crate::model::block::LinearInput;
use crate::model::names::{BlockNorm, Linear};
use crate::model::weights::{RowMemory, WeightSource, read_vector};
use crate::quant::awq::fold::{HeadGrouping, divide_norm, divide_rows};
use crate::quant::awq::{AwqOutcome, Clipping, Measure, Moments, RATIOS, ScaleCandidate, ScaleSearch};
use crate::quant::{Granularity, Hessian, Method, QuantizedTensor};
use std::cell::Cell;

/// Progress steps of an input: one for each candidate, and one for the rest.
const SHARES: u64 = RATIOS as u64 + 1;

/// AWQ: scales up columns with large inputs before rounding.
#[derive(Clone, Copy, Debug)]
pub struct Awq;

impl CalibratedMethod for Awq {
    fn wants(&self) -> Statistics {
        Statistics { mean_absolute: true, ..Statistics::default() }
    }

    async fn quantize_input<B: Backend>(
        &self,
        input: InputContext<'_, '_, B>,
    ) -> Result<Vec<QuantizedLayer>> {
        let InputContext { walk, context, layer, statistics, targets, modules } = input;
        // AWQ compares outputs on the same inputs, so it needs no drift.
        let InputStatistics { input, hessian, mean_absolute, .. } = statistics;
        let moments = Moments::in_steps(hessian).run(context.control).await?;
        let rows = Cell::default();
        let on = Layers { context, layer, input: *input, targets, moments: &moments, rows: &rows };
        let folded = on.fold(walk, mean_absolute.clone().unwrap_or_default(), modules).await?;
        let mut layers = Vec::new();
        for (linear, target) in targets {
            walk.report_quantizing(SHARES - 1, SHARES, target.module, context.control);
            let (outcome, record) = on.finish(*linear, target, &folded, hessian).await?;
            let AwqOutcome { tensor, weights: error, .. } = outcome;
            let (record, scales) = (Some(record), Some(folded.scales.clone()));
            let tensor = tensor.into();
            layers.push(QuantizedLayer { linear: *linear, tensor, record, scales, error });
        }
        Ok(layers)
    }
}

/// Scales that are folded into the preceding norm or layer.
struct Folded {
    /// `[cols]`
    scales: Vec<f32>,
    ratio: Option<f32>,
    reason: Option<String>,
}

/// The layers of one input.
#[derive(Clone, Copy)]
struct Layers<'a> {
    context: LayerContext<'a>,
    layer: usize,
    input: LinearInput,
    targets: &'a [(Linear, ModuleTarget<'a>)],
    moments: &'a Moments,
    /// Row buffers, reused from layer to layer.
    rows: &'a Cell<RowMemory>,
}

impl Layers<'_> {
    /// Finds the scales of the input and divides the preceding norm or layer by them.
    async fn fold<B: Backend>(
        self,
        walk: &mut Walk<'_, B>,
        mut mean: Vec<f32>,
        modules: &mut CalibratedModules<'_>,
    ) -> Result<Folded> {
        let width = mean.len();
        let without = |reason: &str| {
            let reason = Some(format!("columns are not scaled: {reason}"));
            Ok(Folded { scales: vec![1.0; width], ratio: None, reason })
        };
        if self.targets.len() < self.input.linears().len() {
            return without("another layer with the same input is not quantized");
        }
        let checkpoint = self.context.checkpoint;
        let config = checkpoint.config();
        let norm = match self.input {
            LinearInput::Qkv => BlockNorm::Input,
            LinearInput::O => BlockNorm::AttentionSub,
            LinearInput::GateUp => BlockNorm::PostAttention,
            LinearInput::Down => BlockNorm::MlpSub,
        };
        if norm.is_in(config) {
            let tensor = format!("{}.weight", norm.module(self.layer));
            let weight = read_vector(checkpoint, &tensor, norm.width(config)).await?;
            let dtype = checkpoint.store().require(&tensor)?.dtype;
            let fit = |scales: &mut [f32]| divide_norm(&weight, dtype, scales).map(drop);
            let ScaleCandidate { mut scales, ratio } = self.search(walk, mean, fit).await?;
            let divided = divide_norm(&weight, dtype, &mut scales)?;
            modules.keep_vector(&tensor, &divided).await?;
            return Ok(Folded { scales, ratio: Some(ratio), reason: None });
        }
        // Without a norm the input is the output of a linear layer. With grouped-query attention several heads share a
        // row of v.
        let grouping = (self.input == LinearInput::O).then_some(HeadGrouping {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        });
        let linear = if grouping.is_some() { Linear::V } else { Linear::Up };
        let module = linear.module(self.layer);
        if modules.get(&module).is_none() {
            return without("the preceding layer is not quantized");
        }
        let loaded = modules.load(&module).await?;
        let Some(tensor) = loaded.affine() else {
            return without("the preceding layer has no scales for its rows");
        };
        if tensor.scheme().granularity() == Granularity::Tensor {
            return without("the preceding layer has one scale for all its rows");
        }
        if let Some(grouping) = &grouping {
            grouping.average(&mut mean);
        }
        let ScaleCandidate { scales, ratio } = self.search(walk, mean, |_| Ok(())).await?;
        let rows = grouping.map_or_else(|| scales.clone(), |grouping| grouping.of_rows(&scales));
        let Ok(divided) = divide_rows(tensor, &rows) else {
            return without("the scales are out of the preceding layer's range");
        };
        modules.replace(&module, &divided.into()).await?;
        if linear.has_bias(config) {
            let bias = format!("{module}.bias");
            let values = read_vector(checkpoint, &bias, rows.len()).await?;
            let divided: Vec<f32> = values.iter().zip(&rows).map(|(value, scale)| value / scale).collect();
            modules.keep_vector(&bias, &divided).await?;
        }
        Ok(Folded { scales, ratio: Some(ratio), reason: None })
    }

    /// The best scales, with `mean` the mean of `|x|`. `fit` rounds scales to values that can be folded. Afterwards the
    /// block may hold the weights of any candidate, for an input divided by that candidate's scales.
    async fn search<B: Backend>(
        self,
        walk: &mut Walk<'_, B>,
        mean: Vec<f32>,
        fit: impl Fn(&mut [f32]) -> Result<()>,
    ) -> Result<ScaleCandidate> {
        let control = self.context.control;
        let parent = walk.keep_parent_outputs(control).await?;
        let measure = if parent { Measure::Nothing } else { Measure::Error(self.moments) };
        let mut search = ScaleSearch::new(mean);
        let mut tried = 0;
        while let Some(mut candidate) = search.next_candidate() {
            walk.report_quantizing(tried, SHARES, self.targets[0].1.module, control);
            tried += 1;
            fit(&mut candidate.scales)?;
            let mut loss = 0.0;
            let mut tensors: Vec<(Linear, QuantizedTensor)> = Vec::new();
            for (linear, target) in self.targets {
                let outcome = self.round(target, Some(&candidate.scales), None, measure).await?;
                loss += outcome.error;
                tensors.push((*linear, outcome.tensor.into()));
            }
            if parent {
                let sources: Vec<_> =
                    tensors.iter().map(|(linear, tensor)| (*linear, WeightSource::Packed(tensor))).collect();
                walk.replace(&sources).await?;
                loss = walk.parent_loss(&candidate.scales, search.least(), control).await?;
            }
            search.report(loss);
        }
        let mut best = search.best();
        fit(&mut best.scales)?;
        Ok(best)
    }

    /// Rounds one layer, with clipping if that reduces the error.
    async fn finish(
        self,
        linear: Linear,
        target: &ModuleTarget<'_>,
        folded: &Folded,
        hessian: &Hessian,
    ) -> Result<(AwqOutcome, CalibrationRecord)> {
        let rounded = self.round(target, None, None, Measure::ErrorAndSignal(self.moments)).await?;
        let (scales, measure) = (Some(&folded.scales[..]), Measure::ErrorAndWeights(self.moments));
        let mut kept = self.round(target, scales, None, measure).await?;
        let mut clipped = false;
        // Clipping q and k changes the attention of every token. The authors exclude them.
        if !matches!(linear, Linear::Q | Linear::K) {
            let group_size = target.scheme.granularity().group_size(target.cols);
            let steps = Clipping::in_steps(hessian, &folded.scales, group_size);
            let clipping = steps.run(self.context.control).await?;
            let outcome = self.round(target, scales, Some(&clipping), measure).await?;
            if outcome.error < kept.error {
                (kept, clipped) = (outcome, true);
            }
        }
        let share = |error: f64| if rounded.signal > 0.0 { error / rounded.signal } else { 0.0 };
        let record = CalibrationRecord {
            method: Method::Awq.name().to_owned(),
            output_error: Some(share(kept.error)),
            rtn_output_error: Some(share(rounded.error)),
            ratio: folded.ratio,
            clipped: Some(clipped),
            reason: folded.reason.clone(),
            ..CalibrationRecord::default()
        };
        Ok((kept, record))
    }

    async fn round(
        self,
        target: &ModuleTarget<'_>,
        scales: Option<&[f32]>,
        clipping: Option<&Clipping>,
        measure: Measure<'_>,
    ) -> Result<AwqOutcome> {
        round_measured(self.context, target, scales, clipping, measure, self.rows).await
    }
}
