//! Self-check: compares every kernel with the CPU before its results are used.
//!
//! Drivers miscompile, and a wrong result looks like any other. Therefore each step runs on a small pseudorandom input
//! on the device and on the CPU. Steps without weights are checked when the device is opened. Steps of a weight are
//! checked when the first weight of its format is loaded. The tolerance catches wrong results, not lower precision.

use super::GpuBackend;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::sample::{Numbers, buffer, fill, read};
use crate::backend::{
    AttentionShape, Backend, DeviceOps, Element, GateActivation, KvLayer, Mask, Norm, QkNorm, Segment, TopK,
    WeightDesc,
};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::quant::Activations;
use crate::sort;

/// Largest `|gpu - cpu| / |cpu|` in the Euclidean norm. Lavapipe stays below 1e-6. An activation that is rounded to the
/// other INT8 neighbour changes it by less than 1e-3.
const TOLERANCE: f64 = 5e-3;
/// Rows of the checked weight: more than a matrix-vector kernel processes at once, and not a multiple of that.
const ROWS: usize = 7;
/// Token counts: decode, and a prefill that uses the tiled kernels.
const TOKENS: [usize; 2] = [1, 9];

fn cpu() -> CpuBackend {
    CpuBackend::with_options(CpuOptions { threads: Some(1), simd: true })
}

fn compare(kernel: &str, gpu: &[f32], cpu: &[f32]) -> Result<()> {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference =
        square(&mut gpu.iter().zip(cpu).map(|(&gpu, &cpu)| f64::from(gpu) - f64::from(cpu))).sqrt();
    let size = square(&mut cpu.iter().map(|&v| f64::from(v))).sqrt();
    // Written so that a NaN fails.
    if difference <= TOLERANCE * size {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::WrongResult,
        format!("the GPU computes {kernel} wrong: the result of norm {size:.1e} differs by {difference:.1e}"),
    ))
}

/// Checks the steps without weights.
///
/// # Errors
/// `wrong_result` naming the first step that differs from the CPU's; errors of the device.
pub(super) async fn steps(gpu: &mut GpuBackend) -> Result<()> {
    let on_gpu = all_steps(gpu).await?;
    let on_cpu = all_steps(&mut cpu()).await?;
    for ((step, gpu), (_, cpu)) in on_gpu.iter().zip(&on_cpu) {
        compare(step, gpu, cpu)?;
    }
    Ok(())
}

/// Runs all steps; returns their names and results.
async fn all_steps<B: Backend>(b: &mut B) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let mut results = Vec::new();
    let mut numbers = Numbers::new(1);
    let (count, width) = (3, 301);
    let norm = |b: &mut B, weight: &[f32]| -> Result<Norm<B::Buffer>> {
        Ok(Norm { weight: buffer(b, weight)?, width: weight.len(), epsilon: 1e-5 })
    };

    let wide = norm(b, &numbers.floats(width))?;
    let mut residual = buffer(b, &numbers.floats(count * width))?;
    let delta = buffer(b, &numbers.floats(count * width))?;
    let mut out = b.buffer(Element::F32, count * width)?;
    b.add_rms_norm(&mut residual, Some(&delta), count, wide.as_ref(), &mut out)?;
    results.push(("add_rms_norm", read(b, &out, count * width).await?));

    let gate_up = buffer(b, &numbers.floats(count * 2 * width))?;
    for activation in [GateActivation::Silu, GateActivation::SquaredRelu] {
        b.gate(&gate_up, count, width, activation, &mut out)?;
        results.push(("gate", read(b, &out, count * width).await?));
    }

    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 20, capacity: 80 };
    let norms = QkNorm { q: norm(b, &numbers.floats(20))?, k: norm(b, &numbers.floats(20))? };
    let rope = buffer(b, &numbers.floats(80 * 20))?;
    let cached = numbers.floats(shape.cache_len());
    let mut cache = KvLayer { keys: buffer(b, &cached)?, values: buffer(b, &cached)? };
    let at = |start, past, count, mask| Segment { count, past, start, mask };
    // One sequence and several, in decode and prefill.
    let batches: [&[Segment]; 4] = [
        &[at(0, 70, 1, Mask::Causal)],
        &[at(0, 66, 9, Mask::Causal)],
        &[at(40, 5, 1, Mask::Causal), at(0, 17, 2, Mask::Causal), at(60, 0, 3, Mask::Full)],
        &[at(30, 2, 17, Mask::Full), at(60, 19, 1, Mask::Causal), at(0, 4, 9, Mask::Causal)],
    ];
    for (index, segments) in batches.into_iter().enumerate() {
        let count: usize = segments.iter().map(|segment| segment.count).sum();
        let norms = (index % 2 == 1).then_some(norms.as_ref());
        let mut qkv = buffer(b, &numbers.floats(count * shape.qkv_width()))?;
        b.rope_and_append_kv(&mut qkv, segments, &shape, &rope, norms, cache.as_mut())?;
        let len = count * shape.heads * shape.head_dim;
        let mut attended = b.buffer(Element::F32, len)?;
        b.attention(&qkv, segments, &shape, cache.as_ref(), &mut attended)?;
        results.push(("rope_and_append_kv", read(b, &qkv, count * shape.qkv_width()).await?));
        results.push(("rope_and_append_kv", read(b, &cache.keys, shape.cache_len()).await?));
        results.push(("attention", read(b, &attended, len).await?));
    }

    let logits = buffer(b, &numbers.floats(1000))?;
    let mut largest = b.buffer(Element::U32, 1)?;
    b.argmax(&logits, 1, 1000, &mut largest)?;
    let mut index = [0];
    b.read_u32(&largest, 0, &mut index).await?;
    results.push(("argmax", vec![index[0] as f32]));
    let mut top = TopK {
        ids: b.buffer(Element::U32, 60)?,
        values: b.buffer(Element::F32, 60)?,
        found: b.buffer(Element::U32, 1)?,
        capacity: 60,
    };
    b.top_k(&logits, 1, 1000, 50, top.as_mut())?;
    b.read_u32(&top.found, 0, &mut index).await?;
    let mut ids = [0; 60];
    b.read_u32(&top.ids, 0, &mut ids).await?;
    let mut ids: Vec<f32> = ids[..index[0].min(60) as usize].iter().map(|&id| id as f32).collect();
    sort::sort_by(&mut ids, f32::total_cmp);
    ids.resize(60, 0.0);
    results.push(("top_k", ids));

    let x = buffer(b, &numbers.floats(40 * 37))?;
    let mut gram = b.buffer(Element::F32, 34 * 37)?;
    b.gram(&x, 40, 37, 3..37, &mut gram)?;
    let gram = read(b, &gram, 34 * 37).await?;
    // Elements below the diagonal are undefined.
    results.push(("gram", gram.chunks(37).zip(3..).flat_map(|(row, i)| row[i..].to_vec()).collect()));
    Ok(results)
}

