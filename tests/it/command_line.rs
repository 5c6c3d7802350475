//! The commands on valid input: output, files, exit codes.

use crate::terminal::{arg, copy, files, lowbit, short_text, tale};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const COMMANDS: [&str; 8] =
    ["inspect", "plan", "quantize", "dequantize", "validate", "compare", "perplexity", "generate"];

/// Quantizes the shipped checkpoint.
fn quantize(output: &Path, options: &[&str]) -> Value {
    let mut args =
        vec!["quantize".to_owned(), arg(tale()), "-o".to_owned(), arg(output), "--json".to_owned()];
    args.extend(options.iter().map(|&option| option.to_owned()));
    lowbit(args).done().json()
}

fn has_keys(json: &Value, keys: &[&str]) {
    for key in keys {
        assert!(json.get(key).is_some(), "expected {key} in {json:#}");
    }
}

#[test]
fn every_command_has_help() {
    for command in COMMANDS {
        for args in [vec![command, "--help"], vec!["help", command], vec![command, "-h"]] {
            let ran = lowbit(args).done();
            assert!(ran.stdout.contains("Usage: lowbit"), "{}", ran.stdout);
            assert!(ran.stderr.is_empty(), "{}", ran.stderr);
        }
    }
    let help = lowbit(["--help"]).done().stdout;
    for command in COMMANDS {
        assert!(help.contains(command), "{help}");
    }
    assert!(lowbit(["--version"]).done().stdout.starts_with("lowbit "));
}

#[test]
fn inspect_and_plan_print_one_document() {
    let tale = arg(tale());
    let inspection = lowbit(["inspect", &tale, "--json"]).done().json();
    assert_eq!(inspection["architecture"], "llama");
    assert_eq!(inspection["parameters"], 705_408);
    assert_eq!(inspection["layout"], "dense");
    assert!(lowbit(["inspect", &tale]).done().stdout.contains("architecture  llama"));

    for args in [vec!["plan", &tale], vec!["plan", "--params", "500M", "--memory", "8GB"]] {
        assert!(lowbit(&args).done().stdout.contains("recommended: int8"));
        let plan = lowbit(args.iter().chain(&["--json"])).done().json();
        has_keys(&plan, &["parameters", "context", "precisions", "recommendation"]);
        let names: Vec<_> =
            plan["precisions"].as_array().unwrap().iter().map(|row| row["precision"].clone()).collect();
        assert_eq!(names, ["f32", "f16", "int8", "int4", "ternary"]);
    }
}

/// Options of `quantize`, and the resulting scheme.
const QUANTIZATIONS: &[(&[&str], &str)] = &[
    (&[], "int4-g128-sym"),
    (&["--method", "rtn", "--bits", "2", "--group-size", "32"], "int2-g32-sym"),
    (&["--bits", "3", "--group-size", "64"], "int3-g64-sym"),
    (&["--bits", "4", "--group-size", "32", "--asym"], "int4-g32-asym"),
    (&["--bits", "4", "--group-size", "64", "--strict"], "int4-g64-sym"),
    (&["--bits", "4", "--group-size", "-1"], "int4-channel-sym"),
    (&["--bits", "8"], "int8-channel-sym"),
    (&["--bits", "8", "--group-size", "128", "--activations", "int8"], "int8-g128-sym"),
    (&["--quantize-head"], "int4-g128-sym"),
    (&["--quantize-embedding", "8"], "int4-g128-sym"),
    (&["--quantize-head", "--quantize-embedding", "8"], "int4-g128-sym"),
    (&["--method", "ternary"], "ternary-tensor"),
    (&["--method", "ternary", "--ternary-scale", "tensor", "--strict"], "ternary-tensor"),
    (&["--method", "ternary", "--ternary-scale", "channel"], "ternary-channel"),
    (&["--method", "ternary", "--sparsity-threshold", "0.7"], "ternary-tensor"),
];

