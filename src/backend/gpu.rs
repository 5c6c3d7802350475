//! The GPU backend: WebGPU in browsers; Vulkan, Metal or DirectX 12 natively. The only place that knows `wgpu`.
//!
//! Steps only record what is to be done ([`recording`](self)); [`Backend::flush`] and the reading methods submit it, and
//! only they and [`Backend::finish_weight`] wait. Which kernel runs is decided by pure functions (`select`).
//! Whatever this backend cannot do is an error with a code, so that the caller can take the CPU instead; after an error
//! of the device every later call fails with it. Floor 4.
#![cfg_attr(
    target_arch = "wasm32",
    allow(
        clippy::arc_with_non_send_sync,
        reason = "on the web wgpu's handles stay on one thread; natively the same code moves a backend between threads"
    )
)]

mod adapter;
mod buffers;
mod device;
mod failure;
mod kernels;
mod linear;
mod measure;
mod params;
mod pipeline;
mod readback;
mod recording;
mod segments;
mod select;
mod self_check;
mod signal;
#[cfg(any(test, feature = "kernel-tests"))]
pub(crate) mod tests;
mod trust;
mod units;
mod variants;
#[cfg(target_arch = "wasm32")]
mod web;
mod weight;

#[doc(hidden)]
pub use adapter::Sabotage;
pub use adapter::{AdapterDescription, AdapterKind, GpuOptions, adapters};
pub use buffers::GpuBuffer;
pub use readback::GpuReading;
pub use weight::{GpuWeight, GpuWeightBuilder};

use super::segment::Extent;
use super::{
    AttentionShape, Backend, Capabilities, Element, GateActivation, KvLayer, Norm, QkNorm, Segment, TopK,
    WeightDesc, WeightFormat, WeightView,
};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::quant::{ActivationGrid, Activations};
use buffers::{Memory, Pool};
use device::Device;
use pipeline::Pipelines;
use readback::Staging;
use recording::{NormCommand, Recording, Submitter};
use segments::{Segments, Table};
use select::Plan;
use std::ops::Range;
use std::sync::Arc;
use variants::Variants;

/// Runs transformer steps on a GPU.
pub struct GpuBackend {
    capabilities: Capabilities,
    device: Arc<Device>,
    pool: Arc<Pool>,
    pipelines: Pipelines,
    recording: Recording,
    submitter: Submitter,
    staging: Staging,
    /// Which kernels run in the place of base kernels.
    variants: Variants,
    /// Weights whose kernels are known to be right: format, columns, activations and their grid.
    checked: Vec<(WeightFormat, usize, Activations, ActivationGrid)>,
    /// Bound where a kernel has a buffer that this use of it does not read.
    unused: Memory,
    /// Rounded activations and their factors, for one linear step at a time.
    rounded: Scratch,
    factors: Scratch,
    /// The segments of the last batch.
    segments: Table,
}

/// Memory that steps share one after the other; grows as needed.
#[derive(Default)]
struct Scratch(Option<Memory>);

impl Scratch {
    fn reserve(&mut self, device: &Device, pool: &Arc<Pool>, bytes: u64) -> Result<Memory> {
        match &self.0 {
            Some(memory) if memory.bytes() >= bytes => Ok(memory.clone()),
            _ => {
                // Kernels write all that they read, so what is in it does not matter.
                let memory = pool.take(device, bytes)?.memory;
                self.0 = Some(memory.clone());
                Ok(memory)
            }
        }
    }
}

impl GpuBackend {
    /// Takes the device away, as a driver that gives up does: for tests.
    #[doc(hidden)]
    pub fn lose_device(&self) {
        self.device.device.destroy();
    }

    /// Command buffers submitted so far.
    pub fn submissions(&self) -> u64 {
        self.submitter.submissions()
    }

    fn record<P: bytemuck::Pod>(&mut self, plan: Plan, bindings: &[&Memory], params: &P) -> Result<()> {
        if plan.workgroups.contains(&0) {
            return Ok(());
        }
        let pipeline = self.pipelines.get(&self.device, plan.choice)?;
        self.recording.dispatch(pipeline, bindings, bytemuck::bytes_of(params), plan.workgroups);
        Ok(())
    }

    async fn finish_unchecked(&mut self, builder: GpuWeightBuilder) -> Result<GpuWeight> {
        let weight = builder.finish(&self.device, &self.pool)?;
        self.device.queue.submit([]);
        readback::finish(&self.device).await?;
        Ok(weight)
    }

