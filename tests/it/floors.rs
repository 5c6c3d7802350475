//! The floors test: `src/` and `shaders/` follow the architecture in CONTRIBUTING.md.
//!
//! Each module of `src/` is on a floor, and a file imports only from
//! lower floors or from its own module. `rules` has a function for each rule. They are applied here to the real sources, and
//! to small made-up sources that break them.

mod rules;

use rules::{Source, Violation};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of `src/` by floor. A new module needs an entry.
const FLOORS: &[&[&str]] = &[
    &["error", "digest", "dtype", "options", "parallel", "shape", "sort", "task"], // 0 values
    &["format"],                                                                   // 1 bytes
    &["quant"],                                                                    // 2 quantizing
    &["layout"],                                                                   // 3 layouts
    &["backend"],                                                                  // 4 device
    &["model", "tokenizer"],                                                       // 5 model
    &["generate"],                                                                 // 6 speaking
    &["calibrate", "validate", "artifact", "train"],                               // 7 judging and training
    &["recipe", "plan", "pipeline", "request"],                                    // 8 workflow
    &["api", "wasm", "cli", "main"],                                               // 9 edges
];

/// Allowed imports between modules of one floor, `(from, to)`. They go from right to left in the table, so there are no cycles.
const NEIGHBOURS: &[(&str, &str)] = &[
    // A folder's record has each module's calibration errors.
    ("artifact", "calibrate"),
    // There is one error type.
    ("dtype", "error"),
    ("shape", "error"),
    ("task", "error"),
    ("options", "error"),
    // Training texts are read and shuffled like calibration texts.
    ("train", "calibrate"),
    // An answer is compared with the most likely tokens, as validation finds them.
    ("train", "validate"),
    // `auto` starts at the precision that a plan recommends.
    ("pipeline", "plan"),
    // A job's options contain a recipe.
    ("pipeline", "recipe"),
    // A request is translated into the options of jobs.
    ("request", "plan"),
    ("request", "recipe"),
    ("request", "pipeline"),
    // The command line opens checkpoints and outputs through the façade.
    ("cli", "api"),
];

/// Names that only some modules or folders may use.
const CONFINED: &[(&str, &[&str])] = &[
    ("wgpu", &["backend/gpu"]),
    ("JsValue", &["wasm"]),
    ("clap", &["cli", "main"]),
    ("indicatif", &["cli", "main"]),
    // Code above these modules does not ask which coding a matrix has.
    ("Scheme::Integer", CODERS),
    ("Scheme::IntegerMinimum", CODERS),
    ("Scheme::Ternary", CODERS),
    ("Coding::Affine", CODERS),
    ("Coding::Codebook", CODERS),
    ("QuantizedTensor::Affine", CODERS),
    ("QuantizedTensor::Codebook", CODERS),
];

/// Modules that create, store and multiply codings.
const CODERS: &[&str] = &["quant", "layout", "backend"];

/// Lines of a file without its tests. The aim is 350; from `NOTED` a note is printed, above `MOST` the test fails.
const NOTED: usize = 450;
const MOST: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Sorted paths of the files below `folder`, relative to the root, with `/`.
fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root().join(&folder)) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path.to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(|violation| format!("\n  {violation}")).collect()
}

#[test]
fn the_sources_keep_their_floors() {
    let paths = files("src", "rs");
    assert!(paths.iter().any(|path| path == "src/lib.rs"), "src/ was not found");
    let mut violations = Vec::new();
    for path in &paths {
        match Source::new(path, &read(path)) {
            Ok(source) => violations.extend(rules::all(&source)),
            Err(violation) => violations.push(violation),
        }
    }
    violations.extend(rules::twins(&files("shaders", "wgsl"), &paths));
    assert!(violations.is_empty(), "{}", list(&violations));
}

