//! Finds the codes of a model's blocks with the help of calibration samples, block by block.
//!
//! What is done is noted after each block, so that another run can go on. Not here: the methods (`calibrate`). Floor 8.

pub mod memory;
pub mod resume;

use super::quantize::QuantizationPlan;
use super::select::{Method, QuantizeOptions};
use crate::backend::Backend;
use crate::calibrate::awq::Awq;
use crate::calibrate::gptq::Gptq;
use crate::calibrate::method::{CalibratedMethod, InputContext, LayerContext, ModuleTarget, QuantizedInput};
use crate::calibrate::modules::CalibratedModules;
use crate::calibrate::rtn::Direct;
use crate::calibrate::{Samples, Start, Statistics, Walk, WalkOptions, walk};
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::Checkpoint;
use crate::model::block::LinearInput;
use crate::model::names::Linear;
use crate::model::weights::WeightSource;
use crate::options::Named;
use crate::quant::ScaleType;
use crate::task::Control;
use resume::Journal;

/// What a calibrated method needs beside its options.
pub struct Calibration<'a, B> {
    /// What the model is run on.
    pub samples: &'a Samples,
    /// Makes what runs it. A target asks for three, one after the other.
    pub new_backend: &'a dyn Fn() -> Result<B>,
    /// Where hidden states and finished matrices wait.
    pub scratch: &'a dyn Scratch,
}

/// Quantizes the modules of all blocks, from where a run with the same `key` ended in the same scratch. Includes modules that
/// a recipe assigns to RTN: later layers are calibrated on their quantized outputs.
pub(super) async fn calibrate_modules<'a, B: Backend>(
    checkpoint: &'a Checkpoint,
    plan: &QuantizationPlan,
    scale_type: ScaleType,
    calibration: Calibration<'a, B>,
    key: Option<String>,
    control: &dyn Control,
) -> Result<CalibratedModules<'a>> {
    let Calibration { samples, new_backend, scratch } = calibration;
    let (backend, options) = (new_backend()?, plan.options());
    let layers = checkpoint.config().num_hidden_layers;
    let mut modules = CalibratedModules::new(scratch);
    let mut start = Start::Embed;
    let mut journal = None;
    if let Some(key) = key {
        let key = format!("{key}, on {}", backend.capabilities().device);
        let (opened, before) = Journal::open(scratch, key).await?;
        journal = Some(opened);
        start = Start::EmbedKept;
        if let Some((blocks, done)) = before {
            modules = done;
            start = Start::GoOn(blocks);
        }
    }
    let first = if let Start::GoOn(blocks) = start { blocks } else { 0 };
    if first == layers {
        return Ok(modules);
    }
    let walk_options = WalkOptions {
        start,
        statistics: statistics(options),
        holds_blocks: plan.memory().is_some_and(|memory| memory.holds_block),
        phase: "calibrate",
    };
    let mut walk = Walk::begin(checkpoint, samples, backend, scratch, walk_options, control).await?;
    if let (Some(journal), Start::EmbedKept) = (&mut journal, start) {
        journal.write(Some(0), &modules).await?;
    }
    let context = LayerContext { checkpoint, scale_type, control };
    for layer in first..layers {
        walk.enter_block(layer).await?;
        for input in LinearInput::ALL {
            let mut statistics = walk.next_input(control).await?;
            let names = input.linears().iter().map(|&linear| (linear, linear.module(layer)));
            let names: Vec<(Linear, String)> = names.collect();
            let mut quantized = Vec::new();
            for (method, ..) in Method::VALUES.iter().copied() {
                let targets: Vec<(Linear, ModuleTarget<'_>)> = names
                    .iter()
                    .filter_map(|(linear, module)| {
                        let plan = plan.modules().iter().find(|plan| plan.module == *module)?;
                        let scheme = plan.scheme.filter(|_| plan.method == Some(method))?;
                        Some((*linear, plan.target(scheme)))
                    })
                    .collect();
                if targets.is_empty() {
                    continue;
                }
                if !wants(method, options).drift {
                    statistics.drift = None;
                }
                let (statistics, targets) = (&statistics, &targets[..]);
                let (walk, modules) = (&mut walk, &mut modules);
                let input = InputContext { walk, context, layer, statistics, targets, modules };
                quantized.push(quantize_input(method, options, input).await?);
            }
            // Before the next weights come.
            drop(statistics);
            for layer in quantized.iter().flat_map(|input| &input.layers) {
                let (_, module) = names.iter().find(|(linear, _)| *linear == layer.linear).expect("a target");
                modules.keep(module.clone(), layer).await?;
            }
            let is_last = layer + 1 == layers && input == LinearInput::Down;
            let sources: Vec<_> = quantized.iter().flat_map(sources).collect();
            if !sources.is_empty() && !is_last {
                walk.replace(&sources).await?;
            }
        }
        if layer + 1 < layers {
            walk.leave_block(control).await?;
        }
        if let Some(journal) = &mut journal {
            journal.write(Some(layer + 1), &modules).await?;
        }
    }
    Ok(modules)
}

/// Deletes everything of the run from its scratch, with the `slots` of what it found.
pub(super) async fn clear(scratch: &dyn Scratch, slots: &[String]) -> Result<()> {
    // Without its notes the rest is of no use, so they go first.
    resume::forget(scratch).await?;
    for slot in walk::SLOTS.into_iter().chain(slots.iter().map(String::as_str)) {
        scratch.delete(slot).await?;
    }
    Ok(())
}

/// What the samples go on through in the place of layers.
fn sources(input: &QuantizedInput) -> impl Iterator<Item = (Linear, WeightSource<'_>)> {
    input.layers.iter().map(|layer| {
        let source = match &input.scales {
            None => WeightSource::Packed(&layer.tensor),
            Some(scales) => WeightSource::Scaled(&layer.tensor, scales),
        };
        (layer.linear, source)
    })
}

/// What all methods of a run together want to know of the inputs.
fn statistics(options: &QuantizeOptions) -> Statistics {
    let asked = Method::VALUES.iter().filter(|(method, ..)| options.asks_for(*method));
    asked.fold(Statistics::default(), |all, &(method, ..)| {
        let wanted = wants(method, options);
        Statistics {
            drift: all.drift || wanted.drift,
            mean_absolute: all.mean_absolute || wanted.mean_absolute,
        }
    })
}

fn wants(method: Method, options: &QuantizeOptions) -> Statistics {
    match method {
        Method::Rtn | Method::Ternary => direct(options).wants(),
        Method::Gptq => Gptq { options: options.gptq }.wants(),
        Method::Awq => Awq.wants(),
    }
}

async fn quantize_input<B: Backend>(
    method: Method,
    options: &QuantizeOptions,
    input: InputContext<'_, '_, B>,
) -> Result<QuantizedInput> {
    match method {
        Method::Rtn | Method::Ternary => direct(options).quantize_input(input).await,
        Method::Gptq => Gptq { options: options.gptq }.quantize_input(input).await,
        Method::Awq => Awq.quantize_input(input).await,
    }
}

fn direct(options: &QuantizeOptions) -> Direct {
    Direct { sparsity_threshold: options.sparsity_threshold }
}
