//! Checkpoints that other tools quantized have the perplexity of an independent implementation.

use crate::real_models::{open, shared};
use crate::support::difference::largest_difference;
use crate::support::on_disk;
use lowbit::internals::format::sink::FsSinkDir;
use lowbit::internals::layout::{GptqZeros, TargetLayout};
use lowbit::internals::model::Checkpoint;
use lowbit::internals::pipeline::{ConvertOptions, convert, plan_conversion};
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::validate::walk::score;
use lowbit::internals::validate::windows::{Dataset, WindowOptions};
use serde_json::Value;

/// Largest relative difference of perplexities. Measured: 3e-6, the precision of the figures.
const RELATIVE_TOLERANCE: f64 = 0.002;

/// Largest weight difference when F32 scales become F16: half a unit in the last place, times 15 steps.
const F16_SCALES: f32 = 2e-3;

#[test]
fn their_codes_move_to_every_other_layout() {
    let Some(shared) = shared("conversions of other tools' checkpoints") else { return };
    let place = tempfile::tempdir().unwrap();
    let mut folders: Vec<_> =
        std::fs::read_dir(shared.join("peers")).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    for folder in folders {
        let source = block_on(Checkpoint::open(on_disk(&folder))).unwrap();
        assert!(source.warnings().is_empty(), "{folder:?}: {:?}", source.warnings());
        for layout in [
            TargetLayout::CompressedTensors,
            TargetLayout::Gptq(GptqZeros::V1),
            TargetLayout::Gptq(GptqZeros::V2),
            TargetLayout::Awq,
        ] {
            let name = format!("{} to {}", folder.file_name().unwrap().display(), layout.name());
            let Ok(plan) = block_on(plan_conversion(&source, &ConvertOptions::new(layout), &Silent)) else {
                // AWQ cannot hold the folder of INT8 weights.
                assert_eq!(name, "llmcompressor-rtn-w8-channel to awq");
                continue;
            };
            let output = place.path().join(&name);
            let sinks = FsSinkDir::create(&output).unwrap();
            block_on(convert(&source, &plan, &sinks, &Silent)).unwrap();
            let result = block_on(Checkpoint::open(on_disk(output))).unwrap();
            let difference = largest_difference(&source, &result);
            let loses = plan.modules.iter().any(|module| module.loss.is_some());
            let f32_scales = name.starts_with("llmcompressor") && layout != TargetLayout::CompressedTensors;
            assert_eq!(loses, f32_scales, "{name}");
            assert!(difference <= if loses { F16_SCALES } else { 0.0 }, "{name}: {difference}");
        }
    }
}

#[test]
fn perplexity_is_that_of_the_tools_that_wrote_them() {
    let Some(shared) = shared("perplexity of other tools' checkpoints") else { return };
    let expected: Value =
        serde_json::from_slice(&std::fs::read(shared.join("expected/peers.json")).unwrap()).unwrap();
    let text = std::fs::read_to_string(shared.join("text/stories.txt")).unwrap();
    let mut failed = Vec::new();
    for row in expected["rows"].as_array().unwrap() {
        let path = row["path"].as_str().unwrap();
        if !path.starts_with("peers/") {
            continue;
        }
        let (mut model, codec) = open(shared.join(path));
        let data = Dataset::new("stories.txt", &text, &codec).unwrap();
        let options = WindowOptions { context: 512, stride: None };
        let measured = block_on(score(&mut model, &data, &options, &Silent)).unwrap().perplexity();
        let expected = row["perplexity"].as_f64().unwrap();
        println!("{path}: {measured:.4} expected {expected}");
        if (measured / expected - 1.0).abs() > RELATIVE_TOLERANCE {
            failed.push(path.to_owned());
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}
