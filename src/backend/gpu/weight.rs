//! Weights on the GPU: rearranged while loading, and split into shards if they exceed one binding.
//!
//! Matrices of one weight with the same format are stacked, so that `q|k|v` needs one dispatch.

use super::buffers::{Memory, Pool};
use super::device::Device;
use super::units::{Units, Values};
use crate::backend::arrivals::Arrivals;
use crate::backend::{Matrices, WeightDesc, WeightFormat, WeightView};
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{ActivationGrid, Activations, QuantizedRows, Scheme};
use std::ops::Range;
use std::sync::Arc;

/// Largest group size for which products with INT8 activations fit in 32 bits.
const MAX_INT8_GROUP: usize = 1 << 16;
/// Bytes that are rearranged at once before an upload.
const CHUNK_BYTES: usize = 4 << 20;

/// One or several matrices that share an input.
#[derive(Debug)]
pub struct GpuWeight {
    pub(super) cols: usize,
    pub(super) rows: usize,
    pub(super) matrices: Vec<StackedMatrices>,
    /// Number of matrices that it was created from.
    pub(super) parts: usize,
}

impl Matrices for GpuWeight {
    fn cols(&self) -> usize {
        self.cols
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn parts(&self) -> usize {
        self.parts
    }
}

impl GpuWeight {
    /// Size on the device in bytes.
    pub fn bytes(&self) -> u64 {
        let shards = self.matrices.iter().flat_map(|matrix| &matrix.shards);
        shards.map(Shard::bytes).sum()
    }
}

/// Matrices of the same format, stacked by rows.
#[derive(Debug)]
pub(super) struct StackedMatrices {
    pub(super) units: Units,
    pub(super) activations: Activations,
    pub(super) grid: ActivationGrid,
    /// Zero point of all codes, if groups have none of their own.
    pub(super) zero_point: u32,
    pub(super) has_zeros: bool,
    pub(super) rows: usize,
    /// Output column of its first row.
    pub(super) y_start: usize,
    pub(super) shards: Vec<Shard>,
}

/// Rows that fit one binding.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) rows: Range<usize>,
    /// `[rows, row_words]`
    pub(super) values: Memory,
    /// `[rows, groups]`; only for codes
    pub(super) scales: Option<Memory>,
    /// `[rows, groups]`, one byte each
    pub(super) zeros: Option<Memory>,
    /// `[rows]`
    pub(super) bias: Option<Memory>,
}

impl Shard {
    fn bytes(&self) -> u64 {
        let rest = [&self.scales, &self.zeros, &self.bias];
        self.values.bytes() + rest.into_iter().flatten().map(Memory::bytes).sum::<u64>()
    }
}

/// A weight that is being loaded.
pub struct GpuWeightBuilder {
    weight: GpuWeight,
    arrivals: Arrivals,
    /// For each part: its stacked matrix, and its first row there.
    places: Vec<(usize, usize)>,
    /// For each stacked matrix: zero points, `[rows, groups]`, and biases, `[rows]`. They are uploaded last.
    host: Vec<Host>,
}

struct Host {
    zeros: Vec<u8>,
    bias: Vec<f32>,
}

impl GpuWeightBuilder {
    pub(super) fn new(device: &Device, pool: &Pool, descs: &[WeightDesc]) -> Result<Self> {
        let arrivals = Arrivals::new(descs)?;
        let mut places = Vec::with_capacity(descs.len());
        // Stacked matrices; `bias` is set if any part has one.
        let mut merged: Vec<WeightDesc> = Vec::new();
        for desc in descs {
            match merged.last_mut() {
                Some(last) if alike(last, desc) => {
                    places.push((merged.len() - 1, merged[merged.len() - 1].rows));
                    let last = merged.last_mut().expect("just seen");
                    last.rows += desc.rows;
                    last.bias |= desc.bias;
                }
                _ => {
                    places.push((merged.len(), 0));
                    merged.push(desc.clone());
                }
            }
        }
        let (mut matrices, mut host) = (Vec::new(), Vec::new());
        let mut rows = 0usize;
        for desc in &merged {
            let matrix = StackedMatrices::new(device, pool, desc, rows)?;
            rows += desc.rows;
            host.push(Host {
                zeros: vec![0; if matrix.has_zeros { desc.rows * matrix.units.groups } else { 0 }],
                bias: vec![0.0; if desc.bias { desc.rows } else { 0 }],
            });
            matrices.push(matrix);
        }
        let weight = GpuWeight { cols: arrivals.cols, rows, matrices, parts: descs.len() };
        Ok(Self { weight, arrivals, places, host })
    }

