//! Reconstructs config.json from the parsed configuration, with all defaults, as the source of GGUF metadata. This
//! avoids a second, different interpretation of the folder's config.json.

use crate::backend::GateActivation;
use crate::model::ModelConfig;
use crate::model::config::Architecture;
use crate::model::rope::{RopeConfig, RopeScaling};
use serde_json::{Value, json};

/// The config.json of a model. All fields are destructured, so that a new one must be handled or refused.
pub(super) fn config_json(config: &ModelConfig) -> Value {
    let ModelConfig {
        architecture,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size,
        max_position_embeddings,
        rms_norm_eps,
        rope: RopeConfig { theta, scaling },
        tie_word_embeddings,
        activation,
        qkv_bias,
        o_bias,
        mlp_bias,
        // The family implies these two, and no GGUF family has BitNet's norms.
        qk_norm: _,
        sub_norms: _,
        bos_token_id,
        eos_token_ids,
    } = config;
    let hidden_act = match activation {
        GateActivation::Silu => "silu",
        GateActivation::SquaredRelu => "relu2",
    };
    let rope = match scaling {
        RopeScaling::None => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    };
    // Qwen 2 always has biases on q, k and v, without the key.
    let attention_bias = *o_bias || (*qkv_bias && *architecture != Architecture::Qwen2);
    json!({
        "model_type": architecture.name(),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": f64::from(*rms_norm_eps),
        "rope_theta": theta,
        "rope_scaling": rope,
        "tie_word_embeddings": tie_word_embeddings,
        "hidden_act": hidden_act,
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_ids,
    })
}
