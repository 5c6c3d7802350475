//! `auto` tries until a result is accepted, records every attempt, and does not depend on the command line.

use crate::support::{fixture, load, on_disk, tokenizer};
use crate::terminal::{arg, copy_of_tale, lowbit, short_text, tale};
use lowbit::Result;
use lowbit::internals::artifact::summary::Summary;
use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::calibrate::SampleOptions;
use lowbit::internals::dtype::DType;
use lowbit::internals::format::scratch::MemoryScratch;
use lowbit::internals::format::sink::{MemorySinkDir, SinkDir};
use lowbit::internals::format::source::SourceDir;
use lowbit::internals::layout::ModuleStorage;
use lowbit::internals::model::Checkpoint;
use lowbit::internals::pipeline::auto::training::QatTrainer;
use lowbit::internals::pipeline::auto::{AutoContext, AutoOptions, Event, Outputs, SearchCandidate, auto};
use lowbit::internals::pipeline::dequantize::dequantize_checkpoint;
use lowbit::internals::pipeline::quantize::quantize;
use lowbit::internals::pipeline::select::QuantizeOptions;
use lowbit::internals::quant::{Bits, Granularity, Method, Scheme};
use lowbit::internals::request::{BatchRequest, TrainRequest, TrainingSignal};
use lowbit::internals::task::{BoxFuture, Silent, block_on};
use lowbit::internals::tokenizer::TextCodec;
use lowbit::internals::validate::continuations::from_dataset;
use lowbit::internals::validate::residency::Residency;
use lowbit::internals::validate::run::ValidateOptions;
use lowbit::internals::validate::verdict::Limits;
use lowbit::internals::validate::windows::{Dataset, WindowOptions};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::future::ready;
use std::sync::Arc;

/// Output folders in memory, as in a page.
struct InMemory {
    summary: MemorySinkDir,
    folders: RefCell<BTreeMap<String, MemorySinkDir>>,
}

impl Outputs for InMemory {
    fn summary(&self) -> &dyn SinkDir {
        &self.summary
    }

    fn create<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Box<dyn SinkDir>>> {
        let folder = MemorySinkDir::new(name);
        self.folders.borrow_mut().insert(name.to_owned(), folder.clone());
        Box::pin(ready(Ok(Box::new(folder) as Box<dyn SinkDir>)))
    }
}

fn text(file: &str, chars: usize) -> String {
    fs::read_to_string(fixture("tale-llama").join(file)).unwrap().chars().take(chars).collect()
}

#[test]
fn the_ladder_is_climbed_in_memory_until_the_quality_is_kept() {
    let dir = on_disk(fixture("tale-llama"));
    let checkpoint = block_on(Checkpoint::open(dir.clone())).unwrap();
    let codec = tokenizer(dir.as_ref());
    let data = Dataset::new("heldout.txt", &text("heldout.txt", 8000), &codec).unwrap();
    let calibration = codec.encode(&text("calibration.txt", 6000)).unwrap();
    let validate = ValidateOptions {
        prompts: from_dataset(&data, 2, 8, &codec).unwrap(),
        // On this model INT8 costs almost nothing, and INT4 far more than this limit, mixed or not.
        ..judged(0.001)
    };
    let candidate = SearchCandidate {
        checkpoint: &checkpoint,
        codec: &codec,
        data: &data,
        validate,
        calibration: &calibration,
        bos_token_id: codec.bos_token_id(),
        cut: SampleOptions { samples: 0, sequence_length: 128, shuffle: None },
    };
    let outputs = InMemory { summary: MemorySinkDir::new("out"), folders: RefCell::default() };
    let told = RefCell::new(Vec::new());
    let context = AutoContext {
        outputs: &outputs,
        scratch: &MemoryScratch::new(),
        clock: &|| 0.0,
        control: &Silent,
        trainer: None,
        tell: &|event| {
            told.borrow_mut().push(match event {
                Event::Ranked { name, .. } => name.to_owned(),
                Event::Checkpoint { reason, .. } => reason.to_owned(),
                Event::Attempt { name, .. } => name.to_owned(),
                Event::Judged { judgement, .. } => format!("{judgement:?}"),
            });
        },
    };
    let options = AutoOptions { bits: Some(Bits::Four), samples: vec![2, 4], ..AutoOptions::default() };
    let new = || Ok(CpuBackend::new());
    let outcome = block_on(auto(&[candidate], &options, new, &context)).unwrap();

    for variant in &outcome.summary.variants {
        let attempt = variant.attempt.as_ref().unwrap();
        println!(
            "{}: {} {:?}, {:?}",
            attempt.name, variant.scheme, variant.perplexity_increase, attempt.failed
        );
    }
    let names = ["1-int4-2", "2-int4-4", "3-int4-4-mixed", "4-int8-4"];
    let (bad, good) = ("Bad", "Good");
    let expected = ["INT4 was requested", names[0], bad, names[1], bad, names[2], bad, names[3], good]
        .map(str::to_owned);
    assert_eq!(told.take(), expected);
    assert_eq!(outcome.accepted(), Some(names[3]));

    // The written summary equals the returned one, and has every attempt.
    let file = outputs.summary.to_dir();
    let file = block_on(file.open("quantization_summary.json")).unwrap().unwrap();
    let mut bytes = vec![0; file.len() as usize];
    block_on(file.read_at(0, &mut bytes)).unwrap();
    let summary: Summary = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(summary, outcome.summary);
    let attempts: Vec<_> = summary.variants.iter().map(|variant| variant.attempt.as_ref().unwrap()).collect();
    assert_eq!(attempts.iter().map(|attempt| attempt.name.as_str()).collect::<Vec<_>>(), names);
    assert_eq!(attempts.iter().map(|attempt| attempt.samples).collect::<Vec<_>>(), [2, 4, 4, 4]);
    assert_eq!(attempts.iter().map(|attempt| attempt.good).collect::<Vec<_>>(), [false, false, false, true]);

    // Mixed precision: exactly the promoted modules are INT8.
    let open = |name: &str| block_on(Checkpoint::open(outputs.folders.borrow()[name].existing())).unwrap();
    let mixed = open(names[2]);
    assert!(!attempts[2].promoted.is_empty());
    for layer in 0..3 {
        for linear in lowbit::internals::model::names::Linear::ALL {
            let module = linear.module(layer);
            let ModuleStorage::Packed { coding: scheme, .. } = mixed.module(&module).unwrap() else {
                panic!("{module} is not packed");
            };
            let bits = if attempts[2].promoted.contains(&module) { 8 } else { 4 };
            assert_eq!(scheme.code_bits(), bits, "{module}");
        }
    }
    // The accepted folder runs and contains its report.
    let folder = outputs.folders.borrow()[names[3]].to_dir();
    assert!(block_on(folder.open("validation_report.json")).unwrap().is_some());
    load(Arc::new(folder));
}

