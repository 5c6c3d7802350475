//! Models give the same results on a GPU and on the CPU.
//!
//! Without any adapter, even a software one, these tests are skipped.

use crate::support::{fixture, held_out, on_disk, tokenizer};
use crate::terminal::{arg, lowbit, tale};
use lowbit::internals::backend::Backend;
use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::backend::gpu::{GpuBackend, GpuOptions, Sabotage};
use lowbit::internals::error::ErrorCode;
use lowbit::internals::format::sink::MemorySinkDir;
use lowbit::internals::format::source::{MemoryDir, SourceDir};
use lowbit::internals::generate::{FinishReason, GenerateOptions, Generation, SamplerOptions};
use lowbit::internals::model::decoder::{Logits, LogitsRequest, Next, Run};
use lowbit::internals::model::{CausalLm, Checkpoint, LoadOptions};
use lowbit::internals::pipeline::{QuantizeOptions, quantize};
use lowbit::internals::quant::{Bits, Granularity, Method, Scheme};
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::TextCodec;
use lowbit::internals::validate::walk::score;
use lowbit::internals::validate::windows::WindowOptions;
use std::path::PathBuf;
use std::sync::Arc;

/// Largest relative difference of perplexity.
const PERPLEXITY_TOLERANCE: f64 = 0.001;
/// Smallest share of equal predictions after the reference's tokens.
const LEAST_AGREEMENT: f64 = 0.99;
/// A token may differ if the reference's two largest logits are this close: near a rounding tie of INT8 activations
/// a difference in the last bit becomes a whole step. Measured: 0.07 on lavapipe.
const CLOSE_LOGITS: f32 = 0.2;

/// Dispatches of one block with F16 or integer weights, and those outside blocks: embedding, norm, head, argmax.
const DISPATCHES_OF_A_BLOCK: u64 = 9;
/// As [`DISPATCHES_OF_A_BLOCK`] with ternary weights, where separate kernels round the outputs of attention and gate.
const DISPATCHES_OF_A_TERNARY_BLOCK: u64 = 11;
const DISPATCHES_OF_THE_ENDS: u64 = 4;

fn gpu() -> Option<GpuBackend> {
    match block_on(GpuBackend::new(&GpuOptions { software: true, ..GpuOptions::default() })) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::NoDevice, "{error}");
            eprintln!("skipped: no adapter");
            None
        }
    }
}

/// The shipped model, and the real ones if present.
fn models() -> Vec<PathBuf> {
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/models");
    let real = ["story-llama-0.66M", "stories260K", "stories260K-f16"].map(|name| shared.join(name));
    let mut models = vec![fixture("tale-llama")];
    for path in real {
        if path.is_dir() {
            models.push(path);
        } else {
            eprintln!("skipped: no {}", path.display());
        }
    }
    models
}

/// A checkpoint, quantized in memory if `options` are given.
fn checkpoint(dir: Arc<dyn SourceDir>, options: Option<&QuantizeOptions>) -> Checkpoint {
    block_on(async {
        let original = Checkpoint::open(dir).await.unwrap();
        let Some(options) = options else { return original };
        let folder = MemorySinkDir::new("quantized");
        quantize(&original, options, &folder, &Silent).await.unwrap();
        Checkpoint::open(Arc::new(folder.to_dir())).await.unwrap()
    })
}

fn load<B: Backend>(backend: B, checkpoint: &Checkpoint) -> CausalLm<B> {
    block_on(CausalLm::load(backend, checkpoint, LoadOptions::default(), &Silent)).unwrap()
}

/// `count` greedy tokens after `prompt`.
fn greedy<B: Backend>(model: &mut CausalLm<B>, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut cache = model.new_cache(prompt.len() + count).unwrap();
    let mut tokens = prompt.to_vec();
    for step in 0..count {
        let new = if step == 0 { prompt } else { &tokens[tokens.len() - 1..] }.to_vec();
        match block_on(model.forward_next(&new, &mut cache, LogitsRequest::Largest, &Silent)).unwrap() {
            Next::Token(token) => tokens.push(token),
            other => panic!("expected a token but found {other:?}"),
        }
    }
    tokens.split_off(prompt.len())
}

