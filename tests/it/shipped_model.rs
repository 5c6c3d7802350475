//! The shipped model: the figures of its README, and the cost of quantizing it.

use crate::support::{fixture, held_out, load, on_disk, perplexity, tokenizer};
use lowbit::internals::format::sink::MemorySinkDir;
use lowbit::internals::model::Checkpoint;
use lowbit::internals::pipeline::{QuantizeOptions, quantize};
use lowbit::internals::quant::{Bits, Granularity, Method, Scheme};
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::validate::continuations::{continue_all, from_texts};
use std::sync::Arc;

/// The f32 perplexity of the model's README, with one more digit.
const PERPLEXITY: f64 = 4.1617;

#[test]
fn quantizing_costs_what_the_readme_says() {
    let data = held_out();
    assert_eq!(data.tokens.len(), 13_847);
    let original = perplexity(&mut load(on_disk(fixture("tale-llama"))), &data);
    println!("original: {original:.5}");
    assert!((original / PERPLEXITY - 1.0).abs() < 0.001, "{original}");

    let checkpoint = block_on(Checkpoint::open(on_disk(fixture("tale-llama")))).unwrap();
    for (bits, granularity, least, most) in
        [(Bits::Four, Granularity::Group(32), 0.01, 0.15), (Bits::Eight, Granularity::Channel, -0.005, 0.005)]
    {
        let folder = MemorySinkDir::new("quantized");
        let options = QuantizeOptions::new(Method::Rtn, Scheme::symmetric(bits, granularity));
        block_on(quantize(&checkpoint, &options, &folder, &Silent)).unwrap();
        let quantized = perplexity(&mut load(Arc::new(folder.to_dir())), &data);
        let cost = quantized / original - 1.0;
        println!("{}: {quantized:.5}, {:+.2} %", options.scheme, 100.0 * cost);
        assert!((least..most).contains(&cost), "{}: {cost}", options.scheme);
    }
}

#[test]
fn its_stories_have_no_failures() {
    let dir = on_disk(fixture("tale-llama"));
    let codec = tokenizer(dir.as_ref());
    let texts = std::fs::read_to_string(fixture("tale-llama/prompts.txt")).unwrap();
    let prompts = from_texts(texts.lines(), &codec).unwrap();
    assert_eq!(prompts.len(), 10);
    let mut model = load(dir);
    for (prompt, story) in
        prompts.iter().zip(block_on(continue_all(&mut model, &codec, &prompts, 128, &Silent)).unwrap())
    {
        println!("{} ->{}", prompt.text, story.text);
        assert!(story.failures.is_empty(), "{}: {:?}", story.text, story.failures);
    }
}
