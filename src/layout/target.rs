//! What each target layout can hold, and how it is written.

use super::{PackedFormat, TargetLayout, awq, bitnet_hf, compressed_tensors, gguf, gptq};
use crate::error::{Error, Result};
use crate::format::quoted;
use crate::format::safetensors::TensorInfo;
use crate::quant::{ActivationGrid, Activations, Coding, Granularity, QuantizedTensor, ScaleType, regroup};
use serde_json::Value;

impl TargetLayout {
    /// The layout's type for scales that were computed as `wanted`: GPTQ and AWQ tools expect `F16`, and GGUF blocks
    /// hold `F16`.
    pub fn scale_type(self, wanted: ScaleType) -> ScaleType {
        match self {
            Self::CompressedTensors | Self::BitNet => wanted,
            Self::Gptq(_) | Self::Awq | Self::Gguf => ScaleType::F16,
        }
    }

    /// The INT8 activation grid of the layout's own runtimes.
    pub fn activation_grid(self) -> ActivationGrid {
        match self {
            Self::CompressedTensors => ActivationGrid::FullRange,
            Self::BitNet | Self::Gptq(_) | Self::Awq | Self::Gguf => ActivationGrid::Absmax127,
        }
    }

    /// The form in which the layout stores a matrix of `format`: with its own scale type and, in GGUF blocks, with
    /// minimums instead of zero points.
    pub fn own_format(self, format: PackedFormat) -> PackedFormat {
        let coding = match format.coding.affine() {
            Some(scheme) if self == Self::Gguf => scheme.with_minimums().into(),
            _ => format.coding,
        };
        PackedFormat { coding, scale_type: self.scale_type(format.scale_type), ..format }
    }

    /// The matrix converted to [`own_format`](Self::own_format), and a description of the loss; `None` if nothing
    /// changes.
    ///
    /// # Errors
    /// `non_finite` for a scale outside the range of the layout's type.
    pub fn own_scales(self, tensor: &QuantizedTensor) -> Result<Option<(QuantizedTensor, Option<String>)>> {
        let Some(tensor) = tensor.affine() else { return Ok(None) };
        let found = PackedFormat::from(tensor);
        let wanted = self.own_format(found);
        if wanted == found {
            return Ok(None);
        }
        let minimal;
        let tensor = if wanted.coding == found.coding {
            tensor
        } else {
            minimal = regroup::zeros_to_minimums(tensor)?;
            &minimal
        };
        let what = if tensor.minimums().is_some() { "scales or minimums" } else { "scales" };
        let exact = regroup::scales_fit(tensor, wanted.scale_type);
        let loss = (!exact).then(|| format!("{what} are rounded to {}", wanted.scale_type.dtype()));
        Ok(Some((regroup::round_scales(tensor, wanted.scale_type)?.into(), loss)))
    }

    /// Whether a `[rows, cols]` matrix of this coding can be written.
    ///
    /// # Errors
    /// The reason, as one clause for reports.
    pub fn can_hold(self, rows: usize, cols: usize, coding: impl Into<Coding>) -> Result<(), String> {
        let coding = coding.into();
        if rows == 0 || cols == 0 {
            return Err(format!("a matrix of {rows} x {cols} has no weights"));
        }
        if self == Self::Gguf {
            return gguf::can_hold(cols, coding);
        }
        let Some(scheme) = coding.affine() else {
            return Err(format!("it holds integer codes with scales, not {coding}"));
        };
        match self {
            Self::CompressedTensors => compressed_tensors::can_hold(cols, scheme),
            Self::BitNet => bitnet_hf::can_hold(rows, scheme),
            Self::Gptq(_) => gptq::can_hold(rows, cols, scheme),
            Self::Awq => awq::can_hold(rows, cols, scheme),
            Self::Gguf => unreachable!("asked above"),
        }
    }

    /// Whether a module of this name can be packed: loaders accept packed weights only in some places.
    ///
    /// # Errors
    /// The reason, as one clause for reports.
    pub fn can_hold_module(self, module: &str) -> Result<(), String> {
        let holds_embedding = matches!(self, Self::CompressedTensors | Self::Gguf);
        if is_embedding(module) && !holds_embedding {
            return Err("it holds linear layers, not the embedding".to_owned());
        }
        if is_head(module) && matches!(self, Self::Awq | Self::BitNet) {
            return Err("its loaders leave the head in floating point".to_owned());
        }
        Ok(())
    }

    /// As [`can_hold`](Self::can_hold), for an existing matrix, including its scale type and column order.
    ///
    /// # Errors
    /// The reason, as one clause for reports.
    pub fn can_hold_as(self, rows: usize, cols: usize, format: PackedFormat) -> Result<(), String> {
        self.can_hold(rows, cols, format.coding)?;
        if format.reordered && matches!(format.coding.granularity(), Granularity::Group(_)) {
            self.can_hold_order()?;
        }
        if self.scale_type(format.scale_type) != format.scale_type {
            return Err(format!("its scales are F16, not {}", format.scale_type.dtype()));
        }
        Ok(())
    }

