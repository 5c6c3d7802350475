//! Bad input: a clear sentence, exit code 2, and no output that looks complete.

use crate::terminal::{
    CommandResult, arg, copy, copy_of_tale, edit_json, edit_safetensors, files, join, lowbit, short_text,
    split, tale,
};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The name of a tensor that no decoder reads and that is harmless, so that there is no warning of it.
const SPARE: &str = "model.layers.0.self_attn.rotary_emb.inv_freq";

/// Asserts that the run was refused with one sentence that contains all `words`, and without a result.
fn refused(what: &str, ran: &CommandResult, words: &[&str]) {
    println!("{what}: {}", ran.stderr.trim());
    assert_eq!(ran.code, 2, "{what}: {} {}", ran.stdout, ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{what}: {}", ran.stderr);
    let error = ran.stderr.trim_end();
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{what}: {error}");
    for word in words {
        assert!(error.contains(word), "{what}: expected {word} in {error}");
    }
    if ran.stdout.is_empty() {
        return;
    }
    assert_eq!(ran.json()["error"]["message"], error["error: ".len()..], "{what}");
}

/// Runs the command without and with `--json`. Both must be refused; returns the error.
fn both_refused(what: &str, args: &[String], words: &[&str]) -> String {
    let plain = lowbit(args);
    refused(what, &plain, words);
    assert!(plain.stdout.is_empty(), "{what}: {}", plain.stdout);
    let ran = lowbit(args.iter().map(String::as_str).chain(["--json"]));
    refused(what, &ran, words);
    assert!(ran.json()["error"]["code"].is_string(), "{what}");
    plain.stderr
}

/// As [`both_refused`], with an error that names the folder exactly once.
fn both_refused_naming(folder: &Path, what: &str, args: &[String], words: &[&str]) {
    let error = both_refused(what, args, words);
    assert_eq!(error.matches(&arg(folder)).count(), 1, "{what}: {error}");
}

fn args(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// Asserts that opening the folder reports it as incomplete.
fn does_not_look_whole(what: &str, output: &Path) {
    if !output.exists() {
        return;
    }
    assert!(!output.join("quantization_config.json").exists(), "{what}");
    let opened = lowbit(["inspect", &arg(output), "--json"]);
    assert_eq!(opened.code, 2, "{what}: {}", opened.stdout);
    if output.join("config.json").exists() {
        assert_eq!(opened.json()["error"]["code"], "unfinished_output", "{what}");
    }
}

/// A broken checkpoint: its name, the damage, and words of the message.
type Broken = (&'static str, fn(&Path), &'static [&'static str]);

fn weights(folder: &Path, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    edit_safetensors(&folder.join("model.safetensors"), edit);
}

fn config(folder: &Path, key: &str, value: Value) {
    edit_json(&folder.join("config.json"), |config| config[key] = value);
}

/// Writes an f16 into the middle of a tensor.
fn poison(folder: &Path, tensor: &str, bits: u16) {
    weights(folder, |header, data| {
        let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start + 200..][..2].copy_from_slice(&bits.to_le_bytes());
    });
}

const Q: &str = "model.layers.1.self_attn.q_proj.weight";
const NORM: &str = "model.norm.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Sets a header length that the file does not have.
fn header_length(folder: &Path, length: u64) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

fn truncate(folder: &Path, file: &str, length: usize) {
    let path = folder.join(file);
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[..length]).unwrap();
}

/// Splits the weights into two shards with an index, and omits the second.
fn shard_away(folder: &Path) {
    let path = folder.join("model.safetensors");
    let (header, data) = split(&fs::read(&path).unwrap());
    let (mut map, mut whole) = (serde_json::Map::new(), serde_json::Map::new());
    for (name, entry) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        let shard =
            if name == Q { "model-00002-of-00002.safetensors" } else { "model-00001-of-00002.safetensors" };
        map.insert(name.clone(), json!(shard));
        whole.insert(name.clone(), entry.clone());
    }
    fs::write(folder.join("model-00001-of-00002.safetensors"), join(&Value::Object(whole), &data)).unwrap();
    fs::write(folder.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    fs::remove_file(path).unwrap();
}

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const TOWER: usize = 100_000;

const CHECKPOINTS: &[Broken] = &[
    ("empty weight file", |f| truncate(f, WEIGHTS, 0), &[WEIGHTS]),
    ("truncated length", |f| truncate(f, WEIGHTS, 7), &[WEIGHTS]),
    ("truncated header", |f| truncate(f, WEIGHTS, 1000), &[WEIGHTS]),
    ("truncated data", |f| truncate(f, WEIGHTS, 1_000_000), &[WEIGHTS]),
    ("header of no bytes", |f| header_length(f, 0), &[WEIGHTS]),
    ("oversized header", |f| header_length(f, 1 << 40), &[WEIGHTS]),
    ("header length overflows", |f| header_length(f, u64::MAX), &[WEIGHTS]),
    ("trailing bytes", |f| weights(f, |_, data| data.extend([0; 64])), &[WEIGHTS]),
    (
        "overlapping tensors",
        |f| {
            weights(f, |header, _| {
                let other = header["model.layers.0.self_attn.q_proj.weight"]["data_offsets"].clone();
                header[Q]["data_offsets"] = other;
            });
        },
        &[WEIGHTS, "tensor"],
    ),
    (
        "offsets beyond the file",
        |f| weights(f, |header, _| header[Q]["data_offsets"] = json!([1_u64 << 40, (1_u64 << 40) + 32768])),
        &[WEIGHTS],
    ),
    (
        "offsets that run backwards",
        |f| weights(f, |header, _| header[Q]["data_offsets"] = json!([100, 50])),
        &[WEIGHTS, Q],
    ),
    (
        "offsets at the end of u64",
        |f| weights(f, |header, _| header[Q]["data_offsets"] = json!([u64::MAX - 1, u64::MAX])),
        &[WEIGHTS, Q],
    ),
    ("negative offset", |f| weights(f, |header, _| header[Q]["data_offsets"] = json!([-1, 5])), &[WEIGHTS]),
    (
        "shape that overflows",
        |f| weights(f, |header, _| header[Q]["shape"] = json!([1_u64 << 40, 1_u64 << 40])),
        &[WEIGHTS, Q],
    ),
    (
        "shape that is not the data's",
        |f| weights(f, |header, _| header[Q]["shape"] = json!([128, 129])),
        &[WEIGHTS, Q],
    ),
    (
        "shape that is not the configuration's",
        |f| weights(f, |header, _| header[Q]["shape"] = json!([64, 256])),
        &["model.layers.1.self_attn.q_proj", "128"],
    ),
    ("norm of another length", |f| weights(f, |header, _| header[NORM]["shape"] = json!([2, 64])), &[NORM]),
    ("unknown dtype", |f| weights(f, |header, _| header[Q]["dtype"] = json!("F13")), &[WEIGHTS, Q, "F13"]),
    (
        "integers where weights belong",
        |f| weights(f, |header, _| header[Q]["dtype"] = json!("I16")),
        &["model.layers.1.self_attn.q_proj", "I16"],
    ),
    (
        "missing tensor",
        |f| {
            weights(f, |header, _| {
                let entry = header.as_object_mut().unwrap().remove(Q).unwrap();
                header[SPARE] = entry;
            });
        },
        &[Q],
    ),
    (
        "missing norm",
        |f| {
            weights(f, |header, _| {
                let entry = header.as_object_mut().unwrap().remove(NORM).unwrap();
                header[SPARE] = entry;
            });
        },
        &[NORM],
    ),
    ("header is not JSON", |f| weights(f, |header, _| *header = json!("text")), &[WEIGHTS]),
    ("missing shard", shard_away, &["model-00002-of-00002.safetensors"]),
    ("no weights", |f| fs::remove_file(f.join(WEIGHTS)).unwrap(), &[WEIGHTS]),
    ("no config.json", |f| fs::remove_file(f.join(CONFIG)).unwrap(), &[CONFIG]),
    ("config.json is not JSON", |f| fs::write(f.join(CONFIG), "{\"model_type\": ").unwrap(), &[CONFIG]),
    ("config.json is a list", |f| fs::write(f.join(CONFIG), "[]").unwrap(), &[CONFIG]),
    ("config.json is not UTF-8", |f| fs::write(f.join(CONFIG), b"{\"a\": \"\xff\"}").unwrap(), &[CONFIG]),
    ("deeply nested JSON", |f| fs::write(f.join(CONFIG), "[".repeat(TOWER)).unwrap(), &[CONFIG]),
    ("huge hidden_size", |f| config(f, "hidden_size", json!(u64::MAX)), &[CONFIG, "hidden_size"]),
    ("hidden_size that is no number", |f| config(f, "hidden_size", json!("128")), &[CONFIG]),
    ("hidden_size 1e300", |f| config(f, "hidden_size", json!(1e300)), &[CONFIG]),
    ("vocab_size 0", |f| config(f, "vocab_size", json!(0)), &[CONFIG, "vocab_size"]),
    ("another vocab_size", |f| config(f, "vocab_size", json!(4096)), &["model.embed_tokens", "4096"]),
    ("huge number of layers", |f| config(f, "num_hidden_layers", json!(1_u64 << 40)), &["num_hidden_layers"]),
    ("more layers than tensors", |f| config(f, "num_hidden_layers", json!(4)), &["model.layers.3"]),
    ("heads that do not divide", |f| config(f, "num_key_value_heads", json!(3)), &["num_key_value_heads"]),
    ("unsupported architecture", |f| config(f, "model_type", json!("mamba")), &[CONFIG, "mamba"]),
    ("unsupported activation", |f| config(f, "hidden_act", json!("gelu")), &[CONFIG, "gelu"]),
    (
        "unsupported rope",
        |f| config(f, "rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
        &[CONFIG, "yarn"],
    ),
    (
        "rope factor 0",
        |f| config(f, "rope_scaling", json!({"rope_type": "linear", "factor": 0.0})),
        &[CONFIG, "factor"],
    ),
    ("negative rope_theta", |f| config(f, "rope_theta", json!(-1.0)), &[CONFIG, "rope_theta"]),
    (
        "sliding window",
        |f| {
            config(f, "model_type", json!("mistral"));
            config(f, "sliding_window", json!(64));
        },
        &[CONFIG, "sliding"],
    ),
    (
        "unknown quantization method",
        |f| config(f, "quantization_config", json!({"quant_method": "gguf"})),
        &[CONFIG, "gguf"],
    ),
    (
        "quantization without a method",
        |f| config(f, "quantization_config", json!({"bits": 4})),
        &[CONFIG, "quant_method"],
    ),
    ("NaN weight", |f| poison(f, Q, 0x7e00), &["model.layers.1.self_attn.q_proj.weight", "finite"]),
    ("infinite weight", |f| poison(f, Q, 0x7c00), &["model.layers.1.self_attn.q_proj.weight", "finite"]),
    ("NaN in the embedding", |f| poison(f, EMBEDDING, 0x7e00), &[EMBEDDING, "finite"]),
];

#[test]
fn broken_checkpoints_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    for (index, (what, damage, words)) in CHECKPOINTS.iter().enumerate() {
        let folder = scratch.path().join(index.to_string());
        copy_of_tale(&folder);
        damage(&folder);
        let output = scratch.path().join(format!("{index}-out"));
        let generate = args(&["generate", &arg(&folder), "--prompt", "a", "--max-tokens", "1"]);
        both_refused_naming(&folder, what, &generate, words);
        // A norm of another shape is copied unchanged. Only loading the model interprets it.
        if !words.contains(&NORM) {
            let quantize = args(&["quantize", &arg(&folder), "-o", &arg(&output)]);
            both_refused_naming(&folder, what, &quantize, words);
            does_not_look_whole(what, &output);
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn broken_tokenizers_are_refused_by_name() {
    let cases: &[Broken] = &[
        ("no tokenizer", |f| fs::remove_file(f.join("tokenizer.json")).unwrap(), &["tokenizer.json"]),
        ("truncated", |f| truncate(f, "tokenizer.json", 5000), &["tokenizer.json"]),
        ("empty", |f| truncate(f, "tokenizer.json", 0), &["tokenizer.json"]),
        ("a number", |f| fs::write(f.join("tokenizer.json"), "1").unwrap(), &["tokenizer.json"]),
        ("nested", |f| fs::write(f.join("tokenizer.json"), "[".repeat(TOWER)).unwrap(), &["tokenizer.json"]),
        (
            "more tokens than the embedding has rows",
            |f| {
                edit_json(&f.join("tokenizer.json"), |json| {
                    json["model"]["vocab"]["one too many"] = json!(2048);
                });
            },
            &["2049", "2048"],
        ),
        (
            "settings that are no JSON",
            |f| fs::write(f.join("tokenizer_config.json"), "{").unwrap(),
            &["tokenizer_config.json"],
        ),
    ];
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    for (what, damage, words) in cases {
        let folder = scratch.path().join("broken");
        copy_of_tale(&folder);
        damage(&folder);
        for command in [
            &["generate", &arg(&folder), "--prompt", "a", "--max-tokens", "1"][..],
            &["perplexity", &arg(&folder), "--text", &text],
            &["perplexity", &arg(tale()), "--text", &text, "--tokenizer", &arg(&folder)],
        ] {
            both_refused_naming(&folder, what, &args(command), words);
        }
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    let (tale, output) = (arg(tale()), scratch.path().join("out"));
    let long = fs::read_to_string(Path::new(&tale).join("heldout.txt")).unwrap();
    let long = &long[..4000];
    let quantize: &[(&[&str], &str)] = &[
        (&["--group-size", "0"], "0"),
        (&["--group-size", "-2"], "-2"),
        (&["--group-size", "100", "--strict"], "100"),
        (&["--group-size", "100000"], "at most 256"),
        (&["--bits", "5"], "5"),
        (&["--bits", "0"], "0"),
        (&["--quantize-embedding", "5"], "5"),
        (&["--ternary-scale", "tensor"], "ternary"),
        (&["--sparsity-threshold", "0.5"], "sparsity"),
        (&["--method", "ternary", "--sparsity-threshold", "NaN"], "NaN"),
        (&["--method", "ternary", "--sparsity-threshold", "0"], "0"),
        (&["--method", "ternary", "--bits", "4"], "ternary"),
        (&["--method", "ternary", "--quantize-head"], "head"),
        (&["--method", "ternary", "--activations", "f32"], "int8"),
    ];
    for (options, word) in quantize {
        let all = [&["quantize", &tale, "-o", output.to_str().unwrap()], *options].concat();
        both_refused(&options.join(" "), &args(&all), &[word]);
        does_not_look_whole(&options.join(" "), &output);
    }
    let generate: &[(&[&str], &str)] = &[
        (&["--temperature", "NaN"], "temperature"),
        (&["--temperature", "-1"], "temperature"),
        (&["--temperature", "inf"], "temperature"),
        (&["--top-p", "0"], "--top-p"),
        (&["--top-p", "2"], "--top-p"),
        (&["--top-p", "-0.5"], "--top-p"),
        (&["--min-p", "-1"], "--min-p"),
        (&["--repetition-penalty", "0"], "--repetition-penalty"),
        (&["--repetition-penalty", "NaN"], "--repetition-penalty"),
        (&["--stop", ""], "stop"),
        (&["--max-tokens", "0"], "--max-tokens"),
        (&["--max-tokens", "513"], "512"),
        (&["--max-tokens", "18446744073709551615"], "512"),
        (&["--chat"], "template"),
    ];
    for (options, word) in generate {
        let all = [&["generate", &tale, "--prompt", "Once"], *options].concat();
        both_refused(&options.join(" "), &args(&all), &[word]);
    }
    both_refused("long prompt", &args(&["generate", &tale, "--prompt", long]), &["512"]);
    both_refused("long prompt", &args(&["compare", &tale, &tale, "--prompt", long]), &["512"]);
    let windows: &[(&[&str], &str)] = &[
        (&["--context", "0"], "context"),
        (&["--context", "1"], "context"),
        (&["--context", "100000"], "512"),
        (&["--stride", "0"], "stride"),
        (&["--stride", "513"], "stride"),
        (&["--context", "18446744073709551615"], "512"),
    ];
    for (options, word) in windows {
        let all = [&["perplexity", &tale, "--text", &text], *options].concat();
        both_refused(&options.join(" "), &args(&all), &[word]);
    }
    let plans: &[&[&str]] = &[
        &["--params", "many"],
        &["--params", "0"],
        &["--params", "1e400"],
        &["--params", "99999999999999999999999B"],
        &["--params", "500M", "--memory", "much"],
        &["--params", "500M", "--memory", "0"],
        &["--params", "500M", "--context", "0"],
        &["--params", "500M", "--context", "18446744073709551615"],
    ];
    for options in plans {
        both_refused(&options.join(" "), &args(&[&["plan"], *options].concat()), &[]);
    }
}

#[test]
fn wrong_usage_is_one_document_for_programs() {
    for args in [
        &["bogus"][..],
        &[],
        &["inspect"],
        &["quantize", "a", "-o", "b", "--group-size", "99999999999999999999"],
        &["generate", "a"],
        &["plan"],
        &["plan", "a", "--params", "5M"],
    ] {
        let ran = lowbit(args.iter().chain(&["--json"]));
        assert_eq!(ran.code, 2, "{args:?}");
        let document = ran.json();
        assert_eq!(document["error"]["code"], "invalid_argument", "{args:?}");
        let message = document["error"]["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
        let ran = lowbit(args);
        assert_eq!(ran.code, 2, "{args:?}");
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn texts_and_paths_that_are_not_there_or_not_texts() {
    let scratch = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = scratch.path().join(name);
        fs::write(&path, bytes).unwrap();
        arg(path)
    };
    let absent = arg(scratch.path().join("absent"));
    let folder = arg(scratch.path());
    let tale = arg(tale());
    let text = short_text(scratch.path());
    for (path, word) in [
        (write("empty.txt", b""), "empty.txt"),
        (write("latin1.txt", b"caf\xe9 au lait"), "UTF-8"),
        (absent.clone(), "absent"),
        (folder.clone(), &folder),
    ] {
        both_refused(word, &args(&["perplexity", &tale, "--text", &path]), &[word]);
    }
    let file = write("file", b"x");
    for command in [
        &["inspect", "X"][..],
        &["plan", "X"],
        &["perplexity", "X", "--text", &text],
        &["generate", "X", "--prompt", "a"],
        &["quantize", "X", "-o", "OUT"],
        &["dequantize", "X", "-o", "OUT"],
        &["compare", &tale, "X", "--prompt", "a"],
        &["validate", &tale, "X", "--text", &text],
        &["validate", "X", &tale, "--text", &text],
    ] {
        for (place, word) in [(&absent, "absent"), (&file, "file"), (&folder, "config.json")] {
            let output = scratch.path().join("out");
            let filled: Vec<String> = command
                .iter()
                .map(|word| match *word {
                    "X" => place.clone(),
                    "OUT" => arg(&output),
                    word => word.to_owned(),
                })
                .collect();
            both_refused(&filled.join(" "), &filled, &[word]);
            assert!(!output.exists(), "{filled:?}");
        }
    }
    both_refused("output is a file", &args(&["quantize", &tale, "-o", &file]), &[&file, "expected a folder"]);
    assert_eq!(fs::read(&file).unwrap(), b"x");
    let inside = format!("{file}/out");
    both_refused("output inside a file", &args(&["quantize", &tale, "-o", &inside]), &["file"]);
    // Unwritable files are reported before any work.
    let nowhere = arg(scratch.path().join("nowhere/file"));
    let output = arg(scratch.path().join("never"));
    for file in [&folder, &nowhere] {
        for command in [
            &["quantize", &tale, "-o", &output, "--metrics", file][..],
            &["dequantize", &absent, "-o", &output, "--metrics", file],
            &["validate", &absent, &absent, "--text", &text, "--metrics", file],
            &["validate", &absent, &absent, "--text", &text, "-o", file],
        ] {
            both_refused(&command.join(" "), &args(command), &[file]);
        }
    }
    let twice = ["quantize", &tale, "-o", &output, "--also-dequantized"];
    both_refused("twice", &args(&[&twice[..], &[&output]].concat()), &["the same folder"]);
    let foreign = &[&twice[..], &[&tale]].concat();
    both_refused("over the source", &args(foreign), &["source"]);
    assert!(!Path::new(&output).exists());
    assert!(!scratch.path().join("nowhere").exists());
    // A file inside the output folder is allowed.
    let inside = format!("{output}/metrics.jsonl");
    lowbit(["quantize", &tale, "-o", &output, "--metrics", &inside]).done();
    assert!(Path::new(&inside).is_file());
}

fn quantized(scratch: &Path) -> PathBuf {
    let output = scratch.join("quantized");
    lowbit(["quantize", &arg(tale()), "-o", &arg(&output), "--bits", "8"]).done();
    output
}

#[test]
fn folders_that_do_not_fit_the_command() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    let output = scratch.path().join("out");
    let (tale, quantized, out) = (arg(tale()), quantized(scratch.path()), arg(&output));
    let quantized = arg(quantized);
    both_refused("twice", &args(&["quantize", &quantized, "-o", &out]), &["already quantized"]);
    both_refused("dense", &args(&["dequantize", &tale, "-o", &out]), &[&tale, "quantized"]);
    assert!(!output.exists());
    let common = ["--text", &text, "--speed-rounds", "0", "--max-tokens", "2"];
    both_refused("dense", &args(&[&["validate", &tale, &tale], &common[..]].concat()), &[&tale, "quantized"]);

    let broken = arg(scratch.path().join("broken.jsonl"));
    for (lines, line) in [
        ("{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\nnonsense\n", "line 2"),
        ("{\"prompt\": \"a\", \"choices\": [\"b\"], \"answer\": 0}\n", "line 1"),
        ("\n{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}\n", "line 2"),
        ("{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": -1}\n", "line 1"),
        ("", "broken.jsonl"),
    ] {
        fs::write(&broken, lines).unwrap();
        let own = ["validate", &tale, &quantized, "--benchmark", &broken];
        both_refused(lines, &args(&[&own, &common[..]].concat()), &["broken.jsonl", line]);
    }
    for (option, value, words) in [
        ("--max-perplexity-increase", "NaN", ["--max-perplexity-increase", "NaN"]),
        ("--max-perplexity-increase", "-1.5", ["--max-perplexity-increase", "-1.5"]),
        ("--max-benchmark-drop", "-101", ["--max-benchmark-drop", "-101"]),
        ("--min-memory-ratio", "inf", ["--min-memory-ratio", "inf"]),
        ("--min-memory-ratio", "-2", ["--min-memory-ratio", "-2"]),
        ("--min-speed-ratio", "NaN", ["--min-speed-ratio", "NaN"]),
    ] {
        let own = ["validate", &tale, &quantized, option, value];
        both_refused(option, &args(&[&own, &common[..]].concat()), &words);
    }
    // A negative limit is valid: better than the original.
    let wish = ["validate", &tale, &quantized, "--max-perplexity-increase", "-0.5"];
    assert_eq!(lowbit([&wish, &common[..]].concat()).code, 1);
    let retention = ["dequantize", &quantized, "-o", &out, "--min-retention", "-1"];
    both_refused("retention", &args(&retention), &["--min-retention", "at least 0 and at most 1", "-1"]);
    assert!(!output.exists());

    // A model with half the vocabulary.
    let small = scratch.path().join("small");
    copy_of_tale(&small);
    config(&small, "vocab_size", json!(1024));
    weights(&small, |header, data| {
        let name = "model.embed_tokens.weight";
        let range: Vec<usize> = serde_json::from_value(header[name]["data_offsets"].clone()).unwrap();
        let half = (range[1] - range[0]) / 2;
        header[name]["shape"][0] = json!(1024);
        header[name]["data_offsets"][1] = json!(range[0] + half);
        data.drain(range[0] + half..range[1]);
        for (other, entry) in header.as_object_mut().unwrap() {
            if other == "__metadata__" || other == name {
                continue;
            }
            for at in 0..2 {
                let offset = entry["data_offsets"][at].as_u64().unwrap() as usize;
                if offset >= range[1] {
                    entry["data_offsets"][at] = json!(offset - half);
                }
            }
        }
    });
    let small = arg(small);
    lowbit(["inspect", &small]).done();
    both_refused("vocabularies", &args(&["compare", &tale, &small, "--prompt", "a"]), &["1024"]);
    let own = ["validate", &small, &quantized];
    both_refused("vocabularies", &args(&[&own, &common[..]].concat()), &["1024"]);
}

#[test]
fn an_unfinished_folder_is_refused_by_every_command() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    let (tale, whole) = (arg(tale()), quantized(scratch.path()));
    let back = scratch.path().join("back");
    lowbit(["dequantize", &arg(&whole), "-o", &arg(&back)]).done();
    for (folder, last) in [(&whole, "quantization_config.json"), (&back, "quantization_metadata.json")] {
        let unfinished = scratch.path().join(format!("without-{last}"));
        copy(folder, &unfinished);
        fs::remove_file(unfinished.join(last)).unwrap();
        let before = files(&unfinished);
        let (u, out) = (arg(&unfinished), arg(scratch.path().join("out")));
        for command in [
            &["inspect", &u][..],
            &["plan", &u],
            &["perplexity", &u, "--text", &text],
            &["generate", &u, "--prompt", "a"],
            &["quantize", &u, "-o", &out],
            &["dequantize", &u, "-o", &out],
            &["compare", &tale, &u, "--prompt", "a"],
            &["compare", &u, &tale, "--prompt", "a"],
            &["validate", &tale, &u, "--text", &text],
        ] {
            both_refused(&command.join(" "), &args(command), &[&u, last]);
            let code = lowbit(command.iter().chain(&["--json"])).json()["error"]["code"].clone();
            assert_eq!(code, "unfinished_output");
        }
        assert_eq!(files(&unfinished), before);
        assert!(!Path::new(&out).exists());
        // A second run completes it.
        if folder == &whole {
            lowbit(["quantize", &tale, "-o", &u, "--bits", "8"]).done();
            lowbit(["inspect", &u]).done();
        }
    }
}

#[test]
fn broken_quantized_weights_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    const PACKED: &str = "model.layers.0.mlp.up_proj.weight_packed";
    const SCALE: &str = "model.layers.0.mlp.up_proj.weight_scale";
    let cases: &[Broken] = &[
        ("NaN scale", |f| poison(f, SCALE, 0x7e00), &[SCALE, "NaN"]),
        ("codes of another type", |f| weights(f, |h, _| h[PACKED]["dtype"] = json!("F32")), &[PACKED]),
        (
            "codes of another shape",
            |f| {
                weights(f, |h, _| {
                    let rows = h[PACKED]["shape"][0].as_u64().unwrap();
                    let words = h[PACKED]["shape"][1].as_u64().unwrap();
                    h[PACKED]["shape"] = json!([rows * 2, words / 2]);
                });
            },
            &["model.layers.0.mlp.up_proj"],
        ),
        (
            "no scales",
            |f| {
                weights(f, |h, _| {
                    let entry = h.as_object_mut().unwrap().remove(SCALE).unwrap();
                    h[SPARE] = entry;
                });
            },
            &[SCALE],
        ),
        (
            "group size 0",
            |f| {
                edit_json(&f.join(CONFIG), |config| {
                    let groups = config["quantization_config"]["config_groups"].as_object_mut().unwrap();
                    for group in groups.values_mut() {
                        group["weights"]["group_size"] = json!(0);
                        group["weights"]["strategy"] = json!("group");
                    }
                });
            },
            &["group"],
        ),
    ];
    let whole = scratch.path().join("whole");
    lowbit(["quantize", &arg(tale()), "-o", &arg(&whole), "--bits", "4", "--group-size", "32"]).done();
    for (what, damage, words) in cases {
        let folder = scratch.path().join("broken");
        copy(&whole, &folder);
        damage(&folder);
        let output = scratch.path().join("out");
        both_refused(what, &args(&["generate", &arg(&folder), "--prompt", "a", "--max-tokens", "1"]), words);
        both_refused(what, &args(&["dequantize", &arg(&folder), "-o", &arg(&output)]), words);
        does_not_look_whole(what, &output);
    }
}

/// A file system of 1 MiB, unmounted at the end.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=300k", "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_to_be_full() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    let (tale, quantized) = (arg(tale()), arg(quantized(scratch.path())));
    let out = arg(scratch.path().join("out"));
    let full = ["quantize", &tale, "-o", &out, "--metrics", "/dev/full"];
    both_refused("metrics", &args(&full), &["/dev/full", "no space left"]);
    let common = ["validate", &tale, &quantized, "--text", &text, "--speed-rounds", "0", "--max-tokens", "2"];
    both_refused(
        "report",
        &args(&[&common, &["-o", "/dev/full"][..]].concat()),
        &["/dev/full", "no space left"],
    );

    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: quantizing onto a full disk: mounting a small tmpfs needs root");
        return;
    };
    for command in [["quantize", &tale], ["dequantize", &quantized]] {
        let output = disk.0.path().join(command[0]);
        let all = args(&[&command[..], &["-o", output.to_str().unwrap()]].concat());
        both_refused(command[0], &all, &["no space left", output.to_str().unwrap()]);
        does_not_look_whole(command[0], &output);
        let code = lowbit(all.iter().map(String::as_str).chain(["--json"])).json()["error"]["code"].clone();
        assert_eq!(code, "storage_full");
        let _ = fs::remove_dir_all(output);
    }
}
