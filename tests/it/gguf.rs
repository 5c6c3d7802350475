//! GGUF files: a model with every block type agrees with transformers and llama.cpp, tokenizers agree with llama.cpp, and
//! files of real models run.

use crate::support::synthetic::stream;
use crate::support::{distances, fixture, load_checkpoint, logits, on_disk};
use half::{bf16, f16};
use lowbit::ErrorCode;
use lowbit::internals::format::gguf::{Array, GgufWriter, TensorType, Value};
use lowbit::internals::format::sink::{MemorySinkDir, SinkDir};
use lowbit::internals::format::source::{ByteSource, FileSource, MemorySource};
use lowbit::internals::generate::{GenerateOptions, generate};
use lowbit::internals::model::Checkpoint;
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::{HuggingFaceTokenizer, TextCodec};
use lowbit::internals::validate::metrics::argmax;
use lowbit::internals::validate::walk::score;
use lowbit::internals::validate::windows::{Dataset, WindowOptions};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Largest distance of a logit from transformers' with the same decoded weights; measured 8.6e-6.
const TOLERANCE: f32 = 1e-4;

/// Largest relative difference of a perplexity; measured at most 1e-6 for the same weights, and
/// 0.001 for 8 bits against the model itself.
const PERPLEXITY_TOLERANCE: f64 = 0.002;

/// What `tests/interop/make_gguf_models.py` wrote.
#[derive(Deserialize)]
struct Golden {
    model: Model,
    texts: Vec<String>,
    tokenizers: Vec<Tokenizer>,
}

#[derive(Deserialize)]
struct Model {
    shape: BTreeMap<String, f64>,
    /// Name, type, dimensions.
    tensors: Vec<(String, String, Vec<u64>)>,
    vocabulary: Vocabulary,
    /// For each type: the offsets of a block's half-precision values, and the factor of its step.
    halves: BTreeMap<String, Vec<(usize, f32)>>,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Tokenizer {
    vocabulary: Vocabulary,
    /// llama.cpp's ids of each text.
    ids: Vec<Vec<u32>>,
}

#[derive(Clone, Deserialize)]
struct Vocabulary {
    model: String,
    pre: Option<String>,
    tokens: Vec<String>,
    kinds: Vec<i32>,
    scores: Option<Vec<f32>>,
    merges: Option<Vec<String>>,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(fixture("golden/gguf_models.json")).unwrap()).unwrap()
}

impl Vocabulary {
    fn metadata(&self) -> BTreeMap<String, Value> {
        let mut metadata = BTreeMap::new();
        let mut set = |key: &str, value: Option<Value>| {
            metadata.extend(value.map(|value| (format!("tokenizer.ggml.{key}"), value)));
        };
        set("model", Some(Value::String(self.model.clone())));
        set("pre", self.pre.clone().map(Value::String));
        set("tokens", Some(Value::Array(Array::String(self.tokens.clone()))));
        set("token_type", Some(Value::Array(Array::I32(self.kinds.clone()))));
        set("scores", self.scores.clone().map(|scores| Value::Array(Array::F32(scores))));
        set("merges", self.merges.clone().map(|merges| Value::Array(Array::String(merges))));
        set("bos_token_id", self.bos.map(Value::U32));
        set("eos_token_id", self.eos.map(Value::U32));
        set("unknown_token_id", self.unknown.map(Value::U32));
        metadata
    }
}

