//! Tests of writing: ggml's own quantizers as the judge, and reading as the inverse. Floor 3.

use super::{decode, golden, unhex};
use crate::error::{ErrorCode, Result};
use crate::format::gguf::{TensorType, Value as GgufValue};
use crate::format::sink::{MemorySinkDir, SinkDir};
use crate::format::source::MemorySource;
use crate::layout::gguf::{
    GgufCheckpoint, GgufOutput, GgufTensor, GgufTokenizer, block_type, decode_rows, encode, is_exact,
    quantize_rows, tokenizer_metadata,
};
use crate::quant::{
    Bits, Granularity, PackedTensor, RtnQuantizer, ScaleType, Scheme, TernaryQuantizer, dequantize,
};
use crate::task::block_on;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::rc::Rc;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn rows_are_rounded_to_the_blocks_of_ggml() {
    let golden = golden();
    for tensor_type in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1, TensorType::TQ2_0] {
        let case = &golden["quantized"][tensor_type.name()];
        let mut blocks = Vec::new();
        quantize_rows(tensor_type, &floats(&unhex(&case["values"])), &mut blocks).unwrap();
        assert_eq!(blocks, unhex(&case["blocks"]), "{tensor_type}");
    }
}

#[test]
fn what_no_block_holds_is_an_error() {
    let mut out = Vec::new();
    for value in [f32::NAN, f32::INFINITY, 1e9] {
        for tensor_type in
            [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q4_1, TensorType::Q4_K, TensorType::F16]
        {
            let mut values = vec![0.5; 256];
            values[3] = value;
            let error = quantize_rows(tensor_type, &values, &mut out).unwrap_err();
            assert_eq!(error.code(), ErrorCode::NonFinite, "{tensor_type} {value}");
        }
    }
}

/// The error of `Q4_K` beside that of `Q4_1`, which has as many bits for codes and a whole half for each scale.
#[test]
fn the_search_of_q4_k_pays() {
    let mut state = 1u64;
    let mut normal = || -> f32 {
        // A sum of uniform numbers is close enough to a normal one.
        (0..8)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 24) as f32 - 0.5
            })
            .sum()
    };
    let values: Vec<f32> = (0..256 * 64).map(|_| normal()).collect();
    let error = |tensor_type: TensorType| -> f32 {
        let (mut bytes, mut read) = (Vec::new(), vec![0.0; values.len()]);
        quantize_rows(tensor_type, &values, &mut bytes).unwrap();
        decode_rows(tensor_type, 256, &bytes, &mut read).unwrap();
        values.iter().zip(&read).map(|(value, read)| (value - read).powi(2)).sum()
    };
    let (searched, plain) = (error(TensorType::Q4_K), error(TensorType::Q4_1));
    println!("squared error {searched} and {plain}");
    assert!(searched < 0.9 * plain, "{searched} and {plain}");
    // Groups that are nothing, one value, or positive only.
    for values in [vec![0.0; 256], vec![0.25; 256], vec![-0.25; 256], (0..256).map(|i| i as f32).collect()] {
        let (mut bytes, mut read) = (Vec::new(), vec![0.0; 256]);
        quantize_rows(TensorType::Q4_K, &values, &mut bytes).unwrap();
        decode_rows(TensorType::Q4_K, 256, &bytes, &mut read).unwrap();
        let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        for (value, read) in values.iter().zip(&read) {
            // Half a step, where groups of positive numbers begin at zero.
            assert!((value - read).abs() <= largest / 25.0, "{value} became {read}");
        }
    }
}

fn integer(bits: Bits, size: usize, symmetric: bool) -> Scheme {
    Scheme::Integer { bits, granularity: Granularity::Group(size), symmetric }
}

#[test]
fn schemes_find_the_type_that_holds_them() {
    let channel = Scheme::Integer { bits: Bits::Four, granularity: Granularity::Channel, symmetric: true };
    let ternary = Scheme::Ternary { granularity: Granularity::Tensor };
    for (scheme, cols, expected) in [
        (integer(Bits::Eight, 32, true), 64, Some(TensorType::Q8_0)),
        (integer(Bits::Eight, 32, false), 64, None),
        (integer(Bits::Four, 32, true), 64, Some(TensorType::Q4_0)),
        (integer(Bits::Four, 128, true), 192, Some(TensorType::Q4_0)),
        (integer(Bits::Four, 48, true), 96, None),
        (integer(Bits::Four, 128, true), 96, Some(TensorType::Q4_0)),
        (integer(Bits::Four, 16, true), 64, None),
        (integer(Bits::Four, 32, true), 172, None),
        (integer(Bits::Four, 64, false), 64, Some(TensorType::Q4_1)),
        (integer(Bits::Three, 32, true), 64, Some(TensorType::Q4_0)),
        (channel, 96, Some(TensorType::Q4_0)),
        (ternary, 512, Some(TensorType::TQ2_0)),
        (ternary, 96, Some(TensorType::Q4_0)),
        (ternary, 90, None),
    ] {
        assert_eq!(block_type(scheme, cols), expected, "{scheme} {cols}");
    }
}