#[test]
fn every_quantized_folder_opens_again_and_predicts() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    for (index, (options, scheme)) in QUANTIZATIONS.iter().enumerate() {
        let output = scratch.path().join(index.to_string());
        let document = quantize(&output, options);
        println!("{options:?}: {}", document["bits_per_weight"]);
        assert_eq!(document["scheme"], *scheme, "{options:?}");
        has_keys(
            &document,
            &[
                "output",
                "method",
                "format",
                "bits_per_weight",
                "original_bytes",
                "quantized_bytes",
                "modules",
            ],
        );
        assert!(document["quantized_bytes"].as_u64() < document["original_bytes"].as_u64());
        for file in ["model.safetensors", "config.json", "tokenizer.json", "quantization_config.json"] {
            assert!(output.join(file).is_file(), "{options:?}: {file}");
        }
        let inspection = lowbit(["inspect", &arg(&output), "--json"]).done().json();
        // compressed-tensors has no ternary type. -1, 0 and 1 are three of the four 2-bit values.
        let stored = if *scheme == "ternary-channel" { "int2-channel-sym" } else { scheme };
        assert_eq!(inspection["linear_formats"][stored], 21, "{options:?} {inspection:#}");
        let measured = lowbit(["perplexity", &arg(&output), "--text", &text, "--context", "128", "--json"]);
        let measured = measured.done().json();
        has_keys(&measured, &["perplexity", "tokens", "context", "activations"]);
        assert!(measured["perplexity"].as_f64().unwrap() > 1.0, "{options:?}: {measured:#}");
    }
}

#[test]
fn the_same_command_writes_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    for options in [&["--bits", "4", "--group-size", "32"][..], &["--method", "ternary"]] {
        let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
        quantize(&first, options);
        quantize(&second, options);
        assert_eq!(files(&first), files(&second));
        // Also over its own output.
        quantize(&first, options);
        assert_eq!(files(&first), files(&second));
        let [way_back, again] = ["back", "again"].map(|name| arg(scratch.path().join(name)));
        for output in [&way_back, &again] {
            lowbit(["dequantize", &arg(&first), "-o", output]).done();
        }
        assert_eq!(files(Path::new(&way_back)), files(Path::new(&again)));
    }
}

#[test]
fn metrics_are_appended_as_json_lines() {
    let scratch = tempfile::tempdir().unwrap();
    let metrics = arg(scratch.path().join("metrics.jsonl"));
    for round in 1..=2 {
        quantize(&scratch.path().join("q"), &["--metrics", &metrics]);
        let lines = std::fs::read_to_string(&metrics).unwrap();
        let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let sizes = lines.matches("quantized_model_size_mb").count();
        assert_eq!((sizes, rows.len() % round), (round, 0));
    }
}

#[test]
fn generate_repeats_for_a_seed_and_stops_where_it_is_told() {
    let tale = arg(tale());
    let run = |options: &[&str]| {
        let args = ["generate", &tale, "--prompt", "Once upon", "--max-tokens", "24", "--json"];
        let json = lowbit(args.iter().chain(options)).done().json();
        has_keys(&json, &["text", "token_ids", "prompt_ids", "finish_reason", "tokens_per_second"]);
        json
    };
    let sampled = ["--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--min-p", "0.01"];
    let with_seed = |seed| run(&[&sampled[..], &["--repetition-penalty", "1.1", "--seed", seed]].concat());
    assert_eq!(with_seed("7")["text"], with_seed("7")["text"]);
    assert_ne!(with_seed("7")["text"], with_seed("8")["text"]);

    let greedy = run(&[]);
    assert_eq!(greedy["text"], run(&["--seed", "3"])["text"], "greedy text knows no seed");
    assert_eq!(greedy["finish_reason"], "length");
    let word = greedy["text"].as_str().unwrap().split_whitespace().nth(3).unwrap();
    let stopped = run(&["--stop", word]);
    assert_eq!(stopped["finish_reason"], "stop_sequence");
    assert!(!stopped["text"].as_str().unwrap().contains(word));
    assert_eq!(run(&["--ignore-eos"])["token_ids"].as_array().unwrap().len(), 24);

    // The prompt and its continuation are printed as one text.
    let ran = lowbit(["generate", &tale, "--prompt", "Once upon", "--max-tokens", "24"]).done();
    assert_eq!(ran.stdout, format!("Once upon{}\n", greedy["text"].as_str().unwrap()));
}

