//! What reading a checkpoint ignores, assumes and fills with defaults.

use super::checkpoint::Checkpoint;
use super::config::{ModelConfig, keys};
use crate::backend::GateActivation;
use crate::error::Result;
use crate::format::clipped;
use crate::format::known_keys::is_neutral;
use serde::Serialize;
use serde_json::{Value, json};

/// Notes about reading a checkpoint, one sentence or setting each.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReadingNotes {
    /// Settings with a value that have no effect, and tensors that nothing reads.
    pub ignored: Vec<String>,
    /// Decisions that the files do not settle.
    pub assumed: Vec<String>,
    /// Settings that are missing, with the value that is used.
    pub defaulted: Vec<String>,
}

impl ReadingNotes {
    /// Reads the configuration files again.
    ///
    /// # Errors
    /// Errors of reading.
    pub async fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let (config, json) = (checkpoint.config(), checkpoint.config_json());
        let setting = |file: &str, key: &str, value: &Value| {
            format!("{file}: `{key}` = {}", clipped(&value.to_string(), 60))
        };
        let entries = |object: &Value| object.as_object().cloned().unwrap_or_default();
        let mut ignored = Vec::new();
        for (key, value) in entries(json) {
            if !is_neutral(&value) && !keys::is_read(config.architecture, &key) {
                ignored.push(setting("config.json", &key, &value));
            }
        }
        if let Some(generation) = checkpoint.generation_config().await? {
            for (key, value) in entries(&generation) {
                let is_read = matches!(key.as_str(), "bos_token_id" | "eos_token_id");
                if !is_neutral(&value) && !is_read {
                    ignored.push(setting("generation_config.json", &key, &value));
                }
            }
        }
        ignored
            .extend(checkpoint.unread_tensors().into_iter().map(|tensor| format!("the tensor `{tensor}`")));
        Ok(Self { ignored, assumed: checkpoint.warnings().to_vec(), defaulted: defaulted(config, json) })
    }
}

fn defaulted(config: &ModelConfig, json: &Value) -> Vec<String> {
    let activation = match config.activation {
        GateActivation::Silu => "silu",
        GateActivation::SquaredRelu => "relu2",
    };
    let used = [
        ("max_position_embeddings", json!(config.max_position_embeddings)),
        ("num_key_value_heads", json!(config.num_key_value_heads)),
        ("head_dim", json!(config.head_dim)),
        ("rms_norm_eps", json!(f64::from(config.rms_norm_eps))),
        ("rope_theta", json!(config.rope.theta)),
        ("hidden_act", json!(activation)),
        ("tie_word_embeddings", json!(config.tie_word_embeddings)),
        ("bos_token_id", json!(config.bos_token_id)),
        ("eos_token_id", json!(config.eos_token_ids)),
    ];
    let is_written = |key: &str| {
        let inside =
            ["rope_scaling", "rope_parameters"].map(|rope| json.get(rope).and_then(|rope| rope.get(key)));
        json.get(key).is_some() || inside.iter().flatten().next().is_some()
    };
    let missing = used.into_iter().filter(|(key, _)| !is_written(key));
    missing.map(|(key, value)| format!("config.json: `{key}` = {value}")).collect()
}
