//! `cargo xtask guard`: SHA-256 of what every command writes, to show that a refactoring changes no output.
//!
//! `record FILE` writes the digests. `check FILE` compares with them and names the differences. Record before a change and check
//! after it on the same machine: calibration depends on the instruction set. Reports are compared without
//! times. Calibration runs on one thread.

use crate::process::{COMMAND, Outcome, cargo, line_of, root, run as execute, step, target_dir};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// `cargo xtask guard`
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
    /// Use this command instead of building it
    #[arg(long, global = true, value_name = "FILE")]
    lowbit: Option<PathBuf>,
    /// Ignore this key of JSON documents, such as source.sha256; give it to both runs
    #[arg(long, global = true, value_name = "KEY")]
    without: Vec<String>,
}

#[derive(Subcommand)]
enum Action {
    /// Write all digests into a file
    Record { file: PathBuf },
    /// Compare with the digests in a file
    Check { file: PathBuf },
}

/// Keys of reports whose values are measured, besides those that end in `_seconds`.
const MEASURED: [&str; 5] = ["seconds", "tokens_per_second", "speed", "speed_ratio", "peak_memory"];

/// A run of the command. `{model}`, `{texts}` and `{out}` stand for folders, `{out}/NAME` for the result of an earlier run.
struct Run {
    name: &'static str,
    /// Its arguments, separated by spaces.
    arguments: &'static str,
    /// Whether it writes `{out}/NAME`. Otherwise its JSON on standard output is compared.
    writes: bool,
}

const fn writing(name: &'static str, arguments: &'static str) -> Run {
    Run { name, arguments, writes: true }
}

const fn telling(name: &'static str, arguments: &'static str) -> Run {
    Run { name, arguments, writes: false }
}

/// Ordered so that inputs are written before they are read.
const RUNS: [Run; 42] = [
    telling("inspect", "inspect {model}"),
    telling("plan", "plan {model}"),
    writing("rtn-8", "quantize {model} --bits 8"),
    writing("rtn-4", "quantize {model} --bits 4 --group-size 32"),
    writing("rtn-4-asym", "quantize {model} --bits 4 --group-size 32 --asym"),
    writing("rtn-3", "quantize {model} --bits 3 --group-size 32"),
    writing("rtn-2-asym", "quantize {model} --bits 2 --group-size 32 --asym"),
    writing("rtn-w8a8", "quantize {model} --bits 8 --activations int8"),
    writing("rtn-head", "quantize {model} --bits 4 --group-size 32 --quantize-head --quantize-embedding 8"),
    writing("ternary", "quantize {model} --method ternary"),
    writing("ternary-channel", "quantize {model} --method ternary --ternary-scale channel"),
    writing("rtn-gptq", "quantize {model} --bits 4 --group-size 32 --format gptq"),
    writing("rtn-gptq-v2", "quantize {model} --bits 4 --group-size 32 --asym --format gptq-v2"),
    writing("rtn-awq", "quantize {model} --bits 4 --group-size 32 --asym --format awq"),
    writing("rtn-gguf", "quantize {model} --bits 4 --group-size 32 --format gguf"),
    writing("recipe", "quantize {model} --bits 4 --group-size 32 --recipe {texts}/recipe.toml"),
    writing("gptq", "quantize {model} --method gptq --bits 4 --group-size 32 {calibrated}"),
    writing(
        "gptq-desc-act",
        "quantize {model} --method gptq --bits 3 --group-size 32 --desc-act {calibrated}",
    ),
    writing(
        "gptq-paper",
        "quantize {model} --method gptq --bits 4 --group-size 32 --act-order none --scales range --refinement-passes 0 --reference-inputs quantized {calibrated}",
    ),
    writing("awq", "quantize {model} --method awq --bits 4 --group-size 32 --asym {calibrated}"),
    writing("target", "quantize {model} --method gptq --group-size 32 --target-bpw 3.5 {calibrated}"),
    writing("to-gptq", "convert {out}/rtn-4 --format gptq"),
    writing("to-gptq-v2", "convert {out}/rtn-4-asym --format gptq-v2"),
    writing("to-awq", "convert {out}/rtn-4-asym --format awq"),
    writing("to-compressed-tensors", "convert {out}/gptq-desc-act --format compressed-tensors"),
    writing("to-gguf", "convert {out}/rtn-4 --format gguf"),
    writing("ternary-to-compressed-tensors", "convert {out}/ternary --format compressed-tensors"),
    writing("gguf-f16", "convert {model} --format gguf --gguf-type f16"),
    writing("gguf-q8_0", "convert {model} --format gguf --gguf-type q8_0"),
    writing("gguf-q4_0", "convert {model} --format gguf --gguf-type q4_0"),
    writing("dequantized", "dequantize {out}/rtn-4"),
    writing("dequantized-ternary", "dequantize {out}/ternary"),
    writing("restored", "quantize {out}/dequantized --from-metadata"),
    telling("greedy", "generate {model} --prompt Once --max-tokens 48 {cpu}"),
    telling("greedy-rtn-4", "generate {out}/rtn-4 --prompt Once --max-tokens 48 {cpu}"),
    telling("greedy-gptq", "generate {out}/gptq --prompt Once --max-tokens 48 {cpu}"),
    telling("greedy-ternary", "generate {out}/ternary --prompt Once --max-tokens 48 {cpu}"),
    telling("greedy-gguf", "generate {out}/gguf-q8_0/model.gguf --prompt Once --max-tokens 48 {cpu}"),
    telling(
        "sampled",
        "generate {model} --prompt Once --max-tokens 48 --temperature 0.8 --top-k 20 --seed 7 {cpu}",
    ),
    telling("perplexity", "perplexity {model} --text {texts}/heldout.txt --context 256 {cpu}"),
    telling("compare", "compare {model} {out}/rtn-4 --prompt Once --max-tokens 24 {cpu}"),
    telling(
        "validate",
        "validate {model} {out}/rtn-8 --text {texts}/heldout.txt --context 256 --speed-rounds 0 {cpu}",
    ),
];