/// A quantized folder, its text, and their parent folder.
fn quantized() -> (tempfile::TempDir, PathBuf, String) {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("quantized");
    quantize(&output, &["--bits", "8"]);
    let text = short_text(scratch.path());
    (scratch, output, text)
}

#[test]
fn validate_says_accepted_or_rejected_by_its_exit_code() {
    let (scratch, output, text) = quantized();
    let benchmark = scratch.path().join("benchmark.jsonl");
    std::fs::write(
        &benchmark,
        "{\"prompt\": \"Once upon a\", \"choices\": [\"time\", \"xq\"], \"answer\": 0}\n",
    )
    .unwrap();
    let report = arg(scratch.path().join("report.json"));
    let (tale, output) = (arg(tale()), arg(output));
    let common = ["validate", &tale, &output, "--text", &text, "--max-tokens", "8", "--speed-rounds", "0"];
    let benchmark = arg(benchmark);
    for streamed in [&[][..], &["--layer-streamed"]] {
        for (ratio, code) in [("1.5", 0), ("100", 1)] {
            let own = ["--json", "-o", &report, "--benchmark", &benchmark, "--min-memory-ratio", ratio];
            let args = [&common[..], &own, streamed].concat();
            let ran = lowbit(&args);
            assert_eq!(ran.code, code, "{args:?}\n{}", ran.stderr);
            let json = ran.json();
            assert_eq!(json["schema"], "lowbit.validation/1");
            assert_eq!(json["accepted"], code == 0);
            has_keys(
                &json,
                &[
                    "original",
                    "quantized",
                    "dataset",
                    "perplexity",
                    "divergence",
                    "benchmark",
                    "layers",
                    "memory",
                    "speed",
                    "generation",
                    "reading",
                    "criteria",
                    "accepted",
                    "recommendation",
                ],
            );
            assert_eq!(std::fs::read_to_string(&report).unwrap().trim(), ran.stdout.trim());
        }
    }
    assert!(lowbit(common).stdout.contains("ACCEPTED"));
}

#[test]
fn models_that_do_not_fit_the_memory_are_validated_layer_by_layer() {
    let (_scratch, output, text) = quantized();
    let (tale, output) = (arg(tale()), arg(output));
    let common =
        ["validate", &tale, &output, "--text", &text, "--max-tokens", "4", "--speed-rounds", "0", "--json"];
    let mut figures = None;
    for (options, execution) in [
        (&["--memory", "1MB"][..], "layer-streamed"),
        (&["--memory", "1GB"], "side-by-side"),
        (&["--layer-streamed"], "layer-streamed"),
        (&["--side-by-side"], "side-by-side"),
        // Two small models fit on any machine.
        (&[], "side-by-side"),
    ] {
        let ran = lowbit(common.iter().chain(options)).done();
        let report = ran.json();
        assert_eq!(report["execution"], execution, "{options:?}");
        assert_eq!(ran.stderr.contains("layer by layer"), execution == "layer-streamed", "{}", ran.stderr);
        assert_eq!(ran.stderr.contains("1.00 MB are free"), options == ["--memory", "1MB"], "{}", ran.stderr);
        // The memory limit does not change figures.
        let found = (report["perplexity"].clone(), report["divergence"].clone());
        assert_eq!(*figures.get_or_insert_with(|| found.clone()), found, "{options:?}");
    }
    for conflict in
        [["--layer-streamed", "--side-by-side"].as_slice(), &["--memory", "1GB", "--side-by-side"]]
    {
        assert_eq!(lowbit(common.iter().chain(conflict)).code, 2);
    }
}

