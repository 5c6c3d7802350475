//! Real models: perplexity and greedy text agree with transformers.

use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::format::source::{FsDir, SourceDir};
use lowbit::internals::generate::{GenerateOptions, generate};
use lowbit::internals::model::{CausalLm, Checkpoint, LoadOptions};
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::HuggingFaceTokenizer;
use lowbit::internals::validate::walk::score;
use lowbit::internals::validate::windows::{Dataset, WindowOptions};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// The folder of real models and texts next to the repository, or `None` with a `skipped:` line.
pub(crate) fn shared(what: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: {what}: no ../shared folder with real models");
    None
}

pub(crate) fn open(path: PathBuf) -> (CausalLm<CpuBackend>, HuggingFaceTokenizer) {
    block_on(async {
        let dir: Arc<dyn SourceDir> = Arc::new(FsDir::open(path).unwrap());
        let checkpoint = Checkpoint::open(dir.clone()).await.unwrap();
        let model =
            CausalLm::load(CpuBackend::new(), &checkpoint, LoadOptions::default(), &Silent).await.unwrap();
        let codec = HuggingFaceTokenizer::open(dir.as_ref(), checkpoint.config().bos_token_id).await.unwrap();
        (model, codec)
    })
}

#[test]
fn perplexity_is_that_of_transformers() {
    let Some(shared) = shared("perplexity of real models") else { return };
    let expected: Value =
        serde_json::from_slice(&std::fs::read(shared.join("expected/perplexity.json")).unwrap()).unwrap();
    for row in expected["rows"].as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        let (mut model, codec) = open(shared.join("models").join(row["model"].as_str().unwrap()));
        let data =
            Dataset::new(text, &std::fs::read_to_string(shared.join("text").join(text)).unwrap(), &codec)
                .unwrap();
        assert_eq!(data.tokens.len() as u64, row["text_tokens"].as_u64().unwrap());
        let options = WindowOptions { context: 512, stride: None };
        let measured = block_on(score(&mut model, &data, &options, &Silent)).unwrap().perplexity();
        let expected = row["perplexity"].as_f64().unwrap();
        println!("{} {text}: {:.5} expected {expected}", row["model"], measured);
        assert!((measured / expected - 1.0).abs() < 0.001);
    }
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let Some(shared) = shared("greedy text of real models") else { return };
    let expected: Value =
        serde_json::from_slice(&std::fs::read(shared.join("expected/greedy.json")).unwrap()).unwrap();
    for row in expected["rows"].as_array().unwrap() {
        use lowbit::internals::tokenizer::TextCodec;
        let (mut model, codec) = open(shared.join("models").join(row["model"].as_str().unwrap()));
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(row[key].clone()).unwrap() };
        let prompt = codec.encode_prompt(row["prompt"].as_str().unwrap()).unwrap();
        assert_eq!(prompt, ids("prompt_ids"));
        let options = GenerateOptions::default().max_tokens(64).ignore_eos(true);
        let generated = block_on(generate(&mut model, &codec, &prompt, &options, &Silent, |_| ())).unwrap();
        assert_eq!(generated.token_ids, ids("new_ids"));
        assert_eq!(generated.text, row["text"].as_str().unwrap());
    }
}
