//! Weights in the layout of the CPU backend: padded rows of dense values or of packed codes.
//!
//! Dense values keep their type: decode is memory-bound, so converting them in registers is free. Codes stay packed in
//! units of 32 columns ([`super::columns`]). Their bits are interleaved so that one shift and one mask per vector
//! return them in order: byte `i` of an INT4 unit holds columns `i` and `i + 16`; byte `i` of a 2-bit unit holds
//! columns `i`, `i + 8`, `i + 16` and `i + 24`. 3-bit codes are stored in 4 bits.

use super::columns::{Columns, UNIT};
use super::linear_int8::MAX_GROUP as MAX_INT8_GROUP;
use super::memory::Aligned;
use crate::backend::{Matrices, WeightDesc, WeightFormat};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quant::packing::unpack_row;
use crate::quant::{ActivationGrid, Activations, PackedTensor, QuantizedRows, QuantizedTensor, column_order};
use half::{bf16, f16};
use std::ops::Range;

/// One or several matrices that share an input.
pub struct CpuWeight {
    pub(super) cols: usize,
    /// Output features of all parts together.
    pub(super) rows: usize,
    pub(super) parts: Vec<Part>,
}

impl Matrices for CpuWeight {
    fn cols(&self) -> usize {
        self.cols
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn parts(&self) -> usize {
        self.parts.len()
    }
}

impl CpuWeight {
    /// Bytes in memory, padding and biases included.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }
}

/// One matrix.
pub(super) struct Part {
    pub(super) rows: usize,
    pub(super) columns: Columns,
    /// Input column of each stored column, `[cols]`; `None` if they are the same. Set by the first packed rows.
    pub(super) order: Option<Vec<u32>>,
    pub(super) data: Data,
    /// The grid of INT8 activations; `None` for `f32`.
    pub(super) grid: Option<ActivationGrid>,
    pub(super) bias: Option<Vec<f32>>,
}

/// The values of a matrix, `[rows, columns.padded()]`.
pub(super) enum Data {
    F32(Aligned<f32>),
    F16 {
        values: Aligned<u16>,
        /// Whether no value is NaN or infinite. Always true once the weight is finished, see [`Part::finish`].
        finite: bool,
    },
    BF16(Aligned<u16>),
    Packed(Packed),
    Coded(Coded),
}

/// Rows of a coding without CPU kernels, stored as they arrived and decoded when needed.
pub(super) struct Coded {
    /// `(first row, rows)`, sorted by row.
    pieces: Vec<(usize, QuantizedTensor)>,
}

impl Coded {
    fn put(&mut self, rows: Range<usize>, source: &QuantizedRows<'_>) {
        if rows.is_empty() {
            return;
        }
        let at = self.pieces.partition_point(|(first, _)| *first < rows.start);
        self.pieces.insert(at, (rows.start, source.tensor.take_rows(source.rows.clone())));
    }

    /// Writes the weights of `rows`, all of which have arrived, to `out`, `[rows, columns.padded()]`.
    pub(super) fn decode(&self, columns: Columns, rows: Range<usize>, out: &mut [f32]) {
        let mut decoded = vec![0.0; if columns.is_plain() { 0 } else { columns.cols }];
        let mut next = rows.start;
        let from = self.pieces.partition_point(|(first, _)| *first <= next) - 1;
        for (first, piece) in &self.pieces[from..] {
            let end = rows.end.min(first + piece.rows());
            let out = &mut out[(next - rows.start) * columns.padded()..(end - rows.start) * columns.padded()];
            if columns.is_plain() {
                piece.decode_rows(next - first..end - first, out);
            } else {
                for (row, out) in (next - first..end - first).zip(out.chunks_exact_mut(columns.padded())) {
                    piece.decode_rows(row..row + 1, &mut decoded);
                    out[..columns.cols].copy_from_slice(&decoded);
                    out[columns.cols..].fill(0.0);
                }
            }
            next = end;
            if next == rows.end {
                return;
            }
        }
    }
}

/// The codes of a matrix: weight = `(code - zero_point) * scale`, or `code * scale + minimum`.
pub(super) struct Packed {
    /// Bits per stored code: 2, 4 or 8.
    pub(super) bits: usize,
    /// `[rows, units, 4 * bits]`
    pub(super) codes: Aligned<u8>,
    /// `[rows, groups]`
    pub(super) scales: Aligned<f32>,
    pub(super) zeros: Zeros,
}

/// Zero points, or minimums in their place.
pub(super) enum Zeros {
    Constant(u8),
    /// `[rows, groups]`
    PerGroup(Aligned<u8>),
    /// Every zero point is 0, and `[rows, groups]` minimums are added.
    Minimums(Aligned<f32>),
}

impl Packed {
    /// Bytes of a unit.
    pub(super) fn unit_bytes(&self) -> usize {
        UNIT * self.bits / 8
    }