fn rtn(bits: Bits, granularity: Granularity, symmetric: bool) -> Option<QuantizeOptions> {
    Some(QuantizeOptions::new(Method::Rtn, Scheme::symmetric(bits, granularity).with_symmetry(symmetric)))
}

#[test]
fn greedy_text_is_that_of_the_cpu() {
    let kinds = [
        ("as it is", None),
        ("int8", rtn(Bits::Eight, Granularity::Channel, true)),
        ("int4", rtn(Bits::Four, Granularity::Group(32), true)),
        ("int4 asymmetric", rtn(Bits::Four, Granularity::Group(32), false)),
    ];
    for path in models() {
        let prompt = tokenizer(on_disk(&path).as_ref()).encode_prompt("Once upon a time").unwrap();
        for (name, options) in &kinds {
            let Some(gpu) = gpu() else { return };
            let checkpoint = checkpoint(on_disk(&path), options.as_ref());
            let expected = greedy(&mut load(CpuBackend::new(), &checkpoint), &prompt, 64);
            let mut model = load(gpu, &checkpoint);
            let found = greedy(&mut model, &prompt, 64);
            assert_eq!(found, expected, "{} {name}", path.display());

            let mut cache = model.new_cache(2).unwrap();
            let before = model.dispatches().unwrap();
            block_on(model.forward_next(&prompt[..1], &mut cache, LogitsRequest::Largest, &Silent)).unwrap();
            let layers = checkpoint.config().num_hidden_layers as u64;
            let most = layers * DISPATCHES_OF_A_BLOCK + DISPATCHES_OF_THE_ENDS;
            assert!(model.dispatches().unwrap() - before <= most, "{name}: more than {most} kernels a token");
        }
    }
}

/// The shipped model with `token` as its end-of-text token.
fn ending_with(token: u32) -> Arc<dyn SourceDir> {
    let file = |name: &str| std::fs::read(fixture("tale-llama").join(name)).unwrap();
    let config = String::from_utf8(file("config.json")).unwrap();
    let config = config.replace("\"eos_token_id\": 1,", &format!("\"eos_token_id\": {token},"));
    let dir = MemoryDir::new("tale-llama").with("config.json", config.into_bytes());
    Arc::new(
        ["tokenizer.json", "model.safetensors"].into_iter().fold(dir, |dir, name| dir.with(name, file(name))),
    )
}

/// A text, its tokens and the finish reason.
type Turn = (String, Vec<u32>, Option<FinishReason>);

/// Two turns, and the number of reused tokens of the second prompt.
fn two_turns<B: Backend>(backend: B, end: u32, options: &GenerateOptions) -> ([Turn; 2], usize) {
    let dir = ending_with(end);
    let codec = tokenizer(dir.as_ref());
    let mut model = load(backend, &checkpoint(dir, None));
    let mut session = None;
    let mut prompt = codec.encode_prompt("Once upon a time").unwrap();
    let mut reused = 0;
    let turns = [(); 2].map(|()| {
        let mut turn =
            block_on(Generation::resume(&mut model, &codec, &prompt, options, &Silent, session.take()))
                .unwrap();
        let (mut text, mut reason) = (String::new(), None);
        while let Some(piece) = block_on(turn.next(&Silent)).unwrap() {
            text.push_str(&piece.text);
            reason = piece.finished;
        }
        assert!(block_on(turn.next(&Silent)).unwrap().is_none(), "nothing comes after the end");
        let said = turn.token_ids().to_vec();
        reused = turn.reused();
        session = Some(turn.into_session());
        prompt.extend(&said);
        prompt.extend(codec.encode(" The cat was glad.").unwrap());
        (text, said, reason)
    });
    (turns, reused)
}