fn quantized(scheme: Scheme, cols: usize, weights: &[f32]) -> PackedTensor {
    let rows = weights.len() / cols;
    if let Scheme::Ternary { granularity } = scheme {
        let mut quantizer = TernaryQuantizer::new(granularity, rows, cols, ScaleType::F16, None).unwrap();
        quantizer.observe_rows(weights).unwrap();
        quantizer.push_rows(weights).unwrap();
        return quantizer.finish().unwrap();
    }
    let mut quantizer = RtnQuantizer::new(scheme, rows, cols, ScaleType::F16).unwrap();
    quantizer.push_rows(weights).unwrap();
    quantizer.finish().unwrap()
}

proptest! {
    #[test]
    fn packed_weights_are_written_as_they_are(
        weights in prop::collection::vec(-1f32..1.0, 512),
        bits in prop::sample::select(vec![Bits::Two, Bits::Three, Bits::Four, Bits::Eight]),
        size in prop::sample::select(vec![32usize, 64, 128, 256]),
        kind in 0..3,
    ) {
        let scheme = match kind {
            0 => integer(bits, size, true),
            1 => Scheme::Ternary { granularity: Granularity::Channel },
            _ => integer(bits, size, false),
        };
        let tensor = quantized(scheme, 256, &weights);
        let Some(tensor_type) = block_type(scheme, 256) else {
            prop_assert!(encode(&tensor).is_err());
            return Ok(());
        };
        let blocks = encode(&tensor).unwrap();
        let (mut found, mut expected) = (vec![0.0; 512], vec![0.0; 512]);
        dequantize::rows(&tensor, 0..2, &mut expected);
        decode_rows(tensor_type, 256, &blocks, &mut found).unwrap();
        if is_exact(&tensor) {
            prop_assert_eq!(&found, &expected);
        } else {
            prop_assert!(tensor.zero_points().is_some());
            for (found, expected) in found.iter().zip(&expected) {
                // A half's rounding of the minimum, which is at most about 2.
                prop_assert!((found - expected).abs() <= 2.0 / 2048.0);
            }
        }
        // Written again, the blocks are the same: nothing but the minimum was ever rounded.
        prop_assert_eq!(encode(&decode(tensor_type, 2, &blocks).unwrap()).unwrap(), blocks);
    }
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 5, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
    })
}

fn tensors() -> Vec<GgufTensor> {
    let tensor = |name: &str, tensor_type, dims: &[u64]| GgufTensor {
        name: name.to_owned(),
        tensor_type,
        dims: dims.to_vec(),
    };
    vec![
        tensor("model.embed_tokens.weight", TensorType::F32, &[5, 32]),
        tensor("model.layers.0.self_attn.q_proj.weight", TensorType::F16, &[32, 32]),
        tensor("model.layers.0.self_attn.q_proj.bias", TensorType::F32, &[32]),
        tensor("model.norm.weight", TensorType::F32, &[32]),
    ]
}

/// Every tensor's bytes count up; `piece` bytes are written at a time.
fn write(config: &Value, tensors: &[GgufTensor], piece: usize) -> Result<GgufCheckpoint> {
    write_with(config, None, tensors, piece)
}

fn write_with(
    config: &Value,
    tokenizer: Option<BTreeMap<String, GgufValue>>,
    tensors: &[GgufTensor],
    piece: usize,
) -> Result<GgufCheckpoint> {
    let dir = MemorySinkDir::new("out");
    block_on(async {
        let mut output = GgufOutput::begin(dir.create("a.gguf").await?, config, tokenizer, tensors).await?;
        for tensor in tensors {
            for piece in counting(tensor).chunks(piece) {
                output.write(&tensor.name, piece).await?;
            }
        }
        output.finish().await?;
        let bytes = dir.to_dir().get("a.gguf").unwrap().clone();
        GgufCheckpoint::open(Rc::new(MemorySource::new("a.gguf", bytes))).await
    })
}