    /// The scale of each row, if each row has one scale, which is a normal float, and no minimum. Products of integers
    /// with a normal scale have a bounded relative error.
    pub(super) fn scales_of_rows(&self, columns: Columns) -> Option<&[f32]> {
        let has_one = columns.groups == 1 && !matches!(self.zeros, Zeros::Minimums(_));
        (has_one && self.scales.iter().all(|scale| scale.is_normal())).then_some(&*self.scales)
    }

    pub(super) fn zero(&self, index: usize) -> u8 {
        match &self.zeros {
            Zeros::Constant(zero) => *zero,
            Zeros::PerGroup(zeros) => zeros[index],
            Zeros::Minimums(_) => 0,
        }
    }

    pub(super) fn minimum(&self, index: usize) -> f32 {
        match &self.zeros {
            Zeros::Minimums(minimums) => minimums[index],
            Zeros::Constant(_) | Zeros::PerGroup(_) => 0.0,
        }
    }
}

impl Part {
    /// The values, `[rows, cols]`, if they are stored unchanged and multiply unchanged inputs.
    pub(super) fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(values) if self.order.is_none() && self.grid.is_none() && self.columns.is_plain() => {
                Some(values)
            }
            _ => None,
        }
    }

    pub(super) fn new(desc: &WeightDesc) -> Result<Self> {
        let WeightDesc { rows, cols, .. } = *desc;
        let count = |per_row: usize| {
            rows.checked_mul(per_row).ok_or_else(|| {
                Error::new(
                    crate::error::ErrorCode::OutOfMemory,
                    format!("a matrix of {rows} x {cols} exceeds the address space"),
                )
            })
        };
        // Padding multiplies a row by at most 32, the columns of a unit.
        if rows == 0 || cols == 0 || cols > usize::MAX / (2 * UNIT) {
            return Err(Error::invalid_argument(format!(
                "a weight cannot have {rows} rows and {cols} columns"
            )));
        }
        let grid = (desc.activations == Activations::Int8).then_some(desc.grid);
        let (columns, data) = match desc.format {
            WeightFormat::Dense(dtype) => {
                let columns = Columns::new(cols, cols);
                let len = count(columns.padded())?;
                let data = match dtype {
                    DType::F32 => Data::F32(Aligned::zeroed(len)?),
                    DType::F16 => Data::F16 { values: Aligned::zeroed(len)?, finite: true },
                    DType::BF16 => Data::BF16(Aligned::zeroed(len)?),
                    other => {
                        return Err(Error::unsupported_format(format!(
                            "expected a weight of F32, F16 or BF16 values but found {other}"
                        )));
                    }
                };
                (columns, data)
            }
            WeightFormat::Packed(coding) => 'format: {
                let Some(scheme) = coding.affine() else {
                    break 'format (Columns::new(cols, cols), Data::Coded(Coded { pieces: Vec::new() }));
                };
                let group_size = scheme.granularity().group_size(cols);
                if group_size == 0 {
                    return Err(Error::invalid_argument("a weight cannot have groups of 0 columns"));
                }
                let columns = Columns::new(cols, group_size);
                if grid.is_some() && columns.group_size > MAX_INT8_GROUP {
                    return Err(Error::unsupported_format(format!(
                        "a scale of {} columns cannot be combined with INT8 activations: at most {MAX_INT8_GROUP} \
                         columns can be summed in 32 bits",
                        columns.group_size
                    )));
                }
                let bits = scheme.storage_bits().next_power_of_two() as usize;
                let groups = count(columns.groups)?;
                let data = Packed {
                    bits,
                    codes: Aligned::zeroed(count(columns.units * UNIT * bits / 8)?)?,
                    scales: Aligned::zeroed(groups)?,
                    zeros: match scheme.constant_zero_point() {
                        _ if scheme.has_minimums() => Zeros::Minimums(Aligned::zeroed(groups)?),
                        Some(zero) => Zeros::Constant(zero as u8),
                        None => Zeros::PerGroup(Aligned::zeroed(groups)?),
                    },
                };
                (columns, Data::Packed(data))
            }
        };
        Ok(Self { rows, columns, order: None, data, grid, bias: None })
    }

    fn bytes(&self) -> usize {
        let data = match &self.data {
            Data::F32(values) => size_of_val::<[f32]>(values),
            Data::F16 { values, .. } | Data::BF16(values) => size_of_val::<[u16]>(values),
            Data::Packed(packed) => {
                let zeros = match &packed.zeros {
                    Zeros::Constant(_) => 0,
                    Zeros::PerGroup(zeros) => zeros.len(),
                    Zeros::Minimums(minimums) => size_of_val::<[f32]>(minimums),
                };
                packed.codes.len() + size_of_val::<[f32]>(&packed.scales) + zeros
            }
            Data::Coded(coded) => coded.pieces.iter().map(|(_, piece)| piece.bytes() as usize).sum(),
        };
        let order = self.order.as_ref().map_or(0, |order| order.len() * 4);
        data + order + self.bias.as_ref().map_or(0, |bias| bias.len() * 4)
    }

    pub(super) fn put_dense(&mut self, rows: Range<usize>, bytes: &[u8]) {
        let (columns, cols) = (self.columns, self.columns.cols);
        for (row, bytes) in rows.clone().zip(bytes.chunks_exact((bytes.len() / rows.len().max(1)).max(1))) {
            let at = row * columns.padded();
            match &mut self.data {
                Data::F32(values) => {
                    for (value, b) in values[at..at + cols].iter_mut().zip(bytes.as_chunks::<4>().0) {
                        *value = f32::from_le_bytes(*b);
                    }
                }
                Data::F16 { values, finite } => {
                    for (value, b) in values[at..at + cols].iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *value = u16::from_le_bytes(*b);
                        *finite &= *value & 0x7C00 != 0x7C00;
                    }
                }
                Data::BF16(values) => {
                    for (value, b) in values[at..at + cols].iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *value = u16::from_le_bytes(*b);
                    }
                }
                Data::Packed(_) | Data::Coded(_) => unreachable!("dense rows were announced"),
            }
        }
    }

    pub(super) fn put_packed(
        &mut self,
        rows: Range<usize>,
        source: &QuantizedRows<'_>,
        first: bool,
    ) -> Result<()> {
        match (&mut self.data, source.tensor.affine()) {
            (Data::Packed(_), Some(tensor)) => self.put_affine(rows, tensor, source.rows.start, first),
            (Data::Coded(coded), None) => {
                coded.put(rows, source);
                Ok(())
            }
            _ => unreachable!("the coding is the announced one"),
        }
    }

    /// Stores rows `start..` of a matrix of integer codes.
    fn put_affine(
        &mut self,
        rows: Range<usize>,
        tensor: &PackedTensor,
        start: usize,
        first: bool,
    ) -> Result<()> {
        let (columns, scheme) = (self.columns, tensor.scheme());
        let Data::Packed(packed) = &mut self.data else { unreachable!("asked by the caller") };
        if first {
            self.order = tensor.column_order().map(<[u32]>::to_vec);
        } else if self.order.as_deref() != tensor.column_order() {
            return Err(Error::invalid_argument("rows of one matrix have their columns in different orders"));
        }
        let unit_bytes = packed.unit_bytes();
        let words = scheme.words_per_row(columns.cols);
        let mut codes = vec![0u8; columns.cols];
        let mut padded = vec![0u8; columns.padded()];
        for (row, source_row) in rows.zip(start..) {
            let stream = &tensor.codes()[source_row * words..(source_row + 1) * words];
            unpack_row(stream, scheme.storage_bits(), &mut codes);
            columns.spread(&codes, &mut padded);
            let stride = columns.units * unit_bytes;
            let target = packed.codes[row * stride..(row + 1) * stride].chunks_exact_mut(unit_bytes);
            for (unit, bytes) in padded.as_chunks::<UNIT>().0.iter().zip(target) {
                pack_unit(unit, bytes);
            }
            for group in 0..columns.groups {
                let index = tensor.scale_index(source_row, group);
                packed.scales[row * columns.groups + group] = tensor.scales().get(index);
                if let (Zeros::PerGroup(zeros), Some(source)) = (&mut packed.zeros, tensor.zero_points()) {
                    zeros[row * columns.groups + group] = source[index];
                }
                if let (Zeros::Minimums(minimums), Some(source)) = (&mut packed.zeros, tensor.minimums()) {
                    minimums[row * columns.groups + group] = source.get(index);
                }
            }
        }
        Ok(())
    }

    /// Widens half-precision values to `f32` if one of them is NaN or infinite. Few models have such a value, and
    /// checking for it in every product would cost WebAssembly a sixth of its time.
    pub(super) fn finish(&mut self) -> Result<()> {
        if let Data::F16 { values, finite: false } = &self.data {
            let mut widened = Aligned::zeroed(values.len())?;
            for (wide, &value) in widened.iter_mut().zip(values.iter()) {
                *wide = f16::from_bits(value).to_f32();
            }
            self.data = Data::F32(widened);
        }
        Ok(())
    }

    /// Row `row` as `f32`, `[columns.cols]`, in the order of the input: exact for dense values, one rounding for codes.
    pub(super) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let Some(order) = &self.order else { return self.dequantize_stored_row(row, out) };
        let mut stored = vec![0.0; out.len()];
        self.dequantize_stored_row(row, &mut stored);
        column_order::scatter(&stored, order, out);
    }

    fn dequantize_stored_row(&self, row: usize, out: &mut [f32]) {
        let columns = self.columns;
        let at = row * columns.padded();
        match &self.data {
            Data::F32(values) => out.copy_from_slice(&values[at..at + columns.cols]),
            Data::F16 { values, .. } => {
                for (out, &value) in out.iter_mut().zip(&values[at..]) {
                    *out = f16::from_bits(value).to_f32();
                }
            }
            Data::BF16(values) => {
                for (out, &value) in out.iter_mut().zip(&values[at..]) {
                    *out = bf16::from_bits(value).to_f32();
                }
            }
            Data::Coded(coded) => {
                let mut padded = vec![0.0; columns.padded()];
                coded.decode(columns, row..row + 1, &mut padded);
                out.copy_from_slice(&padded[..columns.cols]);
            }
            Data::Packed(packed) => {
                let unit_bytes = packed.unit_bytes();
                let codes = &packed.codes[row * columns.units * unit_bytes..];
                for (group, (span, _)) in columns.group_spans().enumerate() {
                    let index = row * columns.groups + group;
                    let (scale, zero) = (packed.scales[index], f32::from(packed.zero(index)));
                    let minimum = packed.minimum(index);
                    let units = columns.group_units(group).flat_map(|unit| {
                        let mut unpacked = [0; UNIT];
                        unpack_unit(&codes[unit * unit_bytes..(unit + 1) * unit_bytes], &mut unpacked);
                        unpacked
                    });
                    for (out, code) in out[span].iter_mut().zip(units) {
                        *out = (f32::from(code) - zero) * scale + minimum;
                    }
                }
            }
        }
    }
}