#[test]
fn compare_shows_both_texts() {
    let (_scratch, output, _) = quantized();
    let args =
        ["compare", &arg(tale()), &arg(output), "--prompt", "Once", "--prompt", "The", "--max-tokens", "8"];
    let pairs = lowbit(args.iter().chain(&["--json"])).done().json();
    assert_eq!(pairs.as_array().unwrap().len(), 2);
    has_keys(&pairs[0], &["prompt", "a", "b", "first_difference"]);
    let text = lowbit(args).done().stdout;
    assert!(text.contains("> Once") && text.contains("A: ") && text.contains("B: "), "{text}");
}

#[test]
fn a_dequantized_folder_is_an_ordinary_checkpoint() {
    let (scratch, output, text) = quantized();
    for dtype in ["f16", "f32"] {
        let back = arg(scratch.path().join(dtype));
        let args = ["dequantize", &arg(&output), "-o", &back, "--dtype", dtype, "--text", &text, "--json"];
        let original = ["--original", &arg(tale()), "--context", "128"];
        let json = lowbit(args.iter().chain(&original)).done().json();
        assert!(json["agreement"]["quantized_dequantized"].as_f64().unwrap() >= 0.995, "{json:#}");
        assert!(json["agreement"]["retention"].as_f64().unwrap() > 0.9, "{json:#}");
        assert!(Path::new(&back).join("quantization_metadata.json").is_file());
        let inspection = lowbit(["inspect", &back, "--json"]).done().json();
        assert_eq!(inspection["layout"], "dense");
        assert_eq!(inspection["linear_formats"][dtype.to_uppercase()], 21);
        let again = arg(scratch.path().join(format!("{dtype}-again")));
        lowbit(["quantize", &back, "-o", &again, "--bits", "8"]).done();
    }
}

#[test]
fn a_dequantized_folder_keeps_the_predictions_by_default() {
    let scratch = tempfile::tempdir().unwrap();
    // 2,746 tokens: with a few hundred, one or two flipped predictions would exceed the limit.
    let text = arg(scratch.path().join("text.txt"));
    let held_out = std::fs::read_to_string(tale().join("heldout.txt")).unwrap();
    std::fs::write(&text, &held_out[..12_000]).unwrap();
    let cases: [(&str, &[&str], &str); 4] = [
        ("int4", &["--bits", "4", "--group-size", "32"], "F16"),
        ("w8a8", &["--bits", "8", "--activations", "int8"], "F32"),
        ("w4a8", &["--bits", "4", "--group-size", "32", "--activations", "int8"], "F32"),
        ("ternary", &["--method", "ternary"], "F16"),
    ];
    for (name, options, dtype) in cases {
        let (output, back) = (scratch.path().join(name), arg(scratch.path().join(format!("{name}-back"))));
        quantize(&output, options);
        let args = ["dequantize", &arg(&output), "-o", &back, "--text", &text, "--context", "128", "--json"];
        let json = lowbit(args).done().json();
        assert_eq!(json["dtype"], dtype, "{name}: {json:#}");
        assert!(json["agreement"]["quantized_dequantized"].as_f64().unwrap() >= 0.995, "{name}: {json:#}");
    }
}