fn counting(tensor: &GgufTensor) -> Vec<u8> {
    let bytes = tensor.dims.iter().product::<u64>() * tensor.tensor_type.block_bytes();
    (0..bytes).map(|i| (i / 3) as u8).collect()
}

#[test]
fn what_was_written_is_the_checkpoint_again() {
    let rope = |scaling: Value| {
        let mut config = llama();
        config["rope_scaling"] = scaling;
        // With less, no wavelength of so small a head is long enough to show the whole factor.
        config["rope_theta"] = json!(500_000.0);
        config
    };
    let llama3 = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let mut wide = llama();
    wide["head_dim"] = json!(16);
    wide["model_type"] = json!("qwen3");
    let mut short = llama3.clone();
    short["original_max_position_embeddings"] = json!(4096);
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    for config in [llama(), rope(linear), rope(llama3), rope(short), wide] {
        for piece in [1, 50, 5000] {
            let opened = write(&config, &tensors(), piece).unwrap();
            for (key, value) in config.as_object().unwrap() {
                assert_eq!(opened.config_json[key], *value, "{key}");
            }
            for tensor in tensors() {
                let bytes = counting(&tensor);
                let mut found = vec![0; bytes.len()];
                block_on(opened.store.read_range(&tensor.name, 0..bytes.len() as u64, &mut found)).unwrap();
                assert_eq!(found, bytes, "{} in pieces of {piece}", tensor.name);
            }
            let problem = opened.tokenizer_problem.unwrap();
            assert!(problem.to_string().contains("no vocabulary"), "{problem}");
        }
    }
}

#[test]
fn what_gguf_cannot_say_is_named() {
    let cases = [
        ("model_type", json!("bitnet"), "found `bitnet`"),
        ("sliding_window", json!(8), "`sliding_window` = 8"),
        ("rope_scaling", json!({"type": "yarn", "factor": 2.0}), "rope type `yarn`"),
        ("num_hidden_layers", json!("many"), "`num_hidden_layers` to be a small number"),
        ("hidden_act", json!("relu2"), "`hidden_act` = `relu2` is not supported"),
        ("qwen2/hidden_act", json!("gelu"), "`hidden_act` = `gelu`"),
        ("qwen3/attention_bias", json!(true), "`attention_bias` is not supported: llama.cpp's qwen3"),
        ("qwen3/mlp_bias", json!(true), "`mlp_bias` is not supported"),
        ("qwen2/mlp_bias", json!(true), "`mlp_bias` is not supported"),
        ("qwen2/rope_scaling", json!({"rope_type": "llama3"}), "rope type `llama3` is not supported"),
        ("qwen3/rope_scaling", json!({"rope_type": "llama3"}), "rope type `llama3` is not supported"),
    ];
    for (key, value, message) in cases {
        let mut config = llama();
        let key = match key.split_once('/') {
            Some((family, key)) => {
                config["model_type"] = json!(family);
                key
            }
            None => key,
        };
        config[key] = value;
        let error = write(&config, &tensors(), 9).err().expect(message);
        assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
    }
    let mut strange = tensors();
    strange[0].name = "model.vision.weight".into();
    let error = write(&llama(), &strange, 9).err().unwrap();
    assert!(error.to_string().contains("tensor `model.vision.weight`: GGUF has no name"), "{error}");
}

/// An added token with these flags.
fn added(flags: Value) -> Value {
    let mut token = json!({"id": 4, "content": "<x>"});
    token.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
    json!([token])
}

/// A post-processor that puts these ids around a text.
fn template(front: &[u32], behind: &[u32]) -> Value {
    let special = |id: &u32| json!({"SpecialToken": {"id": format!("t{id}"), "type_id": 0}});
    let mut single: Vec<Value> = front.iter().map(special).collect();
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    single.extend(behind.iter().map(special));
    let mut tokens = serde_json::Map::new();
    for id in front.iter().chain(behind) {
        tokens.insert(format!("t{id}"), json!({"id": format!("t{id}"), "ids": [id], "tokens": ["?"]}));
    }
    json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens})
}

