//! Recipes: different precision for some modules.

use crate::terminal::{CommandResult, arg, files, lowbit, short_text, tale};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Attention INT8, MLP INT4.
const MIXED: &str = r#"
[[rules]]
modules = "*.self_attn.*"
bits = 8

[[rules]]
modules = ["*.gate_proj", "*.up_proj", "*.down_proj"]
bits = 4
group_size = 32
"#;

/// Writes a recipe to a file of `folder`.
fn recipe(folder: &Path, name: &str, text: &str) -> String {
    fs::write(folder.join(name), text).unwrap();
    arg(folder.join(name))
}

fn quantize(output: &Path, recipe: &str, options: &[&str]) -> CommandResult {
    let (tale, output) = (arg(tale()), arg(output));
    let args = ["quantize", &tale, "-o", &output, "--recipe", recipe, "--json"];
    lowbit(args.iter().chain(options))
}

fn read(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn perplexity(folder: &Path, text: &str) -> f64 {
    let ran = lowbit(["perplexity", &arg(folder), "--text", text, "--context", "128", "--json"]);
    ran.done().json()["perplexity"].as_f64().unwrap()
}

/// Bits for each weight in matrices of these shapes: codes and F16 scales.
fn bits_per_weight(config: &Value) -> f64 {
    let size = |key: &str| config[key].as_u64().unwrap_or_else(|| panic!("{key}")) as f64;
    let (hidden, inner, heads) =
        (size("hidden_size"), size("intermediate_size"), size("num_attention_heads"));
    let kv = hidden / heads * size("num_key_value_heads");
    let attention = 2.0 * hidden * hidden + 2.0 * kv * hidden;
    let attention_bits = attention * 8.0 + (2.0 * hidden + 2.0 * kv) * 16.0;
    let mlp = 3.0 * hidden * inner;
    (attention_bits + mlp * 4.5) / (attention + mlp)
}

#[test]
fn attention_in_int8_and_mlp_in_int4() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    let mixed = recipe(scratch.path(), "mixed.toml", MIXED);
    let output = scratch.path().join("mixed");
    let ran = quantize(&output, &mixed, &["--strict"]).done();
    for note in [
        "12 modules: int8-channel-sym by rtn (recipe rule 1 (`*.self_attn.*`))",
        "9 modules: int4-g32-sym by rtn (recipe rule 2 (`*.gate_proj`, ...))",
    ] {
        assert!(ran.stderr.contains(note), "{}", ran.stderr);
    }
    let document = ran.json();
    assert_eq!((&document["scheme"], &document["method"]), (&json!("mixed"), &json!("rtn")));
    let found = document["bits_per_weight"].as_f64().unwrap();
    let expected = bits_per_weight(&read(tale().join("config.json")));
    assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");

    let record = read(output.join("quantization_config.json"));
    assert_eq!(record["parameters"]["recipe"]["rules"][0], json!({"modules": ["*.self_attn.*"], "bits": 8}));
    let modules = record["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 21);
    for module in modules {
        let attention = module["name"].as_str().unwrap().contains("self_attn");
        assert_eq!(module["scheme"], if attention { "int8-channel-sym" } else { "int4-g32-sym" });
        assert_eq!(module["method"], "rtn");
        assert!(module["reason"].as_str().unwrap().starts_with("recipe rule "), "{module}");
    }
    let inspection = lowbit(["inspect", &arg(&output), "--json"]).done().json();
    assert_eq!(inspection["linear_formats"], json!({"int4-g32-sym": 9, "int8-channel-sym": 12}));

    // Between the losses of INT4 and INT8 for all modules. The same codes in another format predict the same.
    let all = |name: &str, options: &[&str]| {
        let path = scratch.path().join(name);
        let (tale, output) = (arg(tale()), arg(&path));
        lowbit(["quantize", &tale, "-o", &output].iter().chain(options)).done();
        perplexity(&path, &text)
    };
    let mixed_perplexity = perplexity(&output, &text);
    println!(
        "{found:.3} bits: perplexity {mixed_perplexity:.4}; int8 {:.4}, int4 {:.4}",
        all("int8", &["--bits", "8"]),
        all("int4", &["--bits", "4", "--group-size", "32"])
    );
    let gptq = scratch.path().join("gptq");
    quantize(&gptq, &mixed, &["--format", "gptq"]).done();
    assert!((perplexity(&gptq, &text) / mixed_perplexity - 1.0).abs() < 1e-6);

    let report = scratch.path().join("report.json");
    let args = ["validate", &arg(tale()), &arg(&output), "--text", &text, "-o", &arg(&report)];
    let ran = lowbit(args);
    println!("{}", ran.stdout);
    // Memory and speed of this machine count too.
    assert!(matches!(ran.code, 0 | 1), "{}", ran.stderr);
    let report = read(report);
    for criterion in report["criteria"].as_array().unwrap() {
        let quality = criterion["name"].as_str().unwrap().contains("perplexity");
        assert!(!quality || criterion["status"] == "passed", "{criterion}");
    }
}

#[test]
fn kept_modules_stay_as_they_are_and_go_the_way_back() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    let place = |name: &str| scratch.path().join(name);
    let keep = recipe(
        scratch.path(),
        "keep.json",
        r#"{"rules": [{"modules": ["model.layers.0.*", "*.down_proj"], "keep": true}]}"#,
    );
    for format in ["compressed-tensors", "gptq", "awq"] {
        let output = place(format);
        let ran = quantize(&output, &keep, &["--group-size", "32", "--format", format]).done();
        let note = "9 modules: f16 (recipe rule 1 (`model.layers.0.*`, ...) keeps it)";
        assert!(ran.stderr.contains(note), "{}", ran.stderr);
        assert_eq!(ran.json()["scheme"], "int4-g32-sym");
        let inspection = lowbit(["inspect", &arg(&output), "--json"]).done().json();
        // AWQ stores a zero point for every group.
        let stored = if format == "awq" { "int4-g32-asym" } else { "int4-g32-sym" };
        assert_eq!(inspection["linear_formats"][stored], 12, "{inspection:#}");
        assert!(perplexity(&output, &text) > 1.0);
    }
    lowbit(["dequantize", &arg(place("compressed-tensors")), "-o", &arg(place("floats"))]).done();
    lowbit(["quantize", &arg(place("floats")), "-o", &arg(place("again")), "--from-metadata"]).done();
    let (before, after) = (files(&place("compressed-tensors")), files(&place("again")));
    assert!(before["model.safetensors"] == after["model.safetensors"], "other bytes");
    let config = |name: &str| read(place(name).join("config.json"))["quantization_config"].take();
    assert_eq!(config("compressed-tensors"), config("again"));
}

