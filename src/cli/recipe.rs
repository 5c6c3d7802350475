//! `--recipe`: reads the file, and says which modules it changes. Floor 9.

use crate::error::{Context, Error, Result};
use crate::format::links::followed;
use crate::pipeline::ModulePlan;
use crate::recipe::{MAX_BYTES, Recipe};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Reads a recipe: JSON, or TOML in a file that ends in `.toml`, or the `quantization_config.json` of a folder that was
/// made by one.
pub fn read(path: &Path) -> Result<Recipe> {
    let in_file = || path.display().to_string();
    let mut bytes = Vec::new();
    // One byte more than fits shows that it does not.
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

/// The recipe by which a folder was made, where the text is a folder's `quantization_config.json`.
fn recipe_of_record(text: &str) -> Option<String> {
    let record: serde_json::Value = serde_json::from_str(text).ok()?;
    record
        .get("schema")
        .filter(|schema| schema.as_str().is_some_and(|s| s.starts_with("lowbit.quantization/")))?;
    Some(record.get("parameters")?.get("recipe")?.to_string())
}

/// What is not as the options alone say: a line for each rule and what it makes of its modules, and one for each module
/// that the layout cannot hold as asked for.
pub fn notes(plans: &[ModulePlan]) -> Vec<String> {
    let mut by_rule: BTreeMap<(usize, String), Vec<&ModulePlan>> = BTreeMap::new();
    let mut others = Vec::new();
    for plan in plans {
        let Some(reason) = &plan.reason else { continue };
        let becomes = match (plan.scheme, plan.method) {
            (Some(scheme), Some(method)) if plan.rule.is_some() => format!("{scheme} by {}", method.name()),
            (Some(scheme), _) => scheme.to_string(),
            (None, _) => "f16".to_owned(),
        };
        let becomes = format!("{becomes} ({reason})");
        match plan.rule {
            Some(rule) => by_rule.entry((rule, becomes)).or_default().push(plan),
            None => others.push(format!("{}: {becomes}", plan.module)),
        }
    }
    let of_rule = |((_, becomes), modules): ((usize, String), Vec<&ModulePlan>)| match modules[..] {
        [only] => format!("{}: {becomes}", only.module),
        _ => format!("{} modules: {becomes}", modules.len()),
    };
    by_rule.into_iter().map(of_rule).chain(others).collect()
}