    /// Overwrites the front of a buffer, after everything that was recorded before.
    fn write(&mut self, memory: &Memory, data: &[u8]) -> Result<()> {
        // The queue would write before it runs what is not submitted yet.
        if self.recording.uses(memory) {
            self.flush()?;
        }
        self.device.queue.write_buffer(memory.buffer(), 0, data);
        self.device.check()
    }
}

/// `a * b * ...`, or the error of an operation whose operands cannot exist.
fn elements(op: &str, factors: &[usize]) -> Result<usize> {
    let product = factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor));
    // Kernels count in 32 bits.
    product.filter(|&product| product <= u32::MAX as usize).ok_or_else(|| {
        Error::invalid_argument(format!("{op}: a shape of {factors:?} is larger than any buffer"))
    })
}

fn end_of(offset: usize, len: usize) -> Result<usize> {
    let end = offset.checked_add(len);
    end.ok_or_else(|| Error::invalid_argument("read: the range is larger than any buffer"))
}

/// The weights of a norm of width `width`.
fn norm_weight<'a>(op: &str, norm: Norm<&'a GpuBuffer>, width: usize) -> Result<&'a Memory> {
    if norm.width == 0 || norm.width != width {
        return Err(Error::invalid_argument(format!(
            "{op}: expected a norm of width {width} but found {}",
            norm.width
        )));
    }
    norm.weight.f32("the norm's weight", width).context_with(|| op)
}

impl Backend for GpuBackend {
    type Buffer = GpuBuffer;
    type Weight = GpuWeight;
    type WeightBuilder = GpuWeightBuilder;
    type Reading = GpuReading;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn begin_weight(&mut self, parts: &[WeightDesc]) -> Result<GpuWeightBuilder> {
        GpuWeightBuilder::new(&self.device, &self.pool, parts)
    }

    fn put_rows(
        &mut self,
        builder: &mut GpuWeightBuilder,
        part: usize,
        rows: Range<usize>,
        data: WeightView<'_>,
    ) -> Result<()> {
        builder.put_rows(&self.device, part, rows, &data)
    }

    fn put_bias(&mut self, builder: &mut GpuWeightBuilder, part: usize, bias: &[f32]) -> Result<()> {
        builder.put_bias(part, bias)
    }

    /// Also checks the kernels of weights that are written like this one, when it is the first. Variants that fail are
    /// replaced by their base, which [`Capabilities::replaced`] then tells.
    async fn finish_weight(&mut self, builder: GpuWeightBuilder) -> Result<GpuWeight> {
        for desc in builder.descs() {
            self.trust(desc).await?;
        }
        self.finish_unchecked(builder).await
    }

    fn buffer(&mut self, element: Element, len: usize) -> Result<GpuBuffer> {
        let bytes = (len as u64).checked_mul(4).ok_or_else(|| {
            Error::new(
                ErrorCode::OutOfMemory,
                format!("a buffer of {len} elements is larger than any memory"),
            )
        })?;
        let taken = self.pool.take(&self.device, bytes)?;
        if taken.dirty {
            self.recording.clear(&taken.memory);
        }
        Ok(GpuBuffer::new(taken.memory, element, len))
    }

    fn write_f32(&mut self, out: &mut GpuBuffer, data: &[f32]) -> Result<()> {
        let memory = out.f32("the target", data.len()).context_with(|| "write_f32")?.clone();
        self.write(&memory, bytemuck::cast_slice(data))
    }

    fn write_u32(&mut self, out: &mut GpuBuffer, data: &[u32]) -> Result<()> {
        let memory = out.u32("the target", data.len()).context_with(|| "write_u32")?.clone();
        self.write(&memory, bytemuck::cast_slice(data))
    }

    fn embed(
        &mut self,
        tokens: &GpuBuffer,
        count: usize,
        table: &GpuWeight,
        out: &mut GpuBuffer,
    ) -> Result<()> {
        let op = "embed";
        let tokens = tokens.u32("tokens", count).context_with(|| op)?;
        let out = out.f32("out", elements(op, &[count, table.cols])?).context_with(|| op)?;
        let ([matrix], 1) = (&table.matrices[..], table.parts) else {
            return Err(Error::invalid_argument(format!(
                "embed: expected a table of one matrix but found {}",
                table.parts
            )));
        };
        self.record_embed(tokens, count, matrix, out)
    }

