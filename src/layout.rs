//! Layouts: how checkpoint formats name and pack weight tensors, and the common form that the rest of the crate uses.
//!
//! The names and packings of packed weights (`weight_packed`, `qweight`, blocks) belong here. A [`Layout`] is opened
//! for a checkpoint and reads its modules. A [`TargetLayout`] states what a layout can hold, and writes it. Not here:
//! containers (`format`), and the role of a module (`model`).

mod auto_round;
pub mod awq;
pub mod bitnet_hf;
pub mod compressed_tensors;
mod dense;
mod fit;
pub mod gguf;
pub mod gptq;
pub mod keys;
mod stored;
mod target;

pub use fit::Fit;
pub use gptq::GptqZeros;
use target::is_embedding;

use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::quoted;
use crate::format::shard_index::TensorStore;
use crate::options::options;
use crate::quant::{ActivationGrid, Activations, Coding, PackedTensor, QuantizedTensor, ScaleType, Scheme};
use serde_json::Value;

/// How the weight matrix of one module is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleStorage {
    /// Floating point, in one tensor.
    Dense {
        /// The tensor's name.
        tensor: String,
        /// `F32`, `F16` or `BF16`.
        dtype: DType,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
    },
    /// Codes and scales, read by [`Layout::read_packed`].
    Packed {
        /// Number format.
        coding: Coding,
        /// The activation precision that the checkpoint requests.
        activations: Activations,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
    },
}

impl ModuleStorage {
    /// Output and input features.
    pub fn shape(&self) -> (usize, usize) {
        match *self {
            Self::Dense { rows, cols, .. } | Self::Packed { rows, cols, .. } => (rows, cols),
        }
    }

    /// Whether the weight is stored as codes.
    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Packed { .. })
    }

    /// The activation precision that the checkpoint requests; `F32` for dense weights.
    pub fn activations(&self) -> Activations {
        match *self {
            Self::Dense { .. } => Activations::F32,
            Self::Packed { activations, .. } => activations,
        }
    }
}

/// The layout of one checkpoint.
#[derive(Debug)]
pub enum Layout {
    /// All weights are floating point.
    Dense,
    /// `quant_method: "compressed-tensors"`.
    CompressedTensors(compressed_tensors::Config),
    /// `quant_method: "bitnet"`.
    BitnetHf(bitnet_hf::Config),
    /// `quant_method: "gptq"`.
    Gptq(gptq::Config),
    /// `quant_method: "awq"`.
    Awq(awq::Config),
    /// Blocks of a GGUF file.
    Gguf(gguf::Config),
}

options! {
    /// What a caller knows about a checkpoint beyond its files.
    pub struct OpenOptions {
        /// How a GPTQ checkpoint stores asymmetric zero points: v1 minus one, v2 unchanged [default: from the files]
        pub gptq_zeros: Option<GptqZeros> = None;
        /// Unknown keys of the configuration files to ignore; any other unknown key is refused
        pub allow_unknown: Vec<String> = Vec::new();
    }
}

/// Files that replace a missing `quantization_config` of config.json, in order of precedence.
pub const SIDE_CONFIGS: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// Whether a checkpoint without a `quantization_config` may have one in a side file.
pub fn wants_side_config(store: &TensorStore) -> bool {
    store.names().any(|name| name.ends_with(".qweight"))
}

impl Layout {
    /// The layout that config.json's `quantization_config` describes; `None` or null is [`Layout::Dense`]. Reads shapes
    /// that are stored as tensors, so that [`Layout::module`] need not be asynchronous.
    ///
    /// # Errors
    /// `unsupported_format` for an unsupported method, or for method options that would change what the weights mean;
    /// `invalid_checkpoint` for a broken value.
    pub async fn open(
        quantization_config: Option<&Value>,
        store: &TensorStore,
        options: &OpenOptions,
    ) -> Result<Self> {
        let Some(config) = quantization_config.filter(|config| !config.is_null()) else {
            return Ok(Self::Dense);
        };
        let Some(method) = method_of(config) else {
            return Err(Error::invalid_checkpoint(
                "expected `quantization_config` to name its `quant_method` but found none",
            ));
        };
        let in_config = || "quantization_config";
        let method = method.to_ascii_lowercase();
        if auto_round::is_method(&method) {
            let (method, config) = auto_round::translate(config).context_with(in_config)?;
            return Self::open_method(method, &config, store, options).await.context_with(in_config);
        }
        Self::open_method(&method, config, store, options).await.context_with(in_config)
    }

