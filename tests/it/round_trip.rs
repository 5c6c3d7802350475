//! Round trips through quantized weights, and figures that do not depend on the memory budget.

use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::dtype::DType;
use lowbit::internals::format::scratch::MemoryScratch;
use lowbit::internals::format::sink::MemorySinkDir;
use lowbit::internals::format::source::{FsDir, MemoryDir, SourceDir};
use lowbit::internals::model::{CausalLm, Checkpoint, LoadOptions};
use lowbit::internals::pipeline::dequantize::dequantize_checkpoint;
use lowbit::internals::pipeline::{QuantizeOptions, quantize, restore};
use lowbit::internals::quant::{Activations, Bits, Granularity, Method, Scheme};
use lowbit::internals::recipe::Recipe;
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::HuggingFaceTokenizer;
use lowbit::internals::validate::agreement::{self, Forms};
use lowbit::internals::validate::windows::{Dataset, WindowOptions};
use lowbit::internals::validate::{streamed, walk};
use std::path::Path;
use std::sync::Arc;

fn shipped() -> Arc<dyn SourceDir> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tale-llama");
    Arc::new(FsDir::open(path).unwrap())
}

async fn open(dir: Arc<dyn SourceDir>) -> Checkpoint {
    Checkpoint::open(dir).await.unwrap()
}

fn weights(dir: &MemoryDir) -> &[u8] {
    dir.get("model.safetensors").unwrap()
}

/// Options of a folder, and their name in a failure.
fn every_kind() -> Vec<(&'static str, QuantizeOptions)> {
    let rtn = |bits, granularity, symmetric| {
        QuantizeOptions::new(Method::Rtn, Scheme::symmetric(bits, granularity).with_symmetry(symmetric))
    };
    let mut with_tables = rtn(Bits::Four, Granularity::Group(64), true);
    with_tables.quantize_head = true;
    with_tables.quantize_embedding = Some(Bits::Eight);
    let mut sparse = QuantizeOptions::ternary(Granularity::Tensor);
    sparse.sparsity_threshold = Some(0.9);
    let mut with_recipe = rtn(Bits::Four, Granularity::Group(32), true);
    let rules =
        r#"{"rules": [{"modules": "*.self_attn.*", "bits": 8}, {"modules": "*.0.*", "symmetric": false}]}"#;
    with_recipe.recipe = Some(Recipe::from_json(rules).unwrap());
    vec![
        ("int8", rtn(Bits::Eight, Granularity::Channel, true)),
        ("int4 symmetric", rtn(Bits::Four, Granularity::Group(32), true)),
        ("int4 asymmetric", rtn(Bits::Four, Granularity::Group(128), false)),
        ("int3", rtn(Bits::Three, Granularity::Group(32), true)),
        ("int2", rtn(Bits::Two, Granularity::Group(32), false)),
        ("ternary", QuantizeOptions::ternary(Granularity::Tensor)),
        ("ternary per channel", QuantizeOptions::ternary(Granularity::Channel)),
        ("sparse ternary", sparse),
        ("tables", with_tables),
        ("recipe", with_recipe),
    ]
}

#[test]
fn dequantized_weights_get_the_codes_that_they_had() {
    for (name, options) in every_kind() {
        for dtype in [DType::F16, DType::F32] {
            block_on(async {
                let source = open(shipped()).await;
                let packed = MemorySinkDir::new("packed");
                quantize(&source, &options, &packed, &Silent).await.unwrap();
                let quantized = open(Arc::new(packed.to_dir())).await;
                let floats = MemorySinkDir::new("floats");
                dequantize_checkpoint(&quantized, dtype, &floats, &Silent).await.unwrap();
                let dequantized = open(Arc::new(floats.to_dir())).await;
                assert!(!dequantized.is_quantized(), "{name}");
                let again = MemorySinkDir::new("again");
                restore(&dequantized, &again, &Silent).await.unwrap();
                // Embeddings that became F32 stay F32. Everything else is identical to the last bit.
                if dtype == DType::F16 {
                    assert!(weights(&packed.to_dir()) == weights(&again.to_dir()), "{name}: other bytes");
                }
                let restored = open(Arc::new(again.to_dir())).await;
                for layer in 0..source.config().num_hidden_layers {
                    for linear in lowbit::internals::model::names::Linear::ALL {
                        let module = linear.module(layer);
                        let before =
                            quantized.layout().read_packed(quantized.store(), &module).await.unwrap();
                        let after = restored.layout().read_packed(restored.store(), &module).await.unwrap();
                        assert_eq!(before, after, "{name} {dtype} {module}");
                    }
                }
            });
        }
    }
}