const RECIPE: &str = "[[rules]]\nmodules = \"*.self_attn.*\"\nbits = 8\n\n[[rules]]\nmodules = \"*.layers.0.mlp.*\"\nkeep = true\n";

/// Characters of the calibration and evaluation texts, so that every run takes seconds.
const TEXT_CHARS: usize = 60_000;
const JUDGED_CHARS: usize = 6_000;

/// Records digests or checks them.
///
/// # Errors
/// The build or a run failed, or the file cannot be read or written.
pub fn run(options: Options) -> Outcome {
    let lowbit = match options.lowbit {
        Some(lowbit) => {
            std::path::absolute(&lowbit).map_err(|error| format!("{}: {error}", lowbit.display()))?
        }
        None => {
            step("build", || execute(cargo(&[&["build", "--release"], COMMAND.as_slice()].concat())))?;
            target_dir().join("release").join(if cfg!(windows) { "lowbit.exe" } else { "lowbit" })
        }
    };
    let place = target_dir().join("guard");
    _ = fs::remove_dir_all(&place);
    let mut found = Map::new();
    for model in models() {
        let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digests = step(&name, || of_model(&lowbit, &model, &place.join(&name), &options.without))?;
        found.insert(name, digests);
    }
    let found = Value::Object(found);
    match options.action {
        Action::Record { file } => {
            let text = format!("{found:#}\n");
            fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Check { file } => {
            let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            let expected: Value =
                serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
            let differences = differences(&expected, &found);
            for difference in &differences {
                println!("{difference}");
            }
            println!("{} of {} are different", differences.len(), count(&expected));
            Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// The shipped checkpoint, and those that may be next to the repository.
fn models() -> Vec<PathBuf> {
    let mut models = vec![root().join("tests/fixtures/tale-llama")];
    for name in ["stories260K-f16", "story-llama-0.66M"] {
        let model = root().join("../shared/models").join(name);
        if model.exists() {
            models.push(model);
        } else {
            println!("skipped: {} is not there", model.display());
        }
    }
    models
}

/// The digests of every run, by name.
fn of_model(lowbit: &Path, model: &Path, out: &Path, without: &[String]) -> Result<Value, String> {
    let texts = out.join("texts");
    let write = |name: &str, text: &str| {
        let path = texts.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    fs::create_dir_all(&texts).map_err(|error| format!("{}: {error}", texts.display()))?;
    let shipped = |name: &str, chars: usize| {
        let path = root().join("tests/fixtures/tale-llama").join(name);
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok::<String, String>(text.chars().take(chars).collect())
    };
    write("calibration.txt", &shipped("calibration.txt", TEXT_CHARS)?)?;
    write("heldout.txt", &shipped("heldout.txt", JUDGED_CHARS)?)?;
    write("recipe.toml", RECIPE)?;
    let mut digests = Map::new();
    for Run { name, arguments, writes } in &RUNS {
        let arguments = arguments
            .replace(
                "{calibrated}",
                "--calibration {texts}/calibration.txt --samples 16 --sequence-length 128 {cpu}",
            )
            .replace("{cpu}", "--device cpu");
        let mut command = Command::new(lowbit);
        command.env("RAYON_NUM_THREADS", "1").current_dir(root());
        for argument in arguments.split(' ') {
            let argument = argument
                .replace("{model}", &model.display().to_string())
                .replace("{texts}", &texts.display().to_string())
                .replace("{out}", &out.display().to_string());
            command.arg(argument);
        }
        let target = out.join(name);
        if *writes {
            command.arg("-o").arg(&target);
        }
        command.arg("--json");
        let output =
            command.output().map_err(|error| format!("cannot run `{}`: {error}", line_of(&command)))?;
        // A refusal is a result too.
        let told = || digest(&told(&output.stdout, out, model, without));
        let digest = match output.status.code() {
            Some(0 | 1) if *writes => of_folder(&target, without)?,
            Some(0 | 1) => json!(told()),
            Some(2) => json!(format!("refused: {}", told())),
            _ => {
                return Err(format!(
                    "`{}` failed: {}",
                    line_of(&command),
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
        };
        digests.insert((*name).to_owned(), digest);
    }
    Ok(Value::Object(digests))
}

/// The digest of each file of a folder.
fn of_folder(folder: &Path, without: &[String]) -> Result<Value, String> {
    let broke = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(broke)? {
        names.push(entry.map_err(broke)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut digests = Map::new();
    for name in names {
        let mut bytes = fs::read(folder.join(&name)).map_err(broke)?;
        if let (true, false, Ok(mut document)) =
            (name.ends_with(".json"), without.is_empty(), serde_json::from_slice::<Value>(&bytes))
        {
            without.iter().for_each(|key| leave_out(&mut document, key));
            bytes = document.to_string().into_bytes();
        }
        digests.insert(name, json!(digest(&bytes)));
    }
    Ok(Value::Object(digests))
}

/// A document without measured values and without paths of this run.
fn told(document: &[u8], out: &Path, model: &Path, without: &[String]) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(document).unwrap_or(Value::Null);
    forget_measured(&mut document);
    without.iter().for_each(|key| leave_out(&mut document, key));
    let text = document.to_string();
    text.replace(&out.display().to_string(), "OUT")
        .replace(&model.display().to_string(), "MODEL")
        .into_bytes()
}

/// Removes a value, given its dotted path of keys.
fn leave_out(document: &mut Value, key: &str) {
    match key.split_once('.') {
        Some((first, rest)) => {
            if let Some(inner) = document.get_mut(first) {
                leave_out(inner, rest);
            }
        }
        None => {
            if let Some(entries) = document.as_object_mut() {
                entries.remove(key);
            }
        }
    }
}

fn forget_measured(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            entries.retain(|key, _| !MEASURED.contains(&key.as_str()) && !key.ends_with("_seconds"));
            entries.values_mut().for_each(forget_measured);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_measured),
        _ => {}
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The differences between two trees of digests.
fn differences(expected: &Value, found: &Value) -> Vec<String> {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let mut keys: Vec<&String> = expected.keys().chain(found.keys()).collect();
            keys.sort();
            keys.dedup();
            let null = Value::Null;
            let of_key = |key: &&String| {
                let (before, now) = (expected.get(*key).unwrap_or(&null), found.get(*key).unwrap_or(&null));
                let under = |difference: String| format!("{key}/{difference}");
                differences(before, now).into_iter().map(under).collect::<Vec<_>>()
            };
            keys.iter().flat_map(of_key).collect()
        }
        _ if expected == found => Vec::new(),
        _ => vec![format!(" {} -> {}", short(expected), short(found))],
    }
}

fn short(digest: &Value) -> String {
    digest.as_str().map_or_else(|| digest.to_string(), |digest| digest.chars().take(24).collect())
}

fn count(digests: &Value) -> usize {
    digests.as_object().map_or(1, |entries| entries.values().map(count).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_measurements_are_none() {
        let before = json!({"m": {"rtn": {"a": "1", "b": "2"}, "told": "3"}});
        let now = json!({"m": {"rtn": {"a": "1", "b": "4"}, "told": "3", "more": "5"}});
        assert!(differences(&before, &before).is_empty());
        assert_eq!(differences(&before, &now), ["m/more/ null -> 5", "m/rtn/b/ 2 -> 4"]);
        assert_eq!(count(&before), 3);
        let mut report = json!({"seconds": 1, "loss": 2, "inner": [{"load_seconds": 3, "kept": 4}]});
        forget_measured(&mut report);
        assert_eq!(report, json!({"loss": 2, "inner": [{"kept": 4}]}));
        let mut record = json!({"source": {"sha256": "a", "path": "b"}});
        leave_out(&mut record, "source.sha256");
        leave_out(&mut record, "source.nothing.inside");
        assert_eq!(record, json!({"source": {"path": "b"}}));
    }
}
