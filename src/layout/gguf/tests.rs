//! Tests of GGUF as a layout: blocks against ggml's own decoder, and the interpretation of metadata.

use super::blocks::Decoder;
use super::*;
use crate::error::ErrorCode;
use crate::format::gguf::{Array, GgufWriter, Value as Meta};
use crate::format::sink::{MemorySinkDir, SinkDir};
use crate::format::source::MemorySource;
use crate::task::block_on;
use std::path::Path;

fn golden() -> serde_json::Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/gguf_blocks.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn unhex(text: &serde_json::Value) -> Vec<u8> {
    let digits = text.as_str().unwrap();
    (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect()
}

const TYPES: [TensorType; 10] = [
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q4_K,
    TensorType::Q6_K,
    TensorType::TQ1_0,
    TensorType::TQ2_0,
    TensorType::IQ4_NL,
];

fn decode(tensor_type: TensorType, rows: usize, bytes: &[u8]) -> Result<QuantizedTensor> {
    let row_bytes = bytes.len() / rows;
    let cols = row_bytes / tensor_type.block_bytes() as usize * tensor_type.block_elements() as usize;
    let mut decoder = Decoder::new(tensor_type, rows, cols)?;
    decoder.push_rows(bytes)?;
    decoder.finish()
}

#[test]
fn blocks_decode_to_the_bits_of_ggml() {
    let golden = golden();
    for tensor_type in TYPES {
        let case = &golden["decoded"][tensor_type.name()];
        let (blocks, values) = (unhex(&case["blocks"]), unhex(&case["values"]));
        let count = blocks.len() / tensor_type.block_bytes() as usize;
        // Decoded as one row of blocks, and as one row per block.
        for rows in [1, count] {
            let tensor = decode(tensor_type, rows, &blocks).unwrap();
            assert_eq!(Some(tensor.coding()), blocks::coding(tensor_type));
            let mut found = vec![f32::NAN; tensor.rows() * tensor.cols()];
            tensor.decode_rows(0..rows, &mut found);
            let expected: Vec<f32> = values.as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
            assert_eq!(found, expected, "{tensor_type} in {rows} rows");
        }
    }
}

#[test]
fn broken_blocks_are_errors_that_name_the_row() {
    let golden = golden();
    for tensor_type in TYPES {
        let sound = unhex(&golden["decoded"][tensor_type.name()]["blocks"]);
        let rows = sound.len() / tensor_type.block_bytes() as usize;
        let half = match tensor_type {
            TensorType::Q6_K => 208,
            TensorType::TQ1_0 => 52,
            TensorType::TQ2_0 => 64,
            _ => 0,
        };
        let mut broken = sound.clone();
        let at = tensor_type.block_bytes() as usize + half;
        broken[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
        let error = decode(tensor_type, rows, &broken).unwrap_err();
        assert_eq!(error.to_string(), "row 1: expected finite scales but found NaN", "{tensor_type}");
        assert_eq!(error.code(), ErrorCode::NonFinite);
    }
    let mut ternary = unhex(&golden["decoded"]["TQ2_0"]["blocks"]);
    ternary[66 + 40] |= 0b1100;
    let error = decode(TensorType::TQ2_0, 2, &ternary).unwrap_err();
    assert!(error.to_string().starts_with("row 1: expected the ternary codes"), "{error}");
    assert_eq!(error.code(), ErrorCode::InvalidCheckpoint);
}

mod write;

type Entries = BTreeMap<String, Meta>;
type Tensors = Vec<(String, TensorType, Vec<u64>)>;

/// A llama with one block: width 32, four heads of 8 elements, two key/value heads.
fn tiny() -> (Entries, Tensors) {
    let number = |key: &str, value: u32| (format!("llama.{key}"), Meta::U32(value));
    let metadata = BTreeMap::from([
        ("general.architecture".to_owned(), Meta::String("llama".to_owned())),
        number("block_count", 1),
        number("context_length", 64),
        number("embedding_length", 32),
        number("feed_forward_length", 64),
        number("attention.head_count", 4),
        number("attention.head_count_kv", 2),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Meta::F32(1e-5)),
    ]);
    let matrix = |name: &str, tensor_type, rows, cols| (name.to_owned(), tensor_type, vec![rows, cols]);
    let tensors = vec![
        matrix("token_embd.weight", TensorType::Q8_0, 5, 32),
        ("output_norm.weight".to_owned(), TensorType::F32, vec![32]),
        ("blk.0.attn_norm.weight".to_owned(), TensorType::F32, vec![32]),
        ("blk.0.ffn_norm.weight".to_owned(), TensorType::F32, vec![32]),
        matrix("blk.0.attn_q.weight", TensorType::Q4_0, 32, 32),
        matrix("blk.0.attn_k.weight", TensorType::F16, 16, 32),
        matrix("blk.0.attn_v.weight", TensorType::Q4_1, 16, 32),
        matrix("blk.0.attn_output.weight", TensorType::BF16, 32, 32),
        matrix("blk.0.ffn_gate.weight", TensorType::F32, 64, 32),
        matrix("blk.0.ffn_up.weight", TensorType::Q8_0, 64, 32),
        matrix("blk.0.ffn_down.weight", TensorType::Q4_0, 32, 64),
    ];
    (metadata, tensors)
}

/// All data bytes are zero, except for the tensors in `data`.
fn open_with(metadata: &Entries, tensors: &Tensors, data: &[(&str, Vec<u8>)]) -> Result<GgufCheckpoint> {
    let dir = MemorySinkDir::new("out");
    block_on(async {
        let mut writer = GgufWriter::begin(dir.create("tiny.gguf").await?, metadata, tensors.clone()).await?;
        for (name, tensor_type, dims) in tensors {
            let width = dims[dims.len() - 1];
            let rows: u64 = dims[..dims.len() - 1].iter().product();
            let len = rows * tensor_type.row_bytes(width).unwrap();
            let given = data.iter().find(|(given, _)| given == name);
            let bytes = given.map_or_else(|| vec![0; len as usize], |(_, bytes)| bytes.clone());
            writer.write(name, &bytes).await?;
        }
        writer.finish().await?;
        let bytes = dir.to_dir().get("tiny.gguf").unwrap().clone();
        GgufCheckpoint::open(Arc::new(MemorySource::new("tiny.gguf", bytes)), &[]).await
    })
}

fn open(metadata: &Entries, tensors: &Tensors) -> Result<GgufCheckpoint> {
    open_with(metadata, tensors, &[])
}

#[test]
fn a_file_is_the_folder_that_transformers_would_have_written() {
    let (metadata, tensors) = tiny();
    let opened = open(&metadata, &tensors).unwrap();
    let expected = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 5,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "rope_theta": 10000.0, "rope_scaling": null,
        "torch_dtype": "float32", "bos_token_id": null, "eos_token_id": [],
    });
    assert_eq!(opened.config_json, expected);
    assert!(opened.files.get("tokenizer.json").is_none());
    let problem = opened.tokenizer_problem.unwrap();
    assert!(problem.to_string().contains("no key `tokenizer.ggml.model`"), "{problem}");
    assert!(problem.to_string().contains("--tokenizer DIR"), "{problem}");
    let scheme = |module: &str| match opened.config.module(&opened.store, module).unwrap() {
        ModuleStorage::Packed { coding, .. } => coding.to_string(),
        ModuleStorage::Dense { dtype, .. } => dtype.to_string(),
    };
    assert_eq!(scheme("model.embed_tokens"), "int8-g32-sym");
    assert_eq!(scheme("model.layers.0.self_attn.q_proj"), "int4-g32-sym");
    assert_eq!(scheme("model.layers.0.self_attn.k_proj"), "F16");
    assert_eq!(scheme("model.layers.0.self_attn.v_proj"), "int4-g32-min");
    assert_eq!(scheme("model.layers.0.self_attn.o_proj"), "BF16");
}