    async fn open_method(
        method: &str,
        config: &Value,
        store: &TensorStore,
        options: &OpenOptions,
    ) -> Result<Self> {
        let allowed = &options.allow_unknown;
        match method {
            "compressed-tensors" => {
                let mut config = compressed_tensors::Config::parse(config, allowed)?;
                config.read_shapes(store).await?;
                Ok(Self::CompressedTensors(config))
            }
            "bitnet" => bitnet_hf::Config::parse(config, allowed).map(Self::BitnetHf),
            "gptq" => gptq::Config::parse(config, options.gptq_zeros, allowed).map(Self::Gptq),
            "awq" => awq::Config::parse(config, allowed).map(Self::Awq),
            other => Err(Error::unsupported_format(format!(
                "expected weights that are dense, compressed-tensors, gptq, awq, auto-round or bitnet but found the method {}",
                quoted(other)
            ))),
        }
    }

    /// The INT8 activation grid of the layout's own runtimes.
    pub fn activation_grid(&self) -> ActivationGrid {
        match self {
            Self::CompressedTensors(_) => TargetLayout::CompressedTensors.activation_grid(),
            Self::Dense | Self::BitnetHf(_) | Self::Gptq(_) | Self::Awq(_) | Self::Gguf(_) => {
                ActivationGrid::Absmax127
            }
        }
    }

    /// The layout's name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::CompressedTensors(_) => TargetLayout::CompressedTensors.name(),
            Self::BitnetHf(_) => TargetLayout::BitNet.name(),
            Self::Gptq(config) => config.name(),
            Self::Awq(_) => TargetLayout::Awq.name(),
            Self::Gguf(_) => TargetLayout::Gguf.name(),
        }
    }

    /// Whether the checkpoint stores floating-point master weights that every forward pass quantizes. Training and
    /// quantization start from the masters; inference uses the packed weights.
    pub fn has_masters(&self) -> bool {
        matches!(self, Self::BitnetHf(config) if config.is_online())
    }

    /// How the master weight of `module`, from which its codes are computed, is stored.
    ///
    /// # Errors
    /// As [`Layout::module`].
    pub fn master(&self, store: &TensorStore, module: &str) -> Result<ModuleStorage> {
        if self.has_masters() {
            return dense::module(store, module).context_with(|| format!("module {}", quoted(module)));
        }
        self.module(store, module)
    }

    /// Whether any weight is packed.
    pub fn is_packed(&self) -> bool {
        match self {
            Self::Dense => false,
            Self::CompressedTensors(_) | Self::BitnetHf(_) | Self::Gptq(_) | Self::Awq(_) => true,
            Self::Gguf(config) => config.has_blocks(),
        }
    }

    /// Warnings for the user about how the checkpoint was interpreted.
    pub fn warnings(&self) -> &[String] {
        match self {
            Self::Gptq(config) => config.warnings(),
            _ => &[],
        }
    }

    /// Whether `module` has its own stored weight, dense or packed.
    pub fn is_stored(&self, store: &TensorStore, module: &str) -> bool {
        let stored = |name: String| store.resolve(&name) == Some(&name);
        let packed = match self {
            Self::CompressedTensors(_) => stored(format!("{module}.weight_packed")),
            Self::Gptq(_) | Self::Awq(_) => stored(format!("{module}.qweight")),
            Self::Dense | Self::BitnetHf(_) | Self::Gguf(_) => false,
        };
        packed || stored(format!("{module}.weight"))
    }

    /// How the weight of `module` (`model.layers.0.self_attn.q_proj`) is stored.
    ///
    /// # Errors
    /// `invalid_checkpoint` naming the module if tensors are missing or contradict each other or the config;
    /// `unsupported_format` for an unsupported type or option.
    pub fn module(&self, store: &TensorStore, module: &str) -> Result<ModuleStorage> {
        match self {
            Self::Dense => dense::module(store, module),
            Self::CompressedTensors(config) => config.module(store, module),
            Self::BitnetHf(config) => config.module(store, module),
            Self::Gptq(config) => config.module(store, module),
            Self::Awq(config) => config.module(store, module),
            Self::Gguf(config) => config.module(store, module),
        }
        .context_with(|| format!("module {}", quoted(module)))
    }

    /// The tensors of `module` that hold only codes.
    pub fn code_tensors(&self, store: &TensorStore, module: &str) -> Vec<String> {
        let names: &[&str] = match self {
            Self::CompressedTensors(_) => &["weight_packed", "weight"],
            Self::Gptq(_) | Self::Awq(_) => &["qweight"],
            Self::BitnetHf(_) => &["weight"],
            Self::Dense | Self::Gguf(_) => &[],
        };
        let is_codes = |name: &String| store.get(name).is_some_and(|info| !info.dtype.is_float());
        names.iter().map(|name| format!("{module}.{name}")).filter(is_codes).collect()
    }

    /// Reads the packed weight of `module`.
    ///
    /// # Errors
    /// As [`Layout::module`], but naming only tensors; `invalid_checkpoint` if values are out of range or the module is
    /// not packed; `non_finite` for a scale that is NaN or infinite.
    pub async fn read_packed(&self, store: &TensorStore, module: &str) -> Result<QuantizedTensor> {
        let affine = match self {
            Self::Dense => Err(Error::invalid_checkpoint("expected packed weights but the layout is dense")),
            Self::CompressedTensors(config) => config.read_packed(store, module).await,
            Self::BitnetHf(config) => config.read_packed(store, module).await,
            Self::Gptq(config) => config.read_packed(store, module).await,
            Self::Awq(config) => config.read_packed(store, module).await,
            Self::Gguf(config) => return config.read_packed(store, module).await,
        };
        affine.map(QuantizedTensor::from)
    }
}