#[test]
fn what_ends_a_text_ends_it_on_the_gpu_too_and_the_next_turn_goes_on_from_there() {
    let first = GenerateOptions::default().max_tokens(30);
    let ([(text, tokens, _), _], _) = two_turns(CpuBackend::new(), 1, &first);
    let words: Vec<&str> = text.split_whitespace().collect();
    let stopping = |at: usize| first.clone().stop(vec![words[at].to_owned()]);
    let sampled = SamplerOptions::default().temperature(0.9).top_k(40).seed(7);
    let penalized = SamplerOptions::default().repetition_penalty(1.3);
    let cases = [
        ("as many tokens as were asked for", first.clone(), FinishReason::MaxTokens),
        ("one token", first.clone().max_tokens(1), FinishReason::MaxTokens),
        ("two tokens", first.clone().max_tokens(2), FinishReason::MaxTokens),
        ("a stop string at once", stopping(0), FinishReason::StopString),
        ("a stop string later", stopping(words.len() / 2), FinishReason::StopString),
        ("the end that the model chose", first.clone(), FinishReason::EndOfSequence),
        ("candidates", first.clone().sampler(sampled), FinishReason::MaxTokens),
        ("all logits", first.clone().sampler(penalized), FinishReason::MaxTokens),
    ];
    for (name, options, reason) in cases {
        let Some(gpu) = gpu() else { return };
        let end = if reason == FinishReason::EndOfSequence { tokens[tokens.len() / 2] } else { 1 };
        let (expected, on_cpu) = two_turns(CpuBackend::new(), end, &options);
        let (found, on_gpu) = two_turns(gpu, end, &options);
        assert_eq!(expected[0].2, Some(reason), "{name}");
        assert_eq!(found, expected, "{name}");
        // The step submitted before the end was known.
        let more = usize::from(matches!(reason, FinishReason::StopString | FinishReason::EndOfSequence));
        assert!(on_gpu == on_cpu || on_gpu == on_cpu + more, "{name}: {on_gpu} and {on_cpu} positions");
    }
}

#[test]
fn the_next_step_begins_before_the_last_one_is_read() {
    let Some(gpu) = gpu() else { return };
    let checkpoint = checkpoint(on_disk(fixture("tale-llama")), None);
    let mut model = load(gpu, &checkpoint);
    let prompt = [1, 5, 9];
    let expected = greedy(&mut model, &prompt, 20);
    let mut cache = model.new_cache(prompt.len() + 20).unwrap();
    let mut found = Vec::new();
    let mut pending = Some(
        block_on(model.start_next(&[Run::only(&prompt)], &mut cache, LogitsRequest::Largest, &Silent))
            .unwrap(),
    );
    while let Some(step) = pending {
        let before = model.dispatches().unwrap();
        let follows = found.len() + 1 < 20;
        let (next, ahead) = block_on(model.finish_next(step, &mut cache, follows, &Silent)).unwrap();
        let [Next::Token(token)] = next[..] else { panic!("expected a token but found {next:?}") };
        found.push(token);
        assert_eq!(ahead.is_some(), follows);
        let layers = checkpoint.config().num_hidden_layers as u64;
        let step = layers * DISPATCHES_OF_A_BLOCK + DISPATCHES_OF_THE_ENDS;
        assert_eq!(model.dispatches().unwrap() - before, if follows { step } else { 0 });
        assert_eq!(cache.len(0), prompt.len() + found.len() - usize::from(!follows));
        pending = ahead;
    }
    assert_eq!(found, expected);
}

#[test]
fn perplexity_is_that_of_the_cpu() {
    let mut data = held_out();
    data.tokens.truncate(2000);
    let options = WindowOptions { context: 512, stride: None };
    let kinds = [
        ("f16", None),
        ("int4", rtn(Bits::Four, Granularity::Group(32), true)),
        ("int3", rtn(Bits::Three, Granularity::Group(32), true)),
        ("int2", rtn(Bits::Two, Granularity::Group(32), false)),
    ];
    for (name, kind) in &kinds {
        let Some(gpu) = gpu() else { return };
        let checkpoint = checkpoint(on_disk(fixture("tale-llama")), kind.as_ref());
        let cpu =
            block_on(score(&mut load(CpuBackend::new(), &checkpoint), &data, &options, &Silent)).unwrap();
        let gpu = block_on(score(&mut load(gpu, &checkpoint), &data, &options, &Silent)).unwrap();
        let (cpu, gpu) = (cpu.perplexity(), gpu.perplexity());
        println!("{name}: {gpu:.6} on the GPU, {cpu:.6} on the CPU");
        assert!((gpu / cpu - 1.0).abs() < PERPLEXITY_TOLERANCE, "{name}: {gpu}, not {cpu}");
    }
}