    fn linear(&mut self, x: &GpuBuffer, count: usize, w: &GpuWeight, y: &mut GpuBuffer) -> Result<()> {
        let op = "linear";
        let x = x.f32("x", elements(op, &[count, w.cols])?).context_with(|| op)?;
        let y = y.f32("y", elements(op, &[count, w.rows])?).context_with(|| op)?;
        for matrix in &w.matrices {
            self.record_matrix(x, count, matrix, y, w.rows).context_with(|| op)?;
        }
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut GpuBuffer,
        delta: Option<&GpuBuffer>,
        count: usize,
        norm: Norm<&GpuBuffer>,
        out: &mut GpuBuffer,
    ) -> Result<()> {
        let op = "add_rms_norm";
        let weight = norm_weight(op, norm, norm.width)?;
        let len = elements(op, &[count, norm.width])?;
        let residual = residual.f32("residual", len).context_with(|| op)?;
        let delta = delta.map(|delta| delta.f32("delta", len)).transpose().context_with(|| op)?;
        let out = out.f32("out", len).context_with(|| op)?;
        let params = params::AddRmsNorm {
            rows: count as u32,
            width: norm.width as u32,
            has_delta: u32::from(delta.is_some()),
            epsilon: norm.epsilon,
        };
        let unused = self.unused.clone();
        let delta = delta.unwrap_or(&unused);
        let plan = select::each_sum(&kernels::ADD_RMS_NORM, count, self.variants)?;
        self.record(plan, &[residual, delta, weight, out], &params)?;
        if count > 0 {
            let [residual, delta, weight, out] = [residual, delta, weight, out].map(Memory::clone);
            self.recording.was_norm(NormCommand { residual, delta, weight, out, params });
        }
        Ok(())
    }

    fn rope_and_append_kv(
        &mut self,
        qkv: &mut GpuBuffer,
        segments: &[Segment],
        shape: &AttentionShape,
        rope: &GpuBuffer,
        qk_norm: Option<QkNorm<&GpuBuffer>>,
        cache: KvLayer<&mut GpuBuffer>,
    ) -> Result<()> {
        let op = "rope_and_append_kv";
        let Extent { rows, positions } = super::check_segments(op, shape, segments)?;
        let head_dim = shape.head_dim;
        let cache_len = elements(op, &[shape.kv_heads, shape.capacity, head_dim])?;
        let qkv = qkv.f32("qkv", elements(op, &[rows, shape.qkv_width()])?).context_with(|| op)?;
        let rope = rope.f32("rope", elements(op, &[positions, head_dim])?).context_with(|| op)?;
        let unused = self.unused.clone();
        let (q_norm, k_norm) = match qk_norm {
            Some(norms) => (norm_weight(op, norms.q, head_dim)?, norm_weight(op, norms.k, head_dim)?),
            None => (&unused, &unused),
        };
        let keys = cache.keys.f32("keys", cache_len).context_with(|| op)?;
        let values = cache.values.f32("values", cache_len).context_with(|| op)?;
        let Segments { table, count, .. } = self.segments(segments)?;
        let params = params::RopeAndAppendKv {
            tokens: rows as u32,
            segments: count,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: head_dim as u32,
            capacity: shape.capacity as u32,
            has_norms: u32::from(qk_norm.is_some()),
            q_epsilon: qk_norm.map_or(0.0, |norms| norms.q.epsilon),
            k_epsilon: qk_norm.map_or(0.0, |norms| norms.k.epsilon),
            ..Default::default()
        };
        let items = elements(op, &[rows, shape.heads + 2 * shape.kv_heads])?;
        let plan = select::each_sum(&kernels::ROPE_AND_APPEND_KV, items, self.variants)?;
        self.record(plan, &[qkv, rope, q_norm, k_norm, keys, values, &table], &params)
    }

    fn attention(
        &mut self,
        qkv: &GpuBuffer,
        segments: &[Segment],
        shape: &AttentionShape,
        cache: KvLayer<&GpuBuffer>,
        out: &mut GpuBuffer,
    ) -> Result<()> {
        let op = "attention";
        let Extent { rows, .. } = super::check_segments(op, shape, segments)?;
        let cache_len = elements(op, &[shape.kv_heads, shape.capacity, shape.head_dim])?;
        let qkv = qkv.f32("qkv", elements(op, &[rows, shape.qkv_width()])?).context_with(|| op)?;
        let keys = cache.keys.f32("keys", cache_len).context_with(|| op)?;
        let values = cache.values.f32("values", cache_len).context_with(|| op)?;
        let out = out.f32("out", elements(op, &[rows, shape.heads, shape.head_dim])?).context_with(|| op)?;
        let Segments { table, count, tiling } = self.segments(segments)?;
        let params = params::Attention {
            tokens: rows as u32,
            tiles: tiling.tiles as u32,
            segments: count,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            capacity: shape.capacity as u32,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
        };
        self.record(select::attention(shape, tiling)?, &[qkv, keys, values, out, &table], &params)
    }

