//! Accepted recipes, and refused recipes with the position of the mistake.

use super::*;
use crate::error::ErrorCode;
use proptest::prelude::*;

fn rule(json: &str) -> Result<Rule> {
    let recipe = Recipe::from_json(&format!(r#"{{"rules": [{{"modules": "*", {json}}}]}}"#))?;
    Ok(recipe.rules.into_iter().next().unwrap())
}

fn pattern(text: &str) -> Result<ModulePattern, String> {
    ModulePattern::try_from(text.to_owned())
}

#[test]
fn patterns_match_whole_names() {
    let q = "model.layers.12.self_attn.q_proj";
    // (pattern, name, matches)
    for (text, name, expected) in [
        ("*", q, true),
        ("*", "", true),
        ("*.self_attn.*", q, true),
        ("*.q_proj", q, true),
        ("*q_proj", q, true),
        ("q_proj", q, false),
        ("model.layers.*", q, true),
        ("model.layers.*.q_proj", q, true),
        ("model.layers.1.*", q, false),
        ("model.layers.1?.*", q, true),
        ("model.layers.1[0-3].*", q, true),
        ("model.layers.1[!0-3].*", q, false),
        ("model.layers.1[5-924].*", q, true),
        ("*.[qkv]_proj", q, true),
        ("*.[!qkv]_proj", q, false),
        ("*.[a-]_proj", "x.-_proj", true),
        ("***.q***_proj", q, true),
        ("lm_head", "lm_head", true),
        ("lm?head", "lm_head", true),
        ("lm_head", "lm_heads", false),
        ("lm_head", "LM_HEAD", false),
        // Special characters of regular expressions are literal.
        ("model.norm", "modelxnorm", false),
        ("a+(b|c)$", "a+(b|c)$", true),
        ("a+(b|c)$", "aab", false),
        (r"\d^{2}", r"\d^{2}", true),
        ("[.*^]x", "*x", true),
        ("[.*^]x", "ax", false),
        ("模型*", "模型.层", true),
    ] {
        assert_eq!(pattern(text).unwrap().matches(name), expected, "{text} on {name}");
    }
    for (text, expected) in [
        ("", "expected a pattern of 1 to 512 characters but found 0"),
        ("[", "pattern `[`: expected `]` at the end of a set that begins with `[`"),
        ("a[b-", "pattern `a[b-`: expected `]` at the end of a set that begins with `[`"),
        ("[]", "pattern `[]`: expected a set to have a character"),
        ("[!]", "pattern `[!]`: expected a set to have a character"),
        ("[9-0]", "pattern `[9-0]`: expected the ends of a range in ascending order"),
    ] {
        assert_eq!(pattern(text).unwrap_err(), expected);
    }
    assert_eq!(
        pattern(&"x".repeat(513)).unwrap_err(),
        "expected a pattern of 1 to 512 characters but found 513"
    );
}

#[test]
fn a_rule_says_what_differs_from_the_options() {
    let integer =
        |bits, granularity, symmetric| Scheme::symmetric(bits, granularity).with_symmetry(symmetric);
    let usual =
        MethodChoice { method: Method::Gptq, scheme: integer(Bits::Four, Granularity::Group(32), false) };
    let ternary = MethodChoice { method: Method::Ternary, scheme: Scheme::ternary(Granularity::Channel) };
    // (rule, options, method and scheme; none: floating point)
    for (json, usual, expected) in [
        (r#""keep": true"#, usual, None),
        (r#""bits": 8"#, usual, Some("gptq int8-channel-asym")),
        (r#""bits": 3"#, usual, Some("gptq int3-g128-asym")),
        (r#""bits": 8, "group_size": 64"#, usual, Some("gptq int8-g64-asym")),
        (r#""group_size": -1"#, usual, Some("gptq int4-channel-asym")),
        (r#""symmetric": true"#, usual, Some("gptq int4-g32-sym")),
        (r#""method": "rtn", "keep": false"#, usual, Some("rtn int4-g32-asym")),
        (r#""method": "ternary""#, usual, Some("ternary ternary-tensor")),
        (r#""method": "ternary", "group_size": -1"#, usual, Some("ternary ternary-channel")),
        (r#""method": "ternary""#, ternary, Some("ternary ternary-channel")),
        (r#""method": "rtn""#, ternary, Some("rtn int4-g128-sym")),
        (r#""method": "rtn", "bits": 8"#, ternary, Some("rtn int8-channel-sym")),
    ] {
        let choice = rule(json).unwrap().choose(usual).unwrap();
        let found = choice.map(|MethodChoice { method, scheme }| format!("{} {scheme}", method.name()));
        assert_eq!(found.as_deref(), expected, "{json}");
    }
    for (json, usual, expected) in [
        (r#""bits": 8"#, ternary, "ternary weights have no bits or zero points"),
        (r#""group_size": 32"#, ternary, "ternary weights have no groups"),
        (r#""method": "ternary", "symmetric": true"#, usual, "ternary weights have no bits or zero points"),
    ] {
        let error = rule(json).unwrap().choose(usual).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{json}: {error}");
    }
}

#[test]
fn the_first_rule_that_matches_holds() {
    let recipe = Recipe::from_json(
        r#"{"rules": [
            {"modules": ["*.0.*", "*.down_proj"], "keep": true},
            {"modules": "*.mlp.*", "bits": 4},
            {"modules": "*.0.mlp.up_proj", "bits": 2}
        ]}"#,
    )
    .unwrap();
    for (module, expected) in [
        ("model.layers.0.mlp.up_proj", Some(0)),
        ("model.layers.1.mlp.down_proj", Some(0)),
        ("model.layers.1.mlp.up_proj", Some(1)),
        ("model.layers.1.self_attn.q_proj", None),
    ] {
        assert_eq!(recipe.rule_for(module), expected, "{module}");
    }
    assert_eq!(recipe.name(0), "recipe rule 1 (`*.0.*`, ...)");
    assert_eq!(recipe.name(1), "recipe rule 2 (`*.mlp.*`)");
    // The form in records.
    let json = serde_json::to_string(&recipe).unwrap();
    assert_eq!(Recipe::from_json(&json).unwrap(), recipe);
    assert!(!json.contains("null") && !json.contains("false"), "{json}");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (json, expected) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("[1]", "invalid type: integer `1`, expected a sequence at line 1 column 2"),
        ("{}", "missing field `rules` at line 1 column 2"),
        (r#"{"rules": [], "more": 1}"#, "unknown field `more`, expected `rules` at line 1 column 20"),
        (r#"{"rules": []}"#, "expected `rules` to have at least one rule but found none"),
        (r#"{"rules": [{"keep": true}]}"#, "missing field `modules` at line 1 column 25"),
        (
            r#"{"rules": [{"modules": "*", "bit": 4}]}"#,
            "unknown field `bit`, expected one of `modules`, `keep`, `bits`, `group_size`, `symmetric`, `method` at line 1 \
             column 33",
        ),
        (
            r#"{"rules": [{"modules": 3, "keep": true}]}"#,
            "invalid type: integer `3`, expected a pattern for module names, or a list of them at line 1 column 24",
        ),
        (
            r#"{"rules": [{"modules": "[", "keep": true}]}"#,
            "pattern `[`: expected `]` at the end of a set that begins with `[` at line 1 column 26",
        ),
        (
            r#"{"rules": [{"modules": "*", "method": "magic"}]}"#,
            "expected one of rtn, gptq, awq, ternary but found \"magic\" at line 1 column 46",
        ),
        (
            r#"{"rules": [{"modules": [], "keep": true}]}"#,
            "recipe rule 1 (): expected `modules` to have at least one pattern but found none",
        ),
        (
            r#"{"rules": [{"modules": "*", "keep": true}, {"modules": "*.q"}]}"#,
            "recipe rule 2 (`*.q`): expected `keep`, or at least one of `bits`, `group_size`, `symmetric` and `method`, but \
             found none",
        ),
        (
            r#"{"rules": [{"modules": "*", "keep": true, "bits": 4}]}"#,
            "recipe rule 1 (`*`): `keep` leaves modules in floating point; expected no `bits`, `group_size`, `symmetric` or \
             `method` beside it",
        ),
        (
            r#"{"rules": [{"modules": "*", "bits": 5}]}"#,
            "recipe rule 1 (`*`): expected 2, 3, 4 or 8 bits but found 5",
        ),
        (
            r#"{"rules": [{"modules": "*", "group_size": 0}]}"#,
            "recipe rule 1 (`*`): expected a positive group size or -1 but found 0",
        ),
        (
            r#"{"rules": [{"modules": "*", "group_size": -2}]}"#,
            "recipe rule 1 (`*`): expected a positive group size or -1 but found -2",
        ),
    ] {
        assert_eq!(Recipe::from_json(json).unwrap_err().to_string(), expected, "{json}");
    }
}

#[cfg(feature = "cli")]
#[test]
fn toml_says_the_same_as_json() {
    let toml = "[[rules]]\nmodules = \"*.self_attn.*\"\nbits = 8\n\n[[rules]]\nmodules = [\"*.0.*\", \"lm_head\"]\nkeep = true\n";
    let json = r#"{"rules": [{"modules": "*.self_attn.*", "bits": 8}, {"modules": ["*.0.*", "lm_head"], "keep": true}]}"#;
    assert_eq!(Recipe::from_toml(toml).unwrap(), Recipe::from_json(json).unwrap());
    for (toml, expected) in [
        ("", "missing field `rules`"),
        ("[[rules]]\nmodules = \"*\"\nbit = 4\n", "unknown field `bit`, expected one of"),
        (
            "[[rules]]\nmodules = \"*\"\nbits = 5\n",
            "recipe rule 1 (`*`): expected 2, 3, 4 or 8 bits but found 5",
        ),
        ("[[rules]\n", "at line 1"),
    ] {
        let error = Recipe::from_toml(toml).unwrap_err();
        assert!(error.to_string().contains(expected), "{toml:?}: {error}");
    }
}

/// Hostile recipes: deep, long, or slow to match.
#[test]
fn hostile_recipes_are_refused_or_cheap() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    for json in [deep("[", "]"), deep(r#"{"rules":"#, "}"), format!(r#"{{"rules": {}"#, "[".repeat(200_000))]
    {
        assert_eq!(Recipe::from_json(&json).unwrap_err().code(), ErrorCode::InvalidArgument);
    }
    let long = format!(r#"{{"rules": [{{"modules": "{}"}}]}}"#, "x".repeat(MAX_BYTES));
    assert!(Recipe::from_json(&long).unwrap_err().to_string().contains("at most 262144 bytes"));
    let many = |count: usize| {
        let patterns = vec![r#""*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b""#; count].join(",");
        Recipe::from_json(&format!(r#"{{"rules": [{{"modules": [{patterns}], "keep": true}}]}}"#))
    };
    assert!(many(1025).unwrap_err().to_string().contains("at most 1024 patterns"));
    assert_eq!(many(1024).unwrap().rule_for(&"a".repeat(100)), None);
    let stars = pattern(&"*?".repeat(256)).unwrap();
    assert!(!stars.matches(&"a".repeat(255)) && stars.matches(&"a".repeat(256)));
    #[cfg(feature = "cli")]
    for toml in [
        format!("rules = {}", "[".repeat(100_000)),
        format!("{} = 1", vec!["a"; 100_000].join(".")),
        format!("[{}]", vec!["a"; 100_000].join(".")),
        "[[rules]]\n".repeat(20_000),
        "rules = [{modules = \"*\", group_size = 99999999999999999999}]".to_owned(),
    ] {
        assert_eq!(Recipe::from_toml(&toml).unwrap_err().code(), ErrorCode::InvalidArgument);
    }
}

proptest! {
    /// Compares with a reference that tries every split.
    #[test]
    fn stars_match_as_by_hand(text in "[ab.*?]{1,8}", name in "[ab.]{0,8}") {
        fn matches(pattern: &[u8], name: &[u8]) -> bool {
            match pattern.split_first() {
                None => name.is_empty(),
                Some((b'*', rest)) => (0..=name.len()).any(|taken| matches(rest, &name[taken..])),
                Some((b'?', rest)) => !name.is_empty() && matches(rest, &name[1..]),
                Some((c, rest)) => name.first() == Some(c) && matches(rest, &name[1..]),
            }
        }
        prop_assert_eq!(pattern(&text).unwrap().matches(&name), matches(text.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn no_text_is_a_panic(text in "\\PC{0,40}", bytes in r#"[\[\]{}:,"\*a-z0-9\. =\-!\n]{0,80}"#) {
        let _ = pattern(&text).map(|pattern| pattern.matches(&bytes));
        let _ = Recipe::from_json(&bytes);
        #[cfg(feature = "cli")]
        let _ = Recipe::from_toml(&bytes);
    }
}
