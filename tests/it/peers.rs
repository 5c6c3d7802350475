//! Checkpoints that other tools quantized: their perplexity, as an independent implementation has it.

use crate::real_models::{open, shared};
use lowbit::task::{Silent, block_on};
use lowbit::validate::walk::score;
use lowbit::validate::windows::{Dataset, WindowOptions};
use serde_json::Value;

/// Largest relative difference of perplexities. Measured: 3e-6, where the figures have their last digit.
const RELATIVE_TOLERANCE: f64 = 0.002;

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