    /// The announced matrices.
    pub(super) fn descs(&self) -> impl Iterator<Item = &WeightDesc> {
        self.arrivals.descs()
    }

    pub(super) fn put_rows(
        &mut self,
        device: &Device,
        part: usize,
        rows: Range<usize>,
        data: &WeightView<'_>,
    ) -> Result<()> {
        self.arrivals.put_rows(part, &rows, data)?;
        let (matrix, first) = self.places[part];
        let target = first + rows.start..first + rows.end;
        let matrix_host = &mut self.host[matrix];
        let matrix = &self.weight.matrices[matrix];
        match data {
            WeightView::Packed(source) => {
                matrix.put_packed(device, target, source, &mut matrix_host.zeros)?;
            }
            WeightView::Dense(bytes) => {
                let row_bytes = bytes.len() / rows.len().max(1);
                let row = |index: usize, words: &mut [u32]| {
                    matrix.units.arrange_dense(&bytes[index * row_bytes..(index + 1) * row_bytes], words);
                };
                matrix.upload_rows(device, target, row);
            }
        }
        device.check()
    }

    pub(super) fn put_bias(&mut self, part: usize, bias: &[f32]) -> Result<()> {
        self.arrivals.put_bias(part, bias.len())?;
        let (matrix, first) = self.places[part];
        self.host[matrix].bias[first..first + bias.len()].copy_from_slice(bias);
        Ok(())
    }

    pub(super) fn finish(mut self, device: &Device, pool: &Arc<Pool>) -> Result<GpuWeight> {
        self.arrivals.finish()?;
        for (matrix, host) in self.weight.matrices.iter_mut().zip(&self.host) {
            let groups = matrix.units.groups;
            for shard in &mut matrix.shards {
                if !host.zeros.is_empty() {
                    let zeros = &host.zeros[shard.rows.start * groups..shard.rows.end * groups];
                    shard.zeros = Some(upload(device, pool, zeros)?);
                }
                if !host.bias.is_empty() {
                    let bias = bytemuck::cast_slice(&host.bias[shard.rows.clone()]);
                    shard.bias = Some(upload(device, pool, bias)?);
                }
            }
        }
        Ok(self.weight)
    }
}

/// Whether the matrices can be stacked.
fn alike(a: &WeightDesc, b: &WeightDesc) -> bool {
    (a.format, a.activations, a.grid) == (b.format, b.activations, b.grid)
}

/// Uploads `bytes` to new memory.
fn upload(device: &Device, pool: &Pool, bytes: &[u8]) -> Result<Memory> {
    let memory = pool.weight(device, bytes.len() as u64)?;
    // Queue writes must be multiples of four bytes.
    let whole = bytes.len() / 4 * 4;
    device.queue.write_buffer(memory.buffer(), 0, &bytes[..whole]);
    if whole < bytes.len() {
        let mut last = [0; 4];
        last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
        device.queue.write_buffer(memory.buffer(), whole as u64, &last);
    }
    Ok(memory)
}

