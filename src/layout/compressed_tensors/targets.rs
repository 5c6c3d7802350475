//! Finds a module's config group by the rules of `compressed_tensors.utils.match`.
//!
//! A target is a module's name, a pattern (`re:` and a regular expression that matches from the start of the name), or
//! a class. If several match, names take precedence over patterns and patterns over classes; within a kind, the first
//! in alphabetical order wins.

use crate::error::{Error, Result};
use crate::format::{clipped, quoted};
use regex_lite::{Regex, RegexBuilder};

/// Patterns come from untrusted files. Matching takes time linear in pattern size times name length; these limits bound
/// the patterns' size and number.
const MAX_PATTERN_BYTES: usize = 32 * 1024;
const MAX_PATTERNS: usize = 256;

#[derive(Debug)]
enum TargetPattern {
    /// A module's name or a class.
    Name(String),
    Pattern(Regex),
}

impl TargetPattern {
    fn parse(text: &str) -> Result<Self> {
        let Some(pattern) = text.strip_prefix("re:") else {
            return Ok(Self::Name(text.to_owned()));
        };
        RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build().map(Self::Pattern).map_err(|error| {
            Error::unsupported_format(format!(
                "the pattern {} is not supported: {}",
                quoted(text),
                clipped(&error.to_string(), 200)
            ))
        })
    }

    fn matches_name(&self, module: &str) -> bool {
        match self {
            Self::Name(name) => name == module,
            // The leftmost match starts at 0 exactly if some match starts at 0.
            Self::Pattern(regex) => regex.find(module).is_some_and(|found| found.start() == 0),
        }
    }

    fn matches_class(&self, class: &str) -> bool {
        matches!(self, Self::Name(name) if name == class)
    }
}

/// The targets of all groups, each with its group, and the ignored modules.
#[derive(Debug)]
pub(super) struct Targets {
    /// In matching order: names before patterns, then by text.
    targets: Vec<(TargetPattern, usize)>,
    ignore: Vec<TargetPattern>,
}

impl Targets {
    /// `groups[i]` are the targets of group `i`. If two groups have the same target, the later one wins.
    pub(super) fn new<'a>(groups: impl Iterator<Item = &'a [String]>, ignore: &[String]) -> Result<Self> {
        let mut sorted = std::collections::BTreeMap::new();
        for (index, targets) in groups.enumerate() {
            for target in targets {
                sorted.insert((target.contains("re:"), target.as_str()), index);
            }
        }
        let all = sorted.keys().map(|(_, target)| *target).chain(ignore.iter().map(String::as_str));
        let patterns = all.filter(|text| text.starts_with("re:")).count();
        if patterns > MAX_PATTERNS {
            return Err(Error::unsupported_format(format!(
                "expected at most {MAX_PATTERNS} patterns among targets and ignored modules but found {patterns}"
            )));
        }
        Ok(Self {
            targets: sorted
                .into_iter()
                .map(|((_, target), group)| Ok((TargetPattern::parse(target)?, group)))
                .collect::<Result<_>>()?,
            ignore: ignore.iter().map(|target| TargetPattern::parse(target)).collect::<Result<_>>()?,
        })
    }

    /// The group of a module of a class (`Linear`, `Embedding`), if any.
    pub(super) fn group_of(&self, module: &str, class: &str) -> Option<usize> {
        if self.ignore.iter().any(|target| target.matches_name(module) || target.matches_class(class)) {
            return None;
        }
        let by_name = self.targets.iter().find(|(target, _)| target.matches_name(module));
        by_name
            .or_else(|| self.targets.iter().find(|(target, _)| target.matches_class(class)))
            .map(|(_, group)| *group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(groups: &[&[&str]], ignore: &[&str]) -> Result<Targets> {
        let owned = |list: &[&str]| list.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        let groups: Vec<Vec<String>> = groups.iter().map(|list| owned(list)).collect();
        Targets::new(groups.iter().map(Vec::as_slice), &owned(ignore))
    }

    #[test]
    fn names_come_before_patterns_and_patterns_before_classes() {
        let found = targets(
            &[&["Linear"], &["re:.*mlp\\..*"], &["model.layers.0.mlp.up_proj"], &["re:.*down_proj$"]],
            &["lm_head", "re:.*layers\\.9\\."],
        )
        .unwrap();
        let cases = [
            ("model.layers.0.self_attn.q_proj", "Linear", Some(0)),
            ("model.layers.0.mlp.up_proj", "Linear", Some(2)),
            ("model.layers.1.mlp.up_proj", "Linear", Some(1)),
            // Both patterns match; `re:.*d` comes before `re:.*m`.
            ("model.layers.1.mlp.down_proj", "Linear", Some(3)),
            ("model.layers.9.mlp.up_proj", "Linear", None),
            ("lm_head", "Linear", None),
            ("model.embed_tokens", "Embedding", None),
        ];
        for (module, class, group) in cases {
            assert_eq!(found.group_of(module, class), group, "{module}");
        }
        let by_class = targets(&[&["Linear"]], &["Linear"]).unwrap();
        assert_eq!(by_class.group_of("x", "Linear"), None);
        // A pattern matches from the start of the name, but not necessarily to its end.
        let anchored = targets(&[&["re:layers"], &["re:model"]], &[]).unwrap();
        assert_eq!(anchored.group_of("model.layers.0", "Linear"), Some(1));
        // With duplicate targets the later group wins, as in a Python dictionary.
        assert_eq!(targets(&[&["Linear"], &["Linear"]], &[]).unwrap().group_of("x", "Linear"), Some(1));
    }

    #[test]
    fn hostile_patterns_are_errors() {
        let many: Vec<String> = (0..300).map(|i| format!("re:a{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for pattern in ["re:(", "re:(?=x)", "re:a{1000}{1000}", "re:((((a{99}){99}){99}){99})"] {
            assert!(targets(&[&[pattern]], &[]).is_err(), "{pattern}");
            assert!(targets(&[&["Linear"]], &[pattern]).is_err(), "{pattern}");
        }
        assert!(targets(&[&many], &[]).is_err());
        // Takes exponential time in backtracking engines.
        let slow = targets(&[&["re:(a*)*(a*)*(a*)*b"]], &[]).unwrap();
        assert_eq!(slow.group_of(&"a".repeat(200), "Linear"), None);
    }
}
