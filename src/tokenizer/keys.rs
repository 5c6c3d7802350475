//! The known keys of tokenizer_config.json. Any other key may change how texts are encoded or chats are written, so it is
//! refused unless the caller allows it by name.

use crate::error::Result;
use crate::format::known_keys::{self, KnownKeys, Subject, Treatment, treatment};
use serde_json::{Map, Value};

/// The keys. Any key that ends with `_token` names a special token for templates.
pub const TOKENIZER: &[KnownKeys] = &[
    KnownKeys {
        treatment: Treatment::Honoured,
        names: &[
            "add_bos_token",
            "added_tokens_decoder",
            "chat_template",
            "extra_special_tokens",
            "model_specific_special_tokens",
            "tokenizer_class",
        ],
    },
    // tokenizer.json has what these say, and transformers does not apply them to it.
    KnownKeys {
        treatment: Treatment::Harmless,
        names: &[
            "add_eos_token",
            "add_prefix_space",
            "additional_special_tokens",
            "clean_up_tokenization_spaces",
            "errors",
            "legacy",
            "merges",
            "merges_file",
            "post_processor",
            "sp_model_kwargs",
            "spaces_between_special_tokens",
            "special_tokens_map_file",
            "tokenizer",
            "tokenizer_file",
            "tokenizer_object",
            "unk_id",
            "vocab",
            "vocab_file",
            "vocab_size",
            "_spm_precompiled_charsmap",
        ],
    },
    // Texts are always encoded whole.
    KnownKeys {
        treatment: Treatment::Harmless,
        names: &[
            "_json_padding",
            "_json_truncation",
            "max_len",
            "max_length",
            "max_target_length",
            "model_input_names",
            "model_max_length",
            "pad_to_multiple_of",
            "pad_token_type_id",
            "padding",
            "padding_side",
            "stride",
            "tokenizer_padding",
            "tokenizer_truncation",
            "truncation",
            "truncation_side",
            "truncation_strategy",
        ],
    },
    // About the tool that opened or wrote the folder.
    KnownKeys {
        treatment: Treatment::Harmless,
        names: &[
            "_commit_hash",
            "_from_auto",
            "_from_pipeline",
            "auto_map",
            "backend",
            "cache_dir",
            "chat_control_tokens",
            "commit_message",
            "device_map",
            "files_loaded",
            "force_download",
            "from_slow",
            "gguf_file",
            "init_inputs",
            "is_local",
            "local_files_only",
            "name_or_path",
            "processor_class",
            "proxies",
            "repo_id",
            "response_schema",
            "response_template",
            "revision",
            "sanitize_control_tokens",
            "save_jinja_files",
            "subfolder",
            "token",
            "trust_remote_code",
            "use_default_system_prompt",
            "use_fast",
            "use_source_tokenizer",
            "verbose",
        ],
    },
    KnownKeys {
        treatment: Treatment::Refused("special tokens in texts are always one token"),
        names: &["split_special_tokens"],
    },
    KnownKeys {
        treatment: Treatment::Refused("decoded texts are not changed"),
        names: &["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"],
    },
    KnownKeys {
        treatment: Treatment::Refused("the pattern of tokenizer.json is used as it is"),
        names: &["fix_mistral_regex"],
    },
];

/// Checks all keys. Unknown keys that `allowed` names are ignored.
///
/// # Errors
/// `tokenizer` naming a key that is refused or unknown.
pub(super) fn check(config: &Map<String, Value>, allowed: &[String]) -> Result<()> {
    let of_tokenizer = |name: &str| {
        let value = &config[name];
        let is_text = value.is_string() || value.get("content").is_some_and(Value::is_string);
        let is_named = name.ends_with("_token") && is_text;
        treatment(TOKENIZER, name).or(is_named.then_some(Treatment::Honoured))
    };
    known_keys::check(config, of_tokenizer, allowed, "", Subject::Texts).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use serde_json::json;

    #[test]
    fn unknown_settings_of_a_tokenizer_are_refused() {
        let known = json!({"bos_token": "<s>", "image_token": "<image>", "eos_token": {"content": "</s>"},
            "model_max_length": 1e30, "legacy": true, "pad_token": null, "do_lower_case": false});
        let check = |config: &Value, allowed: &[String]| check(config.as_object().unwrap(), allowed);
        check(&known, &[]).unwrap();
        for (key, value) in [
            ("do_lower_case", json!(true)),
            ("split_special_tokens", json!(true)),
            ("fix_mistral_regex", json!(true)),
            ("strip_accents_token", json!(1)),
        ] {
            let mut config = known.clone();
            config[key] = value;
            let error = check(&config, &[]).unwrap_err();
            assert!(error.code() == ErrorCode::Tokenizer && error.to_string().contains(key), "{error}");
        }
        check(&json!({"do_lower_case": true}), &["do_lower_case".to_owned()]).unwrap();
    }
}