/// The most likely token after each of `tokens`, and its margin over the second.
fn predictions<B: Backend>(model: &mut CausalLm<B>, tokens: &[u32]) -> Vec<(usize, f32)> {
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut predictions = Vec::new();
    block_on(model.forward(tokens, &mut cache, Logits::All, &Silent, |_, row| {
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let second = (0..row.len()).filter(|&id| id != best).map(|id| row[id]).fold(f32::MIN, f32::max);
        predictions.push((best, row[best] - second));
        Ok(())
    }))
    .unwrap();
    predictions
}

#[test]
fn ternary_models_predict_the_tokens_of_the_cpu() {
    let tokens = &held_out().tokens[..500];
    for granularity in [Granularity::Tensor, Granularity::Channel] {
        let Some(gpu) = gpu() else { return };
        let options = QuantizeOptions::ternary(granularity);
        let checkpoint = checkpoint(on_disk(fixture("tale-llama")), Some(&options));
        let cpu = predictions(&mut load(CpuBackend::new(), &checkpoint), tokens);
        let mut model = load(gpu, &checkpoint);
        let gpu = predictions(&mut model, tokens);
        let differing: Vec<f32> =
            cpu.iter().zip(&gpu).filter(|(cpu, gpu)| cpu.0 != gpu.0).map(|(cpu, _)| cpu.1).collect();
        let widest = differing.iter().copied().fold(0.0, f32::max);
        println!(
            "{granularity:?}: {} of {} tokens differ, where logits are at most {widest} apart",
            differing.len(),
            tokens.len()
        );
        let agreement = 1.0 - differing.len() as f64 / tokens.len() as f64;
        assert!(agreement >= LEAST_AGREEMENT, "{agreement}");
        assert!(differing.iter().all(|&gap| gap < CLOSE_LOGITS), "{differing:?}");

        let mut cache = model.new_cache(1).unwrap();
        let before = model.dispatches().unwrap();
        block_on(model.forward_next(&tokens[..1], &mut cache, LogitsRequest::Largest, &Silent)).unwrap();
        let layers = checkpoint.config().num_hidden_layers as u64;
        let most = layers * DISPATCHES_OF_A_TERNARY_BLOCK + DISPATCHES_OF_THE_ENDS;
        let found = model.dispatches().unwrap() - before;
        assert!(found <= most, "{found} kernels a token, more than {most}");
    }
}

#[test]
fn a_broken_variant_is_replaced_and_the_text_stays_that_of_base_kernels() {
    let checkpoint =
        checkpoint(on_disk(fixture("tale-llama")), Some(&QuantizeOptions::ternary(Granularity::Tensor)));
    let text = |options: GpuOptions| {
        let gpu = block_on(GpuBackend::new(&GpuOptions { software: true, ..options })).unwrap();
        let mut model = load(gpu, &checkpoint);
        (greedy(&mut model, &[1, 5, 9], 32), model.capabilities().clone())
    };
    let Some(gpu) = gpu() else { return };
    let by_subgroups = gpu.fast_kernels().contains(&"sums by subgroups");
    drop(gpu);
    let matvec =
        if by_subgroups { "linear_int8.matvec.packed.subgroups" } else { "linear_int8.matvec.packed" };
    let (expected, _) = text(GpuOptions { base_kernels: true, ..GpuOptions::default() });
    for kernel in [matvec, "linear_int8.matmul.packed"] {
        for sabotage in [Sabotage::Idle(kernel), Sabotage::Invalid(kernel)] {
            let (found, told) = text(GpuOptions { sabotage: Some(sabotage), ..GpuOptions::default() });
            assert_eq!(found, expected, "{sabotage:?}");
            assert!(told.device.ends_with(", without packed dot products"), "{}", told.device);
            assert_eq!(told.replaced.len(), 1, "{:?}", told.replaced);
        }
    }
}

