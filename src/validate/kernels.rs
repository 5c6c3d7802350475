//! Times single steps of a model on a device, by the bytes that they move and the operations that they do.
//!
//! Weights are random codes. Several of each kind take turns if a cache could hold one, since a model has many. The
//! device's peak rates are measured in the same run.

use super::speed::Clock;
#[cfg(feature = "gpu")]
use crate::backend::gpu::GpuBackend;
use crate::backend::{
    AttentionShape, Backend, Element, GateActivation, KvLayer, Norm, Segment, TopK, WeightDesc, WeightFormat,
    WeightView,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::quant::{ActivationGrid, Activations, Bits, Granularity, Scheme};
use crate::task::{self, Control, Progress};
use half::f16;

/// Shortest duration of a timed pass.
const LEAST_SECONDS: f64 = 0.1;
/// Most runs of a step in a pass.
const MOST_RUNS: usize = 1 << 14;
/// Timed passes. The fastest counts, because other load can only slow a pass down.
const PASSES: usize = 3;
/// Number of timed steps: five weight formats in two shapes each and four other steps of a block, each for one token
/// and for many, plus four steps outside the blocks.
const STEPS: usize = 2 * (5 * 2 + 4) + 4;
/// Runs of a step between submissions, so that the device works while later runs are recorded.
const RUNS_IN_FLIGHT: usize = 32;

/// Sizes of the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the projections of an MLP.
    pub intermediate: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Positions that are attended to.
    pub context: usize,
    /// Logits of a token.
    pub vocabulary: usize,
    /// Bytes of weights of one kind that take turns.
    pub weight_bytes: u64,
}

impl Sizes {
    /// A model of 8 billion parameters, with more weights than caches hold.
    pub const LARGE: Self = Self {
        hidden: 4096,
        intermediate: 14_336,
        prompt: 512,
        context: 2048,
        vocabulary: 128_256,
        weight_bytes: 256 << 20,
    };
    /// For CPUs and for software GPUs.
    pub const SMALL: Self = Self {
        hidden: 1024,
        intermediate: 2816,
        prompt: 64,
        context: 512,
        vocabulary: 32_000,
        weight_bytes: 0,
    };
}

/// One timed step.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// `matvec int4-g32`, `attention`, ...
    pub step: String,
    /// `14336 x 4096, 1 token`
    pub shape: String,
    /// Bytes read and written: stored weights, activations, KV caches.
    pub bytes: u64,
    /// Multiplications and additions.
    pub operations: u64,
    /// Time of one run.
    pub seconds: f64,
}

/// Peak rates of a device, as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes read and written by a copy.
    pub bytes_per_second: f64,
    /// Multiplications and additions in `f32`, without memory access.
    pub operations_per_second: f64,
}

/// Seconds of one run of `step` on `device`. `done` is any readable buffer, for synchronization.
async fn time<B: Backend>(
    device: &mut B,
    done: &B::Buffer,
    clock: Clock<'_>,
    mut step: impl FnMut(&mut B, usize) -> Result<()>,
) -> Result<f64> {
    // The first run compiles kernels.
    step(device, 0)?;
    device.read(done, 0, &mut [0.0]).await?;
    let (mut runs, mut passes, mut fastest) = (1, 0, f64::INFINITY);
    while passes < PASSES {
        let start = clock();
        for run in 0..runs {
            step(device, run)?;
            if run % RUNS_IN_FLIGHT == RUNS_IN_FLIGHT - 1 {
                device.flush()?;
            }
        }
        device.read(done, 0, &mut [0.0]).await?;
        let seconds = clock() - start;
        if seconds < LEAST_SECONDS && runs < MOST_RUNS {
            runs *= 2;
            continue;
        }
        fastest = fastest.min(seconds / runs as f64);
        passes += 1;
    }
    // The clock may be coarser than one run.
    Ok(fastest.max(1e-9))
}

