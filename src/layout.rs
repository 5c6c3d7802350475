//! How checkpoint folders spell weights, and the one form that the rest of the crate sees.
//!
//! `weight`, `weight_packed`, `weight_scale` and their kind are named here and nowhere else. A [`Layout`] is opened with a
//! checkpoint and reads its modules; a [`TargetLayout`] says what a layout can hold, and writes. Not here: containers (`format`) and what a module is for (`model`). Floor 3.

mod auto_round;
pub mod awq;
pub mod bitnet_hf;
pub mod compressed_tensors;
mod dense;
mod fit;
pub mod gguf;
pub mod gptq;
mod keys;
mod stored;

pub use fit::Fit;
pub use gptq::GptqZeros;

use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::quoted;
use crate::format::safetensors::TensorInfo;
use crate::format::shard_index::TensorStore;
use crate::quant::{ActivationGrid, Activations, Granularity, PackedTensor, ScaleType, Scheme, regroup};
use serde_json::Value;

/// How the weight matrix of one module is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleStorage {
    /// Floating point, one tensor.
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
    /// Codes and scales; [`Layout::read_packed`] reads them.
    Packed {
        /// Number format.
        scheme: Scheme,
        /// The precision of activations that the checkpoint asks for.
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

    /// Whether there are codes.
    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Packed { .. })
    }

    /// The precision of activations that the checkpoint asks for; dense weights ask for none less than `F32`.
    pub fn activations(&self) -> Activations {
        match *self {
            Self::Dense { .. } => Activations::F32,
            Self::Packed { activations, .. } => activations,
        }
    }
}

/// How one checkpoint spells its weights.
#[derive(Debug)]
pub enum Layout {
    /// Every weight is floating point.
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

/// What a caller knows about a checkpoint that its files do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// How a GPTQ checkpoint stores its asymmetric zero points; symmetric ones tell it themselves.
    pub gptq_zeros: Option<GptqZeros>,
}

/// The files that say what config.json should where it has no `quantization_config`, in the order of precedence.
pub const SIDE_CONFIGS: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// Whether a checkpoint without a `quantization_config` may have one in a file of its own.
pub fn wants_side_config(store: &TensorStore) -> bool {
    store.names().any(|name| name.ends_with(".qweight"))
}

impl Layout {
    /// The layout that config.json's `quantization_config` describes; `None` or null is [`Layout::Dense`]. Shapes that
    /// are stored as tensors are read here, so that [`Layout::module`] need not wait.
    ///
    /// # Errors
    /// `unsupported_format` for a method that this crate does not read, and for options of a method that would change
    /// what the weights mean; `invalid_checkpoint` for a broken value.
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
        match method {
            "compressed-tensors" => {
                let mut config = compressed_tensors::Config::parse(config)?;
                config.read_shapes(store).await?;
                Ok(Self::CompressedTensors(config))
            }
            "bitnet" => bitnet_hf::Config::parse(config).map(Self::BitnetHf),
            "gptq" => gptq::Config::parse(config, options.gptq_zeros).map(Self::Gptq),
            "awq" => awq::Config::parse(config).map(Self::Awq),
            other => Err(Error::unsupported_format(format!(
                "expected weights that are dense, compressed-tensors, gptq, awq, auto-round or bitnet but found the method {}",
                quoted(other)
            ))),
        }
    }

    /// The grid of INT8 activations that the layout's own programs round to.
    pub fn activation_grid(&self) -> ActivationGrid {
        match self {
            Self::CompressedTensors(_) => ActivationGrid::FullRange,
            Self::Dense | Self::BitnetHf(_) | Self::Gptq(_) | Self::Awq(_) | Self::Gguf(_) => {
                ActivationGrid::Absmax127
            }
        }
    }

    /// The spelling in reports.
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

    /// Whether the model rounds floating-point weights in every pass: they are what it was trained as, and packed ones what
    /// it computes with.
    pub fn has_masters(&self) -> bool {
        matches!(self, Self::BitnetHf(config) if config.is_online())
    }

    /// How the floating-point weight of `module` is stored that its codes are made of.
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

    /// What a user should know about how the checkpoint was understood.
    pub fn warnings(&self) -> &[String] {
        match self {
            Self::Gptq(config) => config.warnings(),
            _ => &[],
        }
    }

    /// Whether `module` has a weight under its own name, in whatever form.
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
    /// `invalid_checkpoint` naming the module when tensors are missing or contradict each other or the config;
    /// `unsupported_format` for a type or an option that this crate does not read.
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

    /// Reads the packed weight of `module`.
    ///
    /// # Errors
    /// As [`Layout::module`], but naming tensors only; `invalid_checkpoint` when values are out of range or the module is
    /// not packed; `non_finite` for a scale that is NaN or infinite.
    pub async fn read_packed(&self, store: &TensorStore, module: &str) -> Result<PackedTensor> {
        match self {
            Self::Dense => Err(Error::invalid_checkpoint("expected packed weights but the layout is dense")),
            Self::CompressedTensors(config) => config.read_packed(store, module).await,
            Self::BitnetHf(config) => config.read_packed(store, module).await,
            Self::Gptq(config) => config.read_packed(store, module).await,
            Self::Awq(config) => config.read_packed(store, module).await,
            Self::Gguf(config) => config.read_packed(store, module).await,
        }
    }
}