#[test]
fn sampled_text_is_that_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let checkpoint = checkpoint(on_disk(fixture("tale-llama")), None);
    let prompt = [1, 5, 9];
    let mut cpu = load(CpuBackend::new(), &checkpoint);
    let mut gpu = load(gpu, &checkpoint);
    for k in [1, 40, 1024] {
        let wanted = LogitsRequest::TopK(k);
        let (mut a, mut b) = (cpu.new_cache(3).unwrap(), gpu.new_cache(3).unwrap());
        let on_cpu = block_on(cpu.forward_next(&prompt, &mut a, wanted, &Silent)).unwrap();
        let on_gpu = block_on(gpu.forward_next(&prompt, &mut b, wanted, &Silent)).unwrap();
        let ids = |next: &Next| match next {
            Next::Candidates(candidates) => candidates.iter().map(|&(id, _)| id).collect::<Vec<_>>(),
            other => panic!("expected candidates but found {other:?}"),
        };
        // At the cut two logits may differ by less than the devices' rounding.
        let same = ids(&on_cpu).iter().filter(|id| ids(&on_gpu).contains(id)).count();
        assert!(same + 1 >= k, "{same} of {k}");
    }
}

#[test]
fn the_command_line_picks_the_device() {
    let generate = |more: &[&str]| {
        let checkpoint = arg(tale());
        let fixed =
            ["--json", "generate", &checkpoint, "--prompt", "Once", "--max-tokens", "8", "--ignore-eos"];
        lowbit(fixed.iter().chain(more))
    };
    let cpu = generate(&["--device", "cpu"]).done().json();
    assert!(cpu["device"].as_str().unwrap().starts_with("cpu"), "{cpu}");
    assert!(cpu["dispatches_per_token"].is_null() && cpu["fallback_reason"].is_null(), "{cpu}");
    let refused = [
        (&["--device", "cpu", "--gpu", "x"][..], "invalid_argument"),
        (&["--gpu", "Voodoo 2"], "no_device"),
        (&["--device", "gpu", "--gpu", "Voodoo 2"], "no_device"),
    ];
    for (args, code) in refused {
        let ran = generate(args);
        assert_eq!((ran.code, ran.json()["error"]["code"].as_str()), (2, Some(code)), "{args:?}");
    }
    let listed = lowbit(["--json", "devices"]).done().json();
    assert!(listed["cpu"].as_str().unwrap().starts_with("cpu"));
    let gpu = generate(&["--device", "gpu"]);
    if listed["adapters"].as_array().unwrap().is_empty() {
        eprintln!("skipped: no adapter");
        assert_eq!(gpu.json()["error"]["code"], "no_device");
        return;
    }
    let gpu = gpu.done().json();
    assert_eq!(gpu["token_ids"], cpu["token_ids"]);
    assert_eq!(gpu["text"], cpu["text"]);
    assert!(gpu["device"].as_str().unwrap().starts_with("gpu: "), "{gpu}");
    // Three layers.
    assert!(gpu["dispatches_per_token"].as_f64().unwrap() <= 31.0, "{gpu}");
}

#[test]
fn calibrating_on_the_gpu_gives_what_it_gives_on_the_cpu() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let calibration = arg(tale().join("calibration.txt"));
    for (method, more) in [("gptq", &[][..]), ("awq", &["--asym"]), ("gptq", &["--target-bpw", "3.6"])] {
        let found = ["cpu", "gpu"].map(|device| {
            let output = folder.path().join(format!("{method}{}-{device}", more.len()));
            let place = [arg(tale()), arg(&output)];
            let fixed = ["quantize", &place[0], "-o", &place[1], "--method", method, "--group-size", "32"];
            let samples = ["--calibration", &calibration, "--samples", "8", "--sequence-length", "128"];
            lowbit(fixed.iter().chain(&samples).chain(more).chain(&["--device", device])).done();
            let opened = block_on(Checkpoint::open(on_disk(&output))).unwrap();
            let data = held_out();
            let windows = WindowOptions { context: 512, stride: None };
            block_on(score(&mut load(CpuBackend::new(), &opened), &data, &windows, &Silent))
                .unwrap()
                .perplexity()
        });
        println!("{method} {more:?}: perplexity {} on the CPU, {} on the GPU", found[0], found[1]);
        assert!((found[1] / found[0] - 1.0).abs() < PERPLEXITY_TOLERANCE, "{method} {more:?}: {found:?}");
    }
    // Methods without calibration run no model.
    let place = arg(folder.path().join("rtn"));
    let ran = lowbit(["quantize", &arg(tale()), "-o", &place, "--device", "gpu"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("method rtn does not calibrate; a device requires a method that does"),
        "{}",
        ran.stderr
    );
}