#[test]
fn the_recommended_precision_is_tried_first_and_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let ran = lowbit([
        "auto",
        &arg(tale()),
        "-o",
        &arg(&output),
        "--text",
        &short_text(folder.path()),
        "--calibration",
        &arg(tale().join("calibration.txt")),
        "--samples",
        "2",
        "--sequence-length",
        "128",
        "--speed-rounds",
        "0",
        "--json",
    ])
    .done();
    let document = ran.json();
    assert_eq!(document["accepted"], arg(output.join("1-int8-2")));
    assert_eq!(document["attempts"].as_array().unwrap().len(), 1);
    assert!(ran.stderr.contains("below 30M parameters"), "{}", ran.stderr);
    lowbit(["generate", &arg(output.join("1-int8-2")), "--prompt", "Once", "--max-tokens", "4"]).done();
}

/// Judges by perplexity alone.
fn judged(max_perplexity_increase: f64) -> ValidateOptions {
    ValidateOptions {
        method: String::new(),
        windows: WindowOptions { context: 256, stride: None },
        prompts: Vec::new(),
        max_tokens: 8,
        benchmark: Vec::new(),
        speed_rounds: 0,
        last_level_cache_bytes: None,
        activations: None,
        limits: Limits::default().max_perplexity_increase(max_perplexity_increase),
        residency: Residency::SideBySide,
    }
}

