//! Targets in bytes or bits are kept, are better than a uniform scheme, and their recipe reproduces the same folder.

use crate::support::{fixture, held_out, load, on_disk, perplexity};
use crate::terminal::{arg, files, lowbit, tale};
use lowbit::internals::model::Checkpoint;
use lowbit::internals::task::block_on;
use serde_json::Value;
use std::path::Path;

fn quantize(output: &Path, more: &[&str]) -> crate::terminal::CommandResult {
    let calibration = arg(tale().join("calibration.txt"));
    let args = [
        "quantize",
        &arg(tale()),
        "-o",
        &arg(output),
        "--method",
        "gptq",
        "--group-size",
        "32",
        "--calibration",
        &calibration,
        "--samples",
        "16",
        "--sequence-length",
        "256",
        "--json",
    ]
    .map(str::to_owned);
    lowbit(args.into_iter().chain(more.iter().map(|&more| more.to_owned())))
}

fn record(folder: &Path) -> Value {
    serde_json::from_slice(&files(folder)["quantization_config.json"]).unwrap()
}

#[test]
fn bits_go_to_the_modules_that_need_them_and_the_budget_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let data = held_out();
    let mut found = Vec::new();
    for bits in ["3.0", "3.5", "4.5", "6.0"] {
        let output = folder.path().join(bits);
        let document = quantize(&output, &["--target-bpw", bits]).done().json();
        let target: f64 = bits.parse().unwrap();
        let reached = document["bits_per_weight"].as_f64().unwrap();
        assert!(reached <= target, "{reached} of {target}");
        // Little of the budget is unused: a module of this model has at most a thirteenth of the weights.
        assert!(reached > target - 0.3, "{reached} of {target}");

        let record = record(&output);
        let allocation = &record["parameters"]["allocation"];
        let chosen: Vec<&str> =
            allocation["modules"].as_array().unwrap().iter().map(|m| m["chosen"].as_str().unwrap()).collect();
        assert_eq!(chosen.len(), 21);
        for module in allocation["modules"].as_array().unwrap() {
            let errors: Vec<f64> = module["candidates"]
                .as_array()
                .unwrap()
                .iter()
                .map(|c| c["error"].as_f64().unwrap())
                .collect();
            assert!(errors.len() == 4 && errors.is_sorted_by(|a, b| a > b), "more bits lose less: {module}");
        }
        // No uniform scheme within the budget has a smaller loss.
        let candidates = |module: &Value, which: usize| module["candidates"][which].clone();
        for which in 0..4 {
            let modules = allocation["modules"].as_array().unwrap();
            let sum =
                |key: &str| modules.iter().map(|m| candidates(m, which)[key].as_f64().unwrap()).sum::<f64>();
            if sum("bytes") <= allocation["budget_bytes"].as_f64().unwrap() {
                assert!(allocation["divergence"].as_f64().unwrap() <= sum("divergence") + 1e-12);
            }
        }
        let cost = perplexity(&mut load(on_disk(&output)), &data);
        println!("{bits} bits a weight: {reached:.3}, perplexity {cost:.4}, {chosen:?}");
        found.push(cost);
    }
    assert!(found.is_sorted_by(|a, b| a > b), "more bits cost less: {found:?}");

    // 3 bits and half a bit of scales for all modules are worse than the same number allocated by sensitivity.
    let output = folder.path().join("uniform");
    quantize(&output, &["--bits", "3"]).done();
    let uniform = perplexity(&mut load(on_disk(&output)), &data);
    println!("3.5 bits for all: perplexity {uniform:.4}");
    assert!(found[1] < uniform, "{} against {uniform}", found[1]);
}

#[test]
fn a_target_of_bytes_counts_all_tensors_and_its_recipe_is_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let (output, again) = (folder.path().join("out"), folder.path().join("again"));
    let whole = block_on(Checkpoint::open(on_disk(fixture("tale-llama")))).unwrap().bytes();
    let target = whole / 2;
    let document = quantize(&output, &["--target-bytes", &target.to_string()]).done().json();
    let bytes = document["quantized_bytes"].as_u64().unwrap();
    assert!(bytes <= target && bytes > target - 12_000, "{bytes} of {target}");

    let recipe = arg(output.join("quantization_config.json"));
    quantize(&again, &["--recipe", &recipe]).done();
    assert_eq!(files(&output)["model.safetensors"], files(&again)["model.safetensors"]);
    assert_eq!(record(&output)["parameters"]["recipe"], record(&again)["parameters"]["recipe"]);
}

#[test]
fn targets_that_cannot_be_reached_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    for (more, says) in [
        (&["--target-bpw", "2.2"][..], "at least 2.500 bits"),
        (&["--target-bpw", "nan"], "above 0"),
        (&["--target-bytes", "1000"], "embedding, norms"),
        (&["--target-bytes", "600KB"], "at least"),
        (&["--target-bpw", "4", "--target-bytes", "1MB"], "not both"),
        (&["--target-bpw", "4", "--format", "awq", "--asym"], "one scheme for all"),
    ] {
        let ran = quantize(&output, more);
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{more:?}: {}", ran.stderr);
        assert!(!output.join("model.safetensors").exists());
    }
    let ran = lowbit(["quantize", &arg(tale()), "-o", &arg(&output), "--target-bpw", "4"]);
    assert!(ran.code == 2 && ran.stderr.contains("calibration texts"), "{}", ran.stderr);
}
