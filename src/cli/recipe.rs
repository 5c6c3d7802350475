//! Reads the file of `--recipe`.

use crate::error::{Context, Error, Result};
use crate::format::links::followed;
use crate::recipe::{MAX_BYTES, Recipe};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Reads a recipe: JSON, TOML in a `.toml` file, or the `quantization_config.json` of a folder that a recipe produced.
pub fn read(path: &Path) -> Result<Recipe> {
    let in_file = || path.display().to_string();
    let mut bytes = Vec::new();
    // One byte more than the limit detects larger files.
    let file =
        File::open(followed(path)).and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes));
    file.context_with(in_file)?;
    if bytes.len() > MAX_BYTES {
        let message = format!("expected a recipe of at most {MAX_BYTES} bytes but found more");
        return Err(Error::invalid_argument(message)).context_with(in_file);
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Error::invalid_argument("expected text in UTF-8"))
        .context_with(in_file)?;
    let is_toml = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    let recipe = match recipe_of_record(text) {
        _ if is_toml => Recipe::from_toml(text),
        Some(recipe) => Recipe::from_json(&recipe),
        None => Recipe::from_json(text),
    };
    recipe.context_with(in_file)
}

/// The recipe in the text of a `quantization_config.json`.
fn recipe_of_record(text: &str) -> Option<String> {
    let record: serde_json::Value = serde_json::from_str(text).ok()?;
    record
        .get("schema")
        .filter(|schema| schema.as_str().is_some_and(|s| s.starts_with("lowbit.quantization/")))?;
    Some(record.get("parameters")?.get("recipe")?.to_string())
}