/// Checks the steps that use a weight with the format of `desc`.
///
/// # Errors
/// As [`steps`].
pub(super) async fn weight(gpu: &mut GpuBackend, desc: &WeightDesc) -> Result<()> {
    let desc = WeightDesc { rows: ROWS, bias: true, ..desc.clone() };
    let place = || format!("self-check of {} columns, {:?}, {:?}", desc.cols, desc.format, desc.activations);
    let builder = fill(gpu, &desc, 3)?;
    let on_gpu = gpu.finish_unchecked(builder).await?;
    let on_gpu = weight_steps(gpu, &on_gpu, &desc).await.context_with(place)?;
    let cpu = &mut cpu();
    let builder = fill(cpu, &desc, 3)?;
    let on_cpu = cpu.finish_weight(builder).await?;
    let on_cpu = weight_steps(cpu, &on_cpu, &desc).await?;
    for ((step, gpu), (_, cpu)) in on_gpu.iter().zip(&on_cpu) {
        compare(step, gpu, cpu).context_with(place)?;
    }
    Ok(())
}

async fn weight_steps<B: Backend>(
    b: &mut B,
    weight: &B::Weight,
    desc: &WeightDesc,
) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let mut results = Vec::new();
    let mut numbers = Numbers::new(2);
    for count in TOKENS {
        let x = buffer(b, &numbers.floats(count * desc.cols))?;
        let mut y = b.buffer(Element::F32, count * ROWS)?;
        b.linear(&x, count, weight, &mut y)?;
        results.push(("linear", read(b, &y, count * ROWS).await?));
    }
    if desc.activations == Activations::Int8 {
        // After a norm the rounding may be fused with it.
        let norm = Norm { weight: buffer(b, &numbers.floats(desc.cols))?, width: desc.cols, epsilon: 1e-5 };
        let mut residual = buffer(b, &numbers.floats(3 * desc.cols))?;
        let delta = buffer(b, &numbers.floats(3 * desc.cols))?;
        let (mut normed, mut y) = (b.buffer(Element::F32, 3 * desc.cols)?, b.buffer(Element::F32, 3 * ROWS)?);
        b.add_rms_norm(&mut residual, Some(&delta), 3, norm.as_ref(), &mut normed)?;
        b.linear(&normed, 3, weight, &mut y)?;
        results.push(("add_rms_norm before linear", read(b, &residual, 3 * desc.cols).await?));
        results.push(("add_rms_norm before linear", read(b, &normed, 3 * desc.cols).await?));
        results.push(("linear after add_rms_norm", read(b, &y, 3 * ROWS).await?));
    }
    let mut tokens = b.buffer(Element::U32, 2)?;
    b.write_u32(&mut tokens, &[ROWS as u32 - 1, 2])?;
    let mut out = b.buffer(Element::F32, 2 * desc.cols)?;
    b.embed(&tokens, 2, weight, &mut out)?;
    results.push(("embed", read(b, &out, 2 * desc.cols).await?));
    Ok(results)
}
