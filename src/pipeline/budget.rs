//! Chooses bits for each module within a budget, by measured sensitivity.
//!
//! 1. The samples run through the unquantized model. Each module is rounded to nearest in every candidate scheme, and
//!    its relative squared output error is measured.
//! 2. Each module alone is rounded to about 3 bits, and the divergence of the model's predictions is measured.
//! 3. For small errors, divergence is proportional to the squared output error. The measured divergence is scaled
//!    accordingly to the other schemes. The divergences of several modules approximately add up.
//! 4. [`solve`] minimizes their sum within the budget. The result is a recipe.

pub mod solve;

use super::calibrated::Calibration;
use super::quantize::{QuantizationPlan, copied_bytes, is_in_block};
use super::select::{ModulePlan, QuantizeOptions};
use crate::backend::Backend;
use crate::calibrate::method::{LayerContext, ModuleTarget};
use crate::calibrate::rtn::round_measured;
use crate::calibrate::{InputStatistics, Start, Statistics, Walk, WalkOptions};
use crate::error::{Error, Result};
use crate::layout::{PackedFormat, TargetLayout};
use crate::model::Checkpoint;
use crate::model::block::LinearInput;
use crate::model::names::Linear;
use crate::plan::memory::packed_bytes;
use crate::quant::awq::{Measure, Moments};
use crate::quant::{Bits, Granularity, ScaleType, Scheme};
use crate::recipe::{ModulePattern, Recipe, Rule};
use crate::sort;
use crate::task::{Control, yield_point};
use crate::validate::sensitivity::{self, LayerSensitivity};
use serde::Serialize;
use solve::SchemeCost;
use std::cell::Cell;
use std::collections::BTreeMap;

/// A budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Bytes of all output tensors.
    Bytes(u64),
    /// Mean bits per weight of the quantized modules, including scales and zero points.
    BitsPerWeight(f64),
}

/// A module's sensitivity to one scheme.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SchemeSensitivity {
    /// `int4-g32-sym`
    pub scheme: String,
    /// The module's bytes.
    pub bytes: u64,
    /// Relative squared output error on the samples, with rounding to nearest.
    pub error: f64,
    /// Estimated divergence of the model's predictions, in nats a token.
    pub divergence: f64,
}

/// The choice of a module's scheme.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleChoice {
    /// Module name.
    pub module: String,
    /// The chosen scheme.
    pub chosen: String,
    /// All candidates.
    pub candidates: Vec<SchemeSensitivity>,
}

/// The allocation of bits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Allocation {
    /// The budget.
    pub target: Budget,
    /// Bytes available for the modules.
    pub budget_bytes: u64,
    /// Bytes of the modules.
    pub bytes: u64,
    /// The sum of their divergences in nats a token, with rounding to nearest.
    pub divergence: f64,
    /// The choice of every module.
    pub modules: Vec<ModuleChoice>,
    /// The recipe.
    #[serde(skip)]
    pub recipe: Recipe,
}

/// Candidate schemes of each module: that of `options` with 2, 3, 4 and 8 bits. 8 bits have one scale per row.
fn candidates(options: &QuantizeOptions) -> Vec<Scheme> {
    let usual = (Bits::Four, Bits::Four.usual_granularity(), true);
    let (_, granularity, symmetric) = options.scheme.as_integer().unwrap_or(usual);
    let integer = |bits, granularity| Scheme::symmetric(bits, granularity).with_symmetry(symmetric);
    let few = [Bits::Two, Bits::Three, Bits::Four].map(|bits| integer(bits, granularity));
    few.into_iter().chain([integer(Bits::Eight, Granularity::Channel)]).collect()
}

