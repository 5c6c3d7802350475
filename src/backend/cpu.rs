//! The CPU backend: the algorithm of every step once, and the one that runs everywhere.
//!
//! Steps run at once, on a pool of threads natively and on the calling thread in WebAssembly. What holds for results:
//! - Work is split by what is computed (rows, tokens, heads), never inside a sum: they do not depend on the threads.
//! - A token gives the same bits alone and in a batch, in prefill and in decode, unless the caller
//!   [allows](Backend::set_sums) otherwise.
//! - `linear` adds in the order of the instruction set in use, so its last bits differ between instruction sets; every
//!   other step gives the same bits on every target.
//!
//! Floor 4.

mod add_rms_norm;
mod amx;
mod argmax;
mod attention;
mod columns;
mod embed;
mod exp;
mod gate;
mod gram;
mod linear;
mod linear_float;
mod linear_int8;
mod memory;
mod parallel;
mod rope_and_append_kv;
mod rows;
mod self_check;
mod simd;
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

use super::segment::Extent;
use super::{
    AttentionShape, Backend, Capabilities, Element, GateActivation, KvLayer, Norm, QkNorm, Segment, Sums,
    TopK, WeightDesc, WeightView,
};
use crate::error::{Context, Error, Result};
use amx::{Split, Terms};
use parallel::Workers;
use simd::Isa;
use std::ops::Range;

/// How a [`CpuBackend`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads to compute on; `None` for as many as the machine offers. Always one in WebAssembly.
    pub threads: Option<usize>,
    /// Whether the processor's vector instructions are used where there is code for them.
    pub simd: bool,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { threads: None, simd: true }
    }
}

/// Runs transformer steps on the processor.
pub struct CpuBackend {
    capabilities: Capabilities,
    isa: Isa,
    /// As they were asked for.
    threads: Option<usize>,
    workers: Workers,
    /// Where sums may be reordered and the processor has a matrix unit, which wants numbers cut in parts.
    split: Option<Split>,
}

impl CpuBackend {
    /// A backend with all threads and vector instructions that the machine offers.
    pub fn new() -> Self {
        Self::with_options(CpuOptions::default())
    }

    /// A backend that runs as `options` say.
    pub fn with_options(options: CpuOptions) -> Self {
        Self::on(if options.simd { Isa::detect() } else { Isa::plainest() }, options.threads)
    }

    /// Another one with the same instructions and threads, for a second model.
    pub fn another(&self) -> Self {
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
        }
    }
}

/// Bytes that a backend keeps where [sums may be reordered](Backend::set_sums), for up to `tokens` tokens of up to
/// `width` elements.
pub fn split_bytes(tokens: usize, width: usize) -> usize {
    if Split::detect().is_none() {
        return 0;
    }
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    linear::split_bytes(tokens, width, threads).max(gram::SPLIT_BYTES)
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

/// `a * b * ...`, or the error of an operation whose operands cannot exist.
fn elements(op: &str, factors: &[usize]) -> Result<usize> {
    factors.iter().try_fold(1usize, |product, &factor| product.checked_mul(factor)).ok_or_else(|| {
        Error::invalid_argument(format!("{op}: a shape of {factors:?} is larger than any buffer"))
    })
}

/// The first `width` weights of a norm.
fn norm_weight<'a>(op: &str, norm: Norm<&'a CpuBuffer>, width: usize) -> Result<&'a [f32]> {
    if norm.width == 0 || norm.width != width {
        return Err(Error::invalid_argument(format!(
            "{op}: expected a norm of width {width} but found {}",
            norm.width
        )));
    }
    norm.weight.f32("the norm's weight", width).context_with(|| op)
}

