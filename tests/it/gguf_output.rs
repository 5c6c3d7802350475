//! GGUF files that lowbit writes agree with the checkpoint, in lowbit and (`cargo xtask interop`) in llama.cpp.

use crate::gguf::{every_type, llama_cpp};
use crate::support::{fixture, load_checkpoint, logits, max_distance, on_disk, synthetic};
use lowbit::internals::format::gguf::TensorType;
use lowbit::internals::format::sink::{FsSinkDir, MemorySinkDir, SinkDir};
use lowbit::internals::format::source::{FileSource, MemorySource};
use lowbit::internals::layout::TargetLayout;
use lowbit::internals::model::Checkpoint;
use lowbit::internals::pipeline::convert::{
    ConversionPlan, ConvertOptions, ConvertOutcome, convert, plan_conversion,
};
use lowbit::internals::pipeline::{QuantizeOptions, quantize};
use lowbit::internals::quant::{Bits, Granularity, Method, Scheme};
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::{HuggingFaceTokenizer, TextCodec};
use lowbit::internals::validate::metrics::argmax;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: &str = "model.gguf";

/// Margin of the two best logits below which correct programs may choose differently: llama.cpp rounds activations to 8
/// bits. At 0.1 the trained model's files agree in every token of 40 prompts.
const NEAR_TIE: f32 = 0.1;
/// The same for random weights, whose logits are larger: at 0.1 one prompt diverged, at 0.3 none.
const NEAR_TIE_RANDOM: f32 = 0.3;

fn options(linear: TensorType) -> ConvertOptions {
    ConvertOptions { gguf_type: Some(linear), ..ConvertOptions::new(TargetLayout::Gguf) }
}

fn written(
    checkpoint: &Checkpoint,
    options: &ConvertOptions,
    target: &dyn SinkDir,
) -> (ConversionPlan, ConvertOutcome) {
    block_on(async {
        let plan = plan_conversion(checkpoint, options, &Silent).await?;
        let outcome = convert(checkpoint, &plan, target, &Silent).await?;
        Ok::<_, lowbit::Error>((plan, outcome))
    })
    .unwrap()
}

fn reopened(target: &MemorySinkDir) -> Checkpoint {
    let bytes = target.to_dir().get(FILE).unwrap().clone();
    block_on(Checkpoint::open_gguf(Arc::new(MemorySource::new(FILE, bytes)))).unwrap()
}

fn tale() -> Checkpoint {
    block_on(Checkpoint::open(on_disk(fixture("tale-llama")))).unwrap()
}

#[test]
fn a_file_with_the_weights_as_they_are_says_the_same() {
    let original = tale();
    let target = MemorySinkDir::new("out");
    let (plan, outcome) = written(&original, &options(TensorType::F16), &target);
    assert!(outcome.tokenizer_problem.is_none(), "{:?}", outcome.tokenizer_problem);
    assert!(plan.losses().next().is_none() && outcome.largest_difference().is_none());
    let file = reopened(&target);
    let ids = synthetic::tokens("gguf", 20, 2048);
    let expected = logits(&mut load_checkpoint(&original), &ids, 20);
    assert_eq!(max_distance(&logits(&mut load_checkpoint(&file), &ids, 20), &expected), 0.0);

    let open = |checkpoint: &Checkpoint| {
        let bos = checkpoint.config().bos_token_id;
        block_on(HuggingFaceTokenizer::open(checkpoint.dir().as_ref(), bos)).unwrap()
    };
    let (ours, theirs) = (open(&file), open(&original));
    let text = std::fs::read_to_string(fixture("tale-llama/heldout.txt")).unwrap();
    assert_eq!(ours.encode(&text).unwrap(), theirs.encode(&text).unwrap());
    assert_eq!(ours.encode_prompt("A fox").unwrap(), theirs.encode_prompt("A fox").unwrap());

    let again = MemorySinkDir::new("again");
    written(&original, &options(TensorType::F16), &again);
    assert_eq!(again.to_dir().get(FILE), target.to_dir().get(FILE), "identical inputs make identical files");
}

