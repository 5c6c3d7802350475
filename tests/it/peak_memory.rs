//! Quantizing a checkpoint of 2 GB takes little memory.
//!
//! Only on Linux, where the kernel tells the high-water mark of a child process.
#![cfg(target_os = "linux")]

use lowbit::dtype::DType;
use lowbit::format::safetensors::{SafetensorsWriter, TensorInfo};
use lowbit::format::sink::{FsSinkDir, SinkDir, write_whole};
use lowbit::model::names::{BlockNorm, Linear};
use lowbit::model::{Architecture, ModelConfig};
use lowbit::task::block_on;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LAYERS: usize = 60;
const HIDDEN: u64 = 1024;
const INNER: u64 = 4096;
const VOCABULARY: u64 = 4096;
/// Of F16 values.
const LARGEST_TENSOR: u64 = 2 * HIDDEN * INNER;
const LIMIT: u64 = (64 << 20) + 4 * LARGEST_TENSOR;

#[test]
fn two_gigabytes_are_quantized_in_a_few_tensors_of_memory() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let bytes = block_on(write_checkpoint(&source));
    assert!(bytes > 2_000_000_000, "{bytes}");
    let output = folder.path().join("output");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    command.arg("quantize").arg(&source).arg("-o").arg(&output).args(["--group-size", "32", "--asym"]);
    let peak = peak_of(command);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("note: quantizing {bytes} bytes: {:.1} MiB resident, limit {:.1}", mib(peak), mib(LIMIT));
    assert!(peak <= LIMIT, "{peak} bytes resident, above the limit of {LIMIT}");
}

/// The resident high-water mark of a command, in bytes: what the kernel says of the running process, again and again.
/// (`wait4` would count the memory of this process too, from which the child was forked.)
fn peak_of(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let ended = child.try_wait().unwrap();
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
        // Before it becomes the program it was told to be, the child is a copy of this process.
        if let Some(mark) = mark.filter(|_| text.starts_with("Name:\tlowbit\n")) {
            peak = peak.max(mark.trim().parse::<u64>().unwrap() * 1024);
        }
        if let Some(ended) = ended {
            assert!(ended.success(), "the command failed");
            assert!(peak > 0, "the command ended before it was looked at");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a Llama with the same pattern in every tensor, and says how many bytes of tensors that is.
async fn write_checkpoint(path: &Path) -> u64 {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "tie_word_embeddings": true, "torch_dtype": "float16"
    });
    let model = ModelConfig::from_json(&config).unwrap();
    assert_eq!(model.architecture, Architecture::Llama);
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), TensorInfo::new(DType::F16, [VOCABULARY, HIDDEN])),
        ("model.norm.weight".to_owned(), TensorInfo::new(DType::F16, [HIDDEN])),
    ];
    for layer in 0..LAYERS {
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
