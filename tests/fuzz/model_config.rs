//! A `config.json`: sizes that can be multiplied, or a refusal.

use lowbit::ErrorCode;
use lowbit::internals::model::ModelConfig;

pub fn run(input: &[u8]) {
    let Ok(json) = serde_json::from_slice(input) else { return };
    match ModelConfig::from_json(&json) {
        Ok(config) => {
            let sizes = [
                config.hidden_size,
                config.intermediate_size,
                config.num_hidden_layers,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                config.vocab_size,
                config.max_position_embeddings,
            ];
            assert!(!sizes.contains(&0), "{config:?}");
            assert_eq!(config.num_attention_heads % config.num_key_value_heads, 0);
            assert_eq!(config.head_dim % 2, 0);
            assert!(config.rms_norm_eps.is_finite() && config.rms_norm_eps > 0.0);
            // Overflow would panic.
            assert!(config.parameter_count() > 0);
        }
        Err(error) => assert!(
            matches!(error.code(), ErrorCode::InvalidCheckpoint | ErrorCode::UnsupportedModel),
            "{error:?}"
        ),
    }
}
