//! The plan of quantizing, made once: each module's scheme, the record's parameters,
//! and the memory.

use super::{QuantizeContext, QuantizeEvent, is_in_block};
use crate::backend::Backend;
use crate::calibrate::Samples;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::gguf::TensorType;
use crate::layout::TargetLayout;
use crate::model::Checkpoint;
use crate::pipeline::budget::choose;
use crate::pipeline::calibrated::Calibration;
use crate::pipeline::calibrated::memory::{CalibrationMemory, plan_memory};
use crate::pipeline::output::gguf;
use crate::pipeline::select::{Method, ModulePlan, QuantizeOptions, plan_modules};
use crate::quant::Granularity;
use crate::quant::awq::RATIOS;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A plan for a checkpoint.
#[derive(Clone, Debug)]
pub struct QuantizationPlan {
    options: QuantizeOptions,
    modules: Vec<ModulePlan>,
    memory: Option<CalibrationMemory>,
}

impl QuantizationPlan {
    /// Plans every module. A target is ignored here, because it requires running the model.
    ///
    /// # Errors
    /// As [`plan_modules`]'s; `unsupported_model` for a model that a GGUF file cannot hold.
    pub fn new(checkpoint: &Checkpoint, options: &QuantizeOptions) -> Result<Self> {
        let modules = plan_modules(checkpoint, options)?;
        let plan = Self { options: options.clone(), modules, memory: None };
        if plan.layout() == TargetLayout::Gguf {
            gguf::check(checkpoint)?;
        }
        if let Some((module, loss)) = plan.copies(checkpoint)?.into_iter().find(|_| options.strict) {
            return Err(Error::unsupported_format(format!("module `{module}`: {loss}")));
        }
        Ok(plan)
    }

    /// Chooses the precision of each module for a target, and plans the memory.
    pub(super) async fn for_calibration<B: Backend>(
        self,
        checkpoint: &Checkpoint,
        calibration: &Calibration<'_, B>,
        context: &QuantizeContext<'_>,
    ) -> Result<Self> {
        let plan = self.within_memory(checkpoint, calibration.samples)?;
        let Some(target) = plan.options.target else { return Ok(plan) };
        let allocation = choose(checkpoint, &plan, calibration, target, context.control).await?;
        (context.tell)(QuantizeEvent::Allocation(&allocation));
        let recipe = Some(allocation.recipe.clone());
        let options = QuantizeOptions { recipe, allocation: Some(allocation), target: None, ..plan.options };
        Self::new(checkpoint, &options)?.within_memory(checkpoint, calibration.samples)
    }

    /// Plans the memory of calibration with these samples, and refuses a run that exceeds the limit.
    fn within_memory(self, checkpoint: &Checkpoint, samples: &Samples) -> Result<Self> {
        let memory = plan_memory(checkpoint, &self.modules, &self.options, samples)?;
        memory.check_within(self.options.memory).context_with(|| checkpoint.name().to_owned())?;
        Ok(Self { memory: Some(memory), ..self })
    }

    /// The options.
    pub fn options(&self) -> &QuantizeOptions {
        &self.options
    }

    /// The layout that will be written.
    pub fn layout(&self) -> TargetLayout {
        self.options.target_layout()
    }

    /// The plans of linear modules, in the order of the data flow.
    pub fn modules(&self) -> &[ModulePlan] {
        &self.modules
    }

    /// The memory of calibration; `None` without calibration.
    pub fn memory(&self) -> Option<CalibrationMemory> {
        self.memory
    }