/// Measures a GPU's peak rates.
///
/// # Errors
/// Errors of the device.
#[cfg(feature = "gpu")]
pub async fn limits(gpu: &mut GpuBackend, sizes: &Sizes, clock: Clock<'_>) -> Result<Limits> {
    use crate::backend::DeviceOps;

    let most = gpu.adapter().max_binding_bytes / 4;
    let len = (sizes.weight_bytes / 8).clamp(1 << 22, most) as usize;
    let (from, mut to) = (gpu.buffer(Element::F32, len)?, gpu.buffer(Element::F32, len)?);
    let done = gpu.buffer(Element::F32, 1)?;
    let copy = time(gpu, &done, clock, |gpu, _| gpu.copy(&from, &mut to)).await?;
    let mut out = gpu.buffer(Element::F32, 1 << 18)?;
    // Fewer rounds on a software GPU, which would take minutes.
    let rounds = if sizes.weight_bytes == 0 { 64 } else { 4096 };
    let mut operations = 0;
    let arithmetic = time(gpu, &done, clock, |gpu, _| {
        operations = gpu.multiply_add(&mut out, rounds)?;
        Ok(())
    })
    .await?;
    Ok(Limits {
        bytes_per_second: 8.0 * len as f64 / copy,
        operations_per_second: operations as f64 / arithmetic,
    })
}

/// The timed weight formats, with their activations.
fn formats() -> Vec<(&'static str, WeightFormat, Activations)> {
    let integer = |bits, granularity| WeightFormat::Packed(Scheme::symmetric(bits, granularity).into());
    let ternary = WeightFormat::Packed(Scheme::ternary(Granularity::Tensor).into());
    vec![
        ("f16", WeightFormat::Dense(DType::F16), Activations::F32),
        ("int8", integer(Bits::Eight, Granularity::Channel), Activations::F32),
        ("int4-g32", integer(Bits::Four, Granularity::Group(32)), Activations::F32),
        ("int4-g32 a8", integer(Bits::Four, Granularity::Group(32)), Activations::Int8),
        ("ternary a8", ternary, Activations::Int8),
    ]
}

/// Bytes of a stored matrix: values, and scales of four bytes.
fn weight_bytes(format: WeightFormat, rows: usize, cols: usize) -> u64 {
    let bytes = match format {
        WeightFormat::Dense(dtype) => rows * cols * dtype.size(),
        WeightFormat::Packed(coding) => {
            let scales = rows * coding.granularity().groups_per_row(cols);
            rows * cols * coding.code_bits() as usize / 8 + 4 * scales
        }
    };
    bytes as u64
}

fn in_words(tokens: usize) -> String {
    if tokens == 1 { "1 token".to_owned() } else { format!("{tokens} tokens") }
}

/// Times all steps of a block, the steps outside the blocks, and those of calibration.
///
/// # Errors
/// Errors of the device; `cancelled`.
pub async fn steps<B: Backend>(
    device: &mut B,
    sizes: &Sizes,
    clock: Clock<'_>,
    control: &dyn Control,
) -> Result<Vec<Timed>> {
    let mut timed = Vec::new();
    for (name, format, activations) in formats() {
        for (rows, cols) in [(sizes.intermediate, sizes.hidden), (sizes.hidden, sizes.intermediate)] {
            report(control, timed.len(), name).await?;
            let bytes = weight_bytes(format, rows, cols);
            let copies = (sizes.weight_bytes / bytes).max(1) as usize;
            let mut weights = Vec::new();
            for _ in 0..copies {
                weights.push(random_weight(device, format, activations, rows, cols).await?);
            }
            for (step, tokens) in [("matvec", 1), ("matmul", sizes.prompt)] {
                let x = values(device, tokens * cols)?;
                let mut y = device.buffer(Element::F32, tokens * rows)?;
                let done = device.buffer(Element::F32, 1)?;
                let seconds = time(device, &done, clock, |device, run| {
                    device.linear(&x, tokens, &weights[run % copies], &mut y)
                })
                .await?;
                timed.push(Timed {
                    step: format!("{step} {name}"),
                    shape: format!("{rows} x {cols}, {}", in_words(tokens)),
                    bytes: bytes + 4 * (tokens * (rows + cols)) as u64,
                    operations: 2 * (rows * cols * tokens) as u64,
                    seconds,
                });
            }
        }
    }
    for tokens in [1, sizes.prompt] {
        report(control, timed.len(), "blocks").await?;
        timed.extend(other_steps(device, sizes, tokens, clock).await?);
    }
    report(control, timed.len(), "ends").await?;
    timed.extend(steps_around(device, sizes, clock).await?);
    Ok(timed)
}

async fn report(control: &dyn Control, done: usize, item: &str) -> Result<()> {
    control.progress(&Progress { phase: "bench", done: done as u64, total: STEPS as u64, item });
    task::yield_point(control).await
}

