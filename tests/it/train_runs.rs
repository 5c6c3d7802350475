//! Training runs: the output is the trained model, interruptions change nothing, and invalid input is named.

use crate::support::{fixture, load_checkpoint, logits, on_disk};
use lowbit::internals::backend::NO_INDEX;
use lowbit::internals::backend::cpu::{CpuBackend, CpuOptions};
use lowbit::internals::error::ErrorCode;
use lowbit::internals::format::scratch::MemoryScratch;
use lowbit::internals::format::sink::{FsSinkDir, MemorySinkDir, SinkDir};
use lowbit::internals::model::decoder::Logits;
use lowbit::internals::model::{CausalLm, Checkpoint, LoadOptions};
use lowbit::internals::pipeline::train::{StartCodes, TimeLimit, TrainContext, TrainInputs, learn, train};
use lowbit::internals::quant::{Activations, Granularity, PackedTensor, dequantize};
use lowbit::internals::request::{
    BatchRequest, Format, LayersRequest, Masters, TrainRequest, TrainedScales, TrainedScheme, TrainingSignal,
};
use lowbit::internals::task::{BoxFuture, Control, Progress, Silent, block_on};
use lowbit::internals::train::corpus::{Corpus, Document, Position, Sequence};
use lowbit::internals::train::curriculum::Curriculum;
use lowbit::internals::train::run::Event;
use lowbit::internals::train::state::StateFolder;
use lowbit::internals::train::{Origin, Row, Stored};
use std::cell::{Cell, RefCell};

/// Tokens of a row.
const CONTEXT: usize = 32;

/// A few steps with evaluation and saved states.
fn request() -> TrainRequest {
    TrainRequest::default()
        .steps(6)
        .batch(BatchRequest::default().context(CONTEXT).batch_tokens(4 * CONTEXT))
        .evaluate_every(2)
        .keep_every(3)
}

fn layers(bits: TrainedScheme) -> LayersRequest {
    LayersRequest::default().bits(bits)
}

fn tale() -> Checkpoint {
    block_on(Checkpoint::open(on_disk(fixture("tale-llama")))).unwrap()
}

/// A deterministic text.
fn corpus(checkpoint: &Checkpoint) -> Corpus {
    let tokens = (0..3000u32).map(|i| (i * i / 7 + i) % 500).collect();
    Corpus::new(vec![Document::text(tokens)], Some(1), None, CONTEXT, checkpoint.config().vocab_size).unwrap()
}

fn held_out(checkpoint: &Checkpoint) -> Vec<Sequence> {
    corpus(checkpoint).batch(9, Position::default(), 4 * CONTEXT).unwrap().0
}

/// Cancels the run after so many progress reports.
struct Until(Cell<usize>);

impl Control for Until {
    fn progress(&self, _: &Progress<'_>) {
        self.0.set(self.0.get().saturating_sub(1));
    }

    fn cancelled(&self) -> bool {
        self.0.get() == 0
    }

