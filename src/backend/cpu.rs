//! The CPU backend, which runs on every target. Each step's algorithm is written once.
//!
//! Steps run synchronously, on a thread pool natively and on the calling thread in WebAssembly. Guarantees on results:
//! - Results do not depend on the number of threads: work is split over rows, tokens or heads, never inside a sum.
//! - A token gives the same bits alone and in a batch, in prefill and in decode, unless the caller
//!   [allows](DeviceOps::set_sums) otherwise.
//! - `linear`, `gram` and backward steps with matrix products sum in an order that depends on the instruction set, so
//!   their last bits differ between instruction sets. Every other step gives the same bits on every target.

mod add_rms_norm;
mod amx;
mod argmax;
mod attention;
#[cfg(feature = "train")]
mod backward;
mod columns;
mod embed;
mod exp;
mod gate;
mod gram;
mod linear;
mod linear_float;
mod linear_input;
mod linear_int8;
mod memory;
mod parallel;
mod rope_and_append_kv;
mod rows;
mod self_check;
mod simd;
mod split_product;
#[cfg(test)]
mod testing;
mod top_k;
mod weight;
mod weight_builder;

pub use memory::CpuBuffer;
#[doc(hidden)]
pub use self_check::check_kernels;
pub use self_check::self_check;
pub use weight::CpuWeight;
pub use weight_builder::CpuWeightBuilder;

use super::{
    Capabilities, DeviceOps, Element, Elements, Norm, QkNorm, Segment, Step, Sums, TopK, WeightDesc,
    WeightView,
};
use crate::error::Result;
use amx::{Split, Terms};
use linear::Products;
use parallel::Workers;
use simd::Isa;
use std::ops::Range;

/// How a [`CpuBackend`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads to compute on; `None` for as many as the machine offers. Always one in WebAssembly.
    pub threads: Option<usize>,
    /// Whether to use the processor's vector instructions, where kernels for them exist.
    pub simd: bool,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { threads: None, simd: true }
    }
}

/// Runs transformer steps on the CPU.
pub struct CpuBackend {
    capabilities: Capabilities,
    isa: Isa,
    /// As requested.
    threads: Option<usize>,
    workers: Workers,
    /// Set if sums may be reordered and the processor has a matrix unit, whose operands are split into parts.
    split: Option<Split>,
    /// Whether products may run as whole matrix products ([`Sums::Whole`]).
    whole: bool,
    #[cfg(feature = "train")]
    kept: Box<backward::LinearBuffers>,
}

impl CpuBackend {
    /// A backend with all threads and vector instructions that the machine offers.
    pub fn new() -> Self {
        Self::with_options(CpuOptions::default())
    }

    /// A backend with these options.
    pub fn with_options(options: CpuOptions) -> Self {
        Self::on(if options.simd { Isa::detect() } else { Isa::plainest() }, options.threads)
    }

    /// A second backend with the same instruction set and number of threads, for a second model.
    pub fn sibling(&self) -> Self {
        Self::on(self.isa, self.threads)
    }

    fn on(isa: Isa, threads: Option<usize>) -> Self {
        let workers = Workers::new(threads);
        let running = workers.threads();
        let device = format!("cpu ({}, {running} thread{})", isa.name(), if running == 1 { "" } else { "s" });
        Self {
            capabilities: Capabilities { device, runs_ahead: false, replaced: Vec::new() },
            isa,
            threads,
            workers,
            split: None,
            whole: false,
            #[cfg(feature = "train")]
            kept: Box::default(),
        }
    }
}

