//! The known keys of config.json: those of transformers' classes for the families, those of its base class in versions
//! 4 and 5, and those that tools and publishers add.
//!
//! A key that the class of a family does not read changes nothing in transformers either: [`is_read`].

use super::Architecture;
use crate::error::Result;
use crate::format::known_keys::{self, KnownKeys, Subject, Treatment, treatment};
use serde_json::Value;

/// Checks the keys of config.json, and returns the unknown ones that `allowed` names.
///
/// # Errors
/// `unsupported_model` naming a key that is refused or unknown.
pub fn check(config: &Value, allowed: &[String]) -> Result<Vec<String>> {
    let Some(config) = config.as_object() else { return Ok(Vec::new()) };
    let mut ignored = known_keys::check(config, |key| treatment(CONFIG, key), allowed, "", Subject::Model)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = config.get(key).and_then(Value::as_object) else { continue };
        // Objects inside are parameters for one type of layers, which the reader refuses.
        let of_rope = |name: &str| {
            treatment(ROPE, name).or_else(|| rope[name].is_object().then_some(Treatment::Honoured))
        };
        ignored.extend(known_keys::check(rope, of_rope, allowed, &format!("{key}."), Subject::Model)?);
    }
    Ok(ignored)
}

/// Checks the keys of generation_config.json, and returns the unknown ones that `allowed` names.
///
/// # Errors
/// `unsupported_model` naming an unknown key.
pub fn check_generation(config: &Value, allowed: &[String]) -> Result<Vec<String>> {
    let Some(config) = config.as_object() else { return Ok(Vec::new()) };
    known_keys::check(config, |key| treatment(GENERATION, key), allowed, "", Subject::Model)
}

/// Keys that the classes of these families do not read.
const NOT_READ_BY: [(&str, &[Architecture]); 5] = [
    ("attention_bias", &[Architecture::Mistral, Architecture::Qwen2]),
    ("mlp_bias", &[Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3, Architecture::BitNet]),
    ("sliding_window", &[Architecture::Llama, Architecture::BitNet]),
    ("use_sliding_window", &[Architecture::Llama, Architecture::Mistral, Architecture::BitNet]),
    ("max_window_layers", &[Architecture::Llama, Architecture::Mistral, Architecture::BitNet]),
];

/// Whether a key of config.json changes what a model of the family computes.
pub fn is_read(architecture: Architecture, key: &str) -> bool {
    let others = NOT_READ_BY.iter().find(|(name, _)| *name == key).map_or(&[][..], |(_, families)| families);
    treatment(CONFIG, key) == Some(Treatment::Honoured) && !others.contains(&architecture)
}

/// The keys of config.json.
pub const CONFIG: &[KnownKeys] = &[
    KnownKeys {
        treatment: Treatment::Honoured,
        names: &[
            "model_type",
            "architectures",
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "hidden_act",
            "max_position_embeddings",
            "original_max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "partial_rotary_factor",
            "tie_word_embeddings",
            "attention_bias",
            "mlp_bias",
            "is_causal",
            "sliding_window",
            "use_sliding_window",
            "max_window_layers",
            "layer_types",
            "per_layer_config",
            "bos_token_id",
            "eos_token_id",
            "quantization_config",
            "quantization",
            "lowbit",
        ],
    },
    // Of the base class.
    KnownKeys {
        treatment: Treatment::Harmless,
        names: &[
            "_name_or_path",
            "name_or_path",
            "_commit_hash",
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_attn_implementation_internal",
            "_experts_implementation_internal",
            "_output_attentions",
            "_post_init_done",
            "_flash_attn_2_enabled",
            "attn_implementation",
            "auto_map",
            "chunk_size_feed_forward",
            "custom_pipelines",
            "decoder_start_token_id",
            "dtype",
            "finetuning_task",
            "gradient_checkpointing",
            "id2label",
            "is_decoder",
            "label2id",
            "num_labels",
            "output_attentions",
            "output_hidden_states",
            "pad_token_id",
            "prefix",
            "problem_type",
            "return_dict",
            "sep_token_id",
            "task_specific_params",
            "tf_legacy_loss",
            "tokenizer_class",
            "torch_dtype",
            "torchscript",
            "transformers_version",
            "use_bfloat16",
            "use_cache",
        ],
    },
    // Of training: dropout and initial weights. `pretraining_tp` splits products into equal parts.
    KnownKeys {
        treatment: Treatment::Harmless,
        names: &[
            "attention_dropout",
            "attention_dropout_prob",
            "attention_probs_dropout_prob",
            "attn_pdrop",
            "classifier_dropout",
            "dropout",
            "embd_pdrop",
            "hidden_dropout",
            "hidden_dropout_prob",
            "hidden_dropout_rate",
            "initializer_range",
            "neftune_noise_alpha",
            "pretraining_tp",
            "resid_pdrop",
        ],
    },
    // Of tools and publishers.
    KnownKeys {
        treatment: Treatment::Harmless,
        names: &[
            "_unsloth_version",
            "activation",
            "ctx_len",
            "is_llama_config",
            "max_seq_len",
            "max_sequence_length",
            "model_max_length",
            "model_name",
            "model_parallel",
            "n_ctx",
            "num_parameters",
            "seq_length",
            "seq_len",
            "tokenizer_model_max_length",
            "tokenizer_padding_side",
            "training_length",
            "transformers.js_config",
            "unsloth_fixed",
            "unsloth_version",
            "use_flash_attention",
            "use_flash_attention_2",
            "use_flash_attn",
            "vocab_size_multiple",
        ],
    },
    // Generation settings, which transformers 4 stores here. They apply only without a generation_config.json.
    KnownKeys {
        treatment: Treatment::NotApplied,
        names: &[
            "bad_words_ids",
            "begin_suppress_tokens",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "length_penalty",
            "max_length",
            "max_new_tokens",
            "min_length",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "output_scores",
            "remove_invalid_values",
            "repetition_penalty",
            "return_dict_in_generate",
            "suppress_tokens",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
        ],
    },
    KnownKeys {
        treatment: Treatment::Refused("the decoder has no encoder and no cross-attention"),
        names: &[
            "add_cross_attention",
            "cross_attention_hidden_size",
            "decoder",
            "encoder",
            "is_encoder_decoder",
            "tie_encoder_decoder",
        ],
    },
    KnownKeys {
        treatment: Treatment::Refused("pruned heads are stored as smaller matrices"),
        names: &["pruned_heads"],
    },
    KnownKeys {
        treatment: Treatment::Refused("only models of text are supported"),
        names: &["audio_config", "text_config", "vision_config"],
    },
    KnownKeys {
        treatment: Treatment::Refused("mixtures of experts are not supported"),
        names: &["num_experts", "num_experts_per_tok", "num_local_experts"],
    },
    KnownKeys {
        treatment: Treatment::Refused(
            "the rotary embedding pairs element `i` of a head with element `i + head_dim / 2`",
        ),
        names: &["rope_interleaved"],
    },
];