    fn yield_now(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Two levels of text. The first level's held-out question asks for the model's own prediction, so it is mastered when it is first
/// asked. The second one's asks for an unlikely token.
fn levels(checkpoint: &Checkpoint) -> (Corpus, Curriculum) {
    let documents = (1..=2u32).map(|level| Document::text((0..700).map(|i| (i * level) % 500).collect()));
    let vocabulary = checkpoint.config().vocab_size;
    let corpus = Corpus::new(documents.collect(), Some(1), None, CONTEXT, vocabulary).unwrap();
    let corpus = corpus.graded(vec![1, 2]).unwrap();
    let tokens = vec![1, 2, 3];
    let rows = logits(&mut load_checkpoint(checkpoint), &tokens, tokens.len());
    let likeliest = rows[2].iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32;
    let question = |target| Sequence { tokens: tokens.clone(), targets: vec![NO_INDEX, NO_INDEX, target] };
    let held_out = vec![(1, vec![question(likeliest)]), (2, vec![question((likeliest + 1) % 500)])];
    let curriculum = Curriculum::new(held_out, &corpus.levels()).unwrap();
    (corpus, curriculum)
}

/// What a run trains on.
#[derive(Clone, Copy, PartialEq)]
enum Lesson {
    Text,
    Levels,
}

/// Runs `work` with a job's inputs and context.
fn with_job<T>(
    lesson: Lesson,
    checkpoint: &Checkpoint,
    state: &std::path::Path,
    target: &MemorySinkDir,
    control: &dyn Control,
    tell: &dyn Fn(Event),
    work: impl FnOnce(TrainInputs<'_>, TrainContext<'_>) -> T,
) -> T {
    let held_out = held_out(checkpoint);
    let (mut corpus, curriculum) = match lesson {
        Lesson::Text => (corpus(checkpoint), None),
        Lesson::Levels => {
            let (corpus, curriculum) = levels(checkpoint);
            (corpus, Some(curriculum))
        }
    };
    let sinks = FsSinkDir::at(state);
    let context = TrainContext {
        target,
        file: None,
        state: StateFolder(&sinks),
        scratch: &MemoryScratch::new(),
        limit: None,
        tell,
        control,
    };
    let inputs = TrainInputs {
        origin: Origin::Checkpoint(checkpoint),
        config_json: checkpoint.config_json(),
        files: &[],
        name: "tale",
        corpus: &mut corpus,
        held_out: &held_out,
        curriculum,
        sha256: "a text".to_owned(),
        teacher: Some(checkpoint),
    };
    work(inputs, context)
}

/// The weights and events of a run with so many threads, interrupted after each of these numbers of reports.
fn written(lesson: Lesson, request: &TrainRequest, threads: usize, stops: &[usize]) -> (Vec<u8>, Vec<Event>) {
    let checkpoint = tale();
    let options = request.options(checkpoint.config(), TrainingSignal::Teacher).unwrap();
    let backend = || Ok(CpuBackend::with_options(CpuOptions { threads: Some(threads), simd: true }));
    let state = tempfile::tempdir().unwrap();
    let heard = RefCell::new(Vec::new());
    let run = |control: &dyn Control| {
        let target = MemorySinkDir::new("out");
        let tell = |event| heard.borrow_mut().push(event);
        let state = state.path();
        let done = with_job(lesson, &checkpoint, state, &target, control, &tell, |inputs, context| {
            block_on(train(&backend, inputs, &options, context))
        });
        done.map(|_| target.to_dir().get("model.safetensors").unwrap().to_vec())
    };
    for &stop in stops {
        let error = run(&Until(Cell::new(stop))).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Cancelled, "{error}");
    }
    let bytes = run(&Silent).unwrap();
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "the state goes when the work is done");
    (bytes, heard.into_inner())
}

#[test]
fn threads_and_interruptions_leave_the_bits_as_they_are() {
    let usual = request();
    let cases = [
        usual.clone().layers(layers(TrainedScheme::Ternary)),
        usual.clone().layers(layers(TrainedScheme::Ternary)).block_steps(2),
        usual.clone().layers(layers(TrainedScheme::Two)).masters(Masters::Bf16),
        usual.clone().layers(layers(TrainedScheme::Two)).block_steps(3),
        usual.layers(layers(TrainedScheme::Two)).block_steps(3).steps(0),
    ];
    for request in cases {
        let what = format!("{}, {} steps of blocks", request.layers.bits, request.block_steps);
        let (expected, heard) = written(Lesson::Text, &request, 1, &[]);
        let count = |of: fn(&Event) -> bool| heard.iter().filter(|event| of(event)).count() as u64;
        let steps = request.steps.unwrap();
        assert_eq!(count(|event| matches!(event, Event::Step(_))), steps, "{what}: {heard:?}");
        let looks = if steps == 0 { 0 } else { 4 };
        assert_eq!(count(|event| matches!(event, Event::Evaluated { .. })), looks, "{what}: {heard:?}");
        let blocks = if request.block_steps == 0 { 0 } else { 3 };
        assert_eq!(count(|event| matches!(event, Event::Block(_))), blocks, "{what}: {heard:?}");
        assert!(written(Lesson::Text, &request, 2, &[]).0 == expected, "{what}: threads");
        let reports = reports(Lesson::Text, &request);
        let last = reports - 1;
        // Once in each stage, twice in a late stage, and early after a resume.
        for stops in [
            &[1][..],
            &[reports / 4],
            &[reports / 2],
            &[3 * reports / 4],
            &[last],
            &[last, 1],
            &[reports / 2, 1, 2],
        ] {
            assert!(written(Lesson::Text, &request, 1, stops).0 == expected, "{what}: stopped at {stops:?}");
        }
    }
}

