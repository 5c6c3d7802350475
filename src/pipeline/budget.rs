//! Which module gets how many bits, so that all of them together fit a budget: by what each loses in each scheme.
//!
//! The samples are walked through the model as it is. At each input every module is rounded to nearest in every candidate
//! scheme, and the squared error of its output is measured as a share of the output. What comes of that error further on is
//! measured once for each module: with 3 bits in it alone, how far do the model's predictions diverge? A divergence grows
//! with the square of a small error, so the one measured is scaled by the shares to those of the other schemes; and those of
//! several modules about add up. [`solve`] then takes, within the budget, the schemes of the least sum. The result is a
//! recipe.

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

/// What the result may take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// All tensors of the output together.
    Bytes(u64),
    /// Mean bits of a weight in the quantized modules, with scales and zero points.
    BitsPerWeight(f64),
}

/// What a module loses in one scheme.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SchemeSensitivity {
    /// `int4-g32-sym`
    pub scheme: String,
    /// What the module takes, in the units of the budget.
    pub bytes: u64,
    /// Squared error of its output on the samples, as a share of the squared output, rounded to nearest.
    pub error: f64,
    /// About how far the model's predictions diverge by that, in nats a token.
    pub divergence: f64,
}

/// Why a module got its scheme.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleChoice {
    /// Module name.
    pub module: String,
    /// The scheme that it got.
    pub chosen: String,
    /// All that it could have got.
    pub candidates: Vec<SchemeSensitivity>,
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Allocation {
    /// What was asked for.
    pub target: Budget,
    /// Bytes that the modules might take together.
    pub budget_bytes: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// The sum of their divergences, in nats a token, rounded to nearest.
    pub divergence: f64,
    /// Every module.
    pub modules: Vec<ModuleChoice>,
    /// The same as rules.
    #[serde(skip)]
    pub recipe: Recipe,
}

/// Schemes that are tried for each module: those of `options` with 2, 3, 4 and 8 bits. 8 bits have a scale a row.
fn candidates(options: &QuantizeOptions) -> Vec<Scheme> {
    let usual = (Bits::Four, Bits::Four.usual_granularity(), true);
    let (_, granularity, symmetric) = options.scheme.as_integer().unwrap_or(usual);
    let integer = |bits, granularity| Scheme::symmetric(bits, granularity).with_symmetry(symmetric);
    let few = [Bits::Two, Bits::Three, Bits::Four].map(|bits| integer(bits, granularity));
    few.into_iter().chain([integer(Bits::Eight, Granularity::Channel)]).collect()
}

/// Chooses a scheme for each module of the blocks in `plan`, which was made without a recipe.
///
/// # Errors
/// `invalid_argument` for a recipe, for a target that nothing reaches, and for a layout that holds one scheme alone;
/// whatever running the model meets.
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
            "the {} layout: {reason}, which leaves a target no choice",
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
                    "expected a target above {others} bytes, which embedding, norms and other tensors take, but found {bytes}"
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
    weigh(checkpoint, &mut measured, calibration, control).await?;
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
                "expected a target of at least {:.3} bits a weight, with 2 bits everywhere, but found {bits}",
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

/// Bits with which the divergence of each module is measured: few, so that it stands out of what rounding of `f32` does, and
/// not so few that it ruins the model.
const PROBE: u32 = 3;

type Measured = (String, Vec<(Scheme, SchemeSensitivity)>);

/// What each module loses in each scheme that the layout holds for it.
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

/// Follows the error of each module, with [`PROBE`] in it alone, to the end of the model, and fills in what comes of the
/// others'.
async fn weigh<B: Backend>(
    checkpoint: &Checkpoint,
    measured: &mut [Measured],
    calibration: &Calibration<'_, B>,
    control: &dyn Control,
) -> Result<()> {
    let Calibration { samples, new_backend, scratch } = *calibration;
    // The scheme that is nearest to the probe's bits, and what the module loses in it.
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

/// What a module takes: in the file where there is a layout, otherwise as it is packed.
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
