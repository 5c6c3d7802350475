//! Recipes: rules that give some modules another scheme or method, or keep them in floating point.
//!
//! A recipe is a list of rules in JSON or, on the command line, TOML. The first rule whose pattern matches a module's
//! name applies. Other modules use the job's options. `pipeline::select` knows the modules, and whether a layout can
//! hold the result.

mod pattern;

pub use pattern::ModulePattern;

use crate::error::{Context, Error, Result};
use crate::format::{clipped, quoted};
use crate::quant::{Bits, Granularity, Method, Scheme};
use serde::{Deserialize, Serialize};

/// Size limit of a recipe.
pub const MAX_BYTES: usize = 256 << 10;

/// Limit of patterns in a recipe: enough to name each linear layer of 140 blocks, and few enough to try all on each
/// module.
const MAX_PATTERNS: usize = 1024;

/// Rules for modules, in the order of precedence.
///
/// ```
/// let recipe = lowbit::Recipe::from_json(
///     r#"{"rules": [{"modules": "*.self_attn.*", "bits": 8}, {"modules": "*.0.mlp.*", "keep": true}]}"#,
/// )?;
/// assert_eq!(recipe.rule_for("model.layers.3.self_attn.q_proj"), Some(0));
/// assert_eq!(recipe.rule_for("model.layers.0.mlp.up_proj"), Some(1));
/// assert_eq!(recipe.rule_for("model.layers.3.mlp.up_proj"), None);
/// # Ok::<(), lowbit::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The first rule that matches a module applies.
    pub rules: Vec<Rule>,
}

/// Settings of some modules. Omitted settings come from the job's options, except for the group size next to `bits`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// One or several patterns. The rule applies to modules that any of them matches.
    #[serde(deserialize_with = "pattern::one_or_more")]
    pub modules: Vec<ModulePattern>,
    /// Keep the modules in floating point.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// Bits per weight: 2, 3, 4 or 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// Weights per scale; -1: a whole row. With `bits` the default is [`Bits::usual_granularity`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<i64>,
    /// No zero points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// Quantization method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// The method and scheme of a module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MethodChoice {
    /// Quantization method.
    pub method: Method,
    /// The scheme.
    pub scheme: Scheme,
}

impl Recipe {
    /// Reads and [checks](Self::check) a recipe in JSON.
    ///
    /// # Errors
    /// `invalid_argument` with the position, for invalid JSON, an unknown field, an invalid pattern or a contradictory
    /// rule.
    pub fn from_json(text: &str) -> Result<Self> {
        check_size(text)?;
        let recipe: Self = serde_json::from_slice(text.as_bytes())
            .map_err(|error| Error::invalid_argument(clipped(&error.to_string(), 300)))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Parses and [checks](Self::check) a JSON value.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_value(value: &serde_json::Value) -> Result<Self> {
        let recipe: Self = crate::format::json::read(value)
            .map_err(|error| Error::invalid_argument(clipped(&error.to_string(), 300)))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Reads and [checks](Self::check) a recipe in TOML.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    #[cfg(feature = "cli")]
    pub fn from_toml(text: &str) -> Result<Self> {
        check_size(text)?;
        let recipe: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().and_then(|span| text.get(..span.start)).map(|before| {
                let line = 1 + before.bytes().filter(|&byte| byte == b'\n').count();
                format!(" at line {line}")
            });
            let message = clipped(error.message(), 300);
            Error::invalid_argument(format!("{message}{}", line.unwrap_or_default()))
        })?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Refuses rules that are invalid with any options of the job.
    ///
    /// # Errors
    /// `invalid_argument` naming the rule.
    pub fn check(&self) -> Result<()> {
        if self.rules.is_empty() {
            return Err(Error::invalid_argument("expected `rules` to have at least one rule but found none"));
        }
        let patterns: usize = self.rules.iter().map(|rule| rule.modules.len()).sum();
        if patterns > MAX_PATTERNS {
            return Err(Error::invalid_argument(format!(
                "expected at most {MAX_PATTERNS} patterns but found {patterns}"
            )));
        }
        self.rules
            .iter()
            .enumerate()
            .try_for_each(|(index, rule)| rule.check().context_with(|| self.name(index)))
    }

    /// The index in [`rules`](Self::rules) of the rule for a module.
    pub fn rule_for(&self, module: &str) -> Option<usize> {
        self.rules.iter().position(|rule| rule.matches(module))
    }

    /// A rule's name in messages, counted from 1: ``recipe rule 1 (`*.self_attn.*`)``.
    ///
    /// # Panics
    /// When there is no such rule.
    pub fn name(&self, index: usize) -> String {
        let modules = &self.rules[index].modules;
        let first = modules.first().map(|pattern| quoted(pattern.as_str())).unwrap_or_default();
        let more = if modules.len() > 1 { ", ..." } else { "" };
        format!("recipe rule {} ({first}{more})", index + 1)
    }
}

fn check_size(text: &str) -> Result<()> {
    if text.len() > MAX_BYTES {
        return Err(Error::invalid_argument(format!(
            "expected a recipe of at most {MAX_BYTES} bytes but found {}",
            text.len()
        )));
    }
    Ok(())
}

impl Rule {
    /// Whether a pattern matches the module's name.
    pub fn matches(&self, module: &str) -> bool {
        self.modules.iter().any(|pattern| pattern.matches(module))
    }