/// What the tensors of a packed module depend on, beside its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedFormat {
    /// Number format.
    pub scheme: Scheme,
    /// The type of its scales.
    pub scale_type: ScaleType,
    /// Whether its columns are stored in another order than that of the input (act-order with `g_idx`).
    pub reordered: bool,
}

impl From<&PackedTensor> for PackedFormat {
    fn from(tensor: &PackedTensor) -> Self {
        Self {
            scheme: tensor.scheme(),
            scale_type: tensor.scales().scale_type(),
            reordered: tensor.column_order().is_some(),
        }
    }
}

/// A layout that packed weights can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetLayout {
    /// compressed-tensors, mostly `pack-quantized`.
    CompressedTensors,
    /// BitNet as `transformers` has it.
    BitNet,
    /// GPTQ, with zero points as that version has them.
    Gptq(GptqZeros),
    /// AWQ's `gemm`.
    Awq,
    /// Blocks of a GGUF file.
    Gguf,
}

impl TargetLayout {
    /// The spelling in reports and options.
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

    /// The type in which the layout keeps scales that were found as `wanted`: GPTQ's and AWQ's tools expect `F16`.
    pub fn scale_type(self, wanted: ScaleType) -> ScaleType {
        match self {
            Self::CompressedTensors | Self::BitNet => wanted,
            Self::Gptq(_) | Self::Awq | Self::Gguf => ScaleType::F16,
        }
    }

    /// How the layout keeps a matrix of `format`: with scales of its own type, and in GGUF's blocks with minimums instead of
    /// zero points.
    pub fn own_format(self, format: PackedFormat) -> PackedFormat {
        let scheme = if self == Self::Gguf { format.scheme.with_minimums() } else { format.scheme };
        PackedFormat { scheme, scale_type: self.scale_type(format.scale_type), ..format }
    }

    /// The matrix as [`own_format`](Self::own_format) says, and what that loses; `None` where it is so already.
    ///
    /// # Errors
    /// `non_finite` for a scale that the layout's type cannot hold.
    pub fn own_scales(self, tensor: &PackedTensor) -> Result<Option<(PackedTensor, Option<String>)>> {
        let found = PackedFormat::from(tensor);
        let wanted = self.own_format(found);
        if wanted == found {
            return Ok(None);
        }
        let minimal;
        let tensor = if wanted.scheme == found.scheme {
            tensor
        } else {
            minimal = regroup::zeros_to_minimums(tensor)?;
            &minimal
        };
        let what = if tensor.minimums().is_some() { "scales or minimums" } else { "scales" };
        let exact = regroup::scales_fit(tensor, wanted.scale_type);
        let loss = (!exact).then(|| format!("{what} are rounded to {}", wanted.scale_type.dtype()));
        Ok(Some((regroup::round_scales(tensor, wanted.scale_type)?, loss)))
    }

