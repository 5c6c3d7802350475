//! The plan of a conversion, made before anything is written.

use super::{ConvertOptions, read};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf::TensorType;
use crate::layout::{ModuleStorage, PackedFormat, TargetLayout};
use crate::model::Checkpoint;
use crate::model::names;
use crate::pipeline::float_type::{one_exact_type, scale_type};
use crate::pipeline::output::{Form, gguf};
use crate::quant::{Activations, Coding, Granularity, PackedTensor, QuantizedTensor, ScaleType, regroup};
use crate::sort;
use crate::task::{self, Control};

/// The plan of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// Module name in the output.
    pub module: String,
    /// Its coding in the source; `None`: floating point.
    pub from: Option<Coding>,
    /// Its packed form in the output; `None`: rounded to [`becomes`](Self::becomes).
    pub to: Option<PackedFormat>,
    /// The loss; `None` if the weights are unchanged.
    pub loss: Option<String>,
    /// Module name in the source.
    pub(super) source: String,
    /// The form of its values if it is not packed, or its packed blocks in a file with types for them.
    pub(super) form: Form,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Conversion {
    /// Its coding in a folder, or its type in a GGUF file.
    pub fn becomes(&self) -> String {
        match (self.form, self.to) {
            (Form::Plain(_), Some(format)) => format.coding.to_string(),
            (form, _) => form.name().to_owned(),
        }
    }
}

/// The plan of a conversion.
#[derive(Clone, Debug, PartialEq)]
pub struct ConversionPlan {
    /// The options.
    pub options: ConvertOptions,
    /// Packed modules in the order of the data flow; for a GGUF file all matrices in the file's order.
    pub modules: Vec<Conversion>,
    /// Losses besides weights.
    remarks: Vec<String>,
    pub(super) activations: Activations,
    /// Whether all zero points are at the middle of the code range, so that the weights are symmetric.
    pub(super) symmetric: bool,
    /// The layout's common type of unpacked tensors, if it has one.
    pub(super) one_type: Option<DType>,
}

/// The matrix in a symmetric scheme. `None` if a zero point is not at the middle of the code range.
pub(super) fn as_symmetric(tensor: &QuantizedTensor) -> Result<Option<QuantizedTensor>> {
    let middle = tensor.affine().map(regroup::as_symmetric).transpose()?;
    Ok(middle.flatten().map(QuantizedTensor::from))
}

/// A matrix in the layout's form and its loss, or the reason why the layout cannot hold it.
type Adapted<T> = Result<(T, Option<String>), String>;