#[test]
fn a_file_can_be_read_in_one_sitting() {
    let mut violations = Vec::new();
    for path in files("src", "rs").iter().chain(&files("xtask/src", "rs")) {
        let lines = rules::lines_without_tests(&read(path));
        if lines > MOST {
            violations.push(Violation::new(
                path,
                format!("has {lines} lines without its tests; {MOST} is the most"),
            ));
        } else if lines >= NOTED {
            println!("note: {path} has {lines} lines without its tests, and the aim is 350");
        }
    }
    assert!(violations.is_empty(), "{}", list(&violations));
}

#[test]
fn the_table_has_no_circles_and_no_module_twice() {
    let modules: Vec<&str> = FLOORS.concat();
    let position =
        |name: &str| modules.iter().position(|module| *module == name).unwrap_or_else(|| panic!("{name}"));
    for (from, to) in NEIGHBOURS {
        assert_eq!(rules::floor_of(from), rules::floor_of(to), "{from} and {to} are no neighbours");
        assert!(position(to) < position(from), "{to} has to stand left of {from} in the table");
    }
    for module in &modules {
        assert_eq!(modules.iter().filter(|other| *other == module).count(), 1, "{module} stands there twice");
    }
}

/// Path, text, and a part of the single violation's message; `None`: no violation.
const CASES: &[(&str, &str, Option<&str>)] = &[
    // Headers.
    ("src/quant/rtn.rs", "//! Rounding.\n", None),
    ("src/lib.rs", "//! The crate.\n", None),
    ("src/quant/rtn.rs", "// Rounding.\nfn f() {}", Some("does not begin with a //! header")),
    ("src/extra.rs", "//! A header.\n", Some("has no floor")),
    ("src/extra/deep/inside.rs", "//! A header.\n", Some("has no floor")),
    ("src/quant/rtn.rs", "//! A header.\nfn f( {", Some("does not parse")),
    // Imports upwards and sideways.
    ("src/quant/rtn.rs", "//! A header.\nuse crate::error::Error;\nuse crate::quant::scheme::Bits;", None),
    ("src/quant/rtn.rs", "//! A header.\nuse crate::model::Config;", Some("`crate::model`")),
    ("src/quant/rtn.rs", "//! A header.\nuse crate::{error::Error, model::Config};", Some("`crate::model`")),
    (
        "src/quant/rtn.rs",
        "//! A header.\nuse {crate::{error::{Error, Result}, generate as g}};",
        Some("`crate::generate`"),
    ),
    (
        "src/quant/rtn.rs",
        "//! A header.\npub(crate) fn f() { crate::backend::cpu::g() }",
        Some("`crate::backend`"),
    ),
    (
        "src/quant/rtn.rs",
        "//! A header.\nmacro_rules! m { () => { $crate::cli::run() } }",
        Some("`crate::cli`"),
    ),
    ("src/quant/rtn.rs", "//! A header.\nfn f() { assert!(crate::plan::g()); }", Some("`crate::plan`")),
    (
        "src/quant/rtn.rs",
        "//! A header.\n// use crate::model::Config;\n/// crate::model::X\nconst C: &str = \"crate::model\";",
        None,
    ),
    ("src/quant/rtn.rs", "//! A header.\nuse crate::Error;", Some("`crate::Error`, which is not a module")),
    ("src/quant/rtn.rs", "//! A header.\nuse crate as all;", Some("the whole crate")),
    ("src/quant/rtn.rs", "//! A header.\nuse crate::*;", Some("the whole crate")),
    ("src/quant/rtn.rs", "//! A header.\nuse super::scheme::Bits;\nmod tests { use super::super::f; }", None),
    ("src/quant/rtn.rs", "//! A header.\nuse super::super::model::Config;", Some("`crate::model`")),
    ("src/quant.rs", "//! A header.\nmod tests { use super::super::model::Config; }", Some("`crate::model`")),
    ("src/quant.rs", "//! A header.\nuse super::{error, plan};", Some("`crate::plan`")),
    ("src/model/block.rs", "//! A header.\nuse crate::tokenizer::Tokenizer;", Some("the same floor")),
    ("src/shape.rs", "//! A header.\nuse crate::error::Error;", None),
    ("src/error.rs", "//! A header.\nuse crate::shape::Shape;", Some("the same floor")),
    ("src/main.rs", "//! A header.\nfn main() { lowbit::cli::run() }", None),
    ("src/lib.rs", "//! The crate.\npub mod cli;\npub use crate::error::Error;", None),
    // Confined names.
    ("src/backend/gpu/device.rs", "//! A header.\nuse wgpu::Device;", None),
    ("src/backend/gpu.rs", "//! A header.\nuse wgpu::Device;", None),
    ("src/backend/gpusim.rs", "//! A header.\nuse wgpu::Device;", Some("`wgpu`")),
    ("src/backend/cpu.rs", "//! A header. Not wgpu.\n// wgpu\nconst W: &str = \"wgpu\";", None),
    ("src/model.rs", "//! A header.\nfn f(d: &wgpu::Device) {}", Some("`wgpu`")),
    ("src/wasm/blob.rs", "//! A header.\nuse wasm_bindgen::JsValue;", None),
    ("src/format/source.rs", "//! A header.\nuse wasm_bindgen::{JsCast, JsValue};", Some("`JsValue`")),
    ("src/cli/quantize.rs", "//! A header.\nuse clap::Args;\nuse indicatif::ProgressBar;", None),
    ("src/plan.rs", "//! A header.\n#[derive(clap::Args)]\nstruct S;", Some("`clap`")),
    ("src/pipeline.rs", "//! A header.\nfn f() { indicatif::ProgressBar::new(1); }", Some("`indicatif`")),
    (
        "src/plan.rs",
        "//! A header.\nfn f(s: Scheme) { match s { Scheme::Ternary { .. } => {} } }",
        Some("`Scheme::Ternary`"),
    ),
    (
        "src/plan.rs",
        "//! A header.\nfn f(s: Scheme) -> bool { s == Scheme::ternary(Granularity::Tensor) }",
        None,
    ),
    (
        "src/layout/awq.rs",
        "//! A header.\nfn f(s: Scheme) { match s { Scheme::Ternary { .. } => {} } }",
        None,
    ),
];

