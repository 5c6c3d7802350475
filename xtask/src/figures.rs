//! `cargo xtask figures`: runs the long measurements of README.md in release, and writes them to `figures/` and into README.md's
//! tables. Finished measurements are kept, so an interrupted run continues. Delete an entry to measure it again.
//!
//! The measuring itself is `lowbit qat`, `quantize` and `perplexity`.

use crate::process::{COMMAND, Outcome, cargo, program, root, run as execute, step, target_dir};
use crate::tables::{perplexity, replaced};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const CHECKPOINT: &str = "tests/fixtures/tale-llama";
const FILE: &str = "figures/training.json";

/// The marks around the table in README.md.
const BEGIN: &str = "<!-- training, by `cargo xtask figures` -->\n";
const END: &str = "<!-- end of training -->\n";

/// The trained schemes, and the options that quantize to each without training.
const SCHEMES: [(&str, &str, &[&str]); 4] = [
    ("ternary", "ternary, INT8 activations", &["--method", "ternary"]),
    ("2", "INT2 group 32", &["--method", "gptq", "--bits", "2", "--group-size", "32"]),
    ("3", "INT3 group 32", &["--method", "gptq", "--bits", "3", "--group-size", "32"]),
    ("4", "INT4 group 32", &["--method", "gptq", "--bits", "4", "--group-size", "32"]),
];
const SEEDS: [u32; 3] = [0, 1, 2];
/// Training steps of the runs with the generator's text.
const STEPS: [u32; 3] = [400, 1600, 6400];
/// Bytes of that text.
const TEXT_BYTES: &str = "24000000";

/// Runs the missing measurements and rewrites README.md.
///
/// # Errors
/// A command failed, or README.md lacks the marks.
pub fn run() -> Outcome {
    step("build", || execute(cargo(&[&["build", "--release"], COMMAND.as_slice()].concat())))?;
    let lowbit = target_dir().join("release").join(if cfg!(windows) { "lowbit.exe" } else { "lowbit" });
    let text = format!("{CHECKPOINT}/calibration.txt");
    let mut figures = read()?;
    let mut measure = |key: String, work: &dyn Fn() -> Result<Value, String>| {
        if !figures.contains_key(&key) {
            let found = step(&key, work)?;
            println!("{key}: {found}");
            figures.insert(key, found);
            write(&figures)?;
        }
        Ok::<_, String>(())
    };
    measure("original".to_owned(), &|| {
        Ok(json!({ "perplexity": perplexity(&lowbit, &root().join(CHECKPOINT))? }))
    })?;
    for (bits, _, other) in SCHEMES {
        measure(format!("{bits}, quantized"), &|| quantized(&lowbit, other))?;
        for seed in SEEDS {
            measure(format!("{bits}, seed {seed}"), &|| trained(&lowbit, bits, &text, seed, 400))?;
        }
    }
    let longer = target_dir().join("figures/text");
    for steps in STEPS {
        measure(format!("ternary, more text, {steps} steps"), &|| {
            let train = longer.join("train.txt");
            if !train.exists() {
                let script = format!("{CHECKPOINT}/make/generate.py");
                let mut generate = program("python3", &[&script, "--train-bytes", TEXT_BYTES, "--out"]);
                generate.arg(&longer);
                execute(generate)?;
            }
            let found = trained(&lowbit, "ternary", &train.display().to_string(), 0, steps)?;
            Ok(json!({ "perplexity": found["perplexity"] }))
        })?;
    }
    let path = root().join("README.md");
    let broke = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&path).map_err(broke)?;
    std::fs::write(&path, replaced(&text, (BEGIN, END), &table(&figures)?)?).map_err(broke)?;
    Ok(ExitCode::SUCCESS)
}

fn read() -> Result<Map<String, Value>, String> {
    let path = root().join(FILE);
    if !path.exists() {
        return Ok(Map::new());
    }
    let bytes = std::fs::read(&path).map_err(|error| format!("{FILE}: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{FILE}: {error}"))
}