/// A byte-level tokenizer of the ids 0 to 5, and the ids of its beginning, end, and of another end.
fn byte_level() -> Value {
    let token = |id: u32, content: &str| json!({"id": id, "content": content, "special": true});
    json!({"added_tokens": [token(2, "<bos>"), token(3, "<|stop|>"), token(4, "<|eot_id|>"), token(5, "<other>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "merges": [], "vocab": {"a": 0, "b": 1}}})
}

#[test]
fn the_flags_say_what_the_tokenizer_does_to_a_prompt() {
    let sequence = |steps: &[Value]| json!({"type": "Sequence", "processors": steps});
    let offsets =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 3], "cls": ["<s>", 2],
        "trim_offsets": true, "add_prefix_space": false});
    let bos = template(&[2], &[]);
    let cases = [
        (Value::Null, json!({}), Ok((false, false))),
        (offsets.clone(), json!({}), Ok((false, false))),
        (bos.clone(), json!({}), Ok((true, false))),
        (sequence(&[offsets.clone(), bos.clone()]), json!({}), Ok((true, false))),
        (sequence(&[bos.clone(), offsets.clone()]), json!({}), Ok((true, false))),
        (sequence(&[bos.clone(), template(&[], &[3])]), json!({}), Err("its post-processor is")),
        // The template counts, whatever the flags say.
        (sequence(&[offsets, bos.clone()]), json!({"add_bos_token": false}), Ok((true, false))),
        (bos.clone(), json!({"add_bos_token": true, "add_eos_token": true}), Ok((true, false))),
        (Value::Null, json!({"add_bos_token": true}), Ok((true, false))),
        (Value::Null, json!({"tokenizer_class": "LlamaTokenizerFast"}), Ok((true, false))),
        (
            Value::Null,
            json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}),
            Ok((false, false)),
        ),
        (template(&[2], &[3]), json!({}), Ok((true, true))),
        (roberta, json!({}), Ok((true, true))),
        (
            template(&[5], &[]),
            json!({}),
            Err("it puts `<other>` in front of a text, where GGUF has only a flag for `<bos>`"),
        ),
        (template(&[5], &[]), json!({"add_bos_token": true}), Err("it puts `<bos>`, `<other>` in front")),
        (template(&[2], &[5]), json!({}), Err("it puts `<other>` behind a text")),
        (template(&[2, 2], &[]), json!({}), Err("it puts `<bos>`, `<bos>` in front")),
        (template(&[9], &[]), json!({}), Err("token 9, which has no row in the embedding")),
    ];
    for (post_processor, flags, expected) in cases {
        let mut file = byte_level();
        file["post_processor"] = post_processor;
        let mut names = json!({"bos_token": "<bos>", "eos_token": {"content": "<|stop|>"}});
        names.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        let config = json!({"vocab_size": 6, "eos_token_id": [3, 4]});
        let GgufTokenizer { metadata, problem, .. } =
            tokenizer_metadata(file.to_string().as_bytes(), &names, &config);
        match expected {
            Ok((front, behind)) => {
                assert!(problem.is_none(), "{file}: {problem:?}");
                let flag = |key: &str| metadata[&format!("tokenizer.ggml.{key}")].as_bool().unwrap();
                assert_eq!((flag("add_bos_token"), flag("add_eos_token")), (front, behind), "{file} {flags}");
                assert_eq!(metadata["tokenizer.ggml.bos_token_id"].as_u64(), Some(2));
            }
            Err(message) => {
                let problem = problem.expect(message).to_string();
                assert!(problem.contains(message), "expected {message:?} but found {problem}");
            }
        }
    }
}

#[test]
fn tokens_that_end_a_text_are_named_or_known_or_said() {
    let with = |eos: Option<&str>, ends: &[u32]| {
        let config = json!({"vocab_size": 16, "eos_token_id": ends});
        let names = json!({"eos_token": eos});
        let made = tokenizer_metadata(byte_level().to_string().as_bytes(), &names, &config);
        assert!(made.problem.is_none(), "{:?}", made.problem);
        let id = |key: &str| Some(made.metadata.get(&format!("tokenizer.ggml.{key}"))?.as_u64().unwrap());
        ([id("eos_token_id"), id("eot_token_id"), id("eom_token_id")], made.notes.join("\n"))
    };
    assert_eq!(with(Some("<|stop|>"), &[3, 4]), ([Some(3), None, None], String::new()));
    assert_eq!(with(Some("<|stop|>"), &[3, 4, 5]).0, [Some(3), Some(5), None]);
    assert_eq!(with(Some("<|stop|>"), &[4, 5, 0]).0, [Some(3), Some(5), Some(0)]);
    for (eos, ends, said) in [
        (Some("<|stop|>"), &[3][..], "llama.cpp ends a text at `<|eot_id|>` too"),
        (Some("<|stop|>"), &[4, 5], "llama.cpp ends a text at `<|stop|>` too"),
        (Some("<|stop|>"), &[3, 4, 5, 0, 1], "no key for so many tokens that end a text: `b` no longer do"),
        (None, &[], "names no token that ends a text, so that llama.cpp takes token 11, `[PAD11]`"),
    ] {
        let (_, notes) = with(eos, ends);
        assert!(notes.contains(said), "expected {said:?} but found {notes:?}");
    }
}

