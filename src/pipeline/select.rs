//! Which module becomes what: decided, and told, before any work starts.
//!
//! Floor 8.

use crate::artifact::records::{DequantizationRecord, DequantizedModule};
use crate::error::{Error, Result};
use crate::layout::{Fit, TargetLayout};
use crate::model::names::{self, Linear};
use crate::model::{Checkpoint, ModelConfig};
use crate::quant::{Activations, Bits, GptqOptions, Granularity, Scheme};

/// How codes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Round to nearest.
    Rtn,
    /// Rounded column by column, each making up for the errors before it; needs calibration samples.
    Gptq,
    /// Columns that meet large inputs are made larger before rounding; needs calibration samples.
    Awq,
    /// BitNet b1.58: -1, 0 and 1.
    Ternary,
}

impl Method {
    /// The spelling in records and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Ternary => "ternary",
        }
    }

    /// Whether it needs calibration samples.
    pub fn is_calibrated(self) -> bool {
        matches!(self, Self::Gptq | Self::Awq)
    }
}

/// What to make of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeOptions {
    /// How codes are found.
    pub method: Method,
    /// The scheme of the linear layers of attention and MLP.
    pub scheme: Scheme,
    /// Quantize the head too, in the same scheme. A tied head is untied.
    pub quantize_head: bool,
    /// Quantize the embedding to this width, one scale a row. A tied head uses the same table.
    pub quantize_embedding: Option<Bits>,
    /// The layout to write; `None`: the one that holds such a result best.
    pub layout: Option<TargetLayout>,
    /// Where the layout cannot hold a module as asked for: an error instead of the nearest scheme that it can hold.
    pub strict: bool,
    /// Ternary only: weights below this share of the scale become 0, instead of those below one half.
    pub sparsity_threshold: Option<f32>,
    /// Precision of the activations that the result is meant to run with.
    pub activations: Activations,
    /// How [`Method::Gptq`] works.
    pub gptq: GptqOptions,
}

impl QuantizeOptions {
    /// Round to nearest with `bits` and `granularity`, everything else as usual.
    pub fn rtn(bits: Bits, granularity: Granularity, symmetric: bool) -> Self {
        Self {
            method: Method::Rtn,
            scheme: Scheme::Integer { bits, granularity, symmetric },
            quantize_head: false,
            quantize_embedding: None,
            layout: None,
            strict: false,
            sparsity_threshold: None,
            activations: Activations::F32,
            gptq: GptqOptions::default(),
        }
    }

    /// GPTQ with `bits` and `granularity`, everything else as usual.
    pub fn gptq(bits: Bits, granularity: Granularity, symmetric: bool) -> Self {
        Self { method: Method::Gptq, ..Self::rtn(bits, granularity, symmetric) }
    }

    /// AWQ with `bits` and `granularity`, everything else as usual.
    pub fn awq(bits: Bits, granularity: Granularity, symmetric: bool) -> Self {
        Self { method: Method::Awq, ..Self::rtn(bits, granularity, symmetric) }
    }

    /// BitNet ternary with one scale a matrix, or a row.
    pub fn ternary(granularity: Granularity) -> Self {
        Self {
            method: Method::Ternary,
            scheme: Scheme::Ternary { granularity },
            quantize_head: false,
            quantize_embedding: None,
            layout: None,
            strict: false,
            sparsity_threshold: None,
            activations: Activations::Int8,
            gptq: GptqOptions::default(),
        }
    }

    /// The layout that holds such a result.
    pub fn target_layout(&self) -> TargetLayout {
        if let Some(layout) = self.layout {
            return layout;
        }
        match self.scheme {
            // BitNet's own layout has one scale for a whole matrix.
            Scheme::Ternary { granularity: Granularity::Tensor } => TargetLayout::BitNet,
            _ => TargetLayout::CompressedTensors,
        }
    }

    /// Refuses combinations that make no sense.
    ///
    /// # Errors
    /// `invalid_argument`.
    pub fn check(&self) -> Result<()> {
        let ternary = matches!(self.scheme, Scheme::Ternary { .. });
        if ternary != (self.method == Method::Ternary) {
            return Err(Error::invalid_argument(format!(
                "method {} does not make {} weights",
                self.method.name(),
                self.scheme
            )));
        }
        if ternary && (self.quantize_head || self.quantize_embedding.is_some()) {
            return Err(Error::invalid_argument(
                "the ternary layout holds only the linear layers of attention and MLP, not the head or the embedding",
            ));
        }
        if let Some(threshold) = self.sparsity_threshold {
            if !ternary {
                return Err(Error::invalid_argument("a sparsity threshold belongs to the method ternary"));
            }
            if !(threshold.is_finite() && threshold > 0.0) {
                return Err(Error::invalid_argument(format!(
                    "expected a positive sparsity threshold but found {threshold}"
                )));
            }
        }
        let damping = self.gptq.damping;
        if !(damping.is_finite() && (0.0..1.0).contains(&damping)) {
            return Err(Error::invalid_argument(format!(
                "expected a damping from 0 up to 1 but found {damping}"
            )));
        }
        if let Some(layout) = self.layout {
            let refuse = |reason| Error::invalid_argument(format!("the {} layout: {reason}", layout.name()));
            layout.holds_kind(self.scheme).map_err(refuse)?;
            if self.quantize_head {
                layout.can_hold_module(names::HEAD).map_err(refuse)?;
            }
            if self.quantize_embedding.is_some() {
                layout.can_hold_module(names::EMBEDDING).map_err(refuse)?;
            }
        }
        if let Granularity::Group(0) = self.scheme.granularity() {
            return Err(Error::invalid_argument("expected a positive group size but found 0"));
        }
        Ok(())
    }
}