    /// Whether the layout can store groups of non-adjacent columns (act-order with `g_idx`).
    ///
    /// # Errors
    /// The reason, as one clause for reports.
    pub fn can_hold_order(self) -> Result<(), String> {
        match self {
            Self::CompressedTensors | Self::Gptq(_) => Ok(()),
            Self::Awq | Self::BitNet | Self::Gguf => {
                Err("it cannot store the column order of act-order".to_owned())
            }
        }
    }

    /// The tensors that [`encode`](Self::encode) returns for a `[rows, cols]` matrix, in the same order.
    ///
    /// # Panics
    /// If the layout [cannot hold](Self::can_hold) the matrix.
    pub fn planned_tensors(
        self,
        module: &str,
        rows: usize,
        cols: usize,
        format: PackedFormat,
    ) -> Vec<(String, TensorInfo)> {
        if let Err(reason) = self.can_hold(rows, cols, format.coding) {
            panic!("the {} layout cannot hold {module}: {reason}", self.name());
        }
        match self {
            Self::CompressedTensors => compressed_tensors::planned_tensors(module, rows, cols, format),
            Self::BitNet => bitnet_hf::planned_tensors(module, rows, cols, format.scale_type),
            Self::Gptq(_) => gptq::planned_tensors(module, rows, cols, format),
            Self::Awq => awq::planned_tensors(module, rows, cols, format),
            Self::Gguf => gguf::planned_tensors(module, rows, cols, format.coding),
        }
    }

    /// Stored bytes of a matrix: codes, scales and zero points.
    pub fn bytes_of(self, tensor: &QuantizedTensor) -> u64 {
        match self {
            // Blocks repeat scales and minimums.
            Self::Gguf => gguf::planned_tensors("", tensor.rows(), tensor.cols(), tensor.coding())
                .iter()
                .map(|(_, info)| info.byte_len().unwrap_or(0))
                .sum(),
            _ => tensor.bytes(),
        }
    }

    /// The tensors' bytes, in the order of [`planned_tensors`](Self::planned_tensors) and for the `format` given there.
    ///
    /// # Errors
    /// `unsupported_format` naming the module if the layout cannot hold the matrix.
    ///
    /// # Panics
    /// If the matrix does not have the planned format.
    pub fn encode(
        self,
        module: &str,
        tensor: impl Into<QuantizedTensor>,
        format: PackedFormat,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let tensor = tensor.into();
        // A planned column order may turn out to be the identity.
        let found = PackedFormat { reordered: format.reordered, ..PackedFormat::from(&tensor) };
        assert_eq!(found, format, "{module} is not as it was planned");
        let found = PackedFormat::from(&tensor);
        assert!(format.reordered || !found.reordered, "{module} has an order that was not planned");
        self.can_hold_as(tensor.rows(), tensor.cols(), found).map_err(|reason| {
            Error::unsupported_format(format!("the {} layout cannot hold it: {reason}", self.name()))
                .context(format!("module {}", quoted(module)))
        })?;
        if self == Self::Gguf {
            return Ok(vec![(format!("{module}.weight"), gguf::encode(&tensor)?)]);
        }
        let tensor = tensor.affine().expect("asked above");
        Ok(match self {
            Self::CompressedTensors => compressed_tensors::encode(module, tensor, format),
            Self::BitNet => bitnet_hf::encode(module, tensor),
            Self::Gptq(zeros) => gptq::encode(module, tensor, zeros),
            Self::Awq => awq::encode(module, tensor),
            Self::Gguf => unreachable!("written above"),
        })
    }

    /// The `quantization_config` of config.json for these packed modules; null if there are none.
    ///
    /// `ignore` must list every linear module in floating point, because loaders assume that all others are packed.
    /// This includes a head that is tied to a floating-point embedding.
    ///
    /// # Errors
    /// `invalid_argument` if the layout requires INT8 activations and others are requested; `unsupported_format` if the
    /// layout cannot hold modules of different schemes.
    pub fn quantization_config(
        self,
        entries: &[(String, PackedFormat)],
        ignore: &[String],
        activations: Activations,
    ) -> Result<Value> {
        match self {
            _ if entries.is_empty() => Ok(Value::Null),
            // Every tensor states its own type.
            Self::Gguf => Ok(Value::Null),
            Self::CompressedTensors => {
                Ok(compressed_tensors::quantization_config(entries, ignore, activations))
            }
            Self::BitNet if activations == Activations::Int8 => Ok(bitnet_hf::quantization_config(ignore)),
            Self::Gptq(zeros) => Ok(gptq::quantization_config(entries, ignore, zeros)),
            Self::Awq => awq::quantization_config(entries, ignore),
            Self::BitNet => {
                Err(Error::invalid_argument("the bitnet layout always runs with int8 activations"))
            }
        }
    }
}

/// Whether the module is the output head.
fn is_head(module: &str) -> bool {
    module == "lm_head" || module.ends_with(".lm_head")
}

/// Whether the module is the embedding table, which is not a linear layer to loaders.
pub(super) fn is_embedding(module: &str) -> bool {
    module == "embed_tokens" || module.ends_with(".embed_tokens")
}
