//! Per-module overrides: GPTQModel's `dynamic`, and auto-round's settings by module name.
//!
//! `dynamic` maps regular expressions, which match from the start of a module's name, to settings. `+:pattern` or
//! `pattern` overrides settings, `-:pattern` leaves the module in floating point. The first match applies.

use crate::error::{Error, Result};
use crate::format::{clipped, quoted};
use crate::sort;
use regex_lite::{Regex, RegexBuilder};
use serde_json::{Map, Value};

/// The same limits as for patterns of compressed-tensors: files are untrusted.
const MAX_PATTERN_BYTES: usize = 32 * 1024;
const MAX_PATTERNS: usize = 256;

/// Settings of the quantization run. The tensors already show their effect.
const HARMLESS: [&str; 13] = [
    "desc_act",
    "act_group_aware",
    "static_groups",
    "damp_percent",
    "damp_auto_increment",
    "mse",
    "adapter",
    "fallback",
    "smooth",
    "true_sequential",
    "gptaq",
    "foem",
    "hessian",
];

/// The rules for modules.
#[derive(Debug, Default)]
pub(in crate::layout) struct Dynamic {
    /// Rules by full module name, sorted. They take precedence over patterns.
    names: Vec<(String, Rule)>,
    /// In file order.
    patterns: Vec<(Regex, Rule)>,
}

/// The overrides for a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::layout) struct Rule {
    /// The module stays in floating point.
    pub(in crate::layout) skip: bool,
    pub(in crate::layout) bits: Option<i64>,
    pub(in crate::layout) group_size: Option<i64>,
    pub(in crate::layout) sym: Option<bool>,
}

impl Dynamic {
    /// Reads `dynamic`, and the settings by module name, which are null for floating point.
    ///
    /// # Errors
    /// `unsupported_format` for an unknown setting or unsupported pattern; `invalid_checkpoint` for a value that is not
    /// a map.
    pub(in crate::layout) fn parse(dynamic: Option<&Value>, names: Option<&Value>) -> Result<Self> {
        let empty = Map::new();
        let map = |what: &str, value: Option<&'_ Value>| match value {
            None | Some(Value::Null) | Some(Value::Bool(false)) => Ok(empty.clone()),
            Some(Value::Object(map)) => Ok(map.clone()),
            Some(_) => Err(Error::invalid_checkpoint(format!("expected `{what}` to be a map"))),
        };
        let dynamic = map("dynamic", dynamic)?;
        if dynamic.len() > MAX_PATTERNS {
            return Err(Error::unsupported_format(format!(
                "expected at most {MAX_PATTERNS} patterns in `dynamic` but found {}",
                dynamic.len()
            )));
        }
        let mut found = Self::default();
        for (name, settings) in map("extra_config", names)? {
            let rule = if settings.is_null() {
                Rule { skip: true, ..Rule::default() }
            } else {
                parse_settings(&name, &settings)?
            };
            found.names.push((name, rule));
        }
        sort::sort_by(&mut found.names, |a, b| a.0.cmp(&b.0));
        for (pattern, settings) in &dynamic {
            found.patterns.push(parse_rule(pattern, settings)?);
        }
        Ok(found)
    }

    /// The rule for a module; the default rule changes nothing.
    pub(in crate::layout) fn rule(&self, module: &str) -> Rule {
        if let Ok(at) = self.names.binary_search_by(|(name, _)| name.as_str().cmp(module)) {
            return self.names[at].1;
        }
        // The leftmost match starts at 0 exactly if some match starts at 0.
        let matches = |regex: &Regex| regex.find(module).is_some_and(|found| found.start() == 0);
        self.patterns.iter().find(|(regex, _)| matches(regex)).map(|(_, rule)| *rule).unwrap_or_default()
    }

    pub(in crate::layout) fn rules(&self) -> impl Iterator<Item = Rule> {
        let of_names = self.names.iter().map(|(_, rule)| *rule);
        of_names.chain(self.patterns.iter().map(|(_, rule)| *rule))
    }
}

fn parse_rule(text: &str, settings: &Value) -> Result<(Regex, Rule)> {
    let (skip, pattern) = match text.strip_prefix("-:") {
        Some(pattern) => (true, pattern),
        None => (false, text.strip_prefix("+:").unwrap_or(text)),
    };
    let regex = RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build().map_err(|error| {
        Error::unsupported_format(format!(
            "the pattern {} of `dynamic` is not supported: {}",
            quoted(text),
            clipped(&error.to_string(), 200)
        ))
    })?;
    if skip {
        return Ok((regex, Rule { skip, ..Rule::default() }));
    }
    parse_settings(text, settings).map(|rule| (regex, rule))
}

/// The settings of the rule `text`.
fn parse_settings(text: &str, settings: &Value) -> Result<Rule> {
    let empty = Map::new();
    let map = match settings {
        Value::Null => &empty,
        Value::Object(map) => map,
        _ => {
            return Err(Error::invalid_checkpoint(format!(
                "expected {} of `dynamic` to be a map",
                quoted(text)
            )));
        }
    };
    let mut rule = Rule::default();
    for (key, value) in map {
        let known = match key.as_str() {
            "bits" => set(&mut rule.bits, value.as_i64()),
            "group_size" => set(&mut rule.group_size, value.as_i64()),
            "sym" => set(&mut rule.sym, value.as_bool()),
            other => HARMLESS.contains(&other),
        };
        if !known {
            return Err(Error::unsupported_format(format!(
                "{} with the value {} in {} of `dynamic` is not supported",
                quoted(key),
                quoted(&clipped(&value.to_string(), 100)),
                quoted(text)
            )));
        }
    }
    Ok(rule)
}

/// Sets `setting`; returns whether there was a value.
fn set<T>(setting: &mut Option<T>, value: Option<T>) -> bool {
    let found = value.is_some();
    *setting = value;
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_rule_that_matches_counts() {
        let dynamic = Dynamic::parse(
            Some(&json!({
                r"-:.*\.k_proj$": {},
                r"+:.*\.mlp\..*": {"bits": 8, "group_size": -1, "desc_act": true},
                r".*\.up_proj": {"bits": 2},
                r"self_attn": {"bits": 3},
            })),
            None,
        )
        .unwrap();
        assert!(dynamic.rule("model.layers.0.self_attn.k_proj").skip);
        let mlp = Rule { bits: Some(8), group_size: Some(-1), ..Rule::default() };
        assert_eq!(dynamic.rule("model.layers.0.mlp.up_proj"), mlp);
        assert_eq!(dynamic.rule("model.layers.0.self_attn.q_proj"), Rule::default(), "not from the start");
        assert_eq!(dynamic.rules().count(), 4);
        for nothing in [json!(null), json!({}), json!(false)] {
            assert_eq!(Dynamic::parse(Some(&nothing), None).unwrap().rules().count(), 0);
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (value, word) in [
            (json!([]), "map"),
            (json!({"a": 3}), "`a`"),
            (json!({"a": {"method": "awq"}}), "`method`"),
            (json!({"a": {"bits": "four"}}), "`bits`"),
            (json!({"(": {}}), "`(`"),
            (json!({"a{1000}{1000}": {}}), "pattern"),
        ] {
            let error = Dynamic::parse(Some(&value), None).unwrap_err();
            assert!(error.to_string().contains(word), "{value}: {error}");
        }
        let many: Map<String, Value> = (0..300).map(|i| (format!("a{i}"), json!({}))).collect();
        assert!(Dynamic::parse(Some(&Value::Object(many)), None).is_err());
    }
}