/// What becomes of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct ModulePlan {
    /// Module name in the output.
    pub module: String,
    /// Module name in the source: another one where a tied table changes its name.
    pub source: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Its scheme, or `None` where it stays floating point.
    pub scheme: Option<Scheme>,
    /// Why it is not what was asked for.
    pub reason: Option<String>,
}

/// Decides for every linear module, and for head and embedding where that was asked for.
///
/// # Errors
/// `invalid_argument` for options that contradict each other, a group size beyond every row, or a checkpoint that is
/// quantized already;
/// `unsupported_format` where `strict` forbids another scheme than the one asked for.
pub fn plan_modules(checkpoint: &Checkpoint, options: &QuantizeOptions) -> Result<Vec<ModulePlan>> {
    options.check()?;
    if checkpoint.is_quantized() {
        return Err(Error::invalid_argument(format!(
            "{}: the checkpoint is quantized already; dequantize it first",
            checkpoint.name()
        )));
    }
    let config = checkpoint.config();
    refuse_wide_groups(config, options.scheme.granularity())?;
    let mut plans = Vec::new();
    for layer in 0..config.num_hidden_layers {
        for linear in Linear::ALL {
            let module = linear.module(layer);
            plans.push(plan_one(options, module.clone(), module, linear.shape(config), options.scheme)?);
        }
    }
    let table = (config.vocab_size, config.hidden_size);
    if let Some(bits) = options.quantize_embedding {
        let scheme = Scheme::Integer { bits, granularity: Granularity::Channel, symmetric: true };
        let source = checkpoint.embedding_module().to_owned();
        plans.push(plan_one(options, names::EMBEDDING.to_owned(), source, table, scheme)?);
    }
    if options.quantize_head {
        let source = head_source(checkpoint, config);
        plans.push(plan_one(options, names::HEAD.to_owned(), source, table, options.scheme)?);
    }
    Ok(plans)
}

/// A group that is wider than every row would be a scale a row under a misleading name.
fn refuse_wide_groups(config: &ModelConfig, granularity: Granularity) -> Result<()> {
    let widest = Linear::ALL.map(|linear| linear.shape(config).1).into_iter().max().unwrap_or(0);
    match granularity {
        Granularity::Group(size) if size > widest => Err(Error::invalid_argument(format!(
            "expected a group size of at most {widest}, the columns of the widest module, or one scale a channel, but \
             found {size}"
        ))),
        _ => Ok(()),
    }
}

/// The modules and schemes that a dequantized checkpoint had before.
///
/// # Errors
/// `invalid_checkpoint` for a scheme that this crate does not know or a module that is not there.
pub(super) fn plan_restore(
    checkpoint: &Checkpoint,
    record: &DequantizationRecord,
) -> Result<Vec<ModulePlan>> {
    let plan = |described: &DequantizedModule| {
        let (rows, cols) = checkpoint.module(&described.name)?.shape();
        Ok(ModulePlan {
            module: described.name.clone(),
            source: described.name.clone(),
            rows,
            cols,
            scheme: Some(described.scheme.parse()?),
            reason: None,
        })
    };
    record.modules.iter().map(plan).collect()
}

fn head_source(checkpoint: &Checkpoint, config: &ModelConfig) -> String {
    if config.tie_word_embeddings { checkpoint.embedding_module() } else { names::HEAD }.to_owned()
}

fn plan_one(
    options: &QuantizeOptions,
    module: String,
    source: String,
    (rows, cols): (usize, usize),
    wanted: Scheme,
) -> Result<ModulePlan> {
    let Fit { scheme, reason } = options.target_layout().fit_module(&module, rows, cols, wanted);
    if let (true, Some(reason)) = (options.strict, &reason) {
        return Err(Error::unsupported_format(format!("module `{module}`: {reason}")));
    }
    Ok(ModulePlan { module, source, rows, cols, scheme, reason })
}
