//! Helpers of several tests: folders, models, logits.

pub mod difference;
pub mod large;
pub mod synthetic;

use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::calibrate::{SampleOptions, Samples};
use lowbit::internals::format::scratch::MemoryScratch;
use lowbit::internals::format::sink::SinkDir;
use lowbit::internals::format::source::{FsDir, SourceDir};
use lowbit::internals::model::decoder::Logits;
use lowbit::internals::model::{CausalLm, Checkpoint, LoadOptions};
use lowbit::internals::pipeline::{Calibration, QuantizeOptions, QuantizeOutcome, quantize_calibrated};
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::{HuggingFaceTokenizer, TextCodec, unify_line_ends};
use lowbit::internals::validate::walk::score;
use lowbit::internals::validate::windows::{Dataset, WindowOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file or folder of `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A folder on disk, to read from.
pub fn on_disk(path: impl Into<PathBuf>) -> Arc<dyn SourceDir> {
    Arc::new(FsDir::open(path).unwrap())
}

/// Loads the checkpoint of a folder on the CPU with its default options.
pub fn load(dir: Arc<dyn SourceDir>) -> CausalLm<CpuBackend> {
    load_checkpoint(&block_on(Checkpoint::open(dir)).unwrap())
}

/// As [`load`], for an open checkpoint.
pub fn load_checkpoint(checkpoint: &Checkpoint) -> CausalLm<CpuBackend> {
    block_on(CausalLm::load(CpuBackend::new(), checkpoint, LoadOptions::default(), &Silent)).unwrap()
}

/// Logits after each of `tokens`, computed in batches of `piece` tokens.
pub fn logits(model: &mut CausalLm<CpuBackend>, tokens: &[u32], piece: usize) -> Vec<Vec<f32>> {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut rows = Vec::new();
    for part in tokens.chunks(piece) {
        let each = |_, row: &[f32]| {
            rows.push(row.to_vec());
            Ok(())
        };
        block_on(model.forward(part, &mut cache, Logits::All, &Silent, each)).unwrap();
    }
    assert_eq!(rows.len(), tokens.len());
    rows
}

/// The largest distance between two logits; infinite if one is NaN.
pub fn max_distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).flat_map(|(a, b)| distances(a, b)).fold(0.0, f32::max)
}

/// Distances of the logits of two rows; infinite if one is NaN.
pub fn distances(a: &[f32], b: &[f32]) -> impl Iterator<Item = f32> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() })
}

/// The tokenizer of a folder.
pub fn tokenizer(dir: &dyn SourceDir) -> HuggingFaceTokenizer {
    block_on(HuggingFaceTokenizer::open(dir, None)).unwrap()
}

/// Perplexity of `model` on a text, in disjoint windows of 512 positions.
pub fn perplexity(model: &mut CausalLm<CpuBackend>, data: &Dataset) -> f64 {
    let options = WindowOptions { context: 512, stride: None };
    block_on(score(model, data, &options, &Silent)).unwrap().perplexity()
}

/// The held-out text of the shipped model.
pub fn held_out() -> Dataset {
    let text = std::fs::read_to_string(fixture("tale-llama/heldout.txt")).unwrap();
    Dataset::new("heldout.txt", &text, &tokenizer(on_disk(fixture("tale-llama")).as_ref())).unwrap()
}

/// The first `samples` windows of a text, for the model of a folder.
pub fn samples(model: &Path, text: &Path, samples: usize, sequence_length: usize) -> Samples {
    let codec = tokenizer(on_disk(model).as_ref());
    let text = std::fs::read_to_string(text).unwrap();
    let options = SampleOptions { samples, sequence_length, shuffle: None };
    Samples::new(&codec.encode(&unify_line_ends(&text)).unwrap(), codec.bos_token_id(), &options).unwrap()
}

/// Quantizes with a calibrated method, on the CPU and in memory.
pub fn calibrated(
    checkpoint: &Checkpoint,
    samples: &Samples,
    options: &QuantizeOptions,
    folder: &dyn SinkDir,
) -> lowbit::Result<QuantizeOutcome> {
    let scratch = MemoryScratch::new();
    let calibration = Calibration { samples, new_backend: &|| Ok(CpuBackend::new()), scratch: &scratch };
    block_on(quantize_calibrated(checkpoint, options, calibration, folder, &Silent))
}