/// The steps of a block without weights.
async fn other_steps<B: Backend>(
    b: &mut B,
    sizes: &Sizes,
    tokens: usize,
    clock: Clock<'_>,
) -> Result<Vec<Timed>> {
    let Sizes { hidden, intermediate, context, .. } = *sizes;
    let these = in_words(tokens);
    let mut timed = Vec::new();
    let done = b.buffer(Element::F32, 1)?;
    let mut push = |step: &str, shape: String, bytes: usize, operations: usize, seconds: f64| {
        let (bytes, operations) = (bytes as u64, operations as u64);
        timed.push(Timed { step: step.to_owned(), shape, bytes, operations, seconds });
    };

    let norm = Norm { weight: values(b, hidden)?, width: hidden, epsilon: 1e-5 };
    let (mut residual, delta) = (values(b, tokens * hidden)?, b.buffer(Element::F32, tokens * hidden)?);
    let mut out = b.buffer(Element::F32, tokens * hidden)?;
    let seconds = time(b, &done, clock, |b, _| {
        b.add_rms_norm(&mut residual, Some(&delta), tokens, norm.as_ref(), &mut out)
    })
    .await?;
    let len = tokens * hidden;
    push("add_rms_norm", format!("{hidden}, {these}"), 4 * (4 * len + hidden), 4 * len, seconds);

    let gate_up = values(b, tokens * 2 * intermediate)?;
    let mut gated = b.buffer(Element::F32, tokens * intermediate)?;
    let seconds = time(b, &done, clock, |b, _| {
        b.gate(&gate_up, tokens, intermediate, GateActivation::Silu, &mut gated)
    })
    .await?;
    let len = tokens * intermediate;
    push("gate", format!("{intermediate}, {these}"), 12 * len, 4 * len, seconds);

    // One KV head per four query heads, as in models of that size.
    let shape =
        AttentionShape { heads: hidden / 128, kv_heads: hidden / 512, head_dim: 128, capacity: context };
    let mut cache = KvLayer { keys: values(b, shape.cache_len())?, values: values(b, shape.cache_len())? };
    let mut qkv = values(b, tokens * shape.qkv_width())?;
    let rope = values(b, context * shape.head_dim)?;
    let past = context - tokens;
    let segments = [Segment::causal(past, tokens)];
    let seconds = time(b, &done, clock, |b, _| {
        b.rope_and_append_kv(&mut qkv, &segments, &shape, &rope, None, cache.as_mut())
    })
    .await?;
    let len = tokens * shape.qkv_width();
    push("rope_and_append_kv", format!("{} heads, {these}", shape.heads), 8 * len, 6 * len, seconds);
    let mut attended = b.buffer(Element::F32, tokens * hidden)?;
    let seconds =
        time(b, &done, clock, |b, _| b.attention(&qkv, &segments, &shape, cache.as_ref(), &mut attended))
            .await?;
    let moved = 4 * (2 * shape.cache_len() + 2 * tokens * hidden);
    // Each query attends to the positions before it: scores, and sums of values.
    let operations = 4 * hidden * tokens * (past + tokens.div_ceil(2));
    push("attention", format!("{context} positions, {these}"), moved, operations, seconds);
    Ok(timed)
}

/// The steps before and after the blocks, and those of calibration.
async fn steps_around<B: Backend>(b: &mut B, sizes: &Sizes, clock: Clock<'_>) -> Result<Vec<Timed>> {
    let Sizes { hidden, intermediate, prompt, vocabulary, .. } = *sizes;
    let mut timed = Vec::new();
    let done = b.buffer(Element::F32, 1)?;
    let mut push = |step: &str, shape: String, bytes: usize, operations: usize, seconds: f64| {
        let (bytes, operations) = (bytes as u64, operations as u64);
        timed.push(Timed { step: step.to_owned(), shape, bytes, operations, seconds });
    };

    let table = random_weight(b, WeightFormat::Dense(DType::F16), Activations::F32, intermediate, hidden);
    let table = table.await?;
    let ids: Vec<u32> = (0..prompt).map(|i| (i * 7919 % intermediate) as u32).collect();
    let mut tokens = b.buffer(Element::U32, prompt)?;
    b.write_u32(&mut tokens, &ids)?;
    let mut x = b.buffer(Element::F32, prompt * hidden)?;
    let seconds = time(b, &done, clock, |b, _| b.embed(&tokens, prompt, &table, &mut x)).await?;
    let shape = format!("{intermediate} x {hidden}, {}", in_words(prompt));
    push("embed f16", shape, prompt * hidden * (2 + 4), 0, seconds);

    let logits = values(b, vocabulary)?;
    let mut largest = b.buffer(Element::U32, 1)?;
    let seconds = time(b, &done, clock, |b, _| b.argmax(&logits, 1, vocabulary, &mut largest)).await?;
    push("argmax", format!("{vocabulary}, 1 token"), 4 * vocabulary, vocabulary, seconds);
    let mut top = TopK {
        ids: b.buffer(Element::U32, vocabulary)?,
        values: b.buffer(Element::F32, vocabulary)?,
        found: b.buffer(Element::U32, 1)?,
        capacity: vocabulary,
    };
    let k = 40.min(vocabulary);
    let seconds = time(b, &done, clock, |b, _| b.top_k(&logits, 1, vocabulary, k, top.as_mut())).await?;
    push("top_k", format!("{k} of {vocabulary}, 1 token"), 4 * vocabulary, vocabulary, seconds);

    let x = values(b, prompt * hidden)?;
    let mut sums = b.buffer(Element::F32, hidden * hidden)?;
    let seconds = time(b, &done, clock, |b, _| b.gram(&x, prompt, hidden, 0..hidden, &mut sums)).await?;
    let shape = format!("{hidden} columns, {}", in_words(prompt));
    // Only half of the symmetric products is computed.
    let pairs = hidden * (hidden + 1) / 2;
    push("gram", shape, 4 * (prompt * hidden + 2 * pairs), 2 * prompt * pairs, seconds);
    Ok(timed)
}

