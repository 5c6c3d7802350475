//! transformers judges what lowbit reads and writes. Run by `cargo xtask interop`; see `tests/interop/README.md`.

use crate::support::{
    calibrated, distances, fixture, held_out, load, logits, on_disk, perplexity, samples, synthetic::tokens,
};
#[cfg(feature = "train")]
use crate::terminal::{arg, lowbit};
use lowbit::internals::dtype::DType;
use lowbit::internals::format::sink::FsSinkDir;
use lowbit::internals::layout::{GptqZeros, TargetLayout};
use lowbit::internals::model::Checkpoint;
use lowbit::internals::pipeline::dequantize::dequantize_checkpoint;
use lowbit::internals::pipeline::{QuantizeOptions, quantize};
use lowbit::internals::quant::{Activations, Bits, ColumnOrder, Granularity, Method, Scheme};
use lowbit::internals::recipe::Recipe;
use lowbit::internals::task::{Silent, block_on};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Largest distance of a logit from transformers' with f32 activations; measured at most 1.7e-5.
const TOLERANCE: f32 = 1e-3;
/// Smallest share of logits within [`TOLERANCE`] with INT8 activations. A value near a rounding tie may round either way
/// in two correct programs, which moves all logits of its token and of later ones. On a wrong grid the share is 0.01.
const ROUNDED_SHARE: f64 = 0.7;
/// Largest median distance of those logits, which ties do not affect. Measured: 4.8e-7; on a wrong grid 0.055.
const ROUNDED_MEDIAN: f32 = 1e-5;
/// Largest relative difference of perplexities.
const PERPLEXITY_TOLERANCE: f64 = 0.001;

/// Runs a script of `tests/interop` with the Python of `cargo xtask interop`.
fn script(name: &str) -> Option<Command> {
    let Some(python) = std::env::var_os("LOWBIT_PYTHON") else {
        println!("skipped: {name}: LOWBIT_PYTHON names no Python; `cargo xtask interop` prepares one");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name));
    Some(command)
}