#[test]
fn methods_are_mixed_too() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    let calibration = ["--calibration", &text, "--samples", "4", "--sequence-length", "64"];
    let by_gptq = r#"{"rules": [{"modules": "*.mlp.*", "method": "gptq", "group_size": 32},
        {"modules": "*.[qk]_proj", "method": "ternary"}]}"#;
    let output = scratch.path().join("out");
    let path = recipe(scratch.path(), "gptq.json", by_gptq);
    let document = quantize(&output, &path, &calibration).done().json();
    assert_eq!((&document["method"], &document["scheme"]), (&json!("mixed"), &json!("mixed")));
    let record = read(output.join("quantization_config.json"));
    for module in record["modules"].as_array().unwrap() {
        let name = module["name"].as_str().unwrap();
        let (method, scheme) = match name.rsplit('.').next().unwrap() {
            "q_proj" | "k_proj" => ("ternary", "ternary-tensor"),
            "v_proj" | "o_proj" => ("rtn", "int4-g128-sym"),
            _ => ("gptq", "int4-g32-sym"),
        };
        assert_eq!((&module["method"], &module["scheme"]), (&json!(method), &json!(scheme)), "{name}");
        assert_eq!(
            module.get("calibration").is_some_and(|record| !record.is_null()),
            method == "gptq",
            "{name}"
        );
    }
    assert!(perplexity(&output, &text) > 1.0);
}

/// Largest relative change of the shipped checkpoint's perplexity by INT8 weights. Scales folded in the
/// wrong place more than double it.
const INT8_MOVES: f64 = 2e-3;