#[test]
fn tokens_without_a_row_are_left_out_and_named() {
    let mut file = byte_level();
    file["added_tokens"].as_array_mut().unwrap().push(json!({"id": 6, "content": "<pad>", "special": true}));
    let made = |file: &Value, rows: u32| {
        tokenizer_metadata(
            file.to_string().as_bytes(),
            &json!({"pad_token": "<pad>"}),
            &json!({"vocab_size": rows}),
        )
    };
    let GgufTokenizer { metadata, problem, notes } = made(&file, 6);
    assert!(problem.is_none(), "{problem:?}");
    assert!(
        notes.iter().any(|n| n == "the tokens beyond the 6 rows of the embedding are left out: `<pad>`"),
        "{notes:?}"
    );
    let tokens = metadata["tokenizer.ggml.tokens"].as_array().unwrap().as_strings().unwrap().to_vec();
    assert_eq!(tokens, ["a", "b", "<bos>", "<|stop|>", "<|eot_id|>", "<other>"]);
    assert!(!metadata.contains_key("tokenizer.ggml.padding_token_id"));
    // The model's own words are another thing: such a tokenizer belongs to another model.
    file["model"]["vocab"]["c"] = json!(7);
    let problem = made(&file, 6).problem.unwrap().to_string();
    assert!(problem.contains("it has ids up to 8 for"), "{problem}");
    // Rows without a token get names that no token has.
    let mut file = byte_level();
    file["added_tokens"].as_array_mut().unwrap().push(json!({"id": 6, "content": "[PAD7]"}));
    let metadata = made(&file, 8).metadata;
    let tokens = metadata["tokenizer.ggml.tokens"].as_array().unwrap().as_strings().unwrap().to_vec();
    assert_eq!(tokens[6..], ["[PAD7]", "[PAD7]_"]);
}