#[test]
fn what_gptq_loses_within_a_target_training_finds_again_and_the_better_model_comes_first() {
    let dir = on_disk(fixture("tale-llama"));
    let good = block_on(Checkpoint::open(dir.clone())).unwrap();
    // The same model, damaged by 2 bits.
    let worse = MemorySinkDir::new("worse");
    block_on(async {
        let (packed, options) = (
            MemorySinkDir::new("packed"),
            QuantizeOptions::new(Method::Rtn, Scheme::symmetric(Bits::Two, Granularity::Group(32))),
        );
        quantize(&good, &options, &packed, &Silent).await.unwrap();
        let packed = Checkpoint::open(Arc::new(packed.to_dir())).await.unwrap();
        dequantize_checkpoint(&packed, DType::F16, &worse, &Silent).await.unwrap();
    });
    let worse = block_on(Checkpoint::open(Arc::new(worse.to_dir()))).unwrap();
    let codec = tokenizer(dir.as_ref());
    let data = Dataset::new("heldout.txt", &text("heldout.txt", 12_000), &codec).unwrap();
    let calibration = codec.encode(&text("calibration.txt", 60_000)).unwrap();
    let candidate = |checkpoint| SearchCandidate {
        checkpoint,
        codec: &codec,
        data: &data,
        // GPTQ raises perplexity by 14 %.
        validate: judged(0.12),
        calibration: &calibration,
        bos_token_id: codec.bos_token_id(),
        cut: SampleOptions { samples: 0, sequence_length: 128, shuffle: None },
    };
    let (told, scratch) = (RefCell::new(Vec::new()), MemoryScratch::new());
    let trainer = QatTrainer {
        new_backend: &|| Ok(CpuBackend::new()),
        options: &|scheme, config| {
            let request = TrainRequest::to_scheme(scheme).unwrap();
            request
                .steps(60)
                .batch(BatchRequest::default().batch_tokens(512))
                .options(config, TrainingSignal::Teacher)
        },
        // The test must not depend on a clock.
        seconds: 1e9,
        clock: &|| 0.0,
        scratch: &scratch,
        tell: &|_| (),
    };
    let outputs = InMemory { summary: MemorySinkDir::new("out"), folders: RefCell::default() };
    let context = AutoContext {
        outputs: &outputs,
        scratch: &scratch,
        clock: &|| 0.0,
        control: &Silent,
        trainer: Some(&trainer),
        tell: &|event| match event {
            Event::Ranked { .. } => {}
            Event::Checkpoint { name, .. } => told.borrow_mut().push(name.to_owned()),
            Event::Attempt { name, .. } => told.borrow_mut().push(name.to_owned()),
            Event::Judged { report, judgement, .. } => {
                println!("{judgement:?}: {:+.4}", report.perplexity.increase);
                told.borrow_mut().push(format!("{judgement:?}"));
            }
        },
    };
    let options = AutoOptions { target_bpw: Some(2.5), samples: vec![64], ..AutoOptions::default() };
    let candidates = [candidate(&worse), candidate(&good)];
    let outcome = block_on(auto(&candidates, &options, || Ok(CpuBackend::new()), &context)).unwrap();
    let expected = [good.name(), "1-2.5bpw-64", "Bad", "2-qat-int2-g32-sym", "Good"];
    assert_eq!(told.take(), expected);
    assert_eq!(outcome.accepted(), Some("2-qat-int2-g32-sym"));
    let trained = outcome.summary.variants.last().unwrap();
    assert_eq!((trained.method.as_str(), trained.bits_per_weight), ("qat", 2.5));
    // Batches consist of whole rows, so some have fewer tokens.
    assert!((60 * 400..=60 * 512).contains(&trained.attempt.as_ref().unwrap().tokens));
}

#[test]
fn a_rejection_tries_every_checkpoint_and_recommends_training() {
    let folder = tempfile::tempdir().unwrap();
    let (output, other) = (folder.path().join("out"), folder.path().join("other"));
    copy_of_tale(&other);
    let text = short_text(folder.path());
    let run = |checkpoints: &[String], more: &[&str]| {
        let mut args = vec!["auto".to_owned()];
        args.extend_from_slice(checkpoints);
        let calibration = arg(tale().join("calibration.txt"));
        args.extend(["-o", &arg(&output), "--text", &text, "--calibration", &calibration].map(str::to_owned));
        args.extend(
            ["--sequence-length", "64", "--speed-rounds", "0", "--max-tokens", "4"].map(str::to_owned),
        );
        args.extend(["--training-minutes", "0"].map(str::to_owned));
        args.extend(more.iter().map(|&more| more.to_owned()));
        lowbit(args)
    };
    let checkpoints = [arg(tale()), arg(&other)];
    let limits = ["--samples", "1", "--max-perplexity-increase", "-0.5", "--json"];
    let ran = run(&checkpoints, &limits);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let document = ran.json();
    assert!(document["accepted"].is_null());
    assert!(document["recommendation"].as_str().unwrap().contains("QAT"), "{document}");
    let summary = fs::read(output.join("quantization_summary.json")).unwrap();
    let summary: Summary = serde_json::from_slice(&summary).unwrap();
    let names = ["1-int8-1", "2-int8-1-mixed", "3-int8-1", "4-int8-1-mixed"];
    for ((variant, name), checkpoint) in summary.variants.iter().zip(names).zip([
        &checkpoints[0],
        &checkpoints[0],
        &checkpoints[1],
        &checkpoints[1],
    ]) {
        let attempt = variant.attempt.as_ref().unwrap();
        assert_eq!((attempt.name.as_str(), &attempt.checkpoint), (name, checkpoint));
        assert_eq!((attempt.good, attempt.failed.contains(&"perplexity_increase".to_owned())), (false, true));
        assert!(output.join(name).join("validation_report.json").is_file());
    }
    assert_eq!(summary.variants.len(), names.len());
    assert_eq!(summary.outcome.unwrap().accepted, None);

    // Invalid options are refused before any work.
    for (more, says) in [
        (["--bits", "3"], "4 or 8 bits"),
        (["--samples", "0"], "above 0"),
        (["--max-perplexity-increase", "-2"], "--max-perplexity-increase"),
        (["--target-bpw", "0"], "--target-bpw"),
    ] {
        let ran = run(&checkpoints, &more);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
    let ran = run(&[arg(output.join("1-int8-1"))], &[]);
    assert!(ran.code == 2 && ran.stderr.contains("already quantized"), "{}", ran.stderr);
}
