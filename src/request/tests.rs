//! Options are the same everywhere: command-line arguments, the package's types and its schemas are derived from one
//! declaration. These tests compare the generated files in `pkg-templates/src` with it. `cargo xtask generate` rewrites
//! the files.

mod schema;
mod typescript;

use super::*;
#[cfg(feature = "gpu")]
use crate::backend::gpu::AdapterKind;
use crate::error::Result;
use crate::generate::{FinishReason, GenerateOptions};
use crate::layout::OpenOptions;
use crate::model::Architecture;
use crate::options::{Kind, Named, OptionSpec, OptionValue, Options, camel_case};
use crate::pipeline::auto::search::Judgement;
use crate::plan::Precision;
use crate::validate::failures::FailureKind;
use crate::validate::reading::ReadingProblemKind;
use crate::validate::residency::Execution;
use crate::validate::verdict::{Status, criterion};
use std::fs;
use std::path::{Path, PathBuf};

/// Every struct of options that JavaScript passes, with its description.
fn requests() -> Vec<(&'static str, &'static str, Vec<OptionSpec>)> {
    fn described<T: Options + crate::options::OptionValue>() -> (&'static str, &'static str, Vec<OptionSpec>)
    {
        match T::kind() {
            Kind::Object { type_name, about, options } => (type_name, about, options),
            _ => unreachable!("a struct of options"),
        }
    }
    vec![
        described::<OpenOptions>(),
        described::<QuantizeRequest>(),
        described::<DequantizeRequest>(),
        described::<ConvertRequest>(),
        described::<LoadRequest>(),
        described::<GenerateOptions>(),
        described::<PerplexityRequest>(),
        described::<ValidateRequest>(),
        described::<AutoRequest>(),
        described::<CompareRequest>(),
        described::<PlanRequest>(),
    ]
}

/// Closed sets of names that occur only in results.
#[cfg(feature = "gpu")]
fn unions() -> Vec<Kind> {
    let layouts = Format::VALUES.iter().map(|(format, _, help)| (format.layout().name(), *help));
    let criteria = [
        (criterion::PERPLEXITY_INCREASE, "Quality, decided by perplexity: quantized / original - 1"),
        (criterion::BENCHMARK_DROP_POINTS, "Quality, decided by the benchmark: the drop in points"),
        (criterion::NEW_GENERATION_FAILURES, "Failures that only the quantized model shows"),
        (criterion::MEMORY_RATIO, "f16 bytes / packed bytes"),
        (criterion::SPEED_RATIO, "Quantized / original tokens per second"),
        (criterion::READING_PROBLEMS, "Problems in reading the two checkpoints"),
    ];
    vec![
        FinishReason::kind(),
        FailureKind::kind(),
        ReadingProblemKind::kind(),
        Status::kind(),
        Execution::kind(),
        Judgement::kind(),
        Precision::kind(),
        AdapterKind::kind(),
        Architecture::kind(),
        Kind::Names {
            type_name: "Layout",
            about: "Layouts of weights in files",
            names: [("dense", "Floating-point numbers")].into_iter().chain(layouts).collect(),
        },
        Kind::Names { type_name: "Criterion", about: "Criteria of a validation", names: criteria.to_vec() },
    ]
}

fn place(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pkg-templates/src").join(file)
}

/// Set by `cargo xtask generate`.
const GENERATE: &str = "LOWBIT_GENERATE";

fn check_written(file: &str, expected: &str) {
    let path = place(file);
    if std::env::var_os(GENERATE).is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    if !path.parent().is_some_and(Path::is_dir) {
        println!("skipped: {} is not here", path.display());
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{} is stale from line {}: run `cargo xtask generate`",
        path.display(),
        differs.map_or(found.lines().count(), |line| line) + 1
    );
}

#[cfg(feature = "gpu")]
#[test]
fn the_packages_types_are_those_of_the_options() {
    check_written("options.generated.ts", &typescript::file(&requests(), &unions()));
}

#[test]
fn the_packages_schemas_are_those_of_the_options() {
    check_written("schemas.generated.ts", &schema::file(&requests()));
}

/// The options with nested ones, such as `gptq.damping`.
fn names(specs: &[OptionSpec], prefix: &str) -> Vec<String> {
    let inside = specs.iter().flat_map(|spec| {
        let name = format!("{prefix}{}", camel_case(spec.declared.name));
        let inner = match &spec.kind {
            Kind::Object { options, .. } => names(options, &format!("{name}.")),
            _ => Vec::new(),
        };
        [vec![name], inner].concat()
    });
    inside.collect()
}

/// Asserts that the reader accepts an option within its bounds and refuses it beyond.
fn check_bounds<T: Options>(read: impl Fn(serde_json::Value) -> Result<T>) {
    use crate::options::Bounds;
    for spec in T::specs().iter().filter(|spec| spec.declared.bounds != Bounds::NONE) {
        let name = camel_case(spec.declared.name);
        let refusal = |number: f64| {
            let error =
                read(serde_json::json!({ name.as_str(): number })).err().map(|error| error.to_string());
            error.filter(|error| error.contains(&format!("`{name}`: expected a ")))
        };
        let step = if matches!(spec.kind, Kind::Real) { 0.001 } else { 1.0 };
        let Bounds { low, high } = spec.declared.bounds;
        for (end, is_in, outwards) in
            [low.map(|(end, is_in)| (end, is_in, -step)), high.map(|(end, is_in)| (end, is_in, step))]
                .into_iter()
                .flatten()
        {
            assert!(refusal(end + outwards).is_some(), "{name}: {}", end + outwards);
            assert_eq!(refusal(end).is_none(), is_in, "{name}: {end}");
            assert_eq!(refusal(end - outwards), None, "{name}: {}", end - outwards);
        }
    }
}

#[test]
fn numbers_beyond_the_bounds_are_refused_by_name() {
    use crate::options::read;
    use crate::quant::GptqOptions;
    use crate::validate::verdict::Limits;
    check_bounds(|value| read::<QuantizeRequest>(&value));
    check_bounds(|value| read::<CalibrationRequest>(&value));
    check_bounds(|value| read::<GptqOptions>(&value));
    check_bounds(|value| read::<DequantizeRequest>(&value));
    check_bounds(|value| read::<GenerateOptions>(&value));
    check_bounds(|value| read::<MeasureOptions>(&value));
    check_bounds(|value| read::<Limits>(&value));
    check_bounds(|value| read::<PlanRequest>(&value));
}

#[test]
fn lists_of_names_are_the_same_everywhere() {
    let types = fs::read_to_string(place("options.generated.ts"));
    let schemas = fs::read_to_string(place("schemas.generated.ts"));
    let (Ok(types), Ok(schemas)) = (types, schemas) else {
        println!("skipped: the package's sources are not here");
        return;
    };
    for (request, _, specs) in requests() {
        let part = |text: &str, start: &str| {
            let from = text.find(start).unwrap_or_else(|| panic!("no `{start}`"));
            let rest = &text[from..];
            rest[..rest.find("\n}").unwrap_or(rest.len())].to_owned()
        };
        let interface = part(&types, &format!("export interface {request} {{"));
        let schema = part(&schemas, &format!("export const {request} = {{"));
        for name in names(&specs, "").iter().filter(|name| !name.contains('.')) {
            assert!(interface.contains(&format!("  {name}")), "{request}.{name} is not in the types");
            assert!(schema.contains(&format!("\"{name}\":")), "{request}.{name} is not in the schemas");
        }
    }
}