fn write(figures: &Map<String, Value>) -> Result<(), String> {
    let path = root().join(FILE);
    let broke = |error: std::io::Error| format!("{FILE}: {error}");
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(broke)?;
    let text = serde_json::to_string_pretty(figures).map_err(|error| format!("{FILE}: {error}"))?;
    std::fs::write(path, text + "\n").map_err(broke)
}

/// The table of the measurements.
fn table(figures: &Map<String, Value>) -> Result<String, String> {
    let figure = |key: &str, what: &str| figures.get(key).and_then(|found| found[what].as_f64());
    let of = |key: &str| figure(key, "perplexity");
    let original = of("original").ok_or_else(|| format!("{FILE}: expected the original's perplexity"))?;
    let mut table = format!(
        "Perplexity of `{CHECKPOINT}` on its `heldout.txt` (f32 has {original:.3}), quantized, and trained by `lowbit qat` for 400 \
         steps on its `calibration.txt`, 300 KB:\n\n\
         | | quantized | trained, mean of {} seeds | from | to | seconds |\n|---|---|---|---|---|---|\n",
        SEEDS.len()
    );
    for (bits, name, other) in SCHEMES {
        let runs: Vec<f64> = SEEDS.iter().filter_map(|seed| of(&format!("{bits}, seed {seed}"))).collect();
        let (Some(quantized), false) = (of(&format!("{bits}, quantized")), runs.is_empty()) else { continue };
        let mean = runs.iter().sum::<f64>() / runs.len() as f64;
        let (low, high) =
            runs.iter().fold((f64::MAX, f64::MIN), |(low, high), &run| (low.min(run), high.max(run)));
        let seconds = SEEDS.iter().filter_map(|seed| figure(&format!("{bits}, seed {seed}"), "seconds"));
        let seconds = seconds.fold(0.0, f64::max);
        table += &format!(
            "| {name} | {quantized:.3} ({}) | {mean:.3} | {low:.3} | {high:.3} | {seconds:.0} |\n",
            other[1]
        );
    }
    table += "\nTernary weights with 24 MB of the same generator's text, learning rate 1e-3:\n\n| steps | perplexity |\n|---|---|\n";
    for steps in STEPS {
        let key = format!("ternary, more text, {steps} steps");
        if let Some(found) = of(&key) {
            table += &format!("| {steps} | {found:.3} |\n");
        }
    }
    Ok(table)
}

fn output(name: &str) -> PathBuf {
    target_dir().join("figures").join(name)
}

fn trained(lowbit: &Path, bits: &str, text: &str, seed: u32, steps: u32) -> Result<Value, String> {
    let to = output("trained");
    let mut qat = program(lowbit, &["qat", CHECKPOINT, "--bits", bits, "--data", text]);
    if bits != "ternary" {
        qat.args(["--group-size", "32"]);
    }
    qat.args(["--seed", &seed.to_string(), "--steps", &steps.to_string(), "--output"]).arg(&to);
    let start = Instant::now();
    execute(qat)?;
    let seconds = start.elapsed().as_secs_f64().round();
    Ok(json!({ "perplexity": perplexity(lowbit, &to)?, "seconds": seconds }))
}

fn quantized(lowbit: &Path, options: &[&str]) -> Result<Value, String> {
    let to = output("quantized");
    let mut quantize = program(lowbit, &["quantize", CHECKPOINT]);
    quantize.args(options).arg("--output").arg(&to);
    if options.contains(&"gptq") {
        quantize.args(["--samples", "128", "--sequence-length", "512", "--calibration"]);
        quantize.arg(format!("{CHECKPOINT}/calibration.txt"));
    }
    execute(quantize)?;
    Ok(json!({ "perplexity": perplexity(lowbit, &to)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_what_was_measured() {
        let text = std::fs::read_to_string(root().join("README.md")).unwrap();
        let expected = replaced(&text, (BEGIN, END), &table(&read().unwrap()).unwrap()).unwrap();
        assert!(text == expected, "README.md's table is not that of {FILE}; run `cargo xtask figures`");
    }
}
