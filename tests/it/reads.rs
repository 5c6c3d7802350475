//! How many bytes of a checkpoint a job reads. Behind a URL every byte is a download.

use crate::support::{fixture, on_disk, samples};
use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::error::Result;
use lowbit::internals::format::gguf::TensorType;
use lowbit::internals::format::scratch::MemoryScratch;
use lowbit::internals::format::sink::MemorySinkDir;
use lowbit::internals::format::source::{ByteSource, SourceDir};
use lowbit::internals::layout::{GptqZeros, TargetLayout};
use lowbit::internals::model::Checkpoint;
use lowbit::internals::pipeline::dequantize::dequantize_checkpoint;
use lowbit::internals::pipeline::{
    Calibration, ConvertOptions, QuantizeOptions, convert, plan_conversion, quantize, quantize_calibrated,
    restore,
};
use lowbit::internals::quant::{Bits, Granularity, Method, Scheme};
use lowbit::internals::task::{BoxFuture, Silent, block_on};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder that counts the bytes read from its weights.
struct Counting {
    dir: Arc<dyn SourceDir>,
    read: Arc<AtomicU64>,
}

impl SourceDir for Counting {
    fn name(&self) -> &str {
        self.dir.name()
    }

    fn open<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Option<Arc<dyn ByteSource>>>> {
        Box::pin(async move {
            let source = self.dir.open(file).await?;
            let counted =
                |source| Arc::new(Counted { source, read: self.read.clone() }) as Arc<dyn ByteSource>;
            Ok(if file == "model.safetensors" { source.map(counted) } else { source })
        })
    }
}

struct Counted {
    source: Arc<dyn ByteSource>,
    read: Arc<AtomicU64>,
}

impl ByteSource for Counted {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at<'a>(&'a self, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>> {
        self.read.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.source.read_at(offset, out)
    }
}

/// Opens a folder, runs a job, and returns the bytes read in units of the tensors' bytes, including the header.
fn times(name: &str, dir: Arc<dyn SourceDir>, job: impl FnOnce(&Checkpoint)) -> f64 {
    let read = Arc::new(AtomicU64::new(0));
    let counting = Counting { dir, read: read.clone() };
    let checkpoint = block_on(Checkpoint::open(Arc::new(counting))).unwrap();
    job(&checkpoint);
    let times = read.load(Ordering::Relaxed) as f64 / checkpoint.bytes() as f64;
    println!("note: {name} reads {times:.3} times the bytes of the tensors");
    times
}

fn tale() -> Arc<dyn SourceDir> {
    on_disk(fixture("tale-llama"))
}

fn group(bits: Bits) -> QuantizeOptions {
    QuantizeOptions::new(Method::Rtn, Scheme::symmetric(bits, Granularity::Group(32)))
}

fn quantized(name: &str, dir: Arc<dyn SourceDir>, options: &QuantizeOptions) -> (f64, MemorySinkDir) {
    let out = MemorySinkDir::new("out");
    let read = times(name, dir, |checkpoint| {
        block_on(quantize(checkpoint, options, &out, &Silent)).unwrap();
    });
    (read, out)
}

#[test]
fn rounding_reads_a_checkpoint_once() {
    let head =
        QuantizeOptions { quantize_head: true, quantize_embedding: Some(Bits::Eight), ..group(Bits::Four) };
    let gguf = QuantizeOptions { layout: Some(TargetLayout::Gguf), ..group(Bits::Four) };
    let cases = [
        ("rtn", group(Bits::Four), 1.05),
        ("rtn to gguf", gguf, 1.05),
        ("ternary", QuantizeOptions::ternary(Granularity::Tensor), 1.05),
        // A tied embedding is quantized twice, as embedding and as head.
        ("rtn with tables", head, 2.0),
    ];
    for (name, options, most) in cases {
        let (read, _) = quantized(name, tale(), &options);
        assert!(read <= most, "{name}: {read}");
    }
}