    /// Whether a `[rows, cols]` matrix of `scheme` can be written.
    ///
    /// # Errors
    /// Why not, as one clause for reports.
    pub fn can_hold(self, rows: usize, cols: usize, scheme: Scheme) -> Result<(), String> {
        if rows == 0 || cols == 0 {
            return Err(format!("a matrix of {rows} x {cols} has no weights"));
        }
        match self {
            Self::CompressedTensors => compressed_tensors::can_hold(cols, scheme),
            Self::BitNet => bitnet_hf::can_hold(rows, scheme),
            Self::Gptq(_) => gptq::can_hold(rows, cols, scheme),
            Self::Awq => awq::can_hold(rows, cols, scheme),
            Self::Gguf => gguf::can_hold(cols, scheme),
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
        self.can_hold(rows, cols, format.scheme)?;
        if format.reordered && matches!(format.scheme.granularity(), Granularity::Group(_)) {
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
        if let Err(reason) = self.can_hold(rows, cols, format.scheme) {
            panic!("the {} layout cannot hold {module}: {reason}", self.name());
        }
        match self {
            Self::CompressedTensors => compressed_tensors::planned_tensors(module, rows, cols, format),
            Self::BitNet => bitnet_hf::planned_tensors(module, rows, cols, format.scale_type),
            Self::Gptq(_) => gptq::planned_tensors(module, rows, cols, format),
            Self::Awq => awq::planned_tensors(module, rows, cols, format),
            Self::Gguf => gguf::planned_tensors(module, rows, cols, format.scheme),
        }
    }

    /// What a matrix takes: bits of codes, scales and zero points, as far as the layout leaves them what they are.
    pub fn bytes_of(self, tensor: &PackedTensor) -> u64 {
        match self {
            // Scales and minimums are repeated in every block.
            Self::Gguf => gguf::planned_tensors("", tensor.rows(), tensor.cols(), tensor.scheme())
                .iter()
                .map(|(_, info)| info.byte_len().unwrap_or(0))
                .sum(),
            _ => tensor.packed_bytes(),
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
        tensor: PackedTensor,
        format: PackedFormat,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        // An order that was planned may turn out to be the columns' own.
        let found = PackedFormat { reordered: format.reordered, ..PackedFormat::from(&tensor) };
        assert_eq!(found, format, "{module} is not as it was planned");
        assert!(
            format.reordered || tensor.column_order().is_none(),
            "{module} has an order that was not planned"
        );
        self.can_hold_as(tensor.rows(), tensor.cols(), PackedFormat::from(&tensor)).map_err(|reason| {
            Error::unsupported_format(format!("the {} layout cannot hold it: {reason}", self.name()))
                .context(format!("module {}", quoted(module)))
        })?;
        Ok(match self {
            Self::CompressedTensors => compressed_tensors::encode(module, &tensor, format),
            Self::BitNet => bitnet_hf::encode(module, &tensor),
            Self::Gptq(zeros) => gptq::encode(module, &tensor, zeros),
            Self::Awq => awq::encode(module, &tensor),
            Self::Gguf => vec![(format!("{module}.weight"), gguf::encode(&tensor)?)],
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

/// The method by which a config says that its weights were quantized; old side files tell it by their keys alone.
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

/// Whether the module is the head.
fn is_head(module: &str) -> bool {
    module == "lm_head" || module.ends_with(".lm_head")
}

/// Whether the module is the embedding table, which loaders treat as another class than linear layers.
fn is_embedding(module: &str) -> bool {
    module == "embed_tokens" || module.ends_with(".embed_tokens")
}
