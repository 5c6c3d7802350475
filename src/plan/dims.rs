//! The dimensions of a decoder, its parameter count, and typical dimensions for a parameter count.

use super::{product, sum};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use serde::Serialize;

/// The dimensions of a Llama-like decoder, named as in Hugging Face configs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are those of the configs")]
pub struct ModelDims {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub intermediate_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub num_key_value_heads: u64,
    pub head_dim: u64,
    /// Whether the head shares the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether q and k have norms over `head_dim`.
    pub qk_norm: bool,
    /// Whether o and down have BitNet's norms before them.
    pub sub_norms: bool,
}

impl From<&ModelConfig> for ModelDims {
    fn from(config: &ModelConfig) -> Self {
        Self {
            vocab_size: config.vocab_size as u64,
            hidden_size: config.hidden_size as u64,
            intermediate_size: config.intermediate_size as u64,
            num_hidden_layers: config.num_hidden_layers as u64,
            num_attention_heads: config.num_attention_heads as u64,
            num_key_value_heads: config.num_key_value_heads as u64,
            head_dim: config.head_dim as u64,
            tie_word_embeddings: config.tie_word_embeddings,
            qkv_bias: config.qkv_bias,
            output_bias: config.o_bias,
            mlp_bias: config.mlp_bias,
            qk_norm: config.qk_norm,
            sub_norms: config.sub_norms,
        }
    }
}

/// A weight matrix of a block, `[rows, cols]` = `[out_features, in_features]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// The module's name inside the block.
    pub name: &'static str,
    /// Output features.
    pub rows: u64,
    /// Input features.
    pub cols: u64,
    /// Whether it has a bias of `[rows]`.
    pub bias: bool,
}

/// The smallest count for which dimensions are estimated.
const MIN_PARAMETERS: u64 = 50_000;
/// The largest count: ten times more than any model has.
const MAX_PARAMETERS: u64 = 20_000_000_000_000;