/// Packs 32 codes into `4 * bits` bytes, as the module header describes.
fn pack_unit(codes: &[u8; UNIT], out: &mut [u8]) {
    match out.len() {
        8 => pack_unit_of::<2>(codes, out),
        16 => pack_unit_of::<4>(codes, out),
        _ => pack_unit_of::<8>(codes, out),
    }
}

fn pack_unit_of<const BITS: usize>(codes: &[u8; UNIT], out: &mut [u8]) {
    for (slot, codes) in codes.chunks_exact(4 * BITS).enumerate() {
        for (byte, code) in out.iter_mut().zip(codes) {
            *byte = if slot == 0 { *code } else { *byte | code << (slot * BITS) };
        }
    }
}

/// The inverse of [`pack_unit`].
fn unpack_unit(bytes: &[u8], out: &mut [u8; UNIT]) {
    let stride = bytes.len();
    let bits = stride / 4;
    let mask = ((1u32 << bits) - 1) as u8;
    for slot in 0..8 / bits {
        for (code, byte) in out[slot * stride..(slot + 1) * stride].iter_mut().zip(bytes) {
            *code = byte >> (slot * bits) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_come_back_as_they_went_in() {
        for bits in [2usize, 4, 8] {
            let codes: [u8; UNIT] =
                std::array::from_fn(|i| (i * 37 % 256) as u8 & ((1u32 << bits) - 1) as u8);
            let mut packed = vec![0; 4 * bits];
            pack_unit(&codes, &mut packed);
            let mut back = [0; UNIT];
            unpack_unit(&packed, &mut back);
            assert_eq!(back, codes, "{bits} bits");
        }
    }
}