#[test]
fn a_curriculum_goes_on_at_its_level() {
    let request = request();
    let (expected, heard) = written(Lesson::Levels, &request, 1, &[]);
    let reached: Vec<Option<usize>> = heard
        .iter()
        .filter_map(|event| match event {
            Event::Level(mastered) => Some(mastered.next),
            _ => None,
        })
        .collect();
    assert!(reached.starts_with(&[Some(2), None]), "{heard:?}");
    assert!(written(Lesson::Text, &request, 1, &[]).0 != expected, "the levels decide what is learned");
    let reports = reports(Lesson::Levels, &request);
    for stops in [&[reports / 4][..], &[reports / 2], &[3 * reports / 4], &[reports / 2, 1, 2]] {
        assert!(written(Lesson::Levels, &request, 1, stops).0 == expected, "stopped at {stops:?}");
    }
}

#[test]
fn blocks_that_are_trained_alone_come_nearer_to_the_originals() {
    let checkpoint = tale();
    let request = request()
        .layers(layers(TrainedScheme::Two).group_size(Granularity::Group(32)))
        .start(StartCodes::Nearest)
        .block_steps(40)
        .steps(0);
    let options = request.options(checkpoint.config(), TrainingSignal::Teacher).unwrap();
    let (state, target, losses) =
        (tempfile::tempdir().unwrap(), MemorySinkDir::new("out"), RefCell::new(Vec::new()));
    let tell = |event| {
        if let Event::Block(report) = event {
            losses.borrow_mut().push(report.losses.unwrap());
        }
    };
    with_job(Lesson::Text, &checkpoint, state.path(), &target, &Silent, &tell, |inputs, context| {
        block_on(train(&|| Ok(CpuBackend::new()), inputs, &options, context)).unwrap();
    });
    println!("{losses:?}");
    assert_eq!(losses.borrow().len(), 3);
    assert!(losses.borrow().iter().all(|(first, last)| *last < 0.7 * first), "{losses:?}");
    assert!(block_on(Checkpoint::open(target.existing())).unwrap().is_quantized());
}

/// How many reports of progress a run makes.
fn reports(lesson: Lesson, request: &TrainRequest) -> usize {
    let most = 1 << 20;
    let checkpoint = tale();
    let options = request.options(checkpoint.config(), TrainingSignal::Teacher).unwrap();
    let (state, target) = (tempfile::tempdir().unwrap(), MemorySinkDir::new("out"));
    let control = Until(Cell::new(most));
    with_job(lesson, &checkpoint, state.path(), &target, &control, &|_| (), |inputs, context| {
        block_on(train(&|| Ok(CpuBackend::new()), inputs, &options, context)).unwrap();
    });
    most - control.0.get()
}

#[test]
fn a_run_takes_as_many_steps_as_there_is_time_for() {
    let checkpoint = tale();
    let request = request().layers(layers(TrainedScheme::Ternary)).steps(100);
    let options = request.options(checkpoint.config(), TrainingSignal::Teacher).unwrap();
    // Whoever looks at this clock makes a second go by; a step looks once.
    for (end, steps) in [(30.0, 20..=30), (1e9, 100..=100), (0.0, 1..=1)] {
        let seconds = Cell::new(0.0);
        let clock = || {
            seconds.set(seconds.get() + 1.0);
            seconds.get()
        };
        let rates = RefCell::new(Vec::new());
        let tell = |event| {
            if let Event::Step(report) = event {
                rates.borrow_mut().push(report.rate);
            }
        };
        let (state, target) = (tempfile::tempdir().unwrap(), MemorySinkDir::new("out"));
        let outcome =
            with_job(Lesson::Text, &checkpoint, state.path(), &target, &Silent, &tell, |inputs, context| {
                let context = TrainContext { limit: Some(TimeLimit { clock: &clock, end }), ..context };
                block_on(train(&|| Ok(CpuBackend::new()), inputs, &options, context)).unwrap()
            });
        let done = outcome.result.steps;
        assert!(steps.contains(&done), "{done} until {end}");
        if done > 10 {
            // The learning rate has come down by then.
            let (last, peak) = (rates.borrow()[rates.borrow().len() - 1], options.schedule.peak);
            assert!(last < 0.2 * peak, "{last} of {peak}");
        }
    }
}