/// The keys of `rope_scaling` and `rope_parameters`. Those of other types do not act in the types that are supported.
pub const ROPE: &[KnownKeys] = &[
    KnownKeys {
        treatment: Treatment::Honoured,
        names: &[
            "rope_type",
            "type",
            "rope_theta",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
            "partial_rotary_factor",
        ],
    },
    KnownKeys {
        treatment: Treatment::Harmless,
        names: &[
            "attention_factor",
            "attn_factor",
            "beta_fast",
            "beta_slow",
            "finetuned",
            "long_factor",
            "mscale",
            "mscale_all_dim",
            "short_factor",
            "truncate",
        ],
    },
];

/// The keys of generation_config.json.
pub const GENERATION: &[KnownKeys] = &[
    KnownKeys { treatment: Treatment::Honoured, names: &["bos_token_id", "eos_token_id"] },
    // About the tool, memory or speed; speculative decoding and caches do not change the text.
    KnownKeys {
        treatment: Treatment::Harmless,
        names: &[
            "_from_model_config",
            "_name_or_path",
            "_commit_hash",
            "assistant_confidence_threshold",
            "assistant_early_exit",
            "assistant_ensemble_weight",
            "assistant_lookbehind",
            "cache_config",
            "cache_implementation",
            "chat_format",
            "compile_config",
            "continuous_batching_config",
            "decoder_start_token_id",
            "disable_compile",
            "generation_kwargs",
            "is_assistant",
            "low_memory",
            "max_cache_len",
            "max_matching_ngram_size",
            "max_window_size",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "output_attentions",
            "output_hidden_states",
            "output_logits",
            "output_scores",
            "pad_token_id",
            "prefill_chunk_size",
            "prompt_lookup_num_tokens",
            "return_dict_in_generate",
            "speculation_type",
            "target_lookbehind",
            "transformers.js_config",
            "transformers_version",
            "use_cache",
            "use_mtp",
        ],
    },
    // Callers give their own settings.
    KnownKeys {
        treatment: Treatment::NotApplied,
        names: &[
            "bad_words_ids",
            "begin_suppress_tokens",
            "constraints",
            "diversity_penalty",
            "do_sample",
            "dola_layers",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "encoder_repetition_penalty",
            "epsilon_cutoff",
            "eta_cutoff",
            "exponential_decay_length_penalty",
            "force_words_ids",
            "forced_bos_token_id",
            "forced_decoder_ids",
            "forced_eos_token_id",
            "guidance_scale",
            "length_penalty",
            "max_length",
            "max_new_tokens",
            "max_time",
            "min_length",
            "min_new_tokens",
            "min_p",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "penalty_alpha",
            "remove_invalid_values",
            "renormalize_logits",
            "repetition_penalty",
            "sequence_bias",
            "stop_strings",
            "suppress_tokens",
            "temperature",
            "token_healing",
            "top_h",
            "top_k",
            "top_p",
            "typical_p",
            "watermarking_config",
        ],
    },
];