/// Conversion keeps the codes, so the logits are bit-identical.
#[test]
fn packed_modules_keep_their_codes() {
    let original = tale();
    let group = |bits, size, symmetric| {
        QuantizeOptions::new(
            Method::Rtn,
            Scheme::symmetric(bits, Granularity::Group(size)).with_symmetry(symmetric),
        )
    };
    for (options_in, exact) in [
        (group(Bits::Four, 32, true), true),
        (group(Bits::Four, 64, true), true),
        (group(Bits::Three, 32, true), true),
        (QuantizeOptions::new(Method::Rtn, Scheme::symmetric(Bits::Eight, Granularity::Channel)), true),
        (group(Bits::Four, 32, false), false),
    ] {
        let folder = MemorySinkDir::new("quantized");
        block_on(quantize(&original, &options_in, &folder, &Silent)).unwrap();
        let packed = block_on(Checkpoint::open(Arc::new(folder.to_dir()))).unwrap();
        let target = MemorySinkDir::new("out");
        let (_, outcome) = written(&packed, &options(TensorType::Q8_0), &target);
        let scheme = options_in.scheme;
        let largest = outcome.largest_difference().map_or(0.0, |(largest, _)| largest);
        assert_eq!(largest == 0.0, exact, "{scheme}: {largest}");
        assert!(largest < 1e-3, "{scheme}: {largest}");
        let ids = synthetic::tokens("gguf", 20, 2048);
        let expected = logits(&mut load_checkpoint(&packed), &ids, 20);
        let distance = max_distance(&logits(&mut load_checkpoint(&reopened(&target)), &ids, 20), &expected);
        println!("{scheme}: weights {largest:.1e}, logits {distance:.1e} apart");
        // Scales of groups of 64 and of channels are repeated for groups of 32, which changes the order of summation.
        assert!(distance < if exact { 1e-4 } else { 0.05 }, "{scheme}: {distance}");
    }
}

