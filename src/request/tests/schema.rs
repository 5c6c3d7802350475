//! Options as JSON Schemas.

use super::typescript::comment;
use crate::options::{Bounds, Kind, OptionSpec, camel_case};
use crate::quant::Method;
use crate::recipe::Recipe;
use serde_json::{Map, Value, json};

/// The file's first lines.
const HEAD: &str = "\
/**
 * The options as JSON Schemas, for tools that language models call. Written by `cargo xtask generate` from what the crate
 * declares; changes belong there.
 */
";

/// The whole file: a schema for each struct of options.
pub fn file(requests: &[(&'static str, &'static str, Vec<OptionSpec>)]) -> String {
    let mut text = HEAD.to_owned();
    for (name, _, specs) in requests {
        let schema = serde_json::to_string_pretty(&object(specs)).unwrap();
        text += &format!("\nexport const {name} = {schema} as const;\n");
    }
    text
}

fn object(specs: &[OptionSpec]) -> Value {
    let properties: Map<String, Value> =
        specs.iter().map(|spec| (camel_case(spec.declared.name), property(spec))).collect();
    let required: Vec<String> = specs
        .iter()
        .filter(|spec| spec.declared.required)
        .map(|spec| camel_case(spec.declared.name))
        .collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn property(spec: &OptionSpec) -> Value {
    let mut schema = described(&spec.kind, spec.declared.bounds);
    schema.insert("description".to_owned(), Value::from(comment(spec)));
    if let Some(default) = &spec.default {
        schema.insert("default".to_owned(), default.clone());
    }
    Value::Object(schema)
}

fn described(kind: &Kind, bounds: Bounds) -> Map<String, Value> {
    let schema = match kind {
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Whole | Kind::Bytes => {
            json!({"type": "integer", "minimum": bounds.low.map_or(0.0, |(low, _)| low) as i64})
        }
        Kind::GroupSize => json!({"type": "integer", "minimum": -1, "not": {"const": 0}}),
        Kind::Real => {
            let mut schema = json!({"type": "number"});
            for (end, with, without) in
                [(bounds.low, "minimum", "exclusiveMinimum"), (bounds.high, "maximum", "exclusiveMaximum")]
            {
                if let Some((number, is_in)) = end {
                    schema[if is_in { with } else { without }] = json!(number);
                }
            }
            schema
        }
        Kind::Numbers(numbers) => json!({"enum": numbers}),
        Kind::Names { names, .. } => json!({"enum": names.iter().map(|(name, _)| *name).collect::<Vec<_>>()}),
        Kind::Text | Kind::Location => json!({"type": "string"}),
        Kind::Texts => {
            json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]})
        }
        Kind::List(element) => {
            json!({"type": "array", "items": described(element, Bounds::NONE), "minItems": 1})
        }
        Kind::Tokens => json!({"type": "array", "items": {"type": "integer", "minimum": 0}}),
        Kind::Object { options, .. } => object(options),
        Kind::Recipe => recipe(),
    };
    match schema {
        Value::Object(schema) => schema,
        _ => unreachable!("every schema is an object"),
    }
}

/// The rules of a recipe, whose keys are spelled differently from options.
fn recipe() -> Value {
    let methods = <Method as crate::options::Named>::names();
    json!({
        "type": "object",
        "properties": {"rules": {"type": "array", "minItems": 1, "items": {
            "type": "object",
            "properties": {
                "modules": {
                    "description": "Patterns of module names",
                    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
                },
                "keep": {"type": "boolean", "description": "Keep the modules in floating point"},
                "bits": {"enum": [2, 3, 4, 8], "description": "Bits of a weight"},
                "group_size": {"type": "integer", "minimum": -1, "description": "Weights that share a scale; -1: a whole row"},
                "symmetric": {"type": "boolean", "description": "Whether groups have no zero point of their own"},
                "method": {"enum": methods, "description": "How codes are found"},
            },
            "required": ["modules"],
            "additionalProperties": false,
        }}},
        "required": ["rules"],
        "additionalProperties": false,
    })
}

#[test]
fn a_rules_fields_are_those_that_recipes_have() {
    let schema = recipe();
    let rule = &schema["properties"]["rules"]["items"]["properties"];
    let fields: Vec<&str> = rule.as_object().unwrap().keys().map(String::as_str).collect();
    // The reader's message about an unknown field.
    let error =
        Recipe::from_json(r#"{"rules": [{"modules": "*", "no_such_field": 1}]}"#).unwrap_err().to_string();
    let known: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
    assert_eq!(fields, known, "{error}");
}