/// A folder with the weights in single precision.
#[test]
fn a_table_is_not_read_to_see_whether_it_fits() {
    let (_, four) = quantized("rtn", tale(), &group(Bits::Four));
    let floats = MemorySinkDir::new("floats");
    let read = times("dequantizing", Arc::new(four.to_dir()), |checkpoint| {
        block_on(dequantize_checkpoint(checkpoint, lowbit::internals::dtype::DType::F32, &floats, &Silent))
            .unwrap();
    });
    assert!(read <= 1.05, "{read}");
    let (read, again) = quantized("rtn of F32", Arc::new(floats.to_dir()), &group(Bits::Four));
    assert!(read <= 1.05, "{read}");
    let restored = MemorySinkDir::new("restored");
    let read = times("restoring", Arc::new(floats.to_dir()), |checkpoint| {
        block_on(restore(checkpoint, &restored, &Silent)).unwrap();
    });
    assert!(read <= 1.05, "{read}");
    assert!(again.to_dir().get("quantization_config.json").is_some());
}

#[test]
fn converting_reads_scales_twice_and_everything_else_once() {
    let (_, four) = quantized("rtn", tale(), &group(Bits::Four));
    let gptq = TargetLayout::Gptq(GptqZeros::V1);
    let other = MemorySinkDir::new("gptq");
    let to = |name: &str, dir: Arc<dyn SourceDir>, options: ConvertOptions, out: &MemorySinkDir| {
        times(name, dir, |checkpoint| {
            let plan = block_on(plan_conversion(checkpoint, &options, &Silent)).unwrap();
            let outcome = block_on(convert(checkpoint, &plan, out, &Silent)).unwrap();
            assert!(outcome.bytes > 0);
        })
    };
    let four: Arc<dyn SourceDir> = Arc::new(four.to_dir());
    let read = to("to gptq", four.clone(), ConvertOptions::new(gptq), &other);
    assert!(read <= 1.2, "{read}");
    let back = ConvertOptions::new(TargetLayout::CompressedTensors);
    let read = to("from gptq", Arc::new(other.to_dir()), back, &MemorySinkDir::new("back"));
    assert!(read <= 1.2, "{read}");
    let file = MemorySinkDir::new("file");
    let read = to("to gguf", four, ConvertOptions::new(TargetLayout::Gguf), &file);
    assert!(read <= 1.2, "{read}");
    let eight =
        ConvertOptions { gguf_type: Some(TensorType::Q8_0), ..ConvertOptions::new(TargetLayout::Gguf) };
    let read = to("floats to gguf", tale(), eight, &MemorySinkDir::new("eight"));
    assert!(read <= 1.05, "{read}");
}

/// A block is read once and kept. Embeddings are read to embed the samples, and again to be copied.
#[test]
fn calibrating_reads_a_checkpoint_twice_at_most() {
    let model = fixture("tale-llama");
    let samples = samples(&model, &model.join("calibration.txt"), 2, 64);
    let group = Granularity::Group(32);
    for (name, options) in [
        ("gptq", QuantizeOptions::new(Method::Gptq, Scheme::symmetric(Bits::Four, group))),
        ("awq", QuantizeOptions::new(Method::Awq, Scheme::asymmetric(Bits::Four, group))),
    ] {
        let mut outputs = Vec::new();
        for memory in [None, Some(0)] {
            let out = MemorySinkDir::new("out");
            let read = times(name, tale(), |checkpoint| {
                let scratch = MemoryScratch::new();
                let new_backend = || Ok(CpuBackend::new());
                let calibration =
                    Calibration { samples: &samples, new_backend: &new_backend, scratch: &scratch };
                // With the least memory in which the run starts, no block is kept.
                let memory = memory.map(|memory| least_memory(checkpoint, &options, memory, &samples));
                let options = QuantizeOptions { memory, ..options.clone() };
                block_on(quantize_calibrated(checkpoint, &options, calibration, &out, &Silent)).unwrap();
            });
            assert_eq!(read <= 2.1, memory.is_none(), "{name} with {memory:?}: {read}");
            let dir = out.to_dir();
            outputs.push(
                ["model.safetensors", "quantization_config.json"].map(|file| dir.get(file).unwrap().clone()),
            );
        }
        assert!(outputs[0] == outputs[1], "{name}: memory changes no byte");
    }
}

fn least_memory(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    memory: u64,
    samples: &lowbit::internals::calibrate::Samples,
) -> u64 {
    use lowbit::internals::pipeline::{QuantizationPlan, calibrated::memory::plan_memory};
    let options = QuantizeOptions { memory: Some(memory), ..options.clone() };
    let plan = QuantizationPlan::new(checkpoint, &options).unwrap();
    plan_memory(checkpoint, plan.modules(), &options, samples).unwrap().peak_bytes
}