#[test]
fn what_cannot_be_exact_is_said_before_and_measured_after() {
    let original = tale();
    let target = MemorySinkDir::new("out");
    // 128 columns do not form blocks of 256.
    let (plan, outcome) = written(&original, &options(TensorType::Q4_K), &target);
    let (mut narrow, mut wide) = (0, 0);
    for (module, difference) in plan.modules.iter().zip(&outcome.differences).skip(1) {
        match module.becomes().as_str() {
            "F16" => {
                assert_eq!(module.loss.as_deref(), Some("F16 (128 columns are not whole Q4_K blocks)"));
                assert_eq!(*difference, 0.0);
                narrow += 1;
            }
            "Q4_K" => {
                assert_eq!(module.loss.as_deref(), Some("Q4_K (F16 weights are rounded)"));
                assert!(*difference > 0.0);
                wide += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((narrow, wide), (18, 3));
    assert!(block_on(plan_conversion(&original, &options(TensorType::TQ1_0), &Silent)).is_err());
}

/// lowbit's greedy tokens up to the first small margin.
fn clear_tokens(checkpoint: &Checkpoint, prompt: &[u32], count: usize, near_tie: f32) -> Vec<u32> {
    let mut lm = load_checkpoint(checkpoint);
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let rows = logits(&mut lm, &ids, ids.len());
        let row = rows.last().unwrap();
        let best = argmax(row).unwrap();
        let second =
            row.iter().enumerate().filter(|(id, _)| *id != best).fold(f32::MIN, |max, (_, v)| max.max(*v));
        if row[best] - second < near_tie {
            break;
        }
        ids.push(best as u32);
    }
    ids[prompt.len()..].to_vec()
}

fn write_on_disk(checkpoint: &Checkpoint, options: &ConvertOptions, folder: &Path) -> PathBuf {
    written(checkpoint, options, &FsSinkDir::create(folder).unwrap());
    folder.join(FILE)
}

#[test]
#[ignore = "needs Node: cargo xtask interop"]
fn interop_llama_cpp_continues_what_lowbit_writes() {
    let place = tempfile::tempdir().unwrap();
    let (tale, wide) = (tale(), block_on(Checkpoint::open_gguf(every_type())).unwrap());
    let mut files = Vec::new();
    for linear in [TensorType::F16, TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1, TensorType::Q4_K] {
        let name = format!("tale-{linear}");
        files.push((write_on_disk(&tale, &options(linear), &place.path().join(&name)), name, 2048));
    }
    for linear in [TensorType::Q4_K, TensorType::TQ2_0] {
        let name = format!("wide-{linear}");
        files.push((write_on_disk(&wide, &options(linear), &place.path().join(&name)), name, 320));
    }
    const COUNT: usize = 24;
    let codec = block_on(HuggingFaceTokenizer::open(tale.dir().as_ref(), None)).unwrap();
    let words = codec.encode(&std::fs::read_to_string(fixture("tale-llama/heldout.txt")).unwrap()).unwrap();
    let mut jobs = Vec::new();
    let mut expected = Vec::new();
    for (path, name, vocabulary) in &files {
        let checkpoint = block_on(Checkpoint::open_gguf(Arc::new(FileSource::open(path).unwrap()))).unwrap();
        for salt in 0..8 {
            let near_tie = if *vocabulary == 2048 { NEAR_TIE } else { NEAR_TIE_RANDOM };
            // Words for the trained model, whose margins are larger on text.
            let prompt = match *vocabulary {
                2048 => words[100 * salt..100 * salt + 24].to_vec(),
                other => synthetic::tokens(&format!("gguf {salt}"), 8, other),
            };
            expected.push((format!("{name} {salt}"), clear_tokens(&checkpoint, &prompt, COUNT, near_tie)));
            jobs.push(json!({"file": path, "greedy": prompt, "count": COUNT}));
        }
    }
    let Some(answers) = llama_cpp::<Vec<u32>>(&jobs) else { return };
    let mut compared = 0;
    for ((name, ours), theirs) in expected.iter().zip(&answers) {
        println!("{name}: {} clear tokens", ours.len());
        assert_eq!(ours[..], theirs[..ours.len()], "{name}");
        compared += ours.len();
    }
    assert!(compared > 100, "only {compared} tokens were clear");
}

#[test]
fn quantizing_straight_to_gguf_keeps_the_codes_of_the_folder() {
    use crate::terminal::{arg, files, lowbit, tale};
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| arg(scratch.path().join(name));
    for (options, tensor_type, bits) in [
        (&["--bits", "4"][..], TensorType::Q4_0, 4.5),
        (&["--bits", "4", "--asym", "--group-size", "64"], TensorType::Q4_1, 5.0),
        (&["--bits", "8"], TensorType::Q8_0, 8.5),
    ] {
        let (file, folder) = (path(&format!("{tensor_type}.gguf")), path("folder"));
        let quantize = |output: &str, more: &[&str]| {
            let args = ["quantize", &arg(tale()), "-o", output, "--json"];
            lowbit(args.iter().chain(options).chain(more)).done().json()
        };
        let document = quantize(&file, &["--format", "gguf"]);
        assert_eq!((&document["format"], &document["output"]), (&json!("gguf"), &json!(file)));
        assert_eq!(document["bits_per_weight"], bits);
        let small = options.contains(&"--group-size");
        quantize(&folder, if small { &[] } else { &["--group-size", "32"] });
        let file = block_on(Checkpoint::open_gguf(Arc::new(FileSource::open(&file).unwrap()))).unwrap();
        let folder = block_on(Checkpoint::open(on_disk(&folder))).unwrap();
        for linear in lowbit::internals::model::names::Linear::ALL {
            let module = linear.module(1);
            let read = |checkpoint: &Checkpoint| {
                block_on(checkpoint.layout().read_packed(checkpoint.store(), &module)).unwrap()
            };
            let (ours, theirs) = (read(&file), read(&folder));
            let mut weights = [vec![0.0; ours.rows() * ours.cols()], vec![0.0; ours.rows() * ours.cols()]];
            for (tensor, out) in [&ours, &theirs].into_iter().zip(&mut weights) {
                tensor.decode_rows(0..tensor.rows(), out);
            }
            let farthest =
                weights[0].iter().zip(&weights[1]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            // Zero points become half-precision minimums; everything else is exact.
            let allowed = if tensor_type == TensorType::Q4_1 { 1e-3 } else { 0.0 };
            assert!(farthest <= allowed, "{tensor_type}, {module}: {farthest}");
        }
    }
    let left = files(scratch.path());
    assert_eq!(left.len(), 3, "nothing but the files: {:?}", left.keys());
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 4, "and the folder");
    let again = path(left.keys().next().unwrap());
    let ran = lowbit(["quantize", &arg(tale()), "-o", &again, "--format", "gguf"]);
    assert!(ran.code == 2 && ran.stderr.contains("already exists"), "{}", ran.stderr);
    let (output, calibration) = (path("x.gguf"), arg(tale().join("calibration.txt")));
    let ran = lowbit([
        "quantize",
        &arg(tale()),
        "-o",
        &output,
        "--format",
        "gguf",
        "--target-bpw",
        "4",
        "--method",
        "gptq",
        "--calibration",
        &calibration,
    ]);
    assert!(ran.code == 2 && ran.stderr.contains("4 or 8 bits"), "{}", ran.stderr);
}
