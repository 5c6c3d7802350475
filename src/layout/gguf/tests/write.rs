//! Tests of writing: comparison with ggml's own quantizers, and round trips through the reader.

use super::{decode, golden, unhex};
use crate::error::{ErrorCode, Result};
use crate::format::gguf::{TensorType, Value as GgufValue};
use crate::format::sink::{MemorySinkDir, SinkDir};
use crate::format::source::MemorySource;
use crate::layout::TargetLayout;
use crate::layout::gguf::{
    GgufCheckpoint, GgufOutput, GgufTensor, block_type, decode_rows, encode, quantize_rows,
};
use crate::quant::{
    Bits, Granularity, PackedTensor, QuantizedTensor, RtnQuantizer, ScaleType, Scheme, TernaryQuantizer,
};
use crate::task::block_on;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

mod tokenizer;

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

/// Compares the error of `Q4_K` with that of `Q4_1`, which has as many bits per code and a half-precision scale per
/// group.
#[test]
fn the_search_of_q4_k_pays() {
    let mut state = 1u64;
    let mut normal = || -> f32 {
        // A sum of uniform numbers approximates a normal one.
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
    // Groups that are zero, constant, or positive only.
    for values in [vec![0.0; 256], vec![0.25; 256], vec![-0.25; 256], (0..256).map(|i| i as f32).collect()] {
        let (mut bytes, mut read) = (Vec::new(), vec![0.0; 256]);
        quantize_rows(TensorType::Q4_K, &values, &mut bytes).unwrap();
        decode_rows(TensorType::Q4_K, 256, &bytes, &mut read).unwrap();
        let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        for (value, read) in values.iter().zip(&read) {
            // Half a step: groups of positive numbers start at zero.
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
        assert_eq!(block_type(scheme.into(), cols), expected, "{scheme} {cols}");
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

#[test]
fn blocks_of_a_codebook_are_written_as_they_were() {
    let golden = golden();
    let blocks = unhex(&golden["decoded"]["IQ4_NL"]["blocks"]);
    let tensor = decode(TensorType::IQ4_NL, 1, &blocks).unwrap();
    assert_eq!(tensor.coding().to_string(), "iq4_nl");
    assert_eq!(tensor.bits_per_weight(), 4.5);
    assert_eq!(block_type(tensor.coding(), tensor.cols()), Some(TensorType::IQ4_NL));
    assert_eq!(encode(&tensor).unwrap(), blocks);
    for layout in [TargetLayout::CompressedTensors, TargetLayout::Awq, TargetLayout::BitNet] {
        let reason = layout.can_hold(1, tensor.cols(), tensor.coding()).unwrap_err();
        assert_eq!(reason, "it holds integer codes with scales, not iq4_nl");
    }
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
        let tensor = QuantizedTensor::from(quantized(scheme, 256, &weights));
        let Some(tensor_type) = block_type(scheme.into(), 256) else {
            prop_assert!(encode(&tensor).is_err());
            return Ok(());
        };
        let blocks = encode(&tensor).unwrap();
        let (mut found, mut expected) = (vec![0.0; 512], vec![0.0; 512]);
        tensor.decode_rows(0..2, &mut expected);
        decode_rows(tensor_type, 256, &blocks, &mut found).unwrap();
        if TargetLayout::Gguf.own_scales(&tensor).unwrap().is_none_or(|(_, loss)| loss.is_none()) {
            prop_assert_eq!(&found, &expected);
        } else {
            prop_assert!(tensor.affine().unwrap().zero_points().is_some());
            for (found, expected) in found.iter().zip(&expected) {
                // Rounding of the minimum, at most about 2, to half precision.
                prop_assert!((found - expected).abs() <= 2.0 / 2048.0);
            }
        }
        // Encoding again gives the same blocks: only the minimum was ever rounded.
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
        GgufCheckpoint::open(Arc::new(MemorySource::new("a.gguf", bytes)), &[]).await
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
        // With a smaller theta, so small a head has no wavelength with the full factor.
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
