//! Chat templates of checkpoints, rendered as transformers does with Jinja2.
//!
//! `minijinja` runs the template language. This module adds what transformers adds to Jinja2 (`tojson`, `strftime_now`,
//! `raise_exception`, the `generation` tags), and what templates use of Python: methods, and the operator `%` on text.
//! Anything else is an error that names it.

mod date;
mod json;
mod methods;
mod percent;
mod python;
mod rewrite;

use super::hugging_face::broken;
use crate::error::{Error, Result};
pub use date::Moment;
#[cfg(not(target_os = "unknown"))]
pub(super) use date::now;
use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

/// In a JavaScript host the bindings set the clock.
#[cfg(target_os = "unknown")]
pub(super) fn now() -> Moment {
    Moment::default()
}

/// Instruction limit of a template, because checkpoints are untrusted.
const FUEL: u64 = 1_000_000;

/// Most bytes that one method may return: `"x".center(10 ** 12)` is an error.
const MOST_BYTES: usize = 16 << 20;

/// Keys of a model's reasoning in a message, in the order of look-up. Templates get it as `reasoning_content` and
/// `thinking`.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A template with its special tokens and clock.
pub(super) struct ChatTemplate<'a> {
    pub(super) text: &'a str,
    pub(super) special_tokens: &'a Map<String, Json>,
    pub(super) clock: fn() -> Moment,
}

impl ChatTemplate<'_> {
    /// Renders the chat; with `add_generation_prompt` as a prompt for the assistant's answer.
    pub(super) fn render(
        &self,
        messages: &[Json],
        tools: Option<&[Json]>,
        documents: Option<&[Json]>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::invalid_argument("expected at least one message but found none"));
        }
        let turns: Vec<Json> =
            messages.iter().enumerate().map(|(index, turn)| message(index, turn)).collect::<Result<_>>()?;
        for (name, given) in [("tools", tools), ("documents", documents)] {
            if let Some(index) = given.unwrap_or(&[]).iter().position(|item| !item.is_object()) {
                return Err(Error::invalid_argument(format!("{name}[{index}]: expected an object")));
            }
        }

        let tokens = self.special_tokens.iter().map(|(name, token)| (name.as_str(), value(token)));
        // Always defined, because templates test whether they are none.
        let context = Value::from_pairs(tokens.chain([
            ("tools", list(tools)),
            ("documents", list(documents)),
            ("messages", list(Some(&turns))),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ]));

        let source = rewrite::rewrite(self.text);
        let environment = environment(self.clock).map_err(|error| broken("chat template", error))?;
        environment.render_str(&source, context).map_err(|error| broken("chat template", one_line(&error)))
    }
}

/// A message as transformers passes it to a template.
fn message(index: usize, message: &Json) -> Result<Json> {
    let wrong = |what: &str| Err(Error::invalid_argument(format!("messages[{index}]: expected {what}")));
    let Json::Object(turn) = message else { return wrong("an object with a `role`") };
    if !turn.get("role").is_some_and(Json::is_string) {
        return wrong("`role` to be a string");
    }
    // Some services return nulls such as `"tool_calls": null`, which templates would print.
    let mut turn: Map<String, Json> = turn
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if let Some(reasoning) = REASONING.iter().find_map(|name| turn.get(*name)).cloned() {
        if !turn.contains_key("thinking") {
            turn.shift_insert(0, "thinking".to_owned(), reasoning.clone());
        }
        turn.insert("reasoning_content".to_owned(), reasoning);
    }
    Ok(Json::Object(turn))
}

fn list(items: Option<&[Json]>) -> Value {
    items.map_or(Value::from(()), |items| items.iter().map(value).collect())
}

/// Converts JSON, with keys in order. The JSON reader has limited the depth.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => list(Some(items)),
        Json::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(key, held)| (Value::from(key.as_str()), value(held))))
        }
    }
}

/// An error's message on one line.
fn one_line(error: &minijinja::Error) -> String {
    error.to_string().replace(['\n', '\r'], " ")
}

fn failure(message: impl Into<std::borrow::Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message)
}

fn environment(clock: fn() -> Moment) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_syntax(
        minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?,
    );
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(python::print);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_test("iterable", |value: &Value| {
        // In Jinja2 an undefined value is an empty list.
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
            && value.len().is_some()
    });
    for name in ["length", "count"] {
        environment.add_filter(name, |value: &Value| match value.len() {
            Some(len) => Ok(len),
            None if value.is_undefined() => Ok(0),
            None => Err(failure(format!("a value of the kind {} has no length", value.kind()))),
        });
    }
    environment.add_filter(rewrite::PERCENT, percent::percent);
    environment.add_function("raise_exception", |message: String| Err::<String, _>(failure(message)));
    environment
        .add_function("strftime_now", move |format: String| clock().strftime(&format).map_err(failure));
    Ok(environment)
}

#[cfg(test)]
mod tests;