/// Chooses a scheme for each module of the blocks in `plan`, a plan without a recipe.
///
/// # Errors
/// `invalid_argument` for a recipe, for an unreachable target, and for a layout that holds only one scheme;
/// errors of running the model.
pub(super) async fn choose<B: Backend>(
    checkpoint: &Checkpoint,
    plan: &QuantizationPlan,
    calibration: &Calibration<'_, B>,
    target: Budget,
    control: &dyn Control,
) -> Result<Allocation> {
    let (plans, options) = (plan.modules(), plan.options());
    if options.recipe.is_some() {
        return Err(Error::invalid_argument(
            "a target chooses the precision of each module; expected no recipe",
        ));
    }
    let layout = options.target_layout();
    layout.can_hold_mixed().map_err(|reason| {
        Error::invalid_argument(format!(
            "the {} layout: {reason}, so a target has nothing to choose",
            layout.name()
        ))
    })?;
    let in_blocks: Vec<&ModulePlan> = plans.iter().filter(|plan| is_in_block(&plan.module)).collect();
    let weights: u64 = in_blocks.iter().map(|plan| plan.rows as u64 * plan.cols as u64).sum();
    let budget = match target {
        Budget::Bytes(bytes) => {
            let others = copied_bytes(checkpoint, plan).await?;
            bytes.checked_sub(others).ok_or_else(|| {
                Error::invalid_argument(format!(
                    "expected a target above {others} bytes, for embedding, norms and other tensors, but found {bytes}"
                ))
            })?
        }
        Budget::BitsPerWeight(bits) if bits.is_finite() && bits > 0.0 => (bits * weights as f64 / 8.0) as u64,
        Budget::BitsPerWeight(bits) => {
            return Err(Error::invalid_argument(format!(
                "expected a positive number of bits but found {bits}"
            )));
        }
    };
    let in_file = matches!(target, Budget::Bytes(_)).then_some(layout);
    let mut measured = measure(checkpoint, (plan, &in_blocks), calibration, in_file, control).await?;
    measure_divergence(checkpoint, &mut measured, calibration, control).await?;
    let choices: Vec<Vec<SchemeCost>> = measured
        .iter()
        .map(|(_, found)| {
            found.iter().map(|(_, s)| SchemeCost { bytes: s.bytes, error: s.divergence }).collect()
        })
        .collect();
    let chosen = solve::solve(&choices, budget).map_err(|least| {
        Error::invalid_argument(match target {
            Budget::Bytes(bytes) => format!(
                "expected a target of at least {} bytes, with 2 bits everywhere, but found {bytes}",
                bytes - budget + least
            ),
            Budget::BitsPerWeight(bits) => format!(
                "expected a target of at least {:.3} bits per weight, with 2 bits everywhere, but found {bits}",
                least as f64 * 8.0 / weights as f64
            ),
        })
    })?;
    let picked = choices.iter().zip(&chosen).map(|(choices, &choice)| choices[choice]);
    let (bytes, divergence) =
        picked.fold((0, 0.0), |(bytes, sum), choice| (bytes + choice.bytes, sum + choice.error));
    let mut rules: BTreeMap<String, (Scheme, Vec<ModulePattern>)> = BTreeMap::new();
    let mut modules = Vec::new();
    for ((module, found), &choice) in measured.into_iter().zip(&chosen) {
        let scheme = found[choice].0;
        let pattern = ModulePattern::try_from(module.clone()).map_err(Error::invalid_argument)?;
        rules.entry(scheme.to_string()).or_insert((scheme, Vec::new())).1.push(pattern);
        let candidates: Vec<SchemeSensitivity> =
            found.into_iter().map(|(_, sensitivity)| sensitivity).collect();
        modules.push(ModuleChoice { module, chosen: scheme.to_string(), candidates });
    }
    let recipe =
        Recipe { rules: rules.into_values().map(|(scheme, modules)| rule(scheme, modules)).collect() };
    Ok(Allocation { target, budget_bytes: budget, bytes, divergence, modules, recipe })
}

fn rule(scheme: Scheme, modules: Vec<ModulePattern>) -> Rule {
    let group_size = match scheme.granularity() {
        Granularity::Group(size) => i64::try_from(size).unwrap_or(-1),
        Granularity::Tensor | Granularity::Channel => -1,
    };
    Rule {
        modules,
        bits: Some(scheme.storage_bits()),
        group_size: Some(group_size),
        symmetric: Some(scheme.constant_zero_point().is_some()),
        ..Rule::default()
    }
}

/// Bits for measuring the divergence of each module: few enough to exceed the noise of `f32`, but
/// not so few that they ruin the model.
const PROBE: u32 = 3;

type Measured = (String, Vec<(Scheme, SchemeSensitivity)>);