    fn gate(
        &mut self,
        gate_up: &GpuBuffer,
        count: usize,
        width: usize,
        activation: GateActivation,
        out: &mut GpuBuffer,
    ) -> Result<()> {
        let op = "gate";
        if width == 0 {
            return Err(Error::invalid_argument("gate: expected a positive width but found 0"));
        }
        let gate_up = gate_up.f32("gate_up", elements(op, &[count, 2, width])?).context_with(|| op)?;
        let len = elements(op, &[count, width])?;
        let out = out.f32("out", len).context_with(|| op)?;
        let params = params::Gate { tokens: count as u32, width: width as u32, ..Default::default() };
        self.record(select::gate(activation, len)?, &[gate_up, out], &params)
    }

    fn argmax(&mut self, x: &GpuBuffer, count: usize, width: usize, out: &mut GpuBuffer) -> Result<()> {
        let op = "argmax";
        super::check_rows(op, width)?;
        let x = x.f32("x", elements(op, &[count, width])?).context_with(|| op)?;
        let out = out.u32("out", count).context_with(|| op)?;
        let params = params::Argmax { rows: count as u32, width: width as u32, ..Default::default() };
        self.record(select::each(&kernels::ARGMAX, count)?, &[x, out], &params)
    }

    fn top_k(
        &mut self,
        x: &GpuBuffer,
        count: usize,
        width: usize,
        k: usize,
        out: TopK<&mut GpuBuffer>,
    ) -> Result<()> {
        let op = "top_k";
        super::check_top_k(op, width, k, out.capacity)?;
        let x = x.f32("x", elements(op, &[count, width])?).context_with(|| op)?;
        let room = elements(op, &[count, out.capacity])?;
        let ids = out.ids.u32("ids", room).context_with(|| op)?;
        let values = out.values.f32("values", room).context_with(|| op)?;
        let found = out.found.u32("found", count).context_with(|| op)?;
        let params = params::TopK {
            rows: count as u32,
            width: width as u32,
            k: k as u32,
            capacity: out.capacity as u32,
        };
        self.record(select::each(&kernels::TOP_K, count)?, &[x, ids, values, found], &params)
    }

    fn gram(
        &mut self,
        x: &GpuBuffer,
        count: usize,
        cols: usize,
        columns: Range<usize>,
        out: &mut GpuBuffer,
    ) -> Result<()> {
        let op = "gram";
        super::check_columns(op, cols, &columns)?;
        let x = x.f32("x", elements(op, &[count, cols])?).context_with(|| op)?;
        let out = out.f32("out", elements(op, &[columns.len(), cols])?).context_with(|| op)?;
        let params = params::Gram {
            tokens: count as u32,
            cols: cols as u32,
            first: columns.start as u32,
            rows: columns.len() as u32,
        };
        self.record(select::gram(columns.len(), cols)?, &[x, out], &params)
    }

    fn dispatches(&self) -> Option<u64> {
        Some(self.submitter.dispatches())
    }

    fn begin_read(&mut self, ranges: &[(&GpuBuffer, Range<usize>)]) -> Result<GpuReading> {
        let check = |(source, range): &(&GpuBuffer, Range<usize>)| {
            Ok((source.any("the source", range.end).context_with(|| "read")?.clone(), range.clone()))
        };
        let ranges = ranges.iter().map(check).collect::<Result<Vec<_>>>()?;
        let ranges: Vec<_> = ranges.iter().map(|(memory, range)| (memory, range.clone())).collect();
        self.begin_reading(&ranges)
    }

    async fn finish_read(&mut self, reading: GpuReading) -> Result<Vec<u32>> {
        let mut words = vec![0; reading.bytes() / 4];
        reading.finish(&self.device, &mut self.staging, bytemuck::cast_slice_mut(&mut words)).await?;
        Ok(words)
    }

    async fn read_u32(&mut self, source: &GpuBuffer, offset: usize, out: &mut [u32]) -> Result<()> {
        let memory = source.u32("the source", end_of(offset, out.len())?).context_with(|| "read")?.clone();
        self.read_bytes(&memory, offset, bytemuck::cast_slice_mut(out)).await
    }

    fn flush(&mut self) -> Result<()> {
        self.submitter.submit(&self.device, &mut self.recording)
    }

    async fn read(&mut self, source: &GpuBuffer, offset: usize, out: &mut [f32]) -> Result<()> {
        let memory = source.f32("the source", end_of(offset, out.len())?).context_with(|| "read")?.clone();
        self.read_bytes(&memory, offset, bytemuck::cast_slice_mut(out)).await
    }
}