#[test]
fn each_rule_sees_its_violation() {
    for (path, text, expected) in CASES {
        let violations = match Source::new(path, text) {
            Ok(source) => rules::all(&source),
            Err(violation) => vec![violation],
        };
        let case = format!("{path}: {text:?} gave:{}", list(&violations));
        match expected {
            None => assert!(violations.is_empty(), "{case}"),
            Some(part) => {
                assert!(
                    violations.len() == 1 && violations[0].to_string().contains(part),
                    "expected {part:?}; {case}"
                );
            }
        }
    }
}

#[test]
fn a_shader_without_its_twin_is_seen() {
    let shaders = ["shaders/rms_norm.wgsl", "shaders/attention.decode.wgsl", "shaders/shared/unpack.wgsl"]
        .map(String::from);
    let sources = ["src/backend/cpu/attention.rs", "src/quant/rms_norm.rs"].map(String::from);
    let violations = rules::twins(&shaders, &sources);
    assert_eq!(violations.len(), 1, "{}", list(&violations));
    assert!(violations[0].to_string().contains("src/backend/cpu/rms_norm.rs"), "{}", violations[0]);
}

#[test]
fn only_the_test_module_at_the_end_is_not_counted() {
    let cases = [
        ("//! A.\nfn f() {}\n", 2),
        ("//! A.\nfn f() {}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() {}\n}\n", 3),
        ("//! A.\n#[cfg(all(test, not(target_arch = \"wasm32\")))]\nmod tests {\n}\n", 1),
        ("//! A.\n#[cfg(test)]\nuse std::fmt;\nfn f() {}\n", 4),
        ("//! A.\n#[cfg(test)]\nmod tests;\nfn f() {}\n", 4),
    ];
    for (text, lines) in cases {
        assert_eq!(rules::lines_without_tests(text), lines, "{text:?}");
    }
}