/// Measures each module's error in each scheme that the layout holds.
async fn measure<B: Backend>(
    checkpoint: &Checkpoint,
    (plan, plans): (&QuantizationPlan, &[&ModulePlan]),
    calibration: &Calibration<'_, B>,
    in_file: Option<TargetLayout>,
    control: &dyn Control,
) -> Result<Vec<Measured>> {
    let Calibration { samples, new_backend, scratch } = *calibration;
    let (scale_type, options) = (ScaleType::F16, plan.options());
    let schemes = candidates(options);
    let context = LayerContext { checkpoint, scale_type, control };
    let walk_options = WalkOptions {
        start: Start::Embed,
        statistics: Statistics::default(),
        holds_blocks: plan.memory().is_some_and(|memory| memory.holds_block),
        phase: "sensitivity",
    };
    let mut walk = Walk::begin(checkpoint, samples, new_backend()?, scratch, walk_options, control).await?;
    let mut measured = Vec::new();
    for layer in 0..checkpoint.config().num_hidden_layers {
        walk.enter_block(layer).await?;
        for input in LinearInput::ALL {
            let InputStatistics { hessian, .. } = walk.next_input(control).await?;
            let moments = Moments::in_steps(&hessian).run(control).await?;
            drop(hessian);
            let row_memory = Cell::default();
            let parts = (input.linears().len() * schemes.len()) as u64;
            let mut done = 0;
            for &linear in input.linears() {
                let module = linear.module(layer);
                let Some(plan) = plans.iter().find(|plan| plan.module == module) else { continue };
                let mut found: Vec<(Scheme, SchemeSensitivity)> = Vec::new();
                for &wanted in &schemes {
                    walk.report_quantizing(done, parts, &module, control);
                    done += 1;
                    let fit = options.target_layout().fit_module(&module, plan.rows, plan.cols, wanted);
                    let Some(scheme) =
                        fit.scheme.filter(|scheme| found.iter().all(|(other, _)| other != scheme))
                    else {
                        continue;
                    };
                    let (target, measure) = (plan.target(scheme), Measure::ErrorAndSignal(&moments));
                    let outcome = round_measured(context, &target, None, None, measure, &row_memory).await?;
                    let error = if outcome.signal > 0.0 { outcome.error / outcome.signal } else { 0.0 };
                    let bytes = bytes_of(plan, scheme, scale_type, in_file)?;
                    found.push((
                        scheme,
                        SchemeSensitivity { scheme: scheme.to_string(), bytes, error, divergence: 0.0 },
                    ));
                    yield_point(control).await?;
                }
                if !found.is_empty() {
                    measured.push((module, found));
                }
            }
        }
        walk.leave_block(control).await?;
    }
    Ok(measured)
}

/// Measures the divergence with [`PROBE`] bits in each module alone, and extrapolates it to the other
/// schemes.
async fn measure_divergence<B: Backend>(
    checkpoint: &Checkpoint,
    measured: &mut [Measured],
    calibration: &Calibration<'_, B>,
    control: &dyn Control,
) -> Result<()> {
    let Calibration { samples, new_backend, scratch } = *calibration;
    // The scheme nearest to the probe's bits, and its error.
    let probes = sort::map(measured.iter().map(|(module, found)| {
        let nearest = found.iter().min_by_key(|(scheme, _)| scheme.storage_bits().abs_diff(PROBE));
        let (scheme, sensitivity) = nearest.expect("a module has a candidate");
        (module.clone(), (*scheme, sensitivity.error))
    }));
    let change = async |layer: usize, linear: Linear| {
        let module = linear.module(layer);
        let Some(&(scheme, _)) = probes.get(&module) else { return Ok(None) };
        let (rows, cols) = linear.shape(checkpoint.config());
        let target = ModuleTarget { module: &module, source: &module, rows, cols, scheme };
        let context = LayerContext { checkpoint, scale_type: ScaleType::F16, control };
        let (measure, memory) = (Measure::Nothing, Cell::default());
        let outcome = round_measured(context, &target, None, None, measure, &memory).await?;
        Ok(Some(outcome.tensor.into()))
    };
    let layers =
        sensitivity::measure(checkpoint, &samples.windows, change, new_backend()?, scratch, control).await?;
    for LayerSensitivity { layer, linear, divergence } in layers {
        let module = linear.module(layer);
        let Some((_, found)) = measured.iter_mut().find(|(name, _)| *name == module) else { continue };
        let (_, error) = probes[&module];
        let of_error = if error > 0.0 { divergence / error } else { 0.0 };
        for (_, sensitivity) in found {
            sensitivity.divergence = of_error * sensitivity.error;
        }
    }
    Ok(())
}

/// A module's bytes: in the file if there is a layout, otherwise packed.
fn bytes_of(
    plan: &ModulePlan,
    scheme: Scheme,
    scale_type: ScaleType,
    in_file: Option<TargetLayout>,
) -> Result<u64> {
    let Some(layout) = in_file else { return packed_bytes(scheme, plan.rows as u64, plan.cols as u64) };
    let format = PackedFormat { coding: scheme.into(), scale_type, reordered: false };
    let tensors = layout.planned_tensors(&plan.module, plan.rows, plan.cols, format);
    Ok(tensors.iter().map(|(_, info)| info.byte_len().unwrap_or(0)).sum())
}
