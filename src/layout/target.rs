//! What each layout can hold, and how it is written.

use super::{PackedFormat, TargetLayout, awq, bitnet_hf, compressed_tensors, gguf, gptq};
use crate::error::{Error, Result};
use crate::format::quoted;
use crate::format::safetensors::TensorInfo;
use crate::quant::{ActivationGrid, Activations, Coding, Granularity, QuantizedTensor, ScaleType, regroup};
use serde_json::Value;

impl TargetLayout {
    /// The type in which the layout keeps scales that were found as `wanted`: GPTQ's and AWQ's tools expect `F16`.
    pub fn scale_type(self, wanted: ScaleType) -> ScaleType {
        match self {
            Self::CompressedTensors | Self::BitNet => wanted,
            Self::Gptq(_) | Self::Awq | Self::Gguf => ScaleType::F16,
        }
    }

    /// The grid of INT8 activations that the layout's own programs round to.
    pub fn activation_grid(self) -> ActivationGrid {
        match self {
            Self::CompressedTensors => ActivationGrid::FullRange,
            Self::BitNet | Self::Gptq(_) | Self::Awq | Self::Gguf => ActivationGrid::Absmax127,
        }
    }

    /// How the layout keeps a matrix of `format`: with scales of its own type, and in GGUF's blocks with minimums instead of
    /// zero points.
    pub fn own_format(self, format: PackedFormat) -> PackedFormat {
        let coding = match format.coding.affine() {
            Some(scheme) if self == Self::Gguf => scheme.with_minimums().into(),
            _ => format.coding,
        };
        PackedFormat { coding, scale_type: self.scale_type(format.scale_type), ..format }
    }

    /// The matrix as [`own_format`](Self::own_format) says, and what that loses; `None` where it is so already.
    ///
    /// # Errors
    /// `non_finite` for a scale that the layout's type cannot hold.
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

    /// Whether a `[rows, cols]` matrix of that coding can be written.
    ///
    /// # Errors
    /// Why not, as one clause for reports.
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

    /// Whether a module of that name can be packed: loaders look for packed weights only in some places.
    ///
    /// # Errors
    /// Why not, as one clause for reports.
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

    /// As [`can_hold`](Self::can_hold), of a matrix that is there already: with its scales and its order of columns.
    ///
    /// # Errors
    /// Why not, as one clause for reports.
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

    /// Whether groups of columns that lie apart from each other can be written (act-order with `g_idx`).
    ///
    /// # Errors
    /// Why not, as one clause for reports.
    pub fn can_hold_order(self) -> Result<(), String> {
        match self {
            Self::CompressedTensors | Self::Gptq(_) => Ok(()),
            Self::Awq | Self::BitNet | Self::Gguf => {
                Err("it has no room for the order of columns of act-order".to_owned())
            }
        }
    }

    /// The tensors that [`encode`](Self::encode) makes of a `[rows, cols]` matrix, in its order.
    ///
    /// # Panics
    /// When the layout [cannot hold](Self::can_hold) it.
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

    /// What a matrix takes: bits of codes, scales and zero points, as far as the layout leaves them what they are.
    pub fn bytes_of(self, tensor: &QuantizedTensor) -> u64 {
        match self {
            // Scales and minimums are repeated in every block.
            Self::Gguf => gguf::planned_tensors("", tensor.rows(), tensor.cols(), tensor.coding())
                .iter()
                .map(|(_, info)| info.byte_len().unwrap_or(0))
                .sum(),
            _ => tensor.bytes(),
        }
    }

    /// The tensors' bytes, in the order of [`planned_tensors`](Self::planned_tensors), and for the `format` that was
    /// given there.
    ///
    /// # Errors
    /// `unsupported_format` naming the module when the layout cannot hold the matrix.
    ///
    /// # Panics
    /// When the matrix is not of the planned format.
    pub fn encode(
        self,
        module: &str,
        tensor: impl Into<QuantizedTensor>,
        format: PackedFormat,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let tensor = tensor.into();
        // An order that was planned may turn out to be the columns' own.
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

    /// The `quantization_config` of config.json for these packed modules; null when there are none.
    ///
    /// `ignore` lists every linear module that stays in floating point: loaders take all others for packed. A head that
    /// is tied to a floating-point embedding belongs to it too.
    ///
    /// # Errors
    /// `invalid_argument` when the layout always runs with INT8 activations and others are wanted;
    /// `unsupported_format` when it has no room for modules of different schemes.
    pub fn quantization_config(
        self,
        entries: &[(String, PackedFormat)],
        ignore: &[String],
        activations: Activations,
    ) -> Result<Value> {
        match self {
            _ if entries.is_empty() => Ok(Value::Null),
            // Every tensor says itself what it is.
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

/// Whether the module is the head.
fn is_head(module: &str) -> bool {
    module == "lm_head" || module.ends_with(".lm_head")
}

/// Whether the module is the embedding table, which loaders treat as another class than linear layers.
pub(super) fn is_embedding(module: &str) -> bool {
    module == "embed_tokens" || module.ends_with(".embed_tokens")
}
