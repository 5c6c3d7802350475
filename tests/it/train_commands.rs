//! `lowbit train` and `lowbit qat` on the command line.

use crate::terminal::{arg, copy_of_tale, llama_config, lowbit, short_text, tale};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

fn verse(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, "Twinkle, twinkle, little star, how I wonder what you are.\n".repeat(40)).unwrap();
    path
}

/// The message about invalid input.
fn refused<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let ran = lowbit(args);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    ran.stderr
}

/// Options of short runs.
const SHORT: [&str; 6] = ["--steps", "60", "--context", "32", "--batch-tokens", "128"];

#[test]
fn a_model_begins_anew_with_a_configuration_and_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let (model, text) = (llama_config(folder.path(), 300, [32, 64, 2, 1]), verse(folder.path(), "verse.txt"));
    let (output, log) = (folder.path().join("out"), folder.path().join("log.jsonl"));
    let csv = folder.path().join("log.csv");
    for (bits, log) in [("none", &log), ("ternary", &csv)] {
        let mut args = vec!["train", "--json", "--bits", bits, "--learning-rate", "0.01"];
        args.extend(SHORT);
        let paths = [arg(&model), "--data".into(), arg(&text), "--held-out".into(), arg(&text)];
        let rest = ["-o".into(), arg(&output), "--metrics".into(), arg(log)];
        let args = args.into_iter().map(str::to_owned).chain(paths).chain(rest);
        let ran = lowbit(args).done();
        assert!(ran.stderr.contains("made a tokenizer of "), "{}", ran.stderr);
        let said = ran.json();
        let perplexity = |key: &str| said[key].as_f64().unwrap();
        // Each token of the verse determines the next.
        assert!(perplexity("perplexity") < 2.0, "{said:#}");
        assert!(perplexity("perplexity_before") > 100.0, "{said:#}");
        let prompt = ["--prompt", "Twinkle,", "--max-tokens", "12", "--temperature", "0"];
        let told = lowbit([&["generate", &arg(&output)][..], &prompt].concat()).done().stdout;
        assert!(told.contains("little star, how I wonder what you are."), "{bits}: {told}");
    }
    let lines: Vec<Value> =
        fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert_eq!((of("step").len(), of("held_out").len()), (60, 11));
    for key in ["step", "seconds", "loss", "cross_entropy", "gradient", "learning_rate", "tokens", "epoch"] {
        assert!(of("step")[59][key].is_number(), "{key} in {}", of("step")[59]);
    }
    let columns = fs::read_to_string(&csv).unwrap();
    let mut rows = columns.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = rows.next().unwrap();
    assert_eq!(&head[..4], ["event", "step", "seconds", "loss"]);
    assert!(rows.all(|row| row.len() == head.len()));
    assert_eq!(columns.lines().count(), 72);
}

#[test]
fn a_checkpoint_learns_answers_and_learns_to_be_small() {
    let folder = tempfile::tempdir().unwrap();
    let chats = folder.path().join("chats.jsonl");
    let chat = |question: &str, answer: &str| {
        json!({ "messages": [{ "role": "user", "content": question }, { "role": "assistant", "content": answer }] })
            .to_string()
    };
    fs::write(&chats, [chat("Hello?", "Good day."), chat("Who is it?", "It is me.")].join("\n")).unwrap();
    let model = folder.path().join("model");
    copy_of_tale(&model);
    let args = |command: &str, more: &[&str]| {
        let paths = [arg(&model), "--data".into(), arg(&chats), "-o".into(), arg(folder.path().join("out"))];
        let rest = ["--steps", "2", "--context", "64", "--batch-tokens", "128"];
        let words = [&[command][..], &rest, more].concat();
        words.into_iter().map(str::to_owned).chain(paths).collect::<Vec<_>>()
    };
    // Chats need a template.
    let said = refused(args("train", &[]));
    assert!(said.contains("chats.jsonl: line 1: ") && said.contains("template"), "{said}");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    let said = lowbit(args("train", &["--json"])).done().json();
    assert_eq!(said["steps"], 2);
    assert!(folder.path().join("out/chat_template.jinja").exists());
    // A trained model is trained to fewer bits, end to end or block by block.
    let trained = arg(folder.path().join("trained"));
    fs::rename(folder.path().join("out"), &trained).unwrap();
    for more in [&["--steps", "2"][..], &["--steps", "0", "--block-steps", "2"]] {
        let words = ["qat", &trained, "--bits", "2", "--group-size", "32", "--context", "64", "--json"];
        let rest = ["--data", &arg(&chats), "-o", &arg(folder.path().join("small"))].map(str::to_owned);
        let words = words.iter().chain(more).map(|&word| word.to_owned());
        assert_eq!(lowbit(words.chain(rest)).done().json()["scheme"], "int2-g32-sym");
    }
    let said = lowbit(args("qat", &["--json", "--bits", "2", "--group-size", "32"])).done().json();
    assert_eq!(
        (said["scheme"].as_str(), said["format"].as_str()),
        (Some("int2-g32-sym"), Some("compressed-tensors"))
    );
    let record: Value =
        serde_json::from_slice(&fs::read(folder.path().join("out/quantization_config.json")).unwrap())
            .unwrap();
    assert_eq!((&record["method"], &record["parameters"]["method"]), (&"qat".into(), &"qat".into()));
    assert_eq!(record["parameters"]["training"]["parameters"]["teacher_share"], 1.0);
    let said = refused(args("qat", &[]));
    assert!(said.contains("--bits ternary, 2, 3, 4 or 8"), "{said}");
}