/// The answers of `judge.py` to `jobs`, in order.
fn judge<T: for<'a> Deserialize<'a>>(jobs: &[Value]) -> Option<Vec<T>> {
    let mut child = script("judge.py")?
        .arg("batch")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("LOWBIT_PYTHON runs");
    let mut stdin = child.stdin.take().unwrap();
    for job in jobs {
        writeln!(stdin, "{job}").unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let answers: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    assert_eq!(answers.len(), jobs.len(), "judge.py ended early");
    Some(
        answers
            .iter()
            .map(|answer| serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}")))
            .collect(),
    )
}

#[derive(Deserialize)]
struct Judged {
    opened: String,
    logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct JudgedText {
    perplexity: f64,
    tokens: usize,
}

/// Outputs of lowbit for the shipped model, each in a folder below `place`.
fn written(place: &Path) -> Vec<(&'static str, PathBuf)> {
    let rtn = |bits, granularity, symmetric| {
        QuantizeOptions::new(Method::Rtn, Scheme::symmetric(bits, granularity).with_symmetry(symmetric))
    };
    let int8 = rtn(Bits::Eight, Granularity::Channel, true);
    let int4 = rtn(Bits::Four, Granularity::Group(32), true);
    let in_layout = |options, layout| QuantizeOptions { layout: Some(layout), ..options };
    let act_order = || {
        let mut options =
            QuantizeOptions::new(Method::Gptq, Scheme::symmetric(Bits::Four, Granularity::Group(32)));
        options.gptq.act_order = ColumnOrder::GroupIndex;
        options
    };
    let (gptq, gptq_v2) = (TargetLayout::Gptq(GptqZeros::V1), TargetLayout::Gptq(GptqZeros::V2));
    let with_recipe = |rule: &str| {
        let recipe = Recipe::from_json(&format!(r#"{{"rules": [{rule}]}}"#)).unwrap();
        QuantizeOptions { recipe: Some(recipe), ..int4.clone() }
    };
    let cases = [
        ("int4-g32-sym", int4.clone()),
        ("int4-g128-asym", rtn(Bits::Four, Granularity::Group(128), false)),
        ("int8-channel", int8.clone()),
        ("int8-channel-int8", QuantizeOptions { activations: Activations::Int8, ..int8 }),
        ("ternary", QuantizeOptions::ternary(Granularity::Tensor)),
        ("int4-g32-head", QuantizeOptions { quantize_head: true, ..int4.clone() }),
        ("gptq-int4-g32-sym", in_layout(int4.clone(), gptq)),
        ("gptq-int4-g32-asym", in_layout(rtn(Bits::Four, Granularity::Group(32), false), gptq)),
        ("gptq-v2-int4-g64-asym", in_layout(rtn(Bits::Four, Granularity::Group(64), false), gptq_v2)),
        ("gptq-int3-g32-asym", in_layout(rtn(Bits::Three, Granularity::Group(32), false), gptq)),
        ("gptq-int2-g16-asym", in_layout(rtn(Bits::Two, Granularity::Group(16), false), gptq)),
        ("gptq-int8-channel", in_layout(rtn(Bits::Eight, Granularity::Channel, true), gptq)),
        ("awq-int4-g32-asym", in_layout(rtn(Bits::Four, Granularity::Group(32), false), TargetLayout::Awq)),
        ("awq-int4-g32-sym", in_layout(int4.clone(), TargetLayout::Awq)),
        // Not in the compressed-tensors layout: version 0.20 of that package does not support groups in act-order.
        ("gptq-act-order", in_layout(act_order(), gptq)),
        ("recipe-int8-int4", with_recipe(r#"{"modules": "*.self_attn.*", "bits": 8}"#)),
        ("recipe-keep", with_recipe(r#"{"modules": ["*.0.*", "*.down_proj"], "keep": true}"#)),
    ];
    let original = block_on(Checkpoint::open(on_disk(fixture("tale-llama")))).unwrap();
    let samples = samples(&fixture("tale-llama"), &fixture("tale-llama/calibration.txt"), 4, 128);
    let mut folders = vec![("original", fixture("tale-llama"))];
    for (name, options) in cases {
        let path = place.join(name);
        let sinks = FsSinkDir::create(&path).unwrap();
        if options.method.is_calibrated() {
            calibrated(&original, &samples, &options, &sinks).unwrap();
        } else {
            block_on(quantize(&original, &options, &sinks, &Silent)).unwrap();
        }
        folders.push((name, path));
    }
    #[cfg(feature = "train")]
    for (name, bits) in [("trained-f16", "none"), ("trained-int2", "2"), ("trained-ternary", "ternary")] {
        let (path, text) = (place.join(name), fixture("tale-llama/calibration.txt"));
        let options = ["--bits", bits, "--steps", "3", "--context", "64", "--batch-tokens", "256"];
        let paths = [arg(fixture("tale-llama")), "--data".into(), arg(text), "-o".into(), arg(&path)];
        lowbit(["train"].into_iter().chain(options).map(str::to_owned).chain(paths)).done();
        folders.push((name, path));
    }
    let packed = block_on(Checkpoint::open(on_disk(place.join("int4-g32-sym")))).unwrap();
    let path = place.join("dequantized-f16");
    let sinks = FsSinkDir::create(&path).unwrap();
    block_on(dequantize_checkpoint(&packed, DType::F16, &sinks, &Silent)).unwrap();
    folders.push(("dequantized-f16", path));
    folders
}

#[test]
#[ignore = "needs Python: cargo xtask interop"]
fn interop_the_committed_files_are_what_the_scripts_make() {
    for name in [
        "make_golden.py",
        "make_compressed_tensors.py",
        "make_gptq.py",
        "make_gguf_blocks.py",
        "make_gguf_models.py",
        "make_keys.py",
        "make_configs.py",
        "make_sweep.py",
    ] {
        let Some(mut command) = script(name) else { return };
        assert!(command.arg("--check").status().unwrap().success(), "{name} --check");
    }
}

#[test]
#[ignore = "needs Python: cargo xtask interop"]
fn interop_transformers_opens_what_lowbit_writes() {
    let place = tempfile::tempdir().unwrap();
    let folders = written(place.path());
    // Short sequences with rounded activations: a value near a tie affects few tokens.
    let sequences = |name: &str| -> Vec<Vec<u32>> {
        let rounds = name.ends_with("ternary") || name.ends_with("-int8");
        let lengths: &[usize] = if rounds { &[1, 1, 1, 1, 2, 2, 2, 3, 3, 3] } else { &[1, 24, 100] };
        let sequence = |(index, &length): (usize, &usize)| tokens(&format!("interop.{index}"), length, 2048);
        lengths.iter().enumerate().map(sequence).collect()
    };
    let jobs: Vec<(&str, &Path, Vec<u32>)> = folders
        .iter()
        .flat_map(|(name, path)| sequences(name).into_iter().map(move |ids| (*name, path.as_path(), ids)))
        .collect();
    let as_json = |(_, path, ids): &(&str, &Path, Vec<u32>)| json!({"folder": path, "ids": ids});
    let Some(answers) = judge::<Judged>(&jobs.iter().map(as_json).collect::<Vec<_>>()) else { return };

    let mut wrong = Vec::new();
    for (name, path) in &folders {
        let mut model = load(on_disk(path));
        let mut found: Vec<f32> = Vec::new();
        let mut opened = "";
        for ((_, _, ids), answer) in jobs.iter().zip(&answers).filter(|((job, ..), _)| job == name) {
            for (ours, theirs) in logits(&mut model, ids, ids.len()).iter().zip(&answer.logits) {
                found.extend(distances(ours, theirs));
            }
            opened = answer.opened.split(',').next().unwrap_or_default();
        }
        found.sort_by(f32::total_cmp);
        let largest = *found.last().unwrap();
        let within =
            found.iter().filter(|&&distance| distance < TOLERANCE).count() as f64 / found.len() as f64;
        println!(
            "{name} ({opened}): largest distance {largest:.1e}, median {:.1e}, {:.2} % within {TOLERANCE:.0e}",
            found[found.len() / 2],
            100.0 * within
        );
        let right = match *name {
            "int8-channel-int8" | "ternary" | "trained-ternary" => {
                within >= ROUNDED_SHARE && found[found.len() / 2] < ROUNDED_MEDIAN
            }
            _ => largest < TOLERANCE,
        };
        if !right {
            wrong.push(*name);
        }
    }
    assert!(wrong.is_empty(), "not as transformers: {wrong:?}");
}

#[test]
#[ignore = "needs Python: cargo xtask interop"]
fn interop_perplexity_is_that_of_transformers() {
    let place = tempfile::tempdir().unwrap();
    let folders = written(place.path());
    let folders: Vec<_> =
        folders.iter().filter(|(name, _)| matches!(*name, "original" | "int4-g32-sym")).collect();
    assert_eq!(folders.len(), 2);
    let text = fixture("tale-llama/heldout.txt");
    let jobs: Vec<Value> =
        folders.iter().map(|(_, path)| json!({"folder": path, "text": text, "context": 512})).collect();
    let Some(answers) = judge::<JudgedText>(&jobs) else { return };
    let data = held_out();
    for ((name, path), judged) in folders.into_iter().zip(answers) {
        let ours = perplexity(&mut load(on_disk(path)), &data);
        println!("{name}: {ours:.6}, transformers {:.6}", judged.perplexity);
        assert_eq!(data.tokens.len(), judged.tokens, "{name}");
        assert!((ours / judged.perplexity - 1.0).abs() < PERPLEXITY_TOLERANCE, "{name}");
    }
}