/// What determines the tensors of a packed module, besides its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedFormat {
    /// Number format.
    pub coding: Coding,
    /// The scales' type.
    pub scale_type: ScaleType,
    /// Whether columns are stored in another order than the input's (act-order with `g_idx`).
    pub reordered: bool,
}

impl From<&PackedTensor> for PackedFormat {
    fn from(tensor: &PackedTensor) -> Self {
        Self {
            coding: tensor.scheme().into(),
            scale_type: tensor.scales().scale_type(),
            reordered: tensor.column_order().is_some(),
        }
    }
}

impl From<&QuantizedTensor> for PackedFormat {
    fn from(tensor: &QuantizedTensor) -> Self {
        // Other codings have one scale type and the input's column order.
        let other = Self { coding: tensor.coding(), scale_type: ScaleType::F16, reordered: false };
        tensor.affine().map_or(other, Self::from)
    }
}

impl PackedFormat {
    /// The scheme, for layouts that hold only affine integer codes.
    ///
    /// # Panics
    /// For another coding, which such a layout [cannot hold](TargetLayout::can_hold).
    fn scheme(self) -> Scheme {
        self.coding.affine().expect("the layout was asked whether it can hold this")
    }
}

/// A layout in which packed weights can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetLayout {
    /// compressed-tensors, mostly `pack-quantized`.
    CompressedTensors,
    /// BitNet as in `transformers`.
    BitNet,
    /// GPTQ, with zero points of this version.
    Gptq(GptqZeros),
    /// AWQ's `gemm` packing.
    Awq,
    /// Blocks of a GGUF file.
    Gguf,
}

impl TargetLayout {
    /// The layout's name in reports and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::CompressedTensors => "compressed-tensors",
            Self::BitNet => "bitnet",
            Self::Gptq(GptqZeros::V1) => "gptq",
            Self::Gptq(GptqZeros::V2) => "gptq_v2",
            Self::Awq => "awq",
            Self::Gguf => "gguf",
        }
    }
}

/// The quantization method that a config names. Old side files are recognized by their keys alone.
fn method_of(config: &Value) -> Option<&str> {
    let named = ["quant_method", "method"].into_iter().find_map(|key| config.get(key)?.as_str());
    let by_keys = || {
        let has = |key| config.get(key).is_some();
        match (has("w_bit"), has("bits") && has("group_size")) {
            (true, _) => Some("awq"),
            (_, true) => Some("gptq"),
            _ => None,
        }
    };
    named.or_else(by_keys)
}
