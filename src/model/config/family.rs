//! Defaults of the transformers configuration classes for keys that config.json lacks.

use super::Architecture;

/// Defaults of one family's class in transformers 5. Keys without a default here are required.
pub(super) struct Defaults {
    pub(super) max_position_embeddings: u64,
    /// `None`: the number of query heads.
    pub(super) num_key_value_heads: Option<u64>,
    /// `None`: the hidden size divided by the number of query heads.
    pub(super) head_dim: Option<u64>,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) hidden_act: &'static str,
    pub(super) sliding_window: Option<u64>,
    /// In families with windows in some layers only: the first layer with a window.
    pub(super) max_window_layers: Option<u64>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<u32>,
}

const LLAMA: Defaults = Defaults {
    max_position_embeddings: 2048,
    num_key_value_heads: None,
    head_dim: None,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    hidden_act: "silu",
    sliding_window: None,
    max_window_layers: None,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
};

const MISTRAL: Defaults = Defaults {
    max_position_embeddings: 131_072,
    num_key_value_heads: Some(8),
    sliding_window: Some(4096),
    ..LLAMA
};

const QWEN2: Defaults = Defaults {
    max_position_embeddings: 32_768,
    num_key_value_heads: Some(32),
    sliding_window: Some(4096),
    max_window_layers: Some(28),
    bos_token_id: None,
    eos_token_id: None,
    ..LLAMA
};

const QWEN3: Defaults = Defaults { head_dim: Some(128), ..QWEN2 };

const BITNET: Defaults = Defaults {
    num_key_value_heads: Some(5),
    rms_norm_eps: 1e-5,
    rope_theta: 500_000.0,
    hidden_act: "relu2",
    bos_token_id: Some(128_000),
    eos_token_id: Some(128_001),
    ..LLAMA
};

impl Architecture {
    pub(super) fn defaults(self) -> &'static Defaults {
        match self {
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
            Self::BitNet => &BITNET,
        }
    }
}
