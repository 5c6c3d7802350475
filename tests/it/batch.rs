//! Batched generation gives the texts of each prompt alone.

use crate::support::{fixture, logits, on_disk, tokenizer};
use lowbit::internals::backend::Backend;
use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::generate::{
    Batch, BatchPrompt, FinishReason, GenerateOptions, Generation, SamplerOptions,
};
use lowbit::internals::model::decoder::{Logits, LogitsRequest, Run};
use lowbit::internals::model::{CausalLm, Checkpoint, LoadOptions};
use lowbit::internals::quant::Activations;
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::{HuggingFaceTokenizer, TextCodec};
use lowbit::internals::validate::continuations::{continue_all, from_texts};

const ACTIVATIONS: [Activations; 2] = [Activations::F32, Activations::Int8];

fn shipped<B: Backend>(backend: B, activations: Activations) -> CausalLm<B> {
    let checkpoint = block_on(Checkpoint::open(on_disk(fixture("tale-llama")))).unwrap();
    let options = LoadOptions { activations: Some(activations), ..LoadOptions::default() };
    block_on(CausalLm::load(backend, &checkpoint, options, &Silent)).unwrap()
}

fn codec() -> HuggingFaceTokenizer {
    tokenizer(on_disk(fixture("tale-llama")).as_ref())
}

#[test]
fn tokens_of_several_sequences_have_the_logits_that_they_have_alone() {
    // Tokens of each sequence in two rounds: more than fit in one batch, one, or none.
    let counts: [[(usize, usize); 3]; 2] = [[(0, 300), (2, 1), (3, 40)], [(3, 270), (1, 5), (0, 2)]];
    for activations in ACTIVATIONS {
        let mut model = shipped(CpuBackend::new(), activations);
        let texts: Vec<Vec<u32>> =
            (0..4).map(|text| (0..310).map(|i| (i * 7919 + text * 631) % 2048).collect()).collect();
        for wanted in [Logits::All, Logits::Last] {
            let mut cache = model.new_batch_cache(4, 310).unwrap();
            let mut found = vec![Vec::new(); 4];
            let mut expected = vec![Vec::new(); 4];
            for counts in counts {
                let runs = counts.map(|(sequence, count)| {
                    let tokens = &texts[sequence][cache.len(sequence)..][..count];
                    Run { sequence, tokens }
                });
                let mut order = Vec::new();
                block_on(model.forward_runs(&runs, &mut cache, wanted, &Silent, |run, index, row| {
                    order.push((run, index));
                    found[runs[run].sequence].push(row.to_vec());
                    Ok(())
                }))
                .unwrap();
                let indices = counts.iter().enumerate().flat_map(|(run, &(_, count))| {
                    let first = if wanted == Logits::All { 0 } else { count - 1 };
                    (first..count).map(move |index| (run, index))
                });
                assert_eq!(order, indices.collect::<Vec<_>>());
                for (sequence, count) in counts {
                    let rows = logits(&mut model, &texts[sequence][..cache.len(sequence)], 256);
                    let skipped = rows.len() - if wanted == Logits::All { count } else { 1 };
                    expected[sequence].extend(rows.into_iter().skip(skipped));
                }
            }
            assert!(found == expected, "{wanted:?} {activations:?}: the bits of each alone");
        }
    }
}