#[test]
fn data_that_makes_no_sense_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = arg(tale());
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        arg(path)
    };
    let cases = [
        (write("empty.txt", b""), "document 1: expected a token to predict but found none"),
        (write("outside.u16", &[1, 0, 255, 255]), "document 1: "),
        (write("odd.u16", &[1, 0, 2]), "odd.u16: "),
        (write("broken.jsonl", b"{\"text\": \"one\"}\n{\"text\""), "broken.jsonl: line 2: "),
        (write("other.jsonl", b"{\"body\": \"one\"}"), "other.jsonl: line 1: "),
        (write("binary.txt", &[0xff, 0xfe, 0x00]), "binary.txt: expected UTF-8 text"),
        (arg(folder.path().join("none.txt")), "none.txt: "),
    ];
    let output = arg(folder.path().join("out"));
    for (data, message) in cases {
        let said = refused(["train", &model, "--data", &data, "--steps", "1", "-o", &output]);
        assert!(said.contains(message), "{data}: {said}");
        assert!(!Path::new(&output).exists(), "{data}");
    }
    let text = arg(verse(folder.path(), "verse.txt"));
    for (args, message) in [
        (&["--memory", "10MB"][..], "but 10000000 are allowed"),
        (&["--teacher-share", "0.5"], "require a teacher"),
        (&["--temperature", "2"], "require a teacher"),
        (&["--evaluate-every", "2"], "belongs to a held-out text"),
        (&["--bits", "5"], "possible values"),
        (&["--learning-rate", "0"], "above 0"),
    ] {
        let args = [&["train", &model, "--data", &text, "-o", &output][..], args].concat();
        let said = refused(args);
        assert!(said.contains(message), "{said}");
    }
}

#[test]
fn training_begins_with_dequantized_weights_or_with_the_originals_and_the_way_back_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| arg(folder.path().join(name));
    let (text, tale, metrics) = (short_text(folder.path()), arg(tale()), place("metrics.jsonl"));
    let handed_over = |bits: &str| {
        let (packed, floats) = (place(&format!("int{bits}")), place(&format!("floats{bits}")));
        lowbit(["quantize", &tale, "--bits", bits, "-o", &packed]).done();
        let args = ["dequantize", &packed, "-o", &floats, "--for-training", "--json", "--text", &text];
        let rest = ["--original", &tale, "--metrics", &metrics];
        lowbit([&args[..], &rest].concat()).done().json()
    };
    let said = handed_over("8");
    assert_eq!(
        (said["modules"].as_u64(), said["is_original"].as_bool()),
        (Some(21), Some(false)),
        "{said:#}"
    );
    assert_eq!(said["agreement"]["min_retention"], 0.99);
    assert_eq!(said["gradients"]["passed"], true, "{said:#}");
    assert!(said["agreement"]["quantized_dequantized"].as_f64().unwrap() >= 0.995, "{said:#}");

    // Requantizing unchanged weights.
    let again = place("again");
    let said =
        lowbit(["requantize", &place("floats8"), "-o", &again, "--json", "--text", &text]).done().json();
    assert!(said["comparison"]["same_predictions"].as_f64().unwrap() >= 0.995, "{said:#}");
    let weights = |folder: &str| fs::read(Path::new(folder).join("model.safetensors")).unwrap();
    assert!(weights(&again) == weights(&place("int8")), "the very codes and scales");

    // 2 bits lose too much.
    let said = handed_over("2");
    assert_eq!((said["modules"].as_u64(), said["is_original"].as_bool()), (Some(0), Some(true)), "{said:#}");
    assert!(said["agreement"]["retention"].as_f64().unwrap() < 0.99);
    let perplexity = |model: &str| {
        lowbit(["perplexity", model, "--text", &text, "--json"]).done().json()["perplexity"].as_f64().unwrap()
    };
    assert_eq!(perplexity(&place("floats2")), perplexity(&tale));
    let said = refused(["requantize", &place("floats2"), "-o", &again]);
    assert!(said.contains("found the original's"), "{said}");
    let names = fs::read_to_string(&metrics).unwrap();
    for name in [
        "quantized_model_size_mb",
        "dequantized_model_size_mb",
        "dequantization_accuracy_retention",
        "gradient_flow_test_passed",
    ] {
        assert_eq!(names.matches(&format!("\"{name}\"")).count(), 2, "{names}");
    }
    let said = refused(["dequantize", &place("int8"), "-o", &again, "--for-training"]);
    assert!(said.contains("--text") && said.contains("--original"), "{said}");
}