    /// The matrices that a GGUF file stores in another floating-point type, with their losses. `F32` embeddings and
    /// heads are not listed, because every layout stores them in half precision.
    pub(super) fn copies(&self, checkpoint: &Checkpoint) -> Result<Vec<(String, String)>> {
        let mut lost = Vec::new();
        if self.layout() != TargetLayout::Gguf {
            return Ok(lost);
        }
        for (module, source) in gguf::matrices(checkpoint, self.options.quantize_head) {
            let planned = self.modules.iter().find(|plan| plan.module == module);
            if planned.is_some_and(|plan| plan.scheme.is_some()) {
                continue;
            }
            let stored = checkpoint.store().require(&format!("{source}.weight"))?.dtype;
            let (_, loss) = gguf::copied(checkpoint, &module, &source, TensorType::F16)?;
            if is_in_block(&module) || stored != DType::F32 {
                lost.extend(loss.map(|loss| (module, loss)));
            }
        }
        Ok(lost)
    }

    /// Deviations from the options: a line for each rule, and one for each module
    /// whose requested scheme the layout cannot hold.
    pub fn notes(&self) -> Vec<String> {
        let mut by_rule: BTreeMap<(usize, String), Vec<&ModulePlan>> = BTreeMap::new();
        let mut others = Vec::new();
        for plan in &self.modules {
            let Some(reason) = &plan.reason else { continue };
            let becomes = match (plan.scheme, plan.method) {
                (Some(scheme), Some(method)) if plan.rule.is_some() => {
                    format!("{scheme} by {}", method.name())
                }
                (Some(scheme), _) => scheme.to_string(),
                (None, _) => "f16".to_owned(),
            };
            let becomes = format!("{becomes} ({reason})");
            match plan.rule {
                Some(rule) => by_rule.entry((rule, becomes)).or_default().push(plan),
                None => others.push(format!("{}: {becomes}", plan.module)),
            }
        }
        let of_rule = |((_, becomes), modules): ((usize, String), Vec<&ModulePlan>)| match modules[..] {
            [only] => format!("{}: {becomes}", only.module),
            _ => format!("{} modules: {becomes}", modules.len()),
        };
        by_rule.into_iter().map(of_rule).chain(others).collect()
    }

    /// The options under their command-line names, for records.
    pub(super) fn parameters(&self) -> Map<String, Value> {
        let options = &self.options;
        let mut map = Map::new();
        map.insert("method".into(), json!(options.method.name()));
        map.insert("bits".into(), json!(options.scheme.storage_bits()));
        map.insert(
            "group_size".into(),
            match options.scheme.granularity() {
                Granularity::Group(size) => json!(size),
                _ => json!(-1),
            },
        );
        map.insert("symmetric".into(), json!(options.scheme.constant_zero_point().is_some()));
        map.insert("quantize_head".into(), json!(options.quantize_head));
        map.insert("quantize_embedding".into(), json!(options.quantize_embedding.map(|bits| bits.get())));
        map.insert("strict".into(), json!(options.strict));
        map.insert("sparsity_threshold".into(), json!(options.sparsity_threshold));
        map.insert("activations".into(), json!(options.activations.name()));
        if let Some(recipe) = &options.recipe {
            map.insert("recipe".into(), json!(recipe));
        }
        if let Some(allocation) = &options.allocation {
            map.insert("allocation".into(), json!(allocation));
        }
        map
    }

    /// [`parameters`](Self::parameters) with calibration options.
    pub(super) fn calibrated_parameters(&self, samples: &Samples) -> Map<String, Value> {
        let (options, mut map) = (&self.options, self.parameters());
        map.insert("samples".into(), json!(samples.windows.len()));
        map.insert("sequence_length".into(), json!(samples.windows.iter().map(Vec::len).max()));
        map.insert("calibration_tokens".into(), json!(samples.tokens()));
        map.insert("calibration_sha256".into(), json!(samples.sha256));
        if options.asks_for(Method::Gptq) {
            map.insert("damping".into(), json!(options.gptq.damping));
            map.insert("scales".into(), json!(options.gptq.scales.name()));
            map.insert("refinement_passes".into(), json!(options.gptq.refinement_passes));
            map.insert("act_order".into(), json!(options.gptq.act_order.name()));
            map.insert("reference_inputs".into(), json!(options.gptq.reference_inputs.name()));
        }
        if options.asks_for(Method::Awq) {
            map.insert("ratios".into(), json!(RATIOS));
        }
        map
    }
}