#[test]
fn a_folder_holds_what_was_trained() {
    let cases = [
        (TrainedScheme::None, None),
        (TrainedScheme::Ternary, None),
        (TrainedScheme::Ternary, Some(Format::CompressedTensors)),
        (TrainedScheme::Two, None),
        (TrainedScheme::Three, None),
        (TrainedScheme::Four, None),
        (TrainedScheme::Four, Some(Format::Gptq)),
        (TrainedScheme::Four, Some(Format::Awq)),
        (TrainedScheme::Eight, None),
    ];
    let checkpoint = tale();
    for (bits, format) in cases {
        let request = request().layers(layers(bits)).format(format).steps(2);
        let options = request.options(checkpoint.config(), TrainingSignal::Teacher).unwrap();
        let (state, target) = (tempfile::tempdir().unwrap(), MemorySinkDir::new("out"));
        let tokens: Vec<u32> = (5..5 + CONTEXT as u32).collect();
        let row = Row { tokens: &tokens, targets: &tokens };
        let (codes, expected) = with_job(
            Lesson::Text,
            &checkpoint,
            state.path(),
            &target,
            &Silent,
            &|_| (),
            |mut inputs, context| {
                let mut learned =
                    block_on(learn(&|| Ok(CpuBackend::new()), &mut inputs, &options, context)).unwrap();
                let expected = block_on(learned.model.logits(&[row])).unwrap();
                let mut codes = Vec::new();
                let (backend, parameters) = learned.model.parts();
                for parameter in parameters.all_mut().filter(|p| matches!(p.stored, Stored::Packed { .. })) {
                    let module = parameter.tensor.strip_suffix(".weight").unwrap().to_owned();
                    codes.push((module, block_on(parameter.codes(backend)).unwrap().unwrap()));
                }
                block_on(learned.write(&inputs, &options, context)).unwrap();
                (codes, expected)
            },
        );
        let written = block_on(Checkpoint::open(target.existing())).unwrap();
        assert_eq!(written.is_quantized(), bits != TrainedScheme::None);
        for (module, codes) in codes {
            let found = block_on(written.layout().read_packed(written.store(), &module)).unwrap();
            // A layout may count codes from elsewhere, and keep zero points that are all the same.
            let weights = |tensor: &PackedTensor| {
                let mut weights = vec![0.0; tensor.rows() * tensor.cols()];
                dequantize::rows(tensor, 0..tensor.rows(), &mut weights);
                weights
            };
            assert!(weights(found.affine().unwrap()) == weights(&codes), "{bits} {format:?}: {module}");
        }
        // What the layout says of activations is not what was trained everywhere: those are given.
        let activations = (bits != TrainedScheme::None).then_some(options.activations);
        let load = LoadOptions { activations, ..LoadOptions::default() };
        let mut model = block_on(CausalLm::load(CpuBackend::new(), &written, load, &Silent)).unwrap();
        let mut cache = model.new_cache(CONTEXT).unwrap();
        let mut found = Vec::new();
        let each = |_, row: &[f32]| {
            found.extend_from_slice(row);
            Ok(())
        };
        block_on(model.forward(&tokens, &mut cache, Logits::All, &Silent, each)).unwrap();
        let worst = found.iter().zip(&expected).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        println!("{bits} {format:?}: logits differ by at most {worst:.1e}");
        assert!(worst < LOGIT_ERROR, "{bits} {format:?}: {worst}");
    }
}

/// How far a reloaded model's logits may be from the trainer's. Measured 0: both run the same codes by the same kernels.
const LOGIT_ERROR: f32 = 1e-5;