async fn dataset(checkpoint: &Checkpoint, bytes: usize) -> Dataset {
    let codec = HuggingFaceTokenizer::open(checkpoint.dir().as_ref(), None).await.unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tale-llama/heldout.txt");
    Dataset::new("heldout", &std::fs::read_to_string(path).unwrap()[..bytes], &codec).unwrap()
}

#[test]
fn running_block_by_block_changes_no_figure() {
    block_on(async {
        let source = open(shipped()).await;
        let packed = MemorySinkDir::new("packed");
        let options =
            QuantizeOptions::new(Method::Rtn, Scheme::symmetric(Bits::Four, Granularity::Group(32)));
        quantize(&source, &options, &packed, &Silent).await.unwrap();
        let quantized = open(Arc::new(packed.to_dir())).await;
        let data = dataset(&source, 6000).await;
        for (context, stride) in [(512, None), (300, Some(100))] {
            let windows = WindowOptions { context, stride };
            let load = LoadOptions::default();
            let mut a = CausalLm::load(CpuBackend::new(), &source, load, &Silent).await.unwrap();
            let mut b = CausalLm::load(CpuBackend::new(), &quantized, load, &Silent).await.unwrap();
            let whole = walk::compare(&mut a, &mut b, &data, &windows, &Silent).await.unwrap();
            let streamed = streamed::compare(
                (&source, load),
                (&quantized, load),
                &data,
                &windows,
                &mut || Ok(CpuBackend::new()),
                &MemoryScratch::new(),
                &Silent,
            )
            .await
            .unwrap();
            assert_eq!(whole.original, streamed.original);
            assert_eq!(whole.quantized, streamed.quantized);
            assert_eq!(whole.divergence.kl_mean(), streamed.divergence.kl_mean());
            assert_eq!(whole.divergence.top1_agreement(), streamed.divergence.top1_agreement());
        }
    });
}

#[test]
fn both_forms_of_a_model_predict_the_same() {
    let int8 = QuantizeOptions::new(Method::Rtn, Scheme::symmetric(Bits::Eight, Granularity::Channel));
    let w8a8 = QuantizeOptions { activations: Activations::Int8, ..int8 };
    for (name, options) in every_kind().into_iter().chain([("w8a8", w8a8)]) {
        block_on(async {
            let source = open(shipped()).await;
            let packed = MemorySinkDir::new("packed");
            quantize(&source, &options, &packed, &Silent).await.unwrap();
            let quantized = open(Arc::new(packed.to_dir())).await;
            let floats = MemorySinkDir::new("floats");
            // F16 rounds the products of codes and scales, and INT8 activations magnify that: 0.974 of predictions agree.
            let dtype = if name == "w8a8" { DType::F32 } else { DType::F16 };
            dequantize_checkpoint(&quantized, dtype, &floats, &Silent).await.unwrap();
            let dequantized = open(Arc::new(floats.to_dir())).await;
            let data = dataset(&source, 20_000).await;
            let windows = WindowOptions { context: 512, stride: None };
            let forms = Forms { quantized: &quantized, dequantized: &dequantized, original: Some(&source) };
            // Too little agreement is an error.
            let found =
                agreement::measure(forms, &data, &windows, 0.9, CpuBackend::new, &Silent).await.unwrap();
            println!("{name}: {found:?}");
            assert!(found.quantized_dequantized_f32 >= found.required, "{name}");
            assert_eq!(found.retained, found.retention.map(|share| share >= 0.9), "{name}");
            assert!(name != "int8" || found.retained == Some(true), "{name}");
        });
    }
}