impl ModelDims {
    /// The linear layers of one block, which are quantized by default.
    ///
    /// # Errors
    /// `invalid_argument` when a width does not fit 64 bits.
    pub fn block_linears(&self) -> Result<[LinearShape; 7]> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let q = product(&[self.num_attention_heads, self.head_dim])?;
        let kv = product(&[self.num_key_value_heads, self.head_dim])?;
        let linear = |name, rows, cols, bias| LinearShape { name, rows, cols, bias };
        Ok([
            linear("self_attn.q_proj", q, hidden, self.qkv_bias),
            linear("self_attn.k_proj", kv, hidden, self.qkv_bias),
            linear("self_attn.v_proj", kv, hidden, self.qkv_bias),
            linear("self_attn.o_proj", hidden, q, self.output_bias),
            linear("mlp.gate_proj", inner, hidden, self.mlp_bias),
            linear("mlp.up_proj", inner, hidden, self.mlp_bias),
            linear("mlp.down_proj", hidden, inner, self.mlp_bias),
        ])
    }

    /// Weights of the linear layers of all blocks, without biases.
    ///
    /// # Errors
    /// `invalid_argument` when the number does not fit 64 bits.
    pub fn linear_parameters(&self) -> Result<u64> {
        let mut block = 0;
        for linear in self.block_linears()? {
            block = sum(&[block, product(&[linear.rows, linear.cols])?])?;
        }
        product(&[block, self.num_hidden_layers])
    }

    /// Weights of the embedding and of an untied head.
    ///
    /// # Errors
    /// `invalid_argument` when the number does not fit 64 bits.
    pub fn embedding_parameters(&self) -> Result<u64> {
        product(&[self.vocab_size, self.hidden_size, if self.tie_word_embeddings { 1 } else { 2 }])
    }

    /// Norm weights and biases.
    ///
    /// # Errors
    /// `invalid_argument` when the number does not fit 64 bits.
    pub fn norm_and_bias_parameters(&self) -> Result<u64> {
        let linears = self.block_linears()?;
        let mut block = product(&[2, self.hidden_size])?;
        for linear in linears.iter().filter(|linear| linear.bias) {
            block = sum(&[block, linear.rows])?;
        }
        if self.qk_norm {
            block = sum(&[block, product(&[2, self.head_dim])?])?;
        }
        if self.sub_norms {
            block = sum(&[block, linears[3].cols, self.intermediate_size])?;
        }
        sum(&[product(&[block, self.num_hidden_layers])?, self.hidden_size])
    }

    /// All weights and biases. A tied table counts once.
    ///
    /// # Errors
    /// `invalid_argument` when a dimension is 0 or the number does not fit 64 bits.
    pub fn parameters(&self) -> Result<u64> {
        let dims = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ];
        if let Some((name, _)) = dims.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid_argument(format!("expected {name} to be at least 1 but found 0")));
        }
        sum(&[self.linear_parameters()?, self.embedding_parameters()?, self.norm_and_bias_parameters()?])
    }

    /// Dimensions of a typical model with about this many parameters (within 2%), in the proportions of the Llama
    /// family:
    ///
    /// - vocabulary 32,000, below 10M parameters 2,048 and below 500K parameters 512;
    /// - head tied below 1B parameters, untied from there;
    /// - hidden size / layers about 64, from 3B parameters 128 (Llama 7B: 4,096 / 32), both from the 12 x hidden^2
    ///   weights of a block with full attention and an MLP of 8/3 hidden;
    /// - heads of 128 from a hidden size of 2,048, else 64, below 512: 16; as many key-value heads as heads;
    /// - the MLP's width absorbs the rounding of the other dimensions.
    ///
    /// A real model of the same size can differ: a vocabulary of 150,000 makes the embedding five times larger, and
    /// grouped key-value heads make the cache four to eight times smaller.
    ///
    /// # Errors
    /// `invalid_argument` below 50,000 and above 20 trillion parameters.
    pub fn typical(parameters: u64) -> Result<Self> {
        if !(MIN_PARAMETERS..=MAX_PARAMETERS).contains(&parameters) {
            return Err(Error::invalid_argument(format!(
                "expected {MIN_PARAMETERS} to {MAX_PARAMETERS} parameters but found {parameters}"
            )));
        }
        let vocab_size = match parameters {
            0..500_000 => 512,
            500_000..10_000_000 => 2048,
            _ => 32_000,
        };
        let tied = parameters < 1_000_000_000;
        let tables = if tied { 1.0 } else { 2.0 };
        let aspect = if parameters < 3_000_000_000 { 64.0 } else { 128.0 };
        // parameters = 12 hidden^3 / aspect + tables * vocab * hidden, by bisection: it grows with hidden.
        let total = parameters as f64;
        let size =
            |hidden: f64| 12.0 * hidden * hidden * hidden / aspect + tables * vocab_size as f64 * hidden;
        let (mut low, mut high) = (0.0, 1e6);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if size(middle) < total { low = middle } else { high = middle }
        }
        let head_dim = match low {
            2048.0.. => 128,
            512.0.. => 64,
            _ => 16,
        };
        let hidden_size = ((low / head_dim as f64).round() as u64).max(1) * head_dim;
        let hidden = hidden_size as f64;
        let blocks = total - tables * vocab_size as f64 * hidden;
        let layers = (blocks / (12.0 * hidden * hidden)).round().max(1.0);
        let inner = ((blocks / layers - 4.0 * hidden * hidden) / (3.0 * hidden)).max(1.0);
        let step = if hidden_size < 512 { 4.0 } else { 32.0 };
        let heads = hidden_size / head_dim;
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size: ((inner / step).round().max(1.0) * step) as u64,
            num_hidden_layers: layers as u64,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim,
            tie_word_embeddings: tied,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            sub_norms: false,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The dimensions of a small real model (656,000 parameters).
    pub(in crate::plan) fn small() -> ModelDims {
        ModelDims {
            vocab_size: 2048,
            hidden_size: 128,
            intermediate_size: 384,
            num_hidden_layers: 2,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 16,
            tie_word_embeddings: true,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            sub_norms: false,
        }
    }

    #[test]
    fn parameters_of_known_models() {
        let base = small();
        let llama_7b = ModelDims {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            tie_word_embeddings: false,
            ..base.clone()
        };
        let qwen2_half_b = ModelDims {
            vocab_size: 151_936,
            hidden_size: 896,
            intermediate_size: 4864,
            num_hidden_layers: 24,
            num_attention_heads: 14,
            num_key_value_heads: 2,
            head_dim: 64,
            qkv_bias: true,
            ..base.clone()
        };
        let qwen3_06b = ModelDims {
            vocab_size: 151_936,
            hidden_size: 1024,
            intermediate_size: 3072,
            num_hidden_layers: 28,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 128,
            qk_norm: true,
            ..base.clone()
        };
        // The published counts of these checkpoints.
        for (name, dims, expected) in [
            ("story-llama", base.clone(), 656_000),
            ("Llama 7B", llama_7b, 6_738_415_616),
            ("Qwen2 0.5B", qwen2_half_b, 494_032_768),
            ("Qwen3 0.6B", qwen3_06b, 596_049_920),
        ] {
            assert_eq!(dims.parameters().unwrap(), expected, "{name}");
        }
        // Two blocks: o and down each gain a norm as wide as their input.
        let sub_norms = ModelDims { sub_norms: true, ..base.clone() };
        assert_eq!(sub_norms.parameters().unwrap(), 656_000 + 2 * (128 + 384));
        let biases = ModelDims { output_bias: true, mlp_bias: true, ..base };
        assert_eq!(biases.parameters().unwrap(), 656_000 + 2 * (128 + 384 + 384 + 128));
    }

    #[test]
    fn typical_dimensions_are_near_the_count() {
        for parameters in [
            50_000,
            260_000,
            499_999,
            500_000,
            660_000,
            5_000_000,
            9_999_999,
            10_000_000,
            15_000_000,
            30_000_000,
            110_000_000,
            500_000_000,
            999_999_999,
            1_000_000_000,
            1_500_000_000,
            3_000_000_000,
            7_000_000_000,
            70_000_000_000,
            405_000_000_000,
            MAX_PARAMETERS,
        ] {
            let dims = ModelDims::typical(parameters).unwrap();
            let found = dims.parameters().unwrap();
            let error = found as f64 / parameters as f64 - 1.0;
            assert!(error.abs() < 0.02, "{parameters}: {found}, {error:+.3}: {dims:?}");
            let width = dims.intermediate_size as f64 / dims.hidden_size as f64;
            assert!((1.0..6.0).contains(&width), "{parameters}: {dims:?}");
        }
        let seven = ModelDims::typical(6_738_415_616).unwrap();
        assert_eq!((seven.hidden_size, seven.num_hidden_layers), (4096, 32));
        for wrong in [0, 1, MIN_PARAMETERS - 1, MAX_PARAMETERS + 1, u64::MAX] {
            assert!(ModelDims::typical(wrong).is_err());
        }
    }

    #[test]
    fn typical_dimensions_follow_every_count() {
        let mut parameters = MIN_PARAMETERS as f64;
        while parameters < 1e12 {
            let dims = ModelDims::typical(parameters as u64).unwrap();
            let error = dims.parameters().unwrap() as f64 / parameters - 1.0;
            assert!(error.abs() < 0.02, "{parameters}: {error:+.3}: {dims:?}");
            parameters *= 1.01;
        }
    }

    #[test]
    fn a_dimension_of_zero_is_named() {
        let error = ModelDims { head_dim: 0, ..small() }.parameters().unwrap_err();
        assert!(error.message().contains("head_dim"), "{error}");
    }
}