impl StackedMatrices {
    fn new(device: &Device, pool: &Pool, desc: &WeightDesc, y_start: usize) -> Result<Self> {
        let units = Units::new(desc.cols, desc.format)?;
        if desc.rows == 0 {
            return Err(Error::invalid_argument(format!(
                "a weight cannot have 0 rows and {} columns",
                desc.cols
            )));
        }
        let (has_zeros, zero_point) = match desc.format {
            WeightFormat::Dense(_) => (false, 0),
            WeightFormat::Packed(coding) => match coding.affine().map(Scheme::constant_zero_point) {
                Some(None) => (true, 0),
                constant => (false, constant.flatten().unwrap_or(0)),
            },
        };
        let is_packed = matches!(units.values, Values::Codes(_));
        if is_packed && desc.activations == Activations::Int8 && units.group_size > MAX_INT8_GROUP {
            return Err(Error::unsupported_format(format!(
                "a weight of {} columns with groups over {MAX_INT8_GROUP} cannot use INT8 activations: sums would exceed \
                 32 bits",
                desc.cols
            )));
        }
        let row_bytes = (units.row_words() * 4).max(if is_packed { units.groups * 4 } else { 0 }) as u64;
        let rows_per_shard = (device.max_binding_bytes / row_bytes).min(desc.rows as u64) as usize;
        if rows_per_shard == 0 || desc.rows > u32::MAX as usize {
            return Err(Error::new(
                ErrorCode::OutOfMemory,
                format!(
                    "a matrix of {} x {} does not fit: a row has {row_bytes} bytes and {} allows bindings of {}",
                    desc.rows, desc.cols, device.description, device.max_binding_bytes
                ),
            ));
        }
        let mut shards = Vec::new();
        for start in (0..desc.rows).step_by(rows_per_shard) {
            let rows = start..(start + rows_per_shard).min(desc.rows);
            let words = (rows.len() * units.row_words()) as u64;
            let scales = if is_packed {
                Some(pool.weight(device, (rows.len() * units.groups) as u64 * 4)?)
            } else {
                None
            };
            let values = pool.weight(device, words * 4)?;
            shards.push(Shard { rows, values, scales, zeros: None, bias: None });
        }
        Ok(Self {
            units,
            activations: desc.activations,
            grid: desc.grid,
            zero_point,
            has_zeros,
            rows: desc.rows,
            y_start,
            shards,
        })
    }

    /// `zeros` holds the zero points of the whole matrix.
    fn put_packed(
        &self,
        device: &Device,
        rows: Range<usize>,
        source: &QuantizedRows<'_>,
        zeros: &mut [u8],
    ) -> Result<()> {
        let (units, tensor) = (&self.units, source.tensor);
        let affine = tensor.affine();
        if affine.is_some_and(|affine| affine.column_order().is_some()) {
            return Err(Error::unsupported_format(
                "weights with reordered columns (act-order) do not run on a GPU yet",
            ));
        }
        let mut codes = vec![0u8; units.cols];
        self.upload_rows(device, rows.clone(), |index, words| {
            tensor.codes_of_row(source.rows.start + index, &mut codes);
            units.arrange_codes(&codes, words);
        });
        let zero_points = affine.and_then(|affine| Some((affine, affine.zero_points()?)));
        let mut scales = Vec::with_capacity(rows.len() * units.groups);
        for (row, source_row) in rows.clone().zip(source.rows.clone()) {
            for group in 0..units.groups {
                scales.push(tensor.scale(source_row, group));
            }
            if let Some((affine, points)) = zero_points {
                for (group, zero) in zeros[row * units.groups..][..units.groups].iter_mut().enumerate() {
                    *zero = points[affine.scale_index(source_row, group)];
                }
            }
        }
        for shard in &self.shards {
            let Some(memory) = &shard.scales else { continue };
            let here = overlap(&rows, &shard.rows);
            if here.is_empty() {
                continue;
            }
            let data =
                &scales[(here.start - rows.start) * units.groups..(here.end - rows.start) * units.groups];
            let offset = ((here.start - shard.rows.start) * units.groups * 4) as u64;
            device.queue.write_buffer(memory.buffer(), offset, bytemuck::cast_slice(data));
        }
        device.queue.submit([]);
        Ok(())
    }

    /// Uploads `rows`. `arrange` is called with an index within `rows` and writes that row's words.
    fn upload_rows(&self, device: &Device, rows: Range<usize>, mut arrange: impl FnMut(usize, &mut [u32])) {
        let row_words = self.units.row_words();
        let rows_at_once = (CHUNK_BYTES / (row_words * 4)).max(1);
        let mut words = Vec::new();
        for shard in &self.shards {
            let here = overlap(&rows, &shard.rows);
            for start in here.clone().step_by(rows_at_once) {
                let chunk = start..(start + rows_at_once).min(here.end);
                words.resize(chunk.len() * row_words, 0);
                for (row, words) in chunk.clone().zip(words.chunks_exact_mut(row_words)) {
                    arrange(row - rows.start, words);
                }
                let offset = ((chunk.start - shard.rows.start) * row_words * 4) as u64;
                device.queue.write_buffer(shard.values.buffer(), offset, bytemuck::cast_slice(&words));
                // Flushes the queue's pending writes, so that they do not pile up.
                device.queue.submit([]);
            }
        }
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
