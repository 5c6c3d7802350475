//! GPTQ on the layers that share an input. Each layer is rounded by GPTQ and to nearest, and the result with the
//! smaller output error is kept.
//!
//! The maths is in [`quant::gptq`](crate::quant::gptq).

use super::method::{
    CalibratedMethod, CalibrationRecord, InputContext, LayerContext, ModuleTarget, QuantizedLayer,
};
use super::rows::{quantize_rows, weight_error};
use super::rtn::round;
use super::walk::{InputStatistics, Statistics};
use crate::backend::Backend;
use crate::error::{Context, Result};
use crate::model::weights::DenseRows;
use crate::quant::gptq::{GptqOptions, Prepared, ReferenceInputs};
use crate::quant::{GptqQuantizer, Method, PackedTensor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// GPTQ: rounds columns one after the other and compensates errors in later columns.
#[derive(Clone, Copy, Debug)]
pub struct Gptq {
    /// Options of the method.
    pub options: GptqOptions,
}

impl CalibratedMethod for Gptq {
    fn wants(&self) -> Statistics {
        let drift = self.options.reference_inputs == ReferenceInputs::Original;
        Statistics { drift, ..Statistics::default() }
    }

    async fn quantize_input<B: Backend>(
        &self,
        input: InputContext<'_, '_, B>,
    ) -> Result<Vec<QuantizedLayer>> {
        let InputContext { walk, context, targets, statistics, .. } = input;
        let InputStatistics { hessian, drift, .. } = statistics;
        let weights = |target: &ModuleTarget<'_>| (target.rows * target.cols) as u64;
        let (mut done, total) = (0, targets.iter().map(|(_, target)| weights(target)).sum());
        // Layers that share an input and a group size share the factorization.
        let mut prepared: BTreeMap<usize, Option<Prepared<'_>>> = BTreeMap::new();
        let mut layers = Vec::new();
        for &(linear, ref target) in targets {
            let report = |rows: usize| {
                let gone = done + (rows * target.cols) as u64;
                walk.report_quantizing(gone, total, target.module, context.control);
            };
            report(0);
            let group_size = target.scheme.granularity().group_size(target.cols);
            let prepared = match prepared.entry(group_size) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let steps = Prepared::in_steps(hessian, drift.as_ref(), group_size, self.options);
                    entry.insert(steps.run(context.control).await?)
                }
            };
            let quantized = quantize(context, target, prepared.as_ref(), report).await;
            let in_module = || format!("{}: module `{}`", context.checkpoint.name(), target.module);
            let (tensor, record) = quantized.context_with(in_module)?;
            let error = weight_error(context, target, &tensor).await.context_with(in_module)?;
            let tensor = tensor.into();
            layers.push(QuantizedLayer { linear, tensor, record: Some(record), scales: None, error });
            done += weights(target);
        }
        Ok(layers)
    }
}

/// Quantizes one layer by GPTQ. Falls back to rounding to nearest if the Hessian has no factor, if GPTQ fails, or if
/// its output error is larger.
async fn quantize(
    context: LayerContext<'_>,
    target: &ModuleTarget<'_>,
    prepared: Option<&Prepared<'_>>,
    report: impl Fn(usize),
) -> Result<(PackedTensor, CalibrationRecord)> {
    let LayerContext { checkpoint, scale_type, control } = context;
    let name = |method: Method| method.name().to_owned();
    let Some(prepared) = prepared else {
        let (tensor, _) = round(context, target).await?;
        let reason = "the Hessian of its inputs is not positive definite with any damping";
        let (method, reason) = (name(Method::Rtn), Some(reason.to_owned()));
        return Ok((tensor, CalibrationRecord { method, reason, ..CalibrationRecord::default() }));
    };
    let mut rows = DenseRows::new(checkpoint, target.source)?;
    let mut quantizer = GptqQuantizer::new(prepared, target.scheme, target.rows, target.cols, scale_type)?;
    quantize_rows(&mut rows, &mut quantizer, control, report).await?;
    let outcome = quantizer.finish()?;
    let share = |error: f64| if outcome.signal > 0.0 { error / outcome.signal } else { 0.0 };
    let (gptq_error, rtn_error) = (share(outcome.gptq_error), share(outcome.rtn_error));
    let (method, tensor, reason) = match outcome.gptq {
        Some(tensor) if gptq_error <= rtn_error => (Method::Gptq, tensor, None),
        Some(_) => {
            (Method::Rtn, outcome.rtn, Some(format!("the output error of gptq is larger: {gptq_error:.3e}")))
        }
        None => (Method::Rtn, outcome.rtn, Some("gptq computed numbers that are not finite".to_owned())),
    };
    let record = CalibrationRecord {
        method: name(method),
        output_error: Some(if method == Method::Gptq { gptq_error } else { rtn_error }),
        rtn_output_error: Some(rtn_error),
        damping: Some(prepared.damping()),
        reason,
        ..CalibrationRecord::default()
    };
    Ok((tensor, record))
}