#[test]
fn runs_that_do_not_fit_are_errors() {
    let mut model = shipped(CpuBackend::new(), Activations::F32);
    let mut cache = model.new_batch_cache(2, 3).unwrap();
    let run = |sequence, tokens: &'static [u32]| Run { sequence, tokens };
    let cases: [(&[Run<'_>], &str); 4] = [
        (&[run(0, &[1]), run(1, &[1; 4])], "expected at most 3 positions in the cache but 4 are needed"),
        (&[run(2, &[1])], "expected sequences below the cache's 2 but found 2"),
        (&[run(1, &[1]), run(1, &[2])], "expected one run of each sequence but found two of sequence 1"),
        (&[run(0, &[1]), run(1, &[2048])], "expected token ids below the vocabulary's 2048 but found 2048"),
    ];
    for (runs, expected) in cases {
        let each = |_: usize, _: usize, _: &[f32]| Ok(());
        let error = block_on(model.forward_runs(runs, &mut cache, Logits::All, &Silent, each)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    assert_eq!([cache.len(0), cache.len(1)], [0, 0]);
}

/// New tokens, their text and the finish reason.
type Text = (Vec<u32>, String, Option<FinishReason>);

fn alone<B: Backend>(model: &mut CausalLm<B>, codec: &dyn TextCodec, prompt: &BatchPrompt<'_>) -> Text {
    let mut generation =
        block_on(Generation::start(model, codec, prompt.ids, prompt.options, &Silent)).unwrap();
    let (mut text, mut finished) = (String::new(), None);
    while let Some(piece) = block_on(generation.next(&Silent)).unwrap() {
        text.push_str(&piece.text);
        finished = piece.finished;
    }
    (generation.token_ids().to_vec(), text, finished)
}

fn at_once<B: Backend>(
    model: &mut CausalLm<B>,
    codec: &dyn TextCodec,
    prompts: &[BatchPrompt<'_>],
    most: usize,
) -> Vec<Text> {
    let mut batch = Batch::new(model, codec, prompts, most).unwrap();
    let mut texts = vec![(Vec::new(), String::new(), None); prompts.len()];
    while let Some(said) = block_on(batch.next(&Silent)).unwrap() {
        assert!(said.len() <= most.max(1));
        for said in said {
            let (_, text, finished) = &mut texts[said.prompt];
            assert!(finished.is_none(), "nothing comes after the end");
            let piece = said.piece.unwrap();
            text.push_str(&piece.text);
            *finished = piece.finished;
        }
    }
    assert!(block_on(batch.next(&Silent)).unwrap().is_none());
    for (prompt, text) in texts.iter_mut().enumerate() {
        text.0 = batch.token_ids(prompt).to_vec();
    }
    texts
}

/// Prompts of several lengths, one longer than a batch, each with its own options.
fn prompts(codec: &HuggingFaceTokenizer, samplers: &[SamplerOptions]) -> Vec<(Vec<u32>, GenerateOptions)> {
    let story = std::fs::read_to_string(fixture("tale-llama/heldout.txt")).unwrap();
    let words: Vec<&str> = story.split(' ').collect();
    let lengths =
        [(3, 20), (1, 1), (220, 30), (17, 64), (5, 2), (40, 33), (2, 25), (9, 48), (60, 7), (4, 40)];
    let prompts = lengths.into_iter().enumerate().map(|(i, (length, max_tokens))| {
        let ids = codec.encode_prompt(&words[i * 97..i * 97 + length].join(" ")).unwrap();
        let sampler = samplers[i % samplers.len()].seed(i as u64);
        let stop_strings = if i % 4 == 3 { vec!["the".to_owned()] } else { Vec::new() };
        (ids, GenerateOptions::default().sampler(sampler).max_tokens(max_tokens).stop(stop_strings))
    });
    prompts.collect()
}

#[test]
fn texts_of_a_batch_are_those_of_each_prompt_alone() {
    let codec = codec();
    let greedy = SamplerOptions::default();
    let top_k = greedy.temperature(0.8).top_k(20);
    let top_p = greedy.temperature(1.1).top_p(0.9);
    let penalized = greedy.repetition_penalty(1.2);
    let kinds = [vec![greedy], vec![top_k], vec![greedy, top_k, top_p, penalized]];
    for activations in ACTIVATIONS {
        let mut model = shipped(CpuBackend::new(), activations);
        for samplers in &kinds {
            let prompts = prompts(&codec, samplers);
            let prompts: Vec<_> = prompts.iter().map(|(ids, options)| BatchPrompt { ids, options }).collect();
            let expected: Vec<Text> =
                prompts.iter().map(|prompt| alone(&mut model, &codec, prompt)).collect();
            let reasons: Vec<_> = expected.iter().filter_map(|text| text.2).collect();
            assert!(
                reasons.contains(&FinishReason::StopString) && reasons.contains(&FinishReason::MaxTokens)
            );
            for most in [0, 1, 3, 8, 100] {
                let found = at_once(&mut model, &codec, &prompts, most);
                assert_eq!(found, expected, "{activations:?}, {samplers:?}, {most} at once");
            }
        }
    }
}

#[test]
fn continuations_are_the_texts_of_each_prompt_alone() {
    let codec = codec();
    let lines = std::fs::read_to_string(fixture("tale-llama/prompts.txt")).unwrap();
    let prompts = from_texts(lines.lines(), &codec).unwrap();
    let options = GenerateOptions::default().max_tokens(64);
    for activations in ACTIVATIONS {
        let mut model = shipped(CpuBackend::new(), activations);
        let found = block_on(continue_all(&mut model, &codec, &prompts, 64, &Silent)).unwrap();
        assert_eq!(found.len(), prompts.len());
        for (found, prompt) in found.into_iter().zip(&prompts) {
            let prompt = BatchPrompt { ids: &prompt.token_ids, options: &options };
            let (token_ids, text, finished) = alone(&mut model, &codec, &prompt);
            let found = (found.token_ids, found.text, found.finish_reason);
            assert_eq!(found, (token_ids, text, finished.map(FinishReason::name)));
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn texts_of_a_batch_on_the_gpu_are_those_of_the_cpu() {
    use lowbit::internals::backend::gpu::{GpuBackend, GpuOptions};
    let open = || block_on(GpuBackend::new(&GpuOptions { software: true, ..GpuOptions::default() }));
    let gpu = match open() {
        Ok(gpu) => gpu,
        Err(error) => {
            assert_eq!(error.code(), lowbit::internals::error::ErrorCode::NoDevice, "{error}");
            println!("skipped: no adapter");
            return;
        }
    };
    let codec = codec();
    let greedy = SamplerOptions::default();
    let top_k = greedy.temperature(0.8).top_k(20);
    let mut cpu = shipped(CpuBackend::new(), Activations::F32);
    let mut gpu = shipped(gpu, Activations::F32);
    let mut cache = gpu.new_batch_cache(3, 4).unwrap();
    let mut kernels = |runs: &[Run<'_>]| {
        let before = gpu.dispatches().unwrap();
        block_on(gpu.start_next(runs, &mut cache, LogitsRequest::Largest, &Silent)).unwrap();
        gpu.dispatches().unwrap() - before
    };
    let run = |sequence| Run { sequence, tokens: &[5] };
    assert_eq!(kernels(&[run(0)]), kernels(&[0, 2, 1].map(run)), "one kernel a step, however many sequences");
    for samplers in [vec![greedy], vec![greedy, top_k]] {
        let prompts = prompts(&codec, &samplers);
        let prompts: Vec<_> = prompts.iter().map(|(ids, options)| BatchPrompt { ids, options }).collect();
        let expected: Vec<Text> = prompts.iter().map(|prompt| alone(&mut cpu, &codec, prompt)).collect();
        for most in [1, 3, 10] {
            assert_eq!(at_once(&mut gpu, &codec, &prompts, most), expected, "{samplers:?}, {most} at once");
        }
    }
}