#[test]
fn metadata_decides_what_the_model_is() {
    let with = |changes: &[(&str, Meta)], extra: &[(&str, Vec<u64>)]| {
        let (mut metadata, mut tensors) = tiny();
        metadata.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        tensors.extend(extra.iter().map(|(name, dims)| ((*name).to_owned(), TensorType::F32, dims.clone())));
        open(&metadata, &tensors).unwrap().config_json
    };
    let config = with(&[("llama.rope.freq_base", Meta::F32(500_000.0))], &[("output.weight", vec![5, 32])]);
    assert_eq!((&config["rope_theta"], &config["tie_word_embeddings"]), (&500_000.0.into(), &false.into()));
    let config = with(&[("llama.attention.key_length", Meta::U32(16))], &[("blk.0.attn_q.bias", vec![32])]);
    assert_eq!((&config["head_dim"], &config["attention_bias"]), (&16.into(), &true.into()));
    let linear = [
        ("llama.rope.scaling.type", Meta::String("linear".into())),
        ("llama.rope.scaling.factor", Meta::F32(4.0)),
    ];
    assert_eq!(with(&linear, &[])["rope_scaling"], serde_json::json!({"rope_type": "linear", "factor": 4.0}));
    let ends = [
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
        ("tokenizer.ggml.eot_token_id", Meta::U32(3)),
        ("tokenizer.ggml.eom_token_id", Meta::U32(2)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
    ];
    let config = with(&ends, &[]);
    assert_eq!((&config["eos_token_id"], &config["bos_token_id"]), (&serde_json::json!([2, 3]), &1.into()));
    let neutral = [
        ("llama.rope.scaling.attn_factor", Meta::F32(1.0)),
        ("llama.rope.scaling.yarn_log_multiplier", Meta::U8(0)),
        ("llama.attention.causal", Meta::Bool(true)),
        ("llama.attention.sliding_window", Meta::U32(64)),
    ];
    assert_eq!(with(&neutral, &[]), with(&[], &[]));
    let blocks = ("llama.feed_forward_length", Meta::Array(Array::I32(vec![64])));
    assert_eq!(with(&[blocks], &[])["intermediate_size"], 64);
}

/// llama.cpp recognizes these tokens by their text, whether the metadata names them or not.
#[test]
fn tokens_that_end_a_text_are_known_by_their_text() {
    let words = ["a", "b", "<|end_of_text|>", "<|eot_id|>", "c", "<|fim_pad|>"];
    let with = |model: &str, tokens: &[&str], more: &[(&str, Meta)]| {
        let (mut metadata, tensors) = tiny();
        let mut set = |key: &str, value| _ = metadata.insert(format!("tokenizer.ggml.{key}"), value);
        set("model", Meta::String(model.into()));
        set("tokens", Meta::Array(Array::String(tokens.iter().map(|token| (*token).into()).collect())));
        more.iter().for_each(|(key, value)| set(key, value.clone()));
        open(&metadata, &tensors).unwrap()
    };
    let ends = |opened: &GgufCheckpoint| opened.config_json["eos_token_id"].clone();
    let eos = ("eos_token_id", Meta::U32(2));
    assert_eq!(ends(&with("gpt2", &words, std::slice::from_ref(&eos))), serde_json::json!([2, 3, 5]));
    // A key takes precedence over a text, and an id beyond the vocabulary is ignored.
    let more = [
        eos,
        ("eot_token_id", Meta::U32(0)),
        ("eom_token_id", Meta::U32(77)),
        ("fim_pad_token_id", Meta::U32(4)),
    ];
    assert_eq!(ends(&with("gpt2", &words, &more)), serde_json::json!([2, 0, 4, 3]));
    assert_eq!(ends(&with("gpt2", &["a", "b", "c"], &[])), serde_json::json!([]));
    // Llama 1's ids, if a SentencePiece vocabulary names none.
    let opened = with("llama", &["<unk>", "<s>", "e", "</s>"], &[]);
    assert_eq!((ends(&opened), &opened.config_json["bos_token_id"]), (serde_json::json!([2, 3]), &1.into()));
    // Families that use an end text for something else.
    for (tokens, expected) in [
        (&["<|end|>", "<|return|>", "<|call|>"][..], vec![1, 2]),
        (&["<|end|>", "<|return|>"], vec![0, 1]),
        (&["<|end|>", "<|flush|>", "<|calls|>"], vec![1, 2]),
        (&["</s>", "<|tool_response>"], vec![1]),
    ] {
        assert_eq!(ends(&with("gpt2", tokens, &[])), serde_json::json!(expected), "{tokens:?}");
    }
    // End tokens are split off from texts, whatever their type in the file.
    let merges = ("merges", Meta::Array(Array::String(vec!["a b".into()])));
    let added = |more: &[(&str, Meta)]| -> Vec<(u64, bool, bool)> {
        let opened = with("gpt2", &["a", "b", "ab", "<|im_end|>", "<|x|>", "<s>"], more);
        let file: serde_json::Value =
            serde_json::from_slice(opened.files.get("tokenizer.json").unwrap()).unwrap();
        let tokens = file["added_tokens"].as_array().unwrap().iter();
        tokens.map(|t| (t["id"].as_u64().unwrap(), t["special"] == true, t["rstrip"] == true)).collect()
    };
    let kinds = ("token_type", Meta::Array(Array::I32(vec![1, 1, 1, 1, 4, 3])));
    assert_eq!(
        added(&[merges.clone(), kinds.clone()]),
        [(3, true, false), (4, false, false), (5, true, false)]
    );
}

#[test]
fn what_was_assumed_of_a_tokenizer_is_a_warning() {
    let warnings = |model: &str, pre: Option<&str>| {
        let (mut metadata, tensors) = tiny();
        let mut set = |key: &str, value: &str| {
            _ = metadata.insert(format!("tokenizer.ggml.{key}"), Meta::String(value.into()))
        };
        set("model", model);
        pre.iter().for_each(|pre| set("pre", pre));
        open(&metadata, &tensors).unwrap().warnings
    };
    for missing in [None, Some("")] {
        let warnings = warnings("gpt2", missing);
        assert!(
            warnings.len() == 1 && warnings[0].contains("the key `tokenizer.ggml.pre` is missing"),
            "{warnings:?}"
        );
        assert!(
            warnings[0].contains("default rule") && warnings[0].contains("--tokenizer DIR"),
            "{warnings:?}"
        );
    }
    assert!(warnings("gpt2", Some("default")).is_empty());
    assert!(warnings("llama", None).is_empty());
}

/// Llama 3.1's scaling has no keys: it is a tensor of factors.
#[test]
fn the_factors_of_llama_3_1_are_recognised() {
    let factors = |factor: f64, head_dim: usize, theta: f64| -> Vec<u8> {
        let factors = (0..head_dim / 2).map(|i| {
            let wavelength = 2.0 * std::f64::consts::PI * libm::pow(theta, (2 * i) as f64 / head_dim as f64);
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        });
        factors.flat_map(f32::to_le_bytes).collect()
    };
    let open = |bytes: Vec<u8>| {
        let (mut metadata, mut tensors) = tiny();
        metadata.insert("llama.rope.freq_base".into(), Meta::F32(500_000.0));
        metadata.insert("llama.rope.dimension_count".into(), Meta::U32(8));
        tensors.push((names::ROPE_FREQS.into(), TensorType::F32, vec![bytes.len() as u64 / 4]));
        open_with(&metadata, &tensors, &[(names::ROPE_FREQS, bytes)])
    };
    let config = open(factors(32.0, 8, 500_000.0)).unwrap().config_json;
    let expected = serde_json::json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(config["rope_scaling"], expected);
    // With another theta, the factors match another scaling: a step from the third frequency to the fourth.
    let config = open(factors(8.0, 8, 10_000.0)).unwrap().config_json;
    assert_eq!(config["rope_scaling"]["rope_type"], "llama3");
    let (mut metadata, mut tensors) = tiny();
    metadata = metadata.into_iter().map(|(key, value)| (key.replace("llama.", "qwen2."), value)).collect();
    metadata.insert("general.architecture".into(), Meta::String("qwen2".into()));
    tensors.push((names::ROPE_FREQS.into(), TensorType::F32, vec![4]));
    let error =
        open_with(&metadata, &tensors, &[(names::ROPE_FREQS, factors(8.0, 8, 500_000.0))]).err().unwrap();
    assert!(error.to_string().contains("`rope_freqs.weight` is not supported in a qwen2 model"), "{error}");
    let ones = [1f32; 4].map(f32::to_le_bytes).concat();
    assert_eq!(open(ones).unwrap().config_json["rope_scaling"], serde_json::Value::Null);
    for other in [
        factors(8.0, 6, 500_000.0),
        [2f32, 1.0, 3.0, 8.0].map(f32::to_le_bytes).concat(),
        [1f32, 1.0, f32::NAN, 8.0].map(f32::to_le_bytes).concat(),
        [1f32, 0.5, 0.5, 0.5].map(f32::to_le_bytes).concat(),
    ] {
        let error = open(other).err().unwrap();
        assert!(error.to_string().contains("rope_freqs.weight"), "{error}");
        assert_eq!(error.code(), ErrorCode::UnsupportedModel);
    }
}

#[test]
fn unsupported_features_are_named() {
    use ErrorCode::{InvalidCheckpoint, UnsupportedFormat, UnsupportedModel};
    type Spoil = fn(&mut Entries, &mut Tensors);
    let cases: [(&str, ErrorCode, Spoil); 28] = [
        (
            "key `general.architecture`: expected one of llama, qwen2, qwen3 but found `gemma2`",
            UnsupportedModel,
            |m, _| {
                m.insert("general.architecture".into(), Meta::String("gemma2".into()));
            },
        ),
        ("expected the key `general.architecture`", InvalidCheckpoint, |m, _| {
            m.remove("general.architecture");
        }),
        ("expected the key `llama.block_count`", InvalidCheckpoint, |m, _| _ = m.remove("llama.block_count")),
        (
            "key `llama.block_count`: expected an unsigned number but found I32(-1)",
            InvalidCheckpoint,
            |m, _| {
                m.insert("llama.block_count".into(), Meta::I32(-1));
            },
        ),
        ("unknown key `llama.attention.logit_softcapping`", UnsupportedModel, |m, _| {
            m.insert("llama.attention.logit_softcapping".into(), Meta::F32(30.0));
        }),
        ("unknown key `tokenizer.ggml.word_breaks`", UnsupportedModel, |m, _| {
            m.insert("tokenizer.ggml.word_breaks".into(), Meta::Bool(true));
        }),
        ("unknown key `adapter.lora.alpha`", UnsupportedModel, |m, _| {
            m.insert("adapter.lora.alpha".into(), Meta::F32(16.0));
        }),
        (
            "key `llama.attention.causal`: Bool(false) is not supported, only true",
            UnsupportedModel,
            |m, _| {
                m.insert("llama.attention.causal".into(), Meta::Bool(false));
            },
        ),
        (
            "key `llama.rope.scaling.attn_factor`: F32(2.0) is not supported, only 1",
            UnsupportedModel,
            |m, _| {
                m.insert("llama.rope.scaling.attn_factor".into(), Meta::F32(2.0));
            },
        ),
        ("key `llama.rope.scaling.yarn_log_multiplier`: F32(0.1)", UnsupportedModel, |m, _| {
            m.insert("llama.rope.scaling.yarn_log_multiplier".into(), Meta::F32(0.1));
        }),
        ("key `llama.use_parallel_residual`: Bool(true)", UnsupportedModel, |m, _| {
            m.insert("llama.use_parallel_residual".into(), Meta::Bool(true));
        }),
        (
            "key `llama.attention.sliding_window`: a window of 32 in a context of 64",
            UnsupportedModel,
            |m, _| {
                m.insert("llama.attention.sliding_window".into(), Meta::U32(32));
            },
        ),
        (
            "tensor `blk.0.attn_output.bias`: a llama model of 1 blocks does not use it",
            UnsupportedModel,
            |_, t| {
                t.push(("blk.0.attn_output.bias".into(), TensorType::F32, vec![32]));
            },
        ),
        ("tensor `blk.0.attn_norm.bias`: a llama model", UnsupportedModel, |_, t| {
            t.push(("blk.0.attn_norm.bias".into(), TensorType::F32, vec![32]));
        }),
        ("tensor `output.bias`: a llama model", UnsupportedModel, |_, t| {
            t.push(("output.bias".into(), TensorType::F32, vec![5]));
        }),
        ("tensor `blk.0.attn_q_norm.weight`: a llama model", UnsupportedModel, |_, t| {
            t.push(("blk.0.attn_q_norm.weight".into(), TensorType::F32, vec![8]));
        }),
        (
            "tensor `blk.1.attn_norm.weight`: a llama model of 1 blocks does not use it",
            UnsupportedModel,
            |_, t| {
                t.push(("blk.1.attn_norm.weight".into(), TensorType::F32, vec![32]));
            },
        ),
        ("key `llama.rope.dimension_count`: 4 is not supported, only 8", UnsupportedModel, |m, _| {
            m.insert("llama.rope.dimension_count".into(), Meta::U32(4));
        }),
        ("key `llama.attention.value_length`: 16 is not supported", UnsupportedModel, |m, _| {
            m.insert("llama.attention.value_length".into(), Meta::U32(16));
        }),
        ("key `llama.expert_count`: 8 is not supported", UnsupportedModel, |m, _| {
            m.insert("llama.expert_count".into(), Meta::U32(8));
        }),
        ("key `llama.rope.scaling.type`: `yarn` is not supported", UnsupportedModel, |m, _| {
            m.insert("llama.rope.scaling.type".into(), Meta::String("yarn".into()));
            m.insert("llama.rope.scaling.factor".into(), Meta::F32(4.0));
        }),
        ("key `llama.attention.head_count_kv`: different values per block", UnsupportedModel, |m, _| {
            m.insert("llama.attention.head_count_kv".into(), Meta::Array(Array::I32(vec![2, 4])));
        }),
        ("a part of 3 (`split.count`)", UnsupportedFormat, |m, _| {
            m.insert("split.count".into(), Meta::U16(3));
        }),
        (
            "tensor `blk.0.ffn_gate_exps.weight`: the decoder has no tensor of this name",
            UnsupportedModel,
            |_, t| {
                t[8].0 = "blk.0.ffn_gate_exps.weight".into();
            },
        ),
        ("tensor `blk.0.ffn_gate.weight`: the type F64 is not supported", UnsupportedFormat, |_, t| {
            t[8].1 = TensorType::from_number(28).unwrap();
        }),
        ("tensor `blk.0.ffn_gate.weight`: expected a matrix of Q8_0 blocks", InvalidCheckpoint, |_, t| {
            t[8].1 = TensorType::Q8_0;
            t[8].2 = vec![2, 32, 32];
        }),
        (
            "tensor `blk.0.attn_q.weight`: expected rows in heads of an even length",
            InvalidCheckpoint,
            |_, t| {
                t[4].2 = vec![36, 32];
            },
        ),
        ("expected the tensor `token_embd.weight`", InvalidCheckpoint, |_, t| _ = t.remove(0)),
    ];
    for (message, code, spoil) in cases {
        let (mut metadata, mut tensors) = tiny();
        spoil(&mut metadata, &mut tensors);
        let error = open(&metadata, &tensors).err().expect(message);
        assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
        assert!(error.to_string().starts_with("tiny.gguf"), "{error}");
        assert_eq!(error.code(), code, "{error}");
    }
}

/// q and k are stored as llama.cpp's converter permutes them, k with its own number of heads.
#[test]
fn rows_of_q_and_k_come_in_the_order_of_hugging_face() {
    let (metadata, tensors) = tiny();
    // Each row of q is a block whose scale is the row's position in the file; each row of k has this number as its
    // value.
    let half = |value: usize| half::f16::from_f32(value as f32).to_le_bytes();
    let q: Vec<u8> = (0..32).flat_map(|row| half(row).into_iter().chain([0x99; 16])).collect();
    let k: Vec<u8> = (0..16).flat_map(|row| half(row).repeat(32)).collect();
    let data = [("blk.0.attn_q.weight", q), ("blk.0.attn_k.weight", k)];
    let opened = open_with(&metadata, &tensors, &data).unwrap();
    // reshape(heads, 4, 2).swapaxes(1, 2) of the positions, for heads of 8 elements.
    let expected = |rows: usize| -> Vec<f32> {
        (0..rows).map(|row| (row / 8 * 8 + row % 8 % 4 * 2 + row % 8 / 4) as f32).collect()
    };
    let packed =
        block_on(opened.config.read_packed(&opened.store, "model.layers.0.self_attn.q_proj")).unwrap();
    let found: Vec<f32> = (0..32).map(|row| packed.scale(row, 0)).collect();
    assert_eq!(found, expected(32));
    let mut bytes = vec![0; 16 * 64];
    block_on(opened.store.read_range("model.layers.0.self_attn.k_proj.weight", 0..1024, &mut bytes)).unwrap();
    let found: Vec<f32> =
        bytes.chunks(64).map(|row| half::f16::from_le_bytes([row[0], row[1]]).to_f32()).collect();
    assert_eq!(found, expected(16));
}