#[test]
fn an_earlier_output_is_replaced_without_a_trace() {
    let (scratch, output, text) = quantized();
    let fresh = scratch.path().join("fresh");
    let back = arg(scratch.path().join("back"));
    lowbit(["dequantize", &arg(&output), "-o", &back]).done();
    let report = arg(output.join("validation_report.json"));
    let common = ["--text", &text, "--speed-rounds", "0", "--max-tokens", "2", "-o", &report];
    lowbit([&["validate", &arg(tale()), &arg(&output)], &common[..]].concat()).done();
    std::fs::write(output.join("notes.txt"), "mine").unwrap();
    std::fs::write(output.join(".model.safetensors.Ab12Cd.lowbit.tmp"), "what a killed run left").unwrap();
    // A dequantized checkpoint replaces a quantized one, and the reverse.
    let other = arg(scratch.path().join("other"));
    quantize(Path::new(&other), &["--bits", "4", "--group-size", "64"]);
    for (command, expected) in [
        (["dequantize", &other], "quantization_metadata.json"),
        (["quantize", &arg(tale())], "quantization_config.json"),
    ] {
        for target in [&fresh, &output] {
            if target == &fresh && fresh.exists() {
                std::fs::remove_dir_all(&fresh).unwrap();
            }
            lowbit([&command[..], &["-o", &arg(target)]].concat()).done();
        }
        let mut found = files(&output);
        assert_eq!(found.remove("notes.txt").as_deref(), Some(&b"mine"[..]));
        assert!(found == files(&fresh), "{:?}, not {:?}", found.keys(), files(&fresh).keys());
        assert!(found.contains_key(expected), "{:?}", found.keys());
    }
}

#[test]
fn a_checkpoint_of_someone_else_is_never_overwritten() {
    let scratch = tempfile::tempdir().unwrap();
    let foreign = scratch.path().join("foreign");
    copy(&tale(), &foreign);
    let before = files(&foreign);
    // Another tool's folder, and the source itself.
    for source in [tale(), foreign.clone()] {
        let ran = lowbit(["quantize", &arg(source), "-o", &arg(&foreign)]);
        assert_eq!(ran.code, 2);
        assert!(ran.stderr.contains("foreign"), "{}", ran.stderr);
        assert_eq!(files(&foreign), before);
    }
    // A partial checkpoint of another tool is protected too.
    for file in ["tokenizer.json", "model.safetensors"] {
        let folder = scratch.path().join(file.replace('.', "-"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(file), "{}").unwrap();
        let ran = lowbit(["quantize", &arg(tale()), "-o", &arg(&folder)]);
        assert_eq!(ran.code, 2);
        assert!(ran.stderr.contains(file) && ran.stderr.contains("lowbit did not write"), "{}", ran.stderr);
        assert_eq!(files(&folder).len(), 1);
    }
}

#[test]
fn a_command_never_writes_over_its_own_source() {
    let (scratch, output, _) = quantized();
    let back = scratch.path().join("back");
    lowbit(["dequantize", &arg(&output), "-o", &arg(&back)]).done();
    for (command, folder) in [("dequantize", &output), ("quantize", &back)] {
        let before = files(folder);
        // The same folder under another name.
        let roundabout = folder.join("../").join(folder.file_name().unwrap());
        for target in [folder, &roundabout] {
            let ran = lowbit([command, &arg(folder), "-o", &arg(target)]);
            assert_eq!(ran.code, 2, "{}", ran.stdout);
            assert!(ran.stderr.contains("source"), "{}", ran.stderr);
            assert_eq!(files(folder), before);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let weights = ["1", "2"].map(|threads| {
        let output = arg(folder.path().join(threads));
        let texts = arg(tale().join("calibration.txt"));
        let learn =
            ["--method", "gptq", "--calibration", &texts, "--samples", "4", "--sequence-length", "64"];
        let words = ["--threads", threads, "quantize", &arg(tale()), "-o", &output];
        lowbit([&words[..], &learn].concat()).done();
        fs::read(Path::new(&output).join("model.safetensors")).unwrap()
    });
    assert!(weights[0] == weights[1]);
    let said = lowbit(["--threads", "0", "devices"]);
    assert!(said.code == 2 && said.stderr.contains("--threads"), "{}", said.stderr);
}
