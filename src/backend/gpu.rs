//! The GPU backend: WebGPU in browsers; Vulkan, Metal or DirectX 12 natively. The only module that uses `wgpu`.
//!
//! Steps only record commands ([`recording`](self)). [`DeviceOps::flush`] and the reading methods submit them. Only the
//! reading methods and [`DeviceOps::finish_weight`] wait. Pure functions (`select`) choose the kernels. An unsupported
//! operation is an error with a code, so that the caller can fall back to the CPU. After an error of the device, every
//! later call fails with it.
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

use super::{Capabilities, DeviceOps, Element, Step, WeightDesc, WeightFormat, WeightView};
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{ActivationGrid, Activations};
use buffers::{Memory, Pool};
use device::Device;
use pipeline::Pipelines;
use readback::Staging;
use recording::{NormCommand, Recording, Submitter};
use segments::{Segments, Table};
use select::Dispatch;
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
    /// The kernel variants that replace base kernels.
    variants: Variants,
    /// Weights whose kernels passed the self-check: format, columns, activations and their grid.
    checked: Vec<(WeightFormat, usize, Activations, ActivationGrid)>,
    /// Bound to buffers that a kernel declares but does not read in a given dispatch.
    unused: Memory,
    /// Rounded activations and their factors; each linear step overwrites them.
    rounded: Scratch,
    factors: Scratch,
    /// The segment table of the last batch.
    segments: Table,
}

/// Memory that successive steps reuse; grows as needed.
#[derive(Default)]
struct Scratch(Option<Memory>);

impl Scratch {
    fn reserve(&mut self, device: &Device, pool: &Arc<Pool>, bytes: u64) -> Result<Memory> {
        match &self.0 {
            Some(memory) if memory.bytes() >= bytes => Ok(memory.clone()),
            _ => {
                // Stale contents are harmless: kernels write all that they read.
                let memory = pool.take(device, bytes)?.memory;
                self.0 = Some(memory.clone());
                Ok(memory)
            }
        }
    }
}

impl GpuBackend {
    /// Destroys the device, which simulates a failing driver. For tests.
    #[doc(hidden)]
    pub fn lose_device(&self) {
        self.device.device.destroy();
    }

    /// Number of command buffers submitted so far.
    pub fn submissions(&self) -> u64 {
        self.submitter.submissions()
    }

    fn record<P: bytemuck::Pod>(&mut self, plan: Dispatch, bindings: &[&Memory], params: &P) -> Result<()> {
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

    /// Overwrites the front of a buffer, ordered after all recorded commands.
    fn overwrite(&mut self, memory: &Memory, data: &[u8]) -> Result<()> {
        // The queue would run this write before commands that are not submitted yet.
        if self.recording.uses(memory) {
            self.flush()?;
        }
        self.device.queue.write_buffer(memory.buffer(), 0, data);
        self.device.check()
    }
}

impl DeviceOps for GpuBackend {
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

    /// Also runs the self-check for the first weight of a format. A variant that fails is replaced by its base, which
    /// [`Capabilities::replaced`] reports.
    async fn finish_weight(&mut self, builder: GpuWeightBuilder) -> Result<GpuWeight> {
        for desc in builder.descs() {
            self.trust(desc).await?;
        }
        self.finish_unchecked(builder).await
    }

