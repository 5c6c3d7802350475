//! Large checkpoints, or at least slow to quantize.

use lowbit::internals::dtype::DType;
use lowbit::internals::format::safetensors::{SafetensorsWriter, TensorInfo};
use lowbit::internals::format::sink::{FsSinkDir, SinkDir, write_whole};
use lowbit::internals::model::names::{BlockNorm, Linear};
use lowbit::internals::model::{Architecture, ModelConfig};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

const HIDDEN: u64 = 1024;
const INNER: u64 = 4096;
const VOCABULARY: u64 = 4096;
/// Bytes of the largest tensor, of F16 values.
pub const LARGEST_TENSOR: u64 = 2 * HIDDEN * INNER;

/// Writes a Llama with the same pattern in every tensor, and returns the tensors' bytes.
pub async fn write_checkpoint(path: &Path, layers: usize) -> u64 {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "tie_word_embeddings": true, "torch_dtype": "float16"
    });
    let model = ModelConfig::from_json(&config).unwrap();
    assert_eq!(model.architecture, Architecture::Llama);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), TensorInfo::new(DType::F16, [VOCABULARY, HIDDEN])),
        ("model.norm.weight".to_owned(), TensorInfo::new(DType::F16, [HIDDEN])),
    ];
    for layer in 0..layers {
        for linear in Linear::ALL {
            let (rows, cols) = linear.shape(&model);
            let info = TensorInfo::new(DType::F16, [rows as u64, cols as u64]);
            tensors.push((format!("{}.weight", linear.module(layer)), info));
        }
        for norm in [BlockNorm::Input, BlockNorm::PostAttention] {
            let info = TensorInfo::new(DType::F16, [HIDDEN]);
            tensors.push((format!("{}.weight", norm.module(layer)), info));
        }
    }
    // Values between -0.1 and 0.1 from a small generator.
    let mut state = 1u32;
    let pattern: Vec<u8> = (0..LARGEST_TENSOR / 2)
        .flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            half::f16::from_f32((state >> 8) as f32 / 2f32.powi(24) * 0.2 - 0.1).to_le_bytes()
        })
        .collect();
    let lens: BTreeMap<String, u64> =
        tensors.iter().map(|(name, info)| (name.clone(), info.byte_len().unwrap())).collect();
    let sinks = FsSinkDir::create(path).unwrap();
    write_whole(&sinks, "config.json", config.to_string().as_bytes()).await.unwrap();
    let sink = sinks.create("model.safetensors").await.unwrap();
    let mut writer = SafetensorsWriter::begin(sink, tensors, BTreeMap::new()).await.unwrap();
    for name in writer.order().to_vec() {
        writer.write(&name, &pattern[..lens[&name] as usize]).await.unwrap();
    }
    writer.finish().await.unwrap();
    lens.values().sum()
}
