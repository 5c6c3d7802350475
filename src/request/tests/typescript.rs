//! Options as TypeScript types.

use crate::options::{Kind, OptionSpec, camel_case};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The file's first lines.
const HEAD: &str = "\
/**
 * The options as the engine reads them. Written by `cargo xtask generate` from what the crate declares; changes belong there.
 */
import type { KeptPlace, Recipe } from \"./types.js\";
";

/// The whole file: an interface for each struct of options, and a union for each enum, including those of results.
pub fn file(requests: &[(&'static str, &'static str, Vec<OptionSpec>)], unions: &[Kind]) -> String {
    let mut declared = BTreeMap::new();
    for union in unions {
        type_of(union, &mut declared);
    }
    for (name, about, specs) in requests {
        declare(name, about, specs, &mut declared);
    }
    let mut text = HEAD.to_owned();
    for declaration in declared.into_values() {
        text.push('\n');
        text.push_str(&declaration);
    }
    text
}

fn declare(
    name: &'static str,
    about: &str,
    specs: &[OptionSpec],
    declared: &mut BTreeMap<&'static str, String>,
) {
    let mut text = format!("/** {} */\nexport interface {name} {{\n", about.trim());
    for spec in specs {
        let optional = if spec.declared.required { "" } else { "?" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  /** {} */", comment(spec));
        let _ = writeln!(
            text,
            "  {}{optional}: {};",
            camel_case(spec.declared.name),
            type_of(&spec.kind, declared)
        );
    }
    text.push_str("}\n");
    declared.insert(name, text);
}

/// The help as a sentence, with the default.
pub fn comment(spec: &OptionSpec) -> String {
    let help = spec.declared.help.trim();
    let (help, usual) = match help.split_once(" [default: ") {
        Some((help, usual)) => (help, Some(usual.trim_end_matches(']').to_owned())),
        None => (help, None),
    };
    let usual = usual.or_else(|| {
        spec.default.as_ref().map(|value| match value {
            serde_json::Value::Array(values) => {
                values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }
            serde_json::Value::String(name) => name.clone(),
            other => other.to_string(),
        })
    });
    let help = help.trim_end_matches('.');
    usual.map_or_else(|| format!("{help}."), |usual| format!("{help}. Default: {usual}."))
}

fn type_of(kind: &Kind, declared: &mut BTreeMap<&'static str, String>) -> String {
    match kind {
        Kind::Flag => "boolean".to_owned(),
        Kind::Whole | Kind::Bytes | Kind::Real | Kind::GroupSize => "number".to_owned(),
        Kind::Numbers(numbers) => numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "),
        Kind::Text => "string".to_owned(),
        Kind::Texts => "string | readonly string[]".to_owned(),
        Kind::List(element) => format!("readonly {}[]", type_of(element, declared)),
        Kind::Tokens => "Uint32Array | readonly number[]".to_owned(),
        Kind::Recipe => "Recipe".to_owned(),
        Kind::Location => "KeptPlace".to_owned(),
        Kind::Object { type_name, about, options } => {
            declare(type_name, about, options, declared);
            (*type_name).to_owned()
        }
        Kind::Names { type_name, about, names } => {
            let mut text = format!("/**\n * {}\n *\n", about.trim());
            for (name, help) in names {
                // Writing to a string cannot fail.
                let _ = writeln!(text, " * - `{name}`: {}", help.trim());
            }
            let union: Vec<String> = names.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            let _ = writeln!(text, " */\nexport type {type_name} = {};", union.join(" | "));
            declared.insert(type_name, text);
            (*type_name).to_owned()
        }
    }
}
