//! Names of a decoder's modules in Hugging Face checkpoints.
//!
//! Loading, quantizing and reporting all take the names from here. `plan` has its own list.

use super::config::ModelConfig;

/// Module of the token embedding; its table is `<module>.weight`.
pub const EMBEDDING: &str = "model.embed_tokens";
/// Module of the head.
pub const HEAD: &str = "lm_head";
/// Module of the final norm.
pub const FINAL_NORM: &str = "model.norm";

/// The prefix of all names in block `layer`.
pub fn block(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// The linear modules of a block, in the order of the data flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Linear {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Linear {
    /// In the order of the data flow.
    pub const ALL: [Linear; 7] =
        [Linear::Q, Linear::K, Linear::V, Linear::O, Linear::Gate, Linear::Up, Linear::Down];

    /// The module's name in block `layer`.
    pub fn module(self, layer: usize) -> String {
        let tail = match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        };
        block(layer) + tail
    }

    /// `(out_features, in_features)`.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        match self {
            Self::Q => (q, config.hidden_size),
            Self::K | Self::V => (kv, config.hidden_size),
            Self::O => (config.hidden_size, q),
            Self::Gate | Self::Up => (config.intermediate_size, config.hidden_size),
            Self::Down => (config.hidden_size, config.intermediate_size),
        }
    }

    /// Whether the module has a bias according to the configuration.
    pub fn has_bias(self, config: &ModelConfig) -> bool {
        match self {
            Self::Q | Self::K | Self::V => config.qkv_bias,
            Self::O => config.o_bias,
            Self::Gate | Self::Up | Self::Down => config.mlp_bias,
        }
    }
}

/// The norm modules of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum BlockNorm {
    Input,
    PostAttention,
    Query,
    Key,
    AttentionSub,
    MlpSub,
}

impl BlockNorm {
    /// All norms.
    pub const ALL: [Self; 6] =
        [Self::Input, Self::PostAttention, Self::Query, Self::Key, Self::AttentionSub, Self::MlpSub];

    /// Whether the architecture has this norm.
    pub fn is_in(self, config: &ModelConfig) -> bool {
        match self {
            Self::Input | Self::PostAttention => true,
            Self::Query | Self::Key => config.qk_norm,
            Self::AttentionSub | Self::MlpSub => config.sub_norms,
        }
    }

    /// The module's name in block `layer`.
    pub fn module(self, layer: usize) -> String {
        let tail = match self {
            Self::Input => "input_layernorm",
            Self::PostAttention => "post_attention_layernorm",
            Self::Query => "self_attn.q_norm",
            Self::Key => "self_attn.k_norm",
            Self::AttentionSub => "self_attn.attn_sub_norm",
            Self::MlpSub => "mlp.ffn_sub_norm",
        };
        block(layer) + tail
    }

    /// Elements of its weight.
    pub fn width(self, config: &ModelConfig) -> usize {
        match self {
            Self::Input | Self::PostAttention => config.hidden_size,
            Self::Query | Self::Key => config.head_dim,
            // The norm is before o_proj, so it is as wide as all heads together.
            Self::AttentionSub => config.num_attention_heads * config.head_dim,
            Self::MlpSub => config.intermediate_size,
        }
    }
}