    fn buffer(&mut self, element: Element, len: usize) -> Result<GpuBuffer> {
        // Kernels count in 32 bits.
        let bytes = u32::try_from(len).ok().map(|len| u64::from(len) * 4).ok_or_else(|| {
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

    fn write(&mut self, out: &mut GpuBuffer, words: &[u32]) -> Result<()> {
        self.overwrite(out.memory(), bytemuck::cast_slice(words))
    }

    fn run(&mut self, step: Step<'_, GpuBuffer, GpuWeight>) -> Result<()> {
        match step {
            Step::Embed { tokens, count, table, out } => {
                self.record_embed(tokens.memory(), count, &table.matrices[0], out.memory())
            }
            Step::Linear { x, count, w, y } => w
                .matrices
                .iter()
                .try_for_each(|matrix| self.record_matrix(x.memory(), count, matrix, y.memory(), w.rows)),
            Step::AddRmsNorm { residual, delta, count, norm, out } => {
                let params = params::AddRmsNorm {
                    rows: count as u32,
                    width: norm.width as u32,
                    has_delta: u32::from(delta.is_some()),
                    epsilon: norm.epsilon,
                };
                let unused = self.unused.clone();
                let delta = delta.map_or(&unused, GpuBuffer::memory);
                let operands = [residual.memory(), delta, norm.weight.memory(), out.memory()];
                let plan = select::each_sum(&kernels::ADD_RMS_NORM, count, self.variants)?;
                self.record(plan, &operands, &params)?;
                if count > 0 {
                    let [residual, delta, weight, out] = operands.map(Memory::clone);
                    self.recording.was_norm(NormCommand { residual, delta, weight, out, params });
                }
                Ok(())
            }
            Step::RopeAndAppendKv { qkv, segments, shape, rope, qk_norm, cache } => {
                let Segments { table, count, tiling } = self.segments(segments)?;
                let rows = tiling.rows;
                let unused = self.unused.clone();
                let (q_norm, k_norm) = match qk_norm {
                    Some(norms) => (norms.q.weight.memory(), norms.k.weight.memory()),
                    None => (&unused, &unused),
                };
                let params = params::RopeAndAppendKv {
                    tokens: rows as u32,
                    segments: count,
                    heads: shape.heads as u32,
                    kv_heads: shape.kv_heads as u32,
                    head_dim: shape.head_dim as u32,
                    capacity: shape.capacity as u32,
                    has_norms: u32::from(qk_norm.is_some()),
                    q_epsilon: qk_norm.map_or(0.0, |norms| norms.q.epsilon),
                    k_epsilon: qk_norm.map_or(0.0, |norms| norms.k.epsilon),
                    ..Default::default()
                };
                let items = rows * (shape.heads + 2 * shape.kv_heads);
                let plan = select::each_sum(&kernels::ROPE_AND_APPEND_KV, items, self.variants)?;
                let (keys, values) = (cache.keys.memory(), cache.values.memory());
                self.record(
                    plan,
                    &[qkv.memory(), rope.memory(), q_norm, k_norm, keys, values, &table],
                    &params,
                )
            }
            Step::Attention { qkv, segments, shape, cache, out } => {
                let Segments { table, count, tiling } = self.segments(segments)?;
                let params = params::Attention {
                    tokens: tiling.rows as u32,
                    tiles: tiling.tiles as u32,
                    segments: count,
                    heads: shape.heads as u32,
                    kv_heads: shape.kv_heads as u32,
                    head_dim: shape.head_dim as u32,
                    capacity: shape.capacity as u32,
                    scale: 1.0 / (shape.head_dim as f32).sqrt(),
                };
                let (keys, values) = (cache.keys.memory(), cache.values.memory());
                let plan = select::attention(&shape, tiling)?;
                self.record(plan, &[qkv.memory(), keys, values, out.memory(), &table], &params)
            }
            Step::Gate { gate_up, count, width, activation, out } => {
                let params = params::Gate { tokens: count as u32, width: width as u32, ..Default::default() };
                let plan = select::gate(activation, count * width)?;
                self.record(plan, &[gate_up.memory(), out.memory()], &params)
            }
            Step::Gram { x, count, width, columns, out } => {
                let params = params::Gram {
                    tokens: count as u32,
                    cols: width as u32,
                    first: columns.start as u32,
                    rows: columns.len() as u32,
                };
                self.record(select::gram(columns.len(), width)?, &[x.memory(), out.memory()], &params)
            }
            Step::Argmax { x, count, width, out } => {
                let params = params::Argmax { rows: count as u32, width: width as u32, ..Default::default() };
                self.record(select::each(&kernels::ARGMAX, count)?, &[x.memory(), out.memory()], &params)
            }
            Step::TopK { x, count, width, k, out } => {
                let params = params::TopK {
                    rows: count as u32,
                    width: width as u32,
                    k: k as u32,
                    capacity: out.capacity as u32,
                };
                let operands = [x.memory(), out.ids.memory(), out.values.memory(), out.found.memory()];
                self.record(select::each(&kernels::TOP_K, count)?, &operands, &params)
            }
        }
    }

    fn dispatches(&self) -> Option<u64> {
        Some(self.submitter.dispatches())
    }

    fn begin_reading(&mut self, ranges: &[(&GpuBuffer, Range<usize>)]) -> Result<GpuReading> {
        let ranges: Vec<_> = ranges.iter().map(|(source, range)| (source.memory(), range.clone())).collect();
        self.begin_copies(&ranges)
    }

    async fn finish_read(&mut self, reading: GpuReading) -> Result<Vec<u32>> {
        let mut words = vec![0; reading.bytes() / 4];
        reading.finish(&self.device, &mut self.staging, bytemuck::cast_slice_mut(&mut words)).await?;
        Ok(words)
    }

    fn flush(&mut self) -> Result<()> {
        self.submitter.submit(&self.device, &mut self.recording)
    }

    async fn read_words(&mut self, source: &GpuBuffer, offset: usize, out: &mut [u32]) -> Result<()> {
        self.read_bytes(source.memory(), offset, bytemuck::cast_slice_mut(out)).await
    }
}