#[test]
fn named_chat_templates_come_back() {
    let (mut config, file) = (json!({}), byte_level().to_string());
    config["chat_template"] = json!([
        {"name": "default", "template": "D"}, {"name": "tool-use", "template": "T"}, {"name": "rag", "template": "R"},
        {"name": "tool_use", "template": "again"}, {"name": "empty"},
    ]);
    let made = tokenizer_metadata(file.as_bytes(), &config, &json!({"vocab_size": 6, "eos_token_id": 4}));
    let text = |key: &str| made.metadata[key].as_str().unwrap();
    assert_eq!(text("tokenizer.chat_template"), "D");
    assert_eq!((text("tokenizer.chat_template.tool_use"), text("tokenizer.chat_template.rag")), ("T", "R"));
    let names = made.metadata["tokenizer.chat_templates"].as_array().unwrap().as_strings().unwrap().to_vec();
    assert_eq!(names, ["tool_use", "rag"]);
    let notes = made.notes.join("\n");
    for said in ["`tool-use` is called `tool_use`", "only the first of several", "without a name or a text"] {
        assert!(notes.contains(said), "{notes}");
    }
    let mut small = tensors();
    small[0].dims[0] = 6;
    let mut config = llama();
    config["vocab_size"] = json!(6);
    let opened = write_with(&config, Some(made.metadata), &small, 5000).unwrap();
    let read: Value = serde_json::from_slice(opened.files.get("tokenizer_config.json").unwrap()).unwrap();
    let expected = json!([{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"},
        {"name": "default", "template": "D"}]);
    assert_eq!(read["chat_template"], expected);
}

/// What GGUF cannot say, this crate reads from the tokenizer.json that the file carries.
#[test]
fn a_tokenizer_that_gguf_cannot_hold_is_carried_along() {
    let mut file = byte_level();
    file["added_tokens"][3]["rstrip"] = json!(true);
    let names =
        json!({"bos_token": "<bos>", "eos_token": "<|stop|>", "add_bos_token": true, "chat_template": "D"});
    let made = tokenizer_metadata(file.to_string().as_bytes(), &names, &json!({"eos_token_id": [3, 4]}));
    assert!(made.problem.is_some());
    let opened = write_with(&llama(), Some(made.metadata), &tensors(), 5000).unwrap();
    assert!(opened.tokenizer_problem.is_none(), "{:?}", opened.tokenizer_problem);
    let read = |name: &str| -> Value { serde_json::from_slice(opened.files.get(name).unwrap()).unwrap() };
    assert_eq!(read("tokenizer.json"), file);
    let config = read("tokenizer_config.json");
    for (key, value) in names.as_object().unwrap() {
        assert_eq!(config[key], *value, "{key}");
    }
    assert_eq!(
        (&opened.config_json["eos_token_id"], &opened.config_json["bos_token_id"]),
        (&json!([3, 4]), &json!(2))
    );
}

#[test]
fn tokenizers_that_gguf_cannot_hold_say_why() {
    let base = || {
        json!({"added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false},
            "model": {"type": "BPE", "byte_fallback": true, "merges": [["a", "b"], ["ab", "a"]],
                "vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3}}})
    };
    let config = json!({"vocab_size": 6});
    let metadata = |file: &Value| tokenizer_metadata(file.to_string().as_bytes(), &Value::Null, &config);
    let sound = metadata(&base());
    assert!(sound.problem.is_none(), "{:?}", sound.problem);
    let sound = sound.metadata;
    let scores = sound["tokenizer.ggml.scores"].as_array().unwrap().as_f32s().unwrap().to_vec();
    assert_eq!(scores, [-2.0, -2.0, 0.0, -1.0, 0.0, 0.0]);
    let tokens = sound["tokenizer.ggml.tokens"].as_array().unwrap().as_strings().unwrap().to_vec();
    assert_eq!(tokens[4..], ["[PAD4]", "[PAD5]"]);
    type Spoil = fn(&mut Value);
    let cases: [(&str, Spoil); 15] = [
        ("its model is `Unigram`", |f| f["model"]["type"] = json!("Unigram")),
        ("`a` and `ba` are no merge", |f| f["model"]["vocab"]["ba"] = json!(4)),
        ("the merges that make `aba` are apart", |f| {
            f["model"]["vocab"]["ba"] = json!(4);
            f["model"]["merges"] = json!([["a", "ba"], ["b", "a"], ["ab", "a"], ["a", "b"]]);
        }),
        ("is not SentencePiece's", |f| f["normalizer"] = json!({"type": "NFKC"})),
        ("llama.cpp has no name", |f| f["model"]["byte_fallback"] = json!(false)),
        ("it has ids up to 9", |f| f["model"]["vocab"]["b"] = json!(8)),
        ("carry a prefix", |f| f["model"]["continuing_subword_prefix"] = json!("##")),
        ("its token `<x>` has `rstrip`", |f| f["added_tokens"] = added(json!({"rstrip": true}))),
        ("its token `<x>` has `lstrip`", |f| f["added_tokens"] = added(json!({"lstrip": true}))),
        ("its token `<x>` has `single_word`", |f| f["added_tokens"] = added(json!({"single_word": true}))),
        ("its token `<x>` is looked for in normalized texts", |f| {
            f["added_tokens"] = added(json!({"normalized": true}));
            f["pre_tokenizer"] = Value::Null;
            f["normalizer"] = json!({"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]});
        }),
        ("two of its tokens are `a`", |f| f["added_tokens"] = json!([{"id": 5, "content": "a"}])),
        ("it puts `a`, `b` in front of a text", |f| f["post_processor"] = template(&[0, 1], &[])),
        ("its token `<x>` is listed as 5 but becomes 4", |f| f["added_tokens"] = added(json!({"id": 5}))),
        ("its post-processor is", |f| f["post_processor"] = json!({"type": "Magic"})),
    ];
    for (message, spoil) in cases {
        let mut file = base();
        spoil(&mut file);
        let GgufTokenizer { metadata, problem, notes } = metadata(&file);
        let error = problem.expect(message);
        assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
        assert_eq!(error.code(), ErrorCode::Tokenizer);
        // The file itself is carried along.
        assert_eq!(metadata["tokenizer.ggml.model"].as_str(), Some("no_vocab"));
        assert_eq!(metadata["tokenizer.huggingface.json"].as_str(), Some(file.to_string().as_str()));
        assert!(notes.is_empty(), "{notes:?}");
    }
}