impl Model {
    fn metadata(&self, vocabulary: &Vocabulary) -> BTreeMap<String, Value> {
        let size = |key: &str| Value::U32(self.shape[key] as u32);
        let mut metadata = vocabulary.metadata();
        metadata.extend(
            [
                ("general.architecture", Value::String("llama".to_owned())),
                ("llama.block_count", size("blocks")),
                ("llama.context_length", size("context")),
                ("llama.embedding_length", size("hidden")),
                ("llama.feed_forward_length", size("inner")),
                ("llama.attention.head_count", size("heads")),
                ("llama.attention.head_count_kv", size("kv_heads")),
                ("llama.attention.layer_norm_rms_epsilon", Value::F32(self.shape["eps"] as f32)),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        metadata
    }

    /// The bytes of `make_gguf_models.py` for a tensor's name.
    fn data(&self, name: &str, kind: &str, dims: &[u64]) -> Vec<u8> {
        let count = dims.iter().product::<u64>() as usize;
        let uniform = |x: u64| (x >> 40) as f32 * 2f32.powi(-23) - 1.0;
        let values = stream(name).take(count).map(uniform);
        match kind {
            "F32" => return values.flat_map(|u| (1.0 + u * 0.25).to_le_bytes()).collect(),
            "F16" => return values.flat_map(|u| f16::from_f32(u * 0.125).to_le_bytes()).collect(),
            "BF16" => return values.flat_map(|u| bf16::from_f32(u * 0.125).to_le_bytes()).collect(),
            _ => {}
        }
        let tensor_type = type_of(kind);
        let size = tensor_type.block_bytes() as usize;
        let blocks = count / tensor_type.block_elements() as usize;
        let byte = |x: u64| match kind {
            "TQ2_0" => (0..4).map(|i| (((x >> (8 * i)) % 3) << (2 * i)) as u8).sum(),
            _ => x as u8,
        };
        let mut bytes: Vec<u8> = stream(name).take(blocks * size).map(byte).collect();
        let scale_name = format!("{name}#scale");
        let steps = stream(&scale_name).map(|x| (x % 8) as f32 + 8.0);
        for (block, step) in bytes.chunks_exact_mut(size).zip(steps) {
            for &(at, factor) in &self.halves[kind] {
                block[at..at + 2].copy_from_slice(&f16::from_f32(step * factor).to_le_bytes());
            }
        }
        bytes
    }
}

fn type_of(name: &str) -> TensorType {
    (0..64).filter_map(TensorType::from_number).find(|found| found.name() == name).unwrap()
}

/// A file with the model's tensors.
fn write(model: &Model, vocabulary: &Vocabulary) -> Arc<dyn ByteSource> {
    let dir = MemorySinkDir::new("out");
    let list: Vec<_> =
        model.tensors.iter().map(|(name, kind, dims)| (name.clone(), type_of(kind), dims.clone())).collect();
    block_on(async {
        let sink = dir.create("model.gguf").await?;
        let mut writer = GgufWriter::begin(sink, &model.metadata(vocabulary), list).await?;
        for (name, kind, dims) in &model.tensors {
            writer.write(name, &model.data(name, kind, dims)).await?;
        }
        writer.finish().await
    })
    .unwrap();
    let bytes = dir.to_dir().get("model.gguf").unwrap().clone();
    Arc::new(MemorySource::new("model.gguf", bytes))
}

/// llama.cpp's special tokens around a prompt, its end tokens, and its ids.
#[derive(Deserialize)]
pub struct Around {
    pub ids: Vec<Vec<u32>>,
    pub front: Option<u32>,
    pub behind: Option<u32>,
    pub ends: Vec<u32>,
}

/// llama.cpp's answers to `jobs` (`tests/interop/judge_gguf.mjs`), or `None` with a `skipped:` line.
pub fn llama_cpp<T: for<'a> Deserialize<'a>>(jobs: &[serde_json::Value]) -> Option<Vec<T>> {
    let Some(node_llama) = std::env::var_os("LOWBIT_NODE_LLAMA") else {
        println!("skipped: LOWBIT_NODE_LLAMA names no folder; `cargo xtask interop` prepares one");
        return None;
    };
    let mut node = Command::new("node")
        .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop/judge_gguf.mjs"))
        .arg(node_llama)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node runs");
    let jobs = serde_json::to_string(jobs).unwrap();
    node.stdin.take().unwrap().write_all(jobs.as_bytes()).unwrap();
    let output = node.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    Some(serde_json::from_str(text.lines().last().unwrap()).unwrap())
}

/// The file with every block type.
pub fn every_type() -> Arc<dyn ByteSource> {
    let Golden { model, .. } = golden();
    write(&model, &model.vocabulary)
}

#[test]
fn every_block_type_runs_as_in_transformers_and_llama_cpp() {
    let Golden { model, .. } = golden();
    let checkpoint = block_on(Checkpoint::open_gguf(write(&model, &model.vocabulary))).unwrap();
    let mut lm = load_checkpoint(&checkpoint);
    let found = logits(&mut lm, &model.prompt, model.prompt.len());
    let mut worst = 0f32;
    for (&position, expected) in model.positions.iter().zip(&model.logits) {
        worst = distances(&found[position], expected).fold(worst, f32::max);
    }
    println!("{worst:.1e} from transformers");
    assert!(worst < TOLERANCE);

    let mut ids = model.prompt.clone();
    for expected in &model.greedy {
        let rows = logits(&mut lm, &ids, ids.len());
        let next = argmax(rows.last().unwrap()).unwrap() as u32;
        assert_eq!(next, *expected, "after {} tokens", ids.len());
        ids.push(next);
    }
}

#[test]
fn tokenizers_are_those_of_llama_cpp() {
    let Golden { model, texts, tokenizers } = golden();
    for Tokenizer { vocabulary, ids } in tokenizers {
        let name = vocabulary.pre.clone().unwrap_or_else(|| vocabulary.model.clone());
        let checkpoint = block_on(Checkpoint::open_gguf(write(&model, &vocabulary))).unwrap();
        if let Some(problem) = checkpoint.tokenizer_problem() {
            panic!("{name}: {problem}");
        }
        let bos = checkpoint.config().bos_token_id;
        let codec = block_on(HuggingFaceTokenizer::open(checkpoint.dir().as_ref(), bos)).unwrap();
        for (text, ids) in texts.iter().zip(&ids) {
            assert_eq!(&codec.encode(text).unwrap(), ids, "{name}: {text:?}");
            if !text.contains(['<', '\u{6a21}']) {
                assert_eq!(&codec.decode(ids).unwrap(), text, "{name}");
            }
        }
        let prompt = codec.encode_prompt("the").unwrap();
        let adds_bos = vocabulary.model == "llama";
        assert_eq!(prompt.first() == vocabulary.bos.as_ref(), adds_bos, "{name}: {prompt:?}");
    }
}

/// Every supported pre-tokenizer name that this llama.cpp supports too, and files without a pre-tokenizer or an end token.
#[test]
#[ignore = "needs Node: cargo xtask interop"]
fn interop_pre_tokenizers_and_ends_are_those_of_llama_cpp() {
    let Golden { model, texts, tokenizers } = golden();
    let byte_level = tokenizers.iter().find(|tokenizer| tokenizer.vocabulary.model == "gpt2").unwrap();
    let names = [
        "gpt-2 phi-2 jina-es jina-de gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo jais trillion granite-docling",
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 default",
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 chatglm-bpe",
        "qwen2 deepseek-r1-qwen megrez kormo f2llmv2 stablelm2 hunyuan solar-open grok-2",
    ];
    let mut vocabularies: Vec<Vocabulary> = names
        .iter()
        .flat_map(|names| names.split(' '))
        .map(|name| Vocabulary { pre: Some(name.to_owned()), ..byte_level.vocabulary.clone() })
        .collect();
    vocabularies.push(Vocabulary { pre: None, ..byte_level.vocabulary.clone() });
    for text in
        ["<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "</s>", "<|fim_pad|>", "<|file_sep|>"]
    {
        let mut vocabulary = byte_level.vocabulary.clone();
        // The last but one is the declared end, the one before it an ordinary token.
        let at = vocabulary.tokens.len() - 3;
        vocabulary.tokens[at] = text.to_owned();
        vocabulary.merges.as_mut().unwrap().pop();
        vocabularies.push(vocabulary);
    }
    vocabularies.push(model.vocabulary.clone());
    vocabularies.push(Vocabulary { bos: None, eos: None, unknown: None, ..model.vocabulary.clone() });
    let place = tempfile::tempdir().unwrap();
    let mut jobs = Vec::new();
    for (index, vocabulary) in vocabularies.iter().enumerate() {
        let path = place.path().join(format!("{index}.gguf"));
        let source = write(&model, vocabulary);
        let mut bytes = vec![0; source.len() as usize];
        block_on(source.read_at(0, &mut bytes)).unwrap();
        std::fs::write(&path, bytes).unwrap();
        jobs.push(serde_json::json!({"file": path, "texts": texts, "around": vocabulary.tokens.len()}));
    }
    let Some(answers) = llama_cpp::<Option<Around>>(&jobs) else { return };
    let mut unknown = Vec::new();
    for (vocabulary, answer) in vocabularies.iter().zip(answers) {
        let name = vocabulary.pre.clone().unwrap_or_else(|| format!("no pre, {}", vocabulary.model));
        let Some(answer) = answer else {
            unknown.push(name);
            continue;
        };
        let checkpoint = block_on(Checkpoint::open_gguf(write(&model, vocabulary))).unwrap();
        let bos = checkpoint.config().bos_token_id;
        let codec = block_on(HuggingFaceTokenizer::open(checkpoint.dir().as_ref(), bos)).unwrap();
        for (text, ids) in texts.iter().zip(&answer.ids) {
            assert_eq!(&codec.encode(text).unwrap(), ids, "{name}: {text:?}");
        }
        let mut ends = checkpoint.config().eos_token_ids.clone();
        ends.sort_unstable();
        assert_eq!(ends, answer.ends, "{name}");
        let front = codec.encode_prompt("the").unwrap()[0];
        if let Some(bos) = bos {
            assert_eq!((front == bos).then_some(bos), answer.front, "{name}");
        }
    }
    println!("not known to this llama.cpp: {unknown:?}");
    assert!(unknown.len() < 12);
}

#[test]
fn tokenizers_that_cannot_be_translated_say_why() {
    let Golden { model, .. } = golden();
    type Spoil = fn(&mut Vocabulary);
    let cases: [(&str, Spoil); 8] = [
        ("the tokenizer `bert` (`tokenizer.ggml.model`) is not supported", |v| v.model = "bert".into()),
        ("the pre-tokenizer `tekken` (`tokenizer.ggml.pre`) is not supported", |v| {
            v.model = "gpt2".into();
            v.pre = Some("tekken".into());
        }),
        ("lost the tokenizer's merges", |v| v.model = "gpt2".into()),
        ("all scores (`tokenizer.ggml.scores`) are equal", |v| v.scores = Some(vec![-1000.0; 320])),
        ("expected a `tokenizer.ggml.scores` for each of 320 tokens but found 0", |v| v.scores = None),
        ("the score of token 300 is no number", |v| v.scores.as_mut().unwrap()[300] = f32::NAN),
        ("expected a `tokenizer.ggml.token_type` for each of 320 tokens but found 319", |v| {
            _ = v.kinds.pop()
        }),
        ("the tokens 259 and 260 are the same", |v| v.tokens[260] = v.tokens[259].clone()),
    ];
    for (message, spoil) in cases {
        let mut vocabulary = model.vocabulary.clone();
        spoil(&mut vocabulary);
        // The model is usable with another tokenizer.
        let checkpoint = block_on(Checkpoint::open_gguf(write(&model, &vocabulary))).unwrap();
        let problem = checkpoint.tokenizer_problem().expect(message);
        assert!(problem.to_string().contains(message), "expected {message:?} but found {problem}");
        assert!(problem.to_string().contains("--tokenizer DIR"), "{problem}");
        assert_eq!(problem.code(), ErrorCode::Tokenizer);
        assert!(block_on(checkpoint.dir().open("tokenizer.json")).unwrap().is_none());
    }
}

/// The folder of real models and texts next to the repository, or `None` with a `skipped:` line.
fn shared(what: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: {what}: no ../shared folder with real models");
    None
}

fn open_file(path: PathBuf) -> Checkpoint {
    block_on(Checkpoint::open_gguf(Arc::new(FileSource::open(path).unwrap()))).unwrap()
}

fn open_tokenizer(folder: PathBuf) -> HuggingFaceTokenizer {
    block_on(HuggingFaceTokenizer::open(on_disk(folder).as_ref(), Some(1))).unwrap()
}

#[test]
fn perplexity_of_real_files_is_that_of_llama_cpp() {
    let Some(shared) = shared("perplexity of GGUF files") else { return };
    let read = |file: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(shared.join(file)).unwrap()).unwrap()
    };
    let mut rows = Vec::new();
    for row in read("expected/peers.json")["rows"].as_array().unwrap() {
        let path = row["path"].as_str().unwrap().to_owned();
        if path.ends_with(".gguf") {
            let tokenizer = row["tokenizer"].as_str().unwrap().to_owned();
            rows.push((path, tokenizer, row["perplexity"].as_f64().unwrap()));
        }
    }
    // The 8-bit file of the other model, against that model's figure.
    let expected = read("expected/perplexity.json");
    let of_260k = expected["rows"].as_array().unwrap().iter();
    let mut of_260k = of_260k.filter(|row| row["model"] == "stories260K" && row["text"] == "stories.txt");
    rows.push((
        "models/gguf/stories260K-q8_0.gguf".to_owned(),
        "models/stories260K".to_owned(),
        of_260k.next().unwrap()["perplexity"].as_f64().unwrap(),
    ));
    assert_eq!(rows.len(), 3);
    let text = std::fs::read_to_string(shared.join("text/stories.txt")).unwrap();
    for (path, tokenizer, expected) in rows {
        let checkpoint = open_file(shared.join(&path));
        let problem = checkpoint.tokenizer_problem().expect("these files have lost their tokenizers");
        assert!(problem.to_string().contains("all scores"), "{problem}");
        let codec = open_tokenizer(shared.join(tokenizer));
        let data = Dataset::new("stories.txt", &text, &codec).unwrap();
        let options = WindowOptions { context: 512, stride: None };
        let mut lm = load_checkpoint(&checkpoint);
        let measured = block_on(score(&mut lm, &data, &options, &Silent)).unwrap().perplexity();
        println!("{path}: {measured:.5} expected {expected}");
        assert!((measured / expected - 1.0).abs() < PERPLEXITY_TOLERANCE);
    }
}

/// An f16 file of an f16 model generates the same text. The other file's weights have 8 bits, so its text may diverge later.
#[test]
fn greedy_text_of_real_files_is_that_of_transformers() {
    let Some(shared) = shared("greedy text of GGUF files") else { return };
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(shared.join("expected/greedy.json")).unwrap()).unwrap();
    let mut lm = load_checkpoint(&open_file(shared.join("models/gguf/story-llama-0.66M-f16.gguf")));
    let codec = open_tokenizer(shared.join("models/story-llama-0.66M"));
    for row in expected["rows"].as_array().unwrap() {
        if row["model"] != "story-llama-0.66M" {
            continue;
        }
        let prompt = codec.encode_prompt(row["prompt"].as_str().unwrap()).unwrap();
        let options = GenerateOptions::default().max_tokens(64).ignore_eos(true);
        let generated = block_on(generate(&mut lm, &codec, &prompt, &options, &Silent, |_| ())).unwrap();
        assert_eq!(generated.text, row["text"].as_str().unwrap());
    }
}