    /// The method and scheme of its modules, given the job's `usual` choice. `None`: floating point.
    ///
    /// # Errors
    /// `invalid_argument` for fields that contradict each other or the method.
    pub(crate) fn choose(&self, usual: MethodChoice) -> Result<Option<MethodChoice>> {
        self.check()?;
        if self.keep {
            return Ok(None);
        }
        let method = self.method.unwrap_or(usual.method);
        if method == Method::Ternary {
            let granularity = match self.granularity()? {
                Some(Granularity::Channel) => Granularity::Channel,
                None if usual.scheme.is_ternary() => usual.scheme.granularity(),
                None => Granularity::Tensor,
                _ => return Err(no_ternary("groups")),
            };
            if self.bits.is_some() || self.symmetric.is_some() {
                return Err(no_ternary("bits or zero points"));
            }
            return Ok(Some(MethodChoice { method, scheme: Scheme::ternary(granularity) }));
        }
        let (usual_bits, usual_granularity, usual_symmetric) =
            usual.scheme.as_integer().unwrap_or((Bits::Four, Bits::Four.usual_granularity(), true));
        let bits = self.bits.map(Bits::try_from).transpose()?;
        let granularity = match (self.granularity()?, bits) {
            (Some(granularity), _) => granularity,
            (None, Some(bits)) => bits.usual_granularity(),
            (None, None) => usual_granularity,
        };
        let bits = bits.unwrap_or(usual_bits);
        let symmetric = self.symmetric.unwrap_or(usual_symmetric);
        Ok(Some(MethodChoice {
            method,
            scheme: Scheme::symmetric(bits, granularity).with_symmetry(symmetric),
        }))
    }

    fn granularity(&self) -> Result<Option<Granularity>> {
        self.group_size.map(Granularity::from_group_size).transpose()
    }

    fn check(&self) -> Result<()> {
        if self.modules.is_empty() {
            return Err(Error::invalid_argument(
                "expected `modules` to have at least one pattern but found none",
            ));
        }
        let says_how = self.bits.is_some()
            || self.group_size.is_some()
            || self.symmetric.is_some()
            || self.method.is_some();
        if self.keep && says_how {
            return Err(Error::invalid_argument(
                "`keep` leaves modules in floating point; expected no `bits`, `group_size`, `symmetric` or `method` \
                 beside it",
            ));
        }
        if !self.keep && !says_how {
            return Err(Error::invalid_argument(
                "expected `keep`, or at least one of `bits`, `group_size`, `symmetric` and `method`, but found none",
            ));
        }
        self.bits.map(Bits::try_from).transpose()?;
        self.granularity()?;
        Ok(())
    }
}

fn no_ternary(what: &str) -> Error {
    Error::invalid_argument(format!(
        "ternary weights have no {what}, but a scale for each tensor, or for each row with `group_size` -1; give \
         another `method` for other weights"
    ))
}

#[cfg(test)]
mod tests;
