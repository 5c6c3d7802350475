//! The tokens that a folder's tokenizer adds to a prompt, which GGUF expresses by two flags.

use super::inexact;
use crate::error::Result;
use crate::format::{clipped, quoted};
use serde_json::Value;

/// The ids added before and after a text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct SpecialTokens {
    pub(super) front: Vec<u32>,
    pub(super) behind: Vec<u32>,
    /// Whether the first token is added only to texts that do not begin with it.
    pub(super) unless_there: bool,
}

/// The tokens added to a prompt. First come those of tokenizer.json's post-processor, whatever the flags say, as in
/// transformers 5. Then the beginning token is added if tokenizer_config.json requests it and it is not there yet. The
/// reader of folders, `crate::tokenizer`, does the same, and a test compares them.
pub(super) fn of_prompt(
    post_processor: Option<&Value>,
    tokenizer_config: &Value,
    bos: Option<u32>,
) -> Result<SpecialTokens> {
    let mut around = of(post_processor.unwrap_or(&Value::Null))?;
    if let Some(bos) = bos.filter(|_| asks_for_bos(tokenizer_config))
        && around.front.first() != Some(&bos)
    {
        around.front.insert(0, bos);
        around.unless_there = true;
    }
    Ok(around)
}

/// Whether tokenizer_config.json requests the beginning token. Its Llama classes do by default.
pub(super) fn asks_for_bos(tokenizer_config: &Value) -> bool {
    let class = tokenizer_config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
    let asks = tokenizer_config.get("add_bos_token").and_then(Value::as_bool);
    asks.unwrap_or(matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast"))
}

/// The token that one of the two flags represents; `named` is the token that the file names for this position.
///
/// # Errors
/// `tokenizer` if other tokens are added at this position.
pub(super) fn only(place: &str, ids: &[u32], named: Option<u32>, tokens: &[String]) -> Result<Option<u32>> {
    let text = |id: u32| match tokens.get(id as usize) {
        Some(text) => quoted(text),
        None => format!("token {id}, which has no row in the embedding"),
    };
    match *ids {
        [] => Ok(None),
        [id] if (id as usize) < tokens.len() && named.is_none_or(|named| named == id) => Ok(Some(id)),
        _ => {
            let found: Vec<String> = ids.iter().take(4).map(|&id| text(id)).collect();
            let expected = named.map_or_else(|| "one token".to_owned(), text);
            Err(inexact(format_args!(
                "it puts {} {place} a text, but GGUF has only a flag for {expected}",
                found.join(", ")
            )))
        }
    }
}

fn of(post_processor: &Value) -> Result<SpecialTokens> {
    let unknown =
        || inexact(format_args!("its post-processor is {}", clipped(&post_processor.to_string(), 80)));
    let kind = match post_processor {
        Value::Null => return Ok(SpecialTokens::default()),
        other => other.get("type").and_then(Value::as_str).ok_or_else(unknown)?,
    };
    match kind {
        // It affects only text positions and no ids.
        "ByteLevel" => Ok(SpecialTokens::default()),
        "TemplateProcessing" => of_template(post_processor).ok_or_else(unknown),
        "BertProcessing" | "RobertaProcessing" => {
            let id = |key: &str| u32::try_from(post_processor.get(key)?.get(1)?.as_u64()?).ok();
            let (Some(front), Some(behind)) = (id("cls"), id("sep")) else { return Err(unknown()) };
            Ok(SpecialTokens { front: vec![front], behind: vec![behind], unless_there: false })
        }
        "Sequence" => {
            let steps = post_processor.get("processors").and_then(Value::as_array).ok_or_else(unknown)?;
            let mut all = SpecialTokens::default();
            for step in steps {
                // Nested sequences do not occur, and could be nested without limit.
                if step.get("type").is_some_and(|kind| kind == "Sequence") {
                    return Err(unknown());
                }
                let around = of(step)?;
                if around == SpecialTokens::default() {
                    continue;
                }
                // A second step would treat the first step's tokens as the text of a pair.
                if all != SpecialTokens::default() {
                    return Err(unknown());
                }
                all = around;
            }
            Ok(all)
        }
        _ => Err(unknown()),
    }
}

fn of_template(template: &Value) -> Option<SpecialTokens> {
    let mut around = SpecialTokens::default();
    let mut texts = 0;
    for piece in template.get("single")?.as_array()? {
        if let Some(special) = piece.get("SpecialToken") {
            let ids =
                template.get("special_tokens")?.get(special.get("id")?.as_str()?)?.get("ids")?.as_array()?;
            let side = if texts == 0 { &mut around.front } else { &mut around.behind };
            for id in ids {
                side.push(u32::try_from(id.as_u64()?).ok()?);
            }
        } else if piece.get("Sequence")?.get("id")? == "A" {
            texts += 1;
        } else {
            return None;
        }
    }
    (texts == 1).then_some(around)
}
