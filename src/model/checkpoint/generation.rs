//! generation_config.json: special tokens, and settings that are not applied.

use crate::error::{Context, Error, Result};
use crate::format::clipped;
use crate::format::json;
use crate::format::small_file::read_file;
use crate::format::source::SourceDir;
use crate::model::ModelConfig;
use crate::model::config::{keys, token_ids};
use serde_json::Value;

const FILE: &str = "generation_config.json";

/// What generation_config.json says.
pub(super) struct Generation {
    pub(super) json: Value,
    bos_token_id: Option<u32>,
    eos_token_ids: Vec<u32>,
    /// Unknown keys that were ignored because the caller allows them.
    pub(super) ignored_keys: Vec<String>,
}

/// Reads the file. An empty file, which broken uploads leave, counts as missing, as in transformers. Unknown keys that
/// `allowed` names are ignored.
///
/// # Errors
/// `unsupported_model` for an unknown key, `invalid_checkpoint` for invalid JSON and invalid token ids.
pub(super) async fn read(dir: &dyn SourceDir, allowed: &[String]) -> Result<Option<Generation>> {
    let Some(bytes) = read_file(dir, FILE).await? else { return Ok(None) };
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    parse(&bytes, allowed).map(Some).context_with(|| FILE)
}

fn parse(bytes: &[u8], allowed: &[String]) -> Result<Generation> {
    let json =
        json::value(bytes).map_err(|error| Error::invalid_checkpoint(format!("expected JSON: {error}")))?;
    Ok(Generation {
        ignored_keys: keys::check_generation(&json, allowed)?,
        bos_token_id: token_ids(&json, "bos_token_id")?.and_then(|ids| ids.first().copied()),
        eos_token_ids: token_ids(&json, "eos_token_id")?.unwrap_or_default(),
        json,
    })
}

impl Generation {
    /// Overrides the special tokens of config.json.
    pub(super) fn set_tokens(&self, config: &mut ModelConfig) {
        if !self.eos_token_ids.is_empty() {
            config.eos_token_ids.clone_from(&self.eos_token_ids);
        }
        config.bos_token_id = self.bos_token_id.or(config.bos_token_id);
    }
}

/// Settings that change even greedy decoding, with their neutral values.
const SETTINGS: [(&str, f64); 9] = [
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("num_beams", 1.0),
    ("suppress_tokens", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("bad_words_ids", 0.0),
];

/// The warning for settings that are not applied: generation takes its options only from the caller. Without a
/// generation_config.json they are those of config.json, as in transformers.
pub(super) fn unapplied_settings(generation: Option<&Generation>, config: &Value) -> Option<String> {
    let (file, settings) = generation.map_or(("config.json", config), |generation| (FILE, &generation.json));
    let applies = |key: &str, neutral: f64| match settings.get(key) {
        Some(Value::Number(number)) => number.as_f64() != Some(neutral),
        Some(Value::Array(items)) => !items.is_empty(),
        _ => false,
    };
    let unapplied: Vec<String> = SETTINGS
        .iter()
        .filter(|(key, neutral)| applies(key, *neutral))
        .map(|(key, _)| format!("`{key}` = {}", clipped(&settings[*key].to_string(), 40)))
        .collect();
    (!unapplied.is_empty()).then(|| format!("settings of {file} are not applied: {}", unapplied.join(", ")))
}