#[test]
fn losses_that_are_no_numbers_go_back_and_then_give_up() {
    let checkpoint = tale();
    // Values leave half precision's range at once.
    let request = request().learning_rate(1e9).warmup(0).layers(layers(TrainedScheme::Ternary));
    let options = request.options(checkpoint.config(), TrainingSignal::Teacher).unwrap();
    let (state, target) = (tempfile::tempdir().unwrap(), MemorySinkDir::new("out"));
    let heard = RefCell::new(Vec::new());
    let tell = |event| heard.borrow_mut().push(event);
    let error =
        with_job(Lesson::Text, &checkpoint, state.path(), &target, &Silent, &tell, |inputs, context| {
            block_on(train(&|| Ok(CpuBackend::new()), inputs, &options, context)).unwrap_err()
        });
    assert_eq!(error.code(), ErrorCode::NonFinite);
    let message = error.to_string();
    assert!(message.contains("after going back 3 times: ") && message.contains("tensor `"), "{message}");
    let back = heard.borrow().iter().filter(|event| matches!(event, Event::RolledBack { to: 0, .. })).count();
    assert_eq!(back, 3, "{heard:?}");
    assert!(target.to_dir().get("config.json").is_none(), "nothing is written");
}

#[test]
fn what_makes_no_sense_is_named_before_a_step() {
    let checkpoint = tale();
    let config = checkpoint.config();
    let usual = request();
    let cases = [
        (
            usual.clone().layers(layers(TrainedScheme::None).group_size(Granularity::Group(32))),
            "a group size requires codes",
        ),
        (usual.clone().format(Format::Gptq), "a layout require quantized weights"),
        (usual.clone().block_steps(1), "block steps require quantized weights"),
        (usual.clone().steps(0), "expected at least one step"),
        (usual.clone().block_rate(1e-3), "requires block steps"),
        (usual.clone().layers(layers(TrainedScheme::Ternary)).start(StartCodes::Gptq), "not ternary ones"),
        (
            usual
                .clone()
                .layers(layers(TrainedScheme::Two).scales(TrainedScales::Nearest))
                .start(StartCodes::Gptq),
            "their own scales",
        ),
    ];
    for (request, message) in cases {
        let error = request.options(config, TrainingSignal::Teacher).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let cases = [
        (
            usual.clone().layers(layers(TrainedScheme::Ternary)).format(Format::Gptq),
            ErrorCode::InvalidArgument,
            "it holds integer codes, not ternary-tensor",
        ),
        (
            usual.clone().memory(lowbit::internals::options::Bytes(1 << 20)),
            ErrorCode::OutOfMemory,
            "but 1048576 are allowed",
        ),
        (
            usual.batch(BatchRequest::default().context(1 << 20)),
            ErrorCode::ContextOverflow,
            "max_position_embeddings",
        ),
    ];
    for (request, code, message) in cases {
        let options = request.options(config, TrainingSignal::Teacher).unwrap();
        let (state, target) = (tempfile::tempdir().unwrap(), MemorySinkDir::new("out"));
        let error = with_job(
            Lesson::Text,
            &checkpoint,
            state.path(),
            &target,
            &Silent,
            &|_| (),
            |inputs, context| {
                block_on(train(&|| Ok(CpuBackend::new()), inputs, &options, context)).unwrap_err()
            },
        );
        assert!(error.code() == code && error.to_string().contains(message), "{:?}: {error}", error.code());
    }
}

#[test]
fn the_state_of_another_run_is_refused() {
    let checkpoint = tale();
    let state = tempfile::tempdir().unwrap();
    let run = |request: &TrainRequest, control: &dyn Control| {
        let options = request.options(checkpoint.config(), TrainingSignal::Teacher).unwrap();
        let target = MemorySinkDir::new("out");
        with_job(Lesson::Text, &checkpoint, state.path(), &target, control, &|_| (), |inputs, context| {
            block_on(train(&|| Ok(CpuBackend::new()), inputs, &options, context)).unwrap_err().to_string()
        })
    };
    let two = request().layers(layers(TrainedScheme::Two)).start(StartCodes::Nearest);
    let others = [
        two.clone().steps(7),
        // Whose weights would meet other activations.
        two.clone().layers(layers(TrainedScheme::Two).activations(Activations::Int8)),
        two.clone().format(Format::Gptq),
    ];
    run(&two, &Until(Cell::new(8)));
    for other in others {
        let error = run(&other, &Silent);
        assert!(error.contains("training_state.safetensors: expected the state of this very run"), "{error}");
    }
    std::fs::write(state.path().join("training_state.safetensors"), b"not a state at all").unwrap();
    let error = run(&request(), &Silent);
    assert!(error.contains("training_state.safetensors"), "{error}");
}