impl Backend for CpuBackend {
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
            Sums::Reordered => Some(Terms::Six),
            Sums::Coarse => Some(Terms::Three),
        };
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

    fn write_f32(&mut self, out: &mut CpuBuffer, data: &[f32]) -> Result<()> {
        out.f32_mut("the target", data.len()).context_with(|| "write_f32")?.copy_from_slice(data);
        Ok(())
    }

    fn write_u32(&mut self, out: &mut CpuBuffer, data: &[u32]) -> Result<()> {
        out.u32_mut("the target", data.len()).context_with(|| "write_u32")?.copy_from_slice(data);
        Ok(())
    }

    fn embed(
        &mut self,
        tokens: &CpuBuffer,
        count: usize,
        table: &CpuWeight,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let op = "embed";
        let tokens = tokens.u32("tokens", count).context_with(|| op)?;
        let out = out.f32_mut("out", elements(op, &[count, table.cols])?).context_with(|| op)?;
        embed::embed(&self.workers, tokens, table, out)
    }

    fn linear(&mut self, x: &CpuBuffer, count: usize, w: &CpuWeight, y: &mut CpuBuffer) -> Result<()> {
        let op = "linear";
        let x = x.f32("x", elements(op, &[count, w.cols])?).context_with(|| op)?;
        let y = y.f32_mut("y", elements(op, &[count, w.rows])?).context_with(|| op)?;
        linear::linear(self.isa, self.split.as_mut(), &self.workers, x, count, w, y).context_with(|| op)
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut CpuBuffer,
        delta: Option<&CpuBuffer>,
        count: usize,
        norm: Norm<&CpuBuffer>,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let op = "add_rms_norm";
        let weight = norm_weight(op, norm, norm.width)?;
        let len = elements(op, &[count, norm.width])?;
        let residual = residual.f32_mut("residual", len).context_with(|| op)?;
        let delta = delta.map(|delta| delta.f32("delta", len)).transpose().context_with(|| op)?;
        let out = out.f32_mut("out", len).context_with(|| op)?;
        add_rms_norm::add_rms_norm(&self.workers, residual, delta, weight, norm.epsilon, out);
        Ok(())
    }

    fn rope_and_append_kv(
        &mut self,
        qkv: &mut CpuBuffer,
        segments: &[Segment],
        shape: &AttentionShape,
        rope: &CpuBuffer,
        qk_norm: Option<QkNorm<&CpuBuffer>>,
        cache: KvLayer<&mut CpuBuffer>,
    ) -> Result<()> {
        let op = "rope_and_append_kv";
        let Extent { rows, positions } = super::check_segments(op, shape, segments)?;
        let head_dim = shape.head_dim;
        let cache_len = elements(op, &[shape.kv_heads, shape.capacity, head_dim])?;
        let qkv = qkv.f32_mut("qkv", elements(op, &[rows, shape.qkv_width()])?).context_with(|| op)?;
        let rope = rope.f32("rope", elements(op, &[positions, head_dim])?).context_with(|| op)?;
        let qk_norm = match qk_norm {
            Some(QkNorm { q, k }) => {
                Some(((norm_weight(op, q, head_dim)?, q.epsilon), (norm_weight(op, k, head_dim)?, k.epsilon)))
            }
            None => None,
        };
        let keys = cache.keys.f32_mut("keys", cache_len).context_with(|| op)?;
        let values = cache.values.f32_mut("values", cache_len).context_with(|| op)?;
        rope_and_append_kv::rope_and_append_kv(qkv, segments, shape, rope, qk_norm, keys, values);
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &CpuBuffer,
        segments: &[Segment],
        shape: &AttentionShape,
        cache: KvLayer<&CpuBuffer>,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let op = "attention";
        let Extent { rows, .. } = super::check_segments(op, shape, segments)?;
        let cache_len = elements(op, &[shape.kv_heads, shape.capacity, shape.head_dim])?;
        let qkv = qkv.f32("qkv", elements(op, &[rows, shape.qkv_width()])?).context_with(|| op)?;
        let keys = cache.keys.f32("keys", cache_len).context_with(|| op)?;
        let values = cache.values.f32("values", cache_len).context_with(|| op)?;
        let out =
            out.f32_mut("out", elements(op, &[rows, shape.heads, shape.head_dim])?).context_with(|| op)?;
        attention::attention(self.isa, &self.workers, qkv, segments, shape, keys, values, out);
        Ok(())
    }

    fn gate(
        &mut self,
        gate_up: &CpuBuffer,
        count: usize,
        width: usize,
        activation: GateActivation,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let op = "gate";
        if width == 0 {
            return Err(Error::invalid_argument("gate: expected a positive width but found 0"));
        }
        let gate_up = gate_up.f32("gate_up", elements(op, &[count, 2, width])?).context_with(|| op)?;
        let out = out.f32_mut("out", elements(op, &[count, width])?).context_with(|| op)?;
        gate::gate(&self.workers, gate_up, width, activation, out);
        Ok(())
    }

    fn gram(
        &mut self,
        x: &CpuBuffer,
        count: usize,
        width: usize,
        columns: Range<usize>,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let op = "gram";
        super::check_columns(op, width, &columns)?;
        let x = x.f32("x", elements(op, &[count, width])?).context_with(|| op)?;
        let out = out.f32_mut("out", elements(op, &[columns.len(), width])?).context_with(|| op)?;
        gram::gram(&self.workers, self.split.as_mut(), x, width, columns, out).context_with(|| op)
    }

    fn argmax(&mut self, x: &CpuBuffer, count: usize, width: usize, out: &mut CpuBuffer) -> Result<()> {
        let op = "argmax";
        super::check_rows(op, width)?;
        let x = x.f32("x", elements(op, &[count, width])?).context_with(|| op)?;
        argmax::argmax(x, width, out.u32_mut("out", count).context_with(|| op)?);
        Ok(())
    }

    fn top_k(
        &mut self,
        x: &CpuBuffer,
        count: usize,
        width: usize,
        k: usize,
        out: TopK<&mut CpuBuffer>,
    ) -> Result<()> {
        let op = "top_k";
        super::check_top_k(op, width, k, out.capacity)?;
        let x = x.f32("x", elements(op, &[count, width])?).context_with(|| op)?;
        let room = elements(op, &[count, out.capacity])?;
        let ids = out.ids.u32_mut("ids", room).context_with(|| op)?;
        let values = out.values.f32_mut("values", room).context_with(|| op)?;
        let found = out.found.u32_mut("found", count).context_with(|| op)?;
        top_k::top_k(x, width, k, out.capacity, ids, values, found);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn begin_read(&mut self, ranges: &[(&CpuBuffer, Range<usize>)]) -> Result<Vec<u32>> {
        let mut words = Vec::new();
        for (source, range) in ranges {
            words.extend_from_slice(
                &source.bits("the source", range.end).context_with(|| "read")?[range.clone()],
            );
        }
        Ok(words)
    }

    async fn finish_read(&mut self, reading: Vec<u32>) -> Result<Vec<u32>> {
        Ok(reading)
    }

    async fn read_u32(&mut self, source: &CpuBuffer, offset: usize, out: &mut [u32]) -> Result<()> {
        let end = offset
            .checked_add(out.len())
            .ok_or_else(|| Error::invalid_argument("read: the range is larger than any buffer"))?;
        out.copy_from_slice(&source.u32("the source", end).context_with(|| "read")?[offset..]);
        Ok(())
    }

    async fn read(&mut self, source: &CpuBuffer, offset: usize, out: &mut [f32]) -> Result<()> {
        let end = offset
            .checked_add(out.len())
            .ok_or_else(|| Error::invalid_argument("read: the range is larger than any buffer"))?;
        out.copy_from_slice(&source.f32("the source", end).context_with(|| "read")?[offset..]);
        Ok(())
    }

    fn in_memory<'b>(&self, buffer: &'b CpuBuffer, len: usize) -> Option<&'b [f32]> {
        buffer.f32("the buffer", len).ok()
    }

    fn in_memory_mut<'b>(&self, buffer: &'b mut CpuBuffer, len: usize) -> Option<&'b mut [f32]> {
        buffer.f32_mut("the buffer", len).ok()
    }
}