#[test]
fn awq_is_mixed_with_other_methods_where_no_input_is_shared() {
    let scratch = tempfile::tempdir().unwrap();
    let text = short_text(scratch.path());
    let original = perplexity(&tale(), &text);
    let calibrated = |name: &str, rules: &str, more: &[&str]| {
        let path = recipe(scratch.path(), &format!("{name}.json"), &format!(r#"{{"rules": [{rules}]}}"#));
        let mut options = vec!["--calibration", &text, "--samples", "4", "--sequence-length", "64"];
        options.extend(more);
        quantize(&scratch.path().join(name), &path, &options)
    };
    for (name, rules, options) in [
        ("awq-for-mlp", r#"{"modules": "*.mlp.*", "method": "awq"}"#, &["--method", "gptq"][..]),
        // The layer that absorbs an input's scales is quantized by another method.
        (
            "awq-after-others",
            r#"{"modules": ["*.o_proj", "*.down_proj"], "method": "awq"},
               {"modules": "*.[qkv]_proj", "method": "gptq"}"#,
            &["--method", "rtn"],
        ),
        (
            "awq-after-act-order",
            r#"{"modules": ["*.o_proj", "*.down_proj"], "method": "awq"}"#,
            &["--method", "gptq", "--act-order", "group-index", "--format", "gptq", "--group-size", "32"],
        ),
        (
            "awq-after-ternary",
            r#"{"modules": "*.down_proj", "method": "awq"}, {"modules": "*.0.mlp.up_proj", "method": "ternary"}"#,
            &["--method", "rtn"],
        ),
    ] {
        let document = calibrated(name, rules, &[options, &["--bits", "8"]].concat()).done().json();
        assert_eq!(document["method"], "mixed", "{name}");
        let modules = document["modules"].as_array().unwrap();
        let scaled =
            modules.iter().filter(|module| module["calibration"]["ratio"].as_f64().is_some()).count();
        assert!(scaled > 0, "{name}: nothing was scaled");
        for module in modules.iter().filter(|module| module["scheme"] != "ternary-tensor") {
            let snr = module["snr_db"].as_f64().unwrap();
            assert!(
                snr > 30.0,
                "{name}: {} has {snr} dB: errors are of weights without scales",
                module["name"]
            );
        }
        if name != "awq-after-ternary" {
            let found = perplexity(&scratch.path().join(name), &text);
            println!("{name}: {found:.4}, original {original:.4}");
            assert!((found / original - 1.0).abs() < INT8_MOVES, "{name}: {found}, original {original}");
        }
    }
    let ran = calibrated("refused", r#"{"modules": "*.[kv]_proj", "method": "awq"}"#, &["--method", "gptq"]);
    let says = "the recipe quantizes `model.layers.0.self_attn.k_proj` with awq and `model.layers.0.self_attn.q_proj` with gptq, \
                but both read the same input, which awq scales";
    assert!(ran.code == 2 && ran.stderr.contains(says), "{}", ran.stderr);
    assert!(!scratch.path().join("refused").join("model.safetensors").exists());
}

#[test]
fn what_cannot_be_is_refused_before_any_work() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("out");
    let bits = |modules: &str, bits: u32| format!(r#"{{"modules": "{modules}", "bits": {bits}}}"#);
    let (attention, mlp) = (bits("*.self_attn.*", 8), bits("*.mlp.*", 4));
    // (rules, options, message)
    let cases: [(&str, &[&str], &str); 9] = [
        (
            &attention,
            &["--format", "awq"],
            "the awq layout: it has one scheme for all modules, but the recipe makes \
             `model.layers.0.self_attn.q_proj` int8-channel-sym and `model.layers.0.mlp.gate_proj` int4-g128-sym",
        ),
        (
            r#"{"modules": "*.self_attn.*", "method": "rtn"}"#,
            &["--method", "ternary", "--format", "bitnet"],
            "the bitnet layout: it has one scheme for all modules",
        ),
        (&bits("*.qproj", 8), &[], "recipe rule 1 (`*.qproj`): it matches no quantized module"),
        (&bits("lm_head", 8), &[], "`lm_head` if the head is quantized"),
        (
            &format!("{}, {attention}", bits("*", 4)),
            &[],
            "recipe rule 2 (`*.self_attn.*`): earlier rules match all of its modules",
        ),
        (r#"{"modules": "*", "keep": true}"#, &[], "the recipe keeps every module in floating point"),
        (r#"{"modules": "*.mlp.*", "method": "gptq"}"#, &[], "method gptq needs calibration texts"),
        (&mlp, &["--calibration", "text.txt"], "method rtn takes no calibration texts"),
        (r#"{"modules": "*", "group_size": 4096}"#, &[], "expected a group size of at most"),
    ];
    for (rules, options, expected) in cases {
        let path = recipe(scratch.path(), "recipe.json", &format!(r#"{{"rules": [{rules}]}}"#));
        let ran = quantize(&output, &path, options);
        assert_eq!(ran.code, 2, "{rules}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{rules}: {}", ran.stderr);
        assert!(!output.exists(), "{rules}");
    }
    let large = vec![b' '; 300_000];
    let broken: [(&str, &[u8], &str); 4] = [
        ("broken.toml", b"[[rules]\n", "broken.toml: "),
        ("broken.json", b"{", "broken.json: EOF while parsing"),
        ("bytes.json", b"\xff\xfe", "bytes.json: expected text in UTF-8"),
        ("large.json", &large, "large.json: expected a recipe of at most 262144 bytes"),
    ];
    for (name, bytes, expected) in broken {
        fs::write(scratch.path().join(name), bytes).unwrap();
        let ran = quantize(&output, &arg(scratch.path().join(name)), &[]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
    let ran = quantize(&output, &arg(scratch.path().join("none.json")), &[]);
    assert!(ran.code == 2 && ran.stderr.contains("none.json"), "{}", ran.stderr);
}
