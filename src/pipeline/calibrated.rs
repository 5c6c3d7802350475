//! Calibrated quantization of a model's blocks, block by block.
//!
//! Progress is saved after each block, so that another run can continue. The methods are in `calibrate`.

pub mod memory;
pub mod resume;

use super::quantize::QuantizationPlan;
use super::select::{Method, QuantizeOptions};
use crate::backend::Backend;
use crate::calibrate::awq::Awq;
use crate::calibrate::gptq::Gptq;
use crate::calibrate::method::{CalibratedMethod, InputContext, LayerContext, QuantizedLayer};
use crate::calibrate::modules::CalibratedModules;
use crate::calibrate::rtn::Uncalibrated;
use crate::calibrate::{Samples, Start, Statistics, Walk, WalkOptions, walk};
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::Checkpoint;
use crate::model::block::LinearInput;
use crate::options::Named;
use crate::quant::ScaleType;
use crate::task::Control;
use resume::Journal;

/// Inputs of a calibrated method besides its options.
pub struct Calibration<'a, B> {
    /// The samples.
    pub samples: &'a Samples,
    /// Creates the backend. A target needs three, one after another.
    pub new_backend: &'a dyn Fn() -> Result<B>,
    /// Scratch space for hidden states and finished matrices.
    pub scratch: &'a dyn Scratch,
}

/// Quantizes the modules of all blocks. Continues a run with the same `key` in the same scratch. Includes modules that
/// a recipe assigns to RTN, because later layers are calibrated on their quantized outputs.
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
            let planned: Vec<_> = names
                .filter_map(|(linear, module)| {
                    let plan = plan.modules().iter().find(|plan| plan.module == module)?;
                    Some((plan.method?, linear, plan.target(plan.scheme?)))
                })
                .collect();
            let mut quantized = Vec::new();
            for (method, ..) in Method::VALUES.iter().copied() {
                let of_method = planned.iter().filter(|(other, ..)| *other == method);
                let targets: Vec<_> = of_method.map(|&(_, linear, target)| (linear, target)).collect();
                if targets.is_empty() {
                    continue;
                }
                if !wants(method, options).drift {
                    statistics.drift = None;
                }
                let (walk, modules, statistics) = (&mut walk, &mut modules, &statistics);
                let input = InputContext { walk, context, layer, statistics, targets: &targets, modules };
                quantized.extend(quantize_input(method, options, input).await?);
            }
            // Before the next weights are loaded.
            drop(statistics);
            for quantized in &quantized {
                modules.keep(quantized.linear.module(layer), quantized).await?;
            }
            let is_last = layer + 1 == layers && input == LinearInput::Down;
            if !quantized.is_empty() && !is_last {
                walk.replace(&quantized.iter().map(QuantizedLayer::source).collect::<Vec<_>>()).await?;
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

/// Deletes the run's scratch data, including the `slots` of its results.
pub(super) async fn clear(scratch: &dyn Scratch, slots: Vec<String>) -> Result<()> {
    // The rest is useless without the notes, so they are deleted first.
    resume::forget(scratch).await?;
    for slot in walk::slots().map(str::to_owned).chain(slots) {
        scratch.delete(&slot).await?;
    }
    Ok(())
}

/// The input statistics that the methods of a run need together.
fn statistics(options: &QuantizeOptions) -> Statistics {
    let any = |wanted: fn(Statistics) -> bool| {
        let mut methods = Method::VALUES.iter().map(|&(method, ..)| method);
        methods.any(|method| options.asks_for(method) && wanted(wants(method, options)))
    };
    Statistics { drift: any(|wanted| wanted.drift), mean_absolute: any(|wanted| wanted.mean_absolute) }
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
) -> Result<Vec<QuantizedLayer>> {
    match method {
        Method::Rtn | Method::Ternary => direct(options).quantize_input(input).await,
        Method::Gptq => Gptq { options: options.gptq }.quantize_input(input).await,
        Method::Awq => Awq.quantize_input(input).await,
    }
}

fn direct(options: &QuantizeOptions) -> Uncalibrated {
    Uncalibrated { sparsity_threshold: options.sparsity_threshold }
}