/// Plans every matrix. Reads the scales of packed ones.
///
/// # Errors
/// `invalid_argument` for a checkpoint that is not quantized, unless the layout holds floating-point weights too, and
/// for an unsupported type; `unsupported_format` if the layout can hold none of the modules, or with `strict` if
/// anything would be lost; `unsupported_model` for a model that a GGUF file cannot hold; errors of reading.
pub async fn plan_conversion(
    checkpoint: &Checkpoint,
    options: &ConvertOptions,
    control: &dyn Control,
) -> Result<ConversionPlan> {
    options.check()?;
    let layout = options.layout;
    // A GGUF file declares the type of each tensor.
    let holds_any = layout == TargetLayout::Gguf;
    let matrices = if holds_any {
        gguf::check(checkpoint)?;
        gguf::matrices(checkpoint, false)
    } else {
        // The name is the same in source and output.
        checkpoint.packed_modules()?.into_iter().map(|module| (module.clone(), module)).collect()
    };
    if matrices.is_empty() {
        return Err(Error::invalid_argument(format!(
            "{}: expected a quantized checkpoint but found floating-point weights; see `lowbit quantize`",
            checkpoint.name()
        )));
    }
    checkpoint.store().hash_as_read();
    // Only scales, zero points and column orders decide what fits.
    let (layout_of_source, store) = (checkpoint.layout(), checkpoint.store());
    let codes = matrices.iter().flat_map(|(_, source)| layout_of_source.code_tensors(store, source));
    let scales = store.with_blank(codes);
    let mut plan = ConversionPlan {
        options: options.clone(),
        modules: Vec::new(),
        remarks: Vec::new(),
        activations: Activations::F32,
        symmetric: true,
        one_type: None,
    };
    // Some layouts store zero points for symmetric weights too. Weights count as symmetric if all modules are, which is
    // known only at the end, so both forms are computed for each.
    let mut symmetric = Vec::new();
    for (module, source) in matrices {
        let storage = checkpoint.module(&source)?;
        if storage.activations() == Activations::Int8 {
            plan.activations = Activations::Int8;
        }
        let (rows, cols) = storage.shape();
        let ModuleStorage::Packed { coding, .. } = storage else {
            let (tensor, loss) = gguf::copied(checkpoint, &module, &source, plan.wanted(&module))?;
            symmetric.push(None);
            let form = tensor.form;
            plan.modules.push(Conversion { module, source, from: None, to: None, loss, form, rows, cols });
            continue;
        };
        let tensor = read(checkpoint, &scales, &source).await?;
        let format = |(tensor, loss): (QuantizedTensor, _)| (PackedFormat::from(&tensor), loss);
        let middle = as_symmetric(&tensor)?;
        plan.symmetric &=
            middle.is_some() || tensor.affine().is_none_or(|affine| affine.zero_points().is_none());
        symmetric.push(middle.map(|middle| plan.adapt(&module, middle).map(format)));
        let adapted = plan.adapt(&module, tensor).map(format);
        let conversion = plan.conversion((module, source), coding, (rows, cols), adapted);
        plan.modules.push(conversion);
        task::yield_point(control).await?;
    }
    for (index, adapted) in symmetric.into_iter().enumerate() {
        if let (true, Some(adapted)) = (plan.symmetric, adapted) {
            let Conversion { module, source, from, rows, cols, .. } = plan.modules[index].clone();
            let coding = from.expect("only packed matrices were looked at");
            plan.modules[index] = plan.conversion((module, source), coding, (rows, cols), adapted);
        }
    }
    plan.check(holds_any)?;
    plan.take_one_type(checkpoint)?;
    let keeps_activations = matches!(layout, TargetLayout::CompressedTensors | TargetLayout::BitNet);
    if plan.activations == Activations::Int8 && !keeps_activations {
        plan.remarks.push(format!(
            "the {} layout cannot declare INT8 activations; the model will run with f32 activations",
            layout.name()
        ));
        plan.activations = Activations::F32;
    }
    Ok(plan)
}

impl ConversionPlan {
    /// Losses besides weights, then the losses of modules.
    pub fn notes(&self) -> Vec<String> {
        let losses = self.losses().map(|(module, loss)| format!("{module}: {loss}"));
        self.remarks.iter().cloned().chain(losses).collect()
    }

    /// Losses besides weights.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The losses of modules.
    pub fn losses(&self) -> impl Iterator<Item = (&str, &str)> {
        self.modules.iter().filter_map(|module| Some((module.module.as_str(), module.loss.as_deref()?)))
    }

    /// Refuses excessive losses.
    fn check(&self, holds_any: bool) -> Result<()> {
        if let (true, Some((module, loss))) = (self.options.strict, self.losses().next()) {
            return Err(Error::unsupported_format(format!("module `{module}`: {loss}")));
        }
        let none = !holds_any && self.modules.iter().all(|module| module.to.is_none());
        match self.modules.first().filter(|_| none) {
            None => Ok(()),
            Some(first) => Err(Error::unsupported_format(format!(
                "the {} layout can hold none of the modules; `{}`: {}",
                self.options.layout.name(),
                first.module,
                first.loss.as_deref().unwrap_or_default()
            ))),
        }
    }

    /// The GGUF type of floating-point matrices.
    pub(super) fn wanted(&self, module: &str) -> TensorType {
        let of_blocks = self.options.gguf_type.unwrap_or(TensorType::F16);
        let is_table = module == names::EMBEDDING || module == names::HEAD;
        if is_table && of_blocks != TensorType::F32 { TensorType::F16 } else { of_blocks }
    }