/// Bytes of the buffers that a backend keeps if [sums may be reordered](DeviceOps::set_sums), for up to `tokens` tokens
/// of up to `width` elements.
pub fn split_bytes(tokens: usize, width: usize) -> usize {
    if Split::detect().is_none() {
        return 0;
    }
    let threads = crate::parallel::lanes();
    linear::split_bytes(tokens, width, threads) + split_product::kept_bytes(width, threads)
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl DeviceOps for CpuBackend {
    type Buffer = CpuBuffer;
    type Weight = CpuWeight;
    type WeightBuilder = CpuWeightBuilder;
    type Reading = Vec<u32>;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_sums(&mut self, sums: Sums) {
        let terms = match sums {
            Sums::Repeatable => None,
            Sums::Reordered | Sums::Whole => Some(Terms::Six),
            Sums::Coarse => Some(Terms::Three),
        };
        self.whole = sums == Sums::Whole;
        let split = self.split.take().or_else(|| if self.isa.is_best() { Split::detect() } else { None });
        self.split = terms.and_then(|terms| Some(Split { terms, ..split? }));
    }

    fn begin_weight(&mut self, parts: &[WeightDesc]) -> Result<CpuWeightBuilder> {
        CpuWeightBuilder::new(parts)
    }

    fn put_rows(
        &mut self,
        builder: &mut CpuWeightBuilder,
        part: usize,
        rows: Range<usize>,
        data: WeightView<'_>,
    ) -> Result<()> {
        builder.put_rows(part, rows, &data)
    }

    fn put_bias(&mut self, builder: &mut CpuWeightBuilder, part: usize, bias: &[f32]) -> Result<()> {
        builder.put_bias(part, bias)
    }

    async fn finish_weight(&mut self, builder: CpuWeightBuilder) -> Result<CpuWeight> {
        builder.finish()
    }

    fn buffer(&mut self, element: Element, len: usize) -> Result<CpuBuffer> {
        CpuBuffer::zeroed(element, len)
    }

    fn write(&mut self, out: &mut CpuBuffer, words: &[u32]) -> Result<()> {
        out.bits_mut()[..words.len()].copy_from_slice(words);
        Ok(())
    }

    fn run(&mut self, step: Step<'_, CpuBuffer, CpuWeight>) -> Result<()> {
        let workers = &self.workers;
        match step {
            Step::Embed { tokens, count, table, out } => {
                let out = out.f32_mut(count * table.cols);
                embed::embed(workers, tokens.u32(count), table, out)?;
            }
            Step::Linear { x, count, w, y } => {
                let (x, y) = (x.f32(count * w.cols), y.f32_mut(count * w.rows));
                let products = match &mut self.split {
                    Some(split) => Products::Split(split),
                    None if self.whole => Products::Whole,
                    None => Products::Repeatable,
                };
                linear::linear(self.isa, products, workers, x, count, w, y)?;
            }
            Step::AddRmsNorm { residual, delta, count, norm, out } => {
                let len = count * norm.width;
                let delta = delta.map(|delta| delta.f32(len));
                let (residual, weight) = (residual.f32_mut(len), norm.weight.f32(norm.width));
                add_rms_norm::add_rms_norm(workers, residual, delta, weight, norm.epsilon, out.f32_mut(len));
            }
            Step::RopeAndAppendKv { qkv, segments, shape, rope, qk_norm, cache } => {
                let rows: usize = segments.iter().map(|segment| segment.count).sum();
                let positions = segments.iter().map(Segment::end).max().unwrap_or(0);
                rope_and_append_kv::rope_and_append_kv(
                    qkv.f32_mut(rows * shape.qkv_width()),
                    segments,
                    &shape,
                    rope.f32(positions * shape.head_dim),
                    qk_norm.map(|QkNorm { q, k }| (head_norm(q), head_norm(k))),
                    cache.keys.f32_mut(shape.cache_len()),
                    cache.values.f32_mut(shape.cache_len()),
                );
            }
            Step::Attention { qkv, segments, shape, cache, out } => {
                let rows: usize = segments.iter().map(|segment| segment.count).sum();
                let qkv = qkv.f32(rows * shape.qkv_width());
                let (keys, values) = (cache.keys.f32(shape.cache_len()), cache.values.f32(shape.cache_len()));
                let out = out.f32_mut(rows * shape.heads * shape.head_dim);
                attention::attention(self.isa, workers, qkv, segments, &shape, keys, values, out);
            }
            Step::Gate { gate_up, count, width, activation, out } => {
                let (gate_up, out) = (gate_up.f32(count * 2 * width), out.f32_mut(count * width));
                gate::gate(workers, gate_up, width, activation, out);
            }
            Step::Gram { x, count, width, columns, out } => {
                let (x, out) = (x.f32(count * width), out.f32_mut(columns.len() * width));
                gram::gram(workers, self.split.as_mut(), x, width, columns, out)?;
            }
            Step::Argmax { x, count, width, out } => {
                argmax::argmax(x.f32(count * width), width, out.u32_mut(count));
            }
            Step::TopK { x, count, width, k, out: TopK { ids, values, found, capacity } } => {
                let room = count * capacity;
                let (ids, values, found) = (ids.u32_mut(room), values.f32_mut(room), found.u32_mut(count));
                top_k::top_k(x.f32(count * width), width, k, capacity, ids, values, found);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn begin_reading(&mut self, ranges: &[(&CpuBuffer, Range<usize>)]) -> Result<Vec<u32>> {
        Ok(ranges.iter().flat_map(|(source, range)| source.bits()[range.clone()].iter().copied()).collect())
    }

    async fn finish_read(&mut self, reading: Vec<u32>) -> Result<Vec<u32>> {
        Ok(reading)
    }

    async fn read_words(&mut self, source: &CpuBuffer, offset: usize, out: &mut [u32]) -> Result<()> {
        out.copy_from_slice(&source.bits()[offset..offset + out.len()]);
        Ok(())
    }

    fn in_memory<'b>(&self, buffer: &'b CpuBuffer, len: usize) -> Option<&'b [f32]> {
        has_floats(buffer, len).then(|| buffer.f32(len))
    }

    fn in_memory_mut<'b>(&self, buffer: &'b mut CpuBuffer, len: usize) -> Option<&'b mut [f32]> {
        has_floats(buffer, len).then(|| buffer.f32_mut(len))
    }
}

/// Weight and epsilon of a norm.
fn head_norm(norm: Norm<&CpuBuffer>) -> (&[f32], f32) {
    (norm.weight.f32(norm.width), norm.epsilon)
}

fn has_floats(buffer: &CpuBuffer, len: usize) -> bool {
    buffer.element() == Element::F32 && buffer.len() >= len
}
