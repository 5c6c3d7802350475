//! The small files beside tokenizer.json (settings, special tokens, chat templates), read as transformers does.

use super::hugging_face::broken;
use super::keys;
use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::small_file::{read_file, read_json};
use crate::format::source::SourceDir;
use serde_json::{Map, Value};

/// The special tokens that every tokenizer of transformers names.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Reads tokenizer_config.json; an empty object if it is missing. Unknown keys that `allowed` names are ignored.
///
/// # Errors
/// `tokenizer` for an unknown key, `invalid_checkpoint` for anything but an object.
pub(super) async fn config(dir: &dyn SourceDir, allowed: &[String]) -> Result<Map<String, Value>> {
    const FILE: &str = "tokenizer_config.json";
    let config = object(dir, FILE).await?;
    keys::check(&config, allowed).context_with(|| FILE)?;
    Ok(config)
}

async fn object(dir: &dyn SourceDir, file: &str) -> Result<Map<String, Value>> {
    match read_json(dir, file).await? {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err(Error::invalid_checkpoint(format!("{file}: expected an object"))),
    }
}

/// The text of a token, which is a string or an object with the string in `content`.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The named special tokens, which templates can print.
pub(super) async fn special_tokens(
    dir: &dyn SourceDir,
    config: &Map<String, Value>,
) -> Result<Map<String, Value>> {
    // Older folders keep them in a file of its own. Newer folders have `added_tokens_decoder` and may repeat that file.
    let older = match config.get("added_tokens_decoder") {
        None => object(dir, "special_tokens_map.json").await?,
        Some(_) => Map::new(),
    };
    let extra = config.get("extra_special_tokens").and_then(Value::as_object);
    let mut tokens = Map::new();
    for (key, value) in config.iter().chain(extra.into_iter().flatten()).chain(&older) {
        // A model-specific token is a string whose name ends in `_token`; extra tokens have any name.
        let has_name = NAMED.contains(&key.as_str())
            || (key.ends_with("_token") && value.is_string())
            || extra.is_some_and(|extra| extra.contains_key(key));
        match token_text(value) {
            Some(text) if has_name => tokens.insert(key.clone(), Value::from(text)),
            // A null in the older file removes a token.
            _ => tokens.shift_remove(key),
        };
    }
    Ok(tokens)
}

/// The chat templates of a folder by name; an unnamed one is called `default`.
pub(super) struct Templates(Map<String, Value>);

/// Reads the chat templates from the first of chat_template.jinja, tokenizer_config.json and chat_template.json (older
/// processors) that has any. The folder `additional_chat_templates` is not read; opening the checkpoint reports it.
pub(super) async fn templates(dir: &dyn SourceDir, config: &Map<String, Value>) -> Result<Templates> {
    let mut found = Map::new();
    if let Some(bytes) = read_file(dir, "chat_template.jinja").await? {
        let text = String::from_utf8(bytes).map_err(|error| broken("chat_template.jinja", error))?;
        found.insert("default".to_owned(), Value::from(text));
    }
    if found.is_empty() {
        found = named("tokenizer_config.json", config)?;
    }
    if found.is_empty() {
        found = named("chat_template.json", &object(dir, "chat_template.json").await?)?;
    }
    Ok(Templates(found))
}

/// Reads `chat_template`: a string, a list of named templates, or an object of them.
fn named(file: &str, config: &Map<String, Value>) -> Result<Map<String, Value>> {
    let expected = |what: &str| Err(broken(file, format!("expected {what}")));
    let mut found = Map::new();
    match config.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => {
            found.insert("default".to_owned(), Value::from(text.as_str()));
        }
        Some(Value::Array(entries)) => {
            for entry in entries {
                let text = |key| entry.get(key).and_then(Value::as_str);
                let (Some(name), Some(template)) = (text("name"), text("template")) else {
                    return expected("each `chat_template` to have a `name` and a `template`");
                };
                found.insert(name.to_owned(), Value::from(template));
            }
        }
        Some(Value::Object(entries)) => {
            for (name, template) in entries {
                let Some(template) = template.as_str() else {
                    return expected("each `chat_template` to be text");
                };
                found.insert(name.clone(), Value::from(template));
            }
        }
        Some(_) => return expected("`chat_template` to be text or a list"),
    }
    Ok(found)
}

impl Templates {
    pub(super) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// The template that transformers uses when none is named.
    pub(super) fn pick(&self, with_tools: bool) -> Result<&str> {
        let of_tools = with_tools.then(|| self.0.get("tool_use")).flatten();
        of_tools.or_else(|| self.0.get("default")).and_then(Value::as_str).ok_or_else(|| {
            let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Error::new(
                ErrorCode::NotFound,
                format!("expected a chat template named `default` but the checkpoint has {found}"),
            )
        })
    }
}