    /// Plans a packed matrix.
    fn conversion(
        &self,
        (module, source): (String, String),
        from: Coding,
        (rows, cols): (usize, usize),
        adapted: Adapted<PackedFormat>,
    ) -> Conversion {
        let is_file = self.options.layout == TargetLayout::Gguf;
        let floating =
            if is_file { gguf::form(self.wanted(&module), cols).0 } else { Form::Plain(DType::F16) };
        let (to, form, loss) = match adapted {
            Ok((format, loss)) => {
                let form = Form::of_piece(self.options.layout, DType::U8, format.coding, cols);
                (
                    Some(format),
                    form,
                    loss.map(|loss| if is_file { format!("{} ({loss})", form.name()) } else { loss }),
                )
            }
            Err(reason) if is_file => (None, floating, Some(format!("{} ({reason})", floating.name()))),
            Err(reason) => (None, floating, Some(format!("floating point, F16: {reason}"))),
        };
        Conversion { module, source, from: Some(from), to, form, loss, rows, cols }
    }

    /// Applies the common floating-point type to scales.
    fn take_one_type(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let copied = self.copied_tensors(checkpoint);
        let scales: Vec<ScaleType> =
            self.modules.iter().filter_map(|module| Some(module.to?.scale_type)).collect();
        self.one_type = one_exact_type(self.options.layout, checkpoint.store(), &copied, &scales)?;
        let Some(dtype) = self.one_type else { return Ok(()) };
        for module in &mut self.modules {
            match &mut module.to {
                Some(format) => format.scale_type = scale_type(dtype),
                None => module.form = Form::Plain(dtype),
            }
        }
        Ok(())
    }

    /// All tensors except weights of quantized modules.
    pub(super) fn copied_tensors<'a>(&self, checkpoint: &'a Checkpoint) -> Vec<&'a str> {
        let mut packed: Vec<&str> = self.modules.iter().map(|module| module.module.as_str()).collect();
        sort::sort(&mut packed);
        let is_copied = |name: &&str| {
            let (module, what) = name.rsplit_once('.').unwrap_or((name, ""));
            packed.binary_search(&module).is_err() || what == "bias"
        };
        checkpoint.store().names().filter(is_copied).collect()
    }

    /// The matrix in the layout's form.
    pub(super) fn adapt(&self, module: &str, mut tensor: QuantizedTensor) -> Adapted<QuantizedTensor> {
        let layout = self.options.layout;
        layout.can_hold_module(module)?;
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let text = |error: Error| error.to_string();
        let holds = |tensor: &QuantizedTensor| layout.can_hold(rows, cols, tensor.coding());
        let affine = tensor.affine().filter(|_| holds(&tensor).is_err() && layout != TargetLayout::BitNet);
        if let Some(affine) = affine {
            let spread = regroup::spread_tensor_scale(affine).map_err(text)?;
            tensor = match self.finer_groups(&spread) {
                Some(finer) => regroup::split_groups(&spread, finer).map_err(text)?.into(),
                None => Some(spread.into()).filter(|spread| holds(spread).is_ok()).unwrap_or(tensor),
            };
        }
        holds(&tensor)?;
        let mut loss = None;
        if let Some((own, lost)) = layout.own_scales(&tensor).map_err(text)? {
            (tensor, loss) = (own, lost);
        }
        layout.can_hold_as(rows, cols, PackedFormat::from(&tensor))?;
        Ok((tensor, loss))
    }

    /// The largest group size of the layout that divides the matrix's groups.
    fn finer_groups(&self, tensor: &PackedTensor) -> Option<usize> {
        let scheme = tensor.scheme();
        // A group as wide as the row needs no division.
        let (_, Granularity::Group(size), _) = scheme.as_integer()? else { return None };
        let size = size.min(tensor.cols());
        (1..=size).rev().filter(|finer| size.is_multiple_of(*finer)).find(|&finer| {
            let scheme = scheme.with_granularity(Granularity::Group(finer));
            self.options.layout.can_hold(tensor.rows(), tensor.cols(), scheme).is_ok()
        })
    }
}