/// A buffer of fixed numbers in `[-1, 1)`.
fn values<B: Backend>(b: &mut B, len: usize) -> Result<B::Buffer> {
    let mut buffer = b.buffer(Element::F32, len)?;
    let numbers: Vec<f32> = (0..len).map(|i| (i * 7919 % 2048) as f32 / 1024.0 - 1.0).collect();
    b.write_f32(&mut buffer, &numbers)?;
    Ok(buffer)
}

async fn random_weight<B: Backend>(
    b: &mut B,
    format: WeightFormat,
    activations: Activations,
    rows: usize,
    cols: usize,
) -> Result<B::Weight> {
    let grid = ActivationGrid::Absmax127;
    let mut builder = b.begin_weight(&[WeightDesc { rows, cols, format, activations, grid, bias: false }])?;
    match format {
        WeightFormat::Dense(_) => {
            let row: Vec<u8> = (0..cols)
                .flat_map(|i| f16::from_f32((i * 31 % 64) as f32 / 64.0 - 0.5).to_le_bytes())
                .collect();
            for at in 0..rows {
                b.put_rows(&mut builder, 0, at..at + 1, WeightView::Dense(&row))?;
            }
        }
        WeightFormat::Packed(coding) => {
            let mut next = 0u32;
            let mut below = |end| {
                next = next.wrapping_add(5);
                next % end
            };
            let tensor = coding.sample(rows, cols, &mut below)?;
            b.put_rows(&mut builder, 0, 0..rows, WeightView::Packed(tensor.rows_view(0..rows)))?;
        }
    }
    b.finish_weight(builder).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::task::{Silent, block_on};
    use std::cell::Cell;

    #[test]
    fn every_step_is_timed_and_counted() {
        let sizes = Sizes {
            hidden: 512,
            intermediate: 96,
            prompt: 9,
            context: 20,
            vocabulary: 30,
            weight_bytes: 100_000,
        };
        // A clock that advances a second at each reading: each pass is one run of one second.
        let now = Cell::new(0.0);
        let clock = || {
            now.set(now.get() + 1.0);
            now.get()
        };
        let timed = block_on(steps(&mut CpuBackend::new(), &sizes, &clock, &Silent)).unwrap();
        assert_eq!(timed.len(), STEPS);
        for step in &timed {
            assert!(step.seconds == 1.0 && step.bytes > 0, "{step:?}");
            assert_eq!(step.operations > 0, step.step != "embed f16", "{step:?}");
        }
        let find = |step: &str, shape: &str| {
            let found = timed.iter().find(|timed| timed.step == step && timed.shape == shape);
            found.map(|timed| (timed.bytes, timed.operations)).unwrap()
        };
        // Codes, scales of four bytes, activations in and out.
        let bytes = 512 * 96 / 2 + 4 * 96 * 16 + 4 * (512 + 96);
        assert_eq!(find("matvec int4-g32", "96 x 512, 1 token"), (bytes, 2 * 512 * 96));
        let bytes = 512 * 96 / 4 + 4 * 96 + 4 * 9 * (512 + 96);
        assert_eq!(find("matmul ternary a8", "96 x 512, 9 tokens"), (bytes, 2 * 9 * 512 * 96));
    }
}
