//! Decodes ggml blocks to [`PackedTensor`]s without loss. Scales and minimums are products of a half and at most eight
//! bits, which `f32` represents exactly, and codes keep their values.
//!
//! | block type | result |
//! |---|---|
//! | `Q8_0` | `int8-g32-sym` |
//! | `Q4_0` | `int4-g32-sym` |
//! | `Q4_1` | `int4-g32-min` |
//! | `Q5_0` | `int8-g32-sym`, code `q - 16` |
//! | `Q5_1` | `int8-g32-min`, codes up to 31 |
//! | `Q4_K` | `int4-g32-min`, scale `d * sc`, minimum `-dmin * m` |
//! | `Q6_K` | `int8-g16-sym`, scale `d * sc`, code `q - 32` |
//! | `TQ1_0`, `TQ2_0` | `ternary-g256` |
//! | `IQ4_NL` | `iq4_nl`: the same codebook indices |
//!
//! The bit layouts are those of ggml's `ggml-common.h` and `ggml-quants.c`.

use super::quantize::{push_half, push_nibbles};
use crate::error::{Error, ErrorCode, Result};
use crate::format::gguf::TensorType;
use crate::quant::codings::{Codebook, CodebookTensor};
use crate::quant::{
    Bits, Coding, Granularity, PackedTensor, QuantizedTensor, ScaleType, Scales, Scheme, packing,
};
use half::f16;

/// The coding of a block type's decoded form; `None` for types that are not decoded.
pub(super) fn coding(tensor_type: TensorType) -> Option<Coding> {
    match tensor_type {
        TensorType::IQ4_NL => Some(Codebook::Iq4Nl.into()),
        other => scheme(other).map(Coding::from),
    }
}

/// The block type of this coding for which `cols` columns are whole blocks. For integer codes use
/// [`block_type`](super::block_type).
pub(super) fn type_of(wanted: Coding, cols: usize) -> Option<TensorType> {
    let fits = |of: &TensorType| (cols as u64).is_multiple_of(of.block_elements());
    TensorType::all().filter(fits).find(|&of| coding(of) == Some(wanted))
}

/// The block types that are decoded.
pub(super) fn names() -> Vec<&'static str> {
    TensorType::all().filter(|&of| coding(of).is_some()).map(TensorType::name).collect()
}

/// The scheme of a block type with integer codes.
fn scheme(tensor_type: TensorType) -> Option<Scheme> {
    let symmetric =
        |bits, size| Scheme::Integer { bits, granularity: Granularity::Group(size), symmetric: true };
    match tensor_type {
        TensorType::Q8_0 | TensorType::Q5_0 => Some(symmetric(Bits::Eight, 32)),
        TensorType::Q4_0 => Some(symmetric(Bits::Four, 32)),
        TensorType::Q4_1 | TensorType::Q4_K => {
            Some(Scheme::IntegerMinimum { bits: Bits::Four, granularity: Granularity::Group(32) })
        }
        TensorType::Q5_1 => {
            Some(Scheme::IntegerMinimum { bits: Bits::Eight, granularity: Granularity::Group(32) })
        }
        TensorType::Q6_K => Some(symmetric(Bits::Eight, 16)),
        TensorType::TQ1_0 | TensorType::TQ2_0 => {
            Some(Scheme::Ternary { granularity: Granularity::Group(256) })
        }
        _ => None,
    }
}

/// Decodes a matrix of blocks into a packed tensor, row by row.
pub(super) struct Decoder {
    tensor_type: TensorType,
    coding: Coding,
    rows: usize,
    cols: usize,
    codes: Vec<u32>,
    scales: Scales,
    minimums: Scales,
    row: Vec<u8>,
}

impl Decoder {
    /// Starts a `[rows, cols]` matrix; `cols` must be whole blocks of a type that has a [`coding`].
    ///
    /// # Errors
    /// `out_of_memory` if the codes do not fit.
    pub(super) fn new(tensor_type: TensorType, rows: usize, cols: usize) -> Result<Self> {
        let coding = coding(tensor_type).expect("a type with blocks");
        let words = rows.checked_mul(packing::words(cols, coding.code_bits()));
        let mut codes = Vec::new();
        let reserved = words.is_some_and(|words| codes.try_reserve_exact(words).is_ok());
        if !reserved {
            return Err(Error::new(
                ErrorCode::OutOfMemory,
                format!("the codes of {rows} rows of {cols} columns do not fit in memory"),
            ));
        }
        let scale_type = match tensor_type {
            // Products of a half and an integer.
            TensorType::Q4_K | TensorType::Q6_K => ScaleType::F32,
            _ => ScaleType::F16,
        };
        let scales = Scales::with_capacity(scale_type, 0);
        Ok(Self { tensor_type, coding, rows, cols, codes, minimums: scales.clone(), scales, row: Vec::new() })
    }

    /// Decodes the next rows.
    ///
    /// # Errors
    /// `non_finite` for a scale that is NaN or infinite; `invalid_checkpoint` for the ternary code 3. Both name the
    /// row.
    ///
    /// # Panics
    /// If `bytes` are not whole rows.
    pub(super) fn push_rows(&mut self, bytes: &[u8]) -> Result<()> {
        let block_bytes = self.tensor_type.block_bytes() as usize;
        let blocks = self.cols / self.tensor_type.block_elements() as usize;
        assert!(bytes.len().is_multiple_of(blocks * block_bytes), "blocks come in whole rows");
        for row in bytes.chunks_exact(blocks * block_bytes) {
            let (start, words) = (self.codes.len(), packing::words(self.cols, self.coding.code_bits()));
            let index = start / words;
            self.row.clear();
            for block in row.chunks_exact(block_bytes) {
                let decoded = match self.tensor_type {
                    TensorType::Q8_0 => self.q8_0(block),
                    TensorType::Q4_0 | TensorType::IQ4_NL => self.q4_0(block),
                    TensorType::Q4_1 => self.q4_1(block),
                    TensorType::Q5_0 => self.q5_0(block),
                    TensorType::Q5_1 => self.q5_1(block),
                    TensorType::Q4_K => self.q4_k(block),
                    TensorType::Q6_K => self.q6_k(block),
                    TensorType::TQ1_0 => self.tq1_0(block),
                    _ => self.tq2_0(block),
                };
                decoded.map_err(|error| error.context(format!("row {index}")))?;
            }
            self.codes.resize(start + words, 0);
            packing::pack_row(&self.row, self.coding.code_bits(), &mut self.codes[start..]);
        }
        Ok(())
    }

    /// The packed matrix.
    ///
    /// # Errors
    /// `invalid_checkpoint` if rows are missing.
    pub(super) fn finish(self) -> Result<QuantizedTensor> {
        let Self { coding, rows, cols, codes, scales, minimums, .. } = self;
        Ok(match coding {
            Coding::Affine(scheme) if scheme.has_minimums() => {
                PackedTensor::with_minimums(scheme, rows, cols, codes, scales, minimums)?.into()
            }
            Coding::Affine(scheme) => PackedTensor::new(scheme, rows, cols, codes, scales, None)?.into(),
            Coding::Codebook(book) => CodebookTensor::new(book, rows, cols, codes, scales)?.into(),
        })
    }

    fn q8_0(&mut self, block: &[u8]) -> Result<()> {
        self.scales.push(half_at(block, 0)?);
        // The code plus 128, from two's complement.
        self.row.extend(block[2..].iter().map(|code| code ^ 0x80));
        Ok(())
    }

    fn q4_0(&mut self, block: &[u8]) -> Result<()> {
        self.scales.push(half_at(block, 0)?);
        self.nibbles(&block[2..]);
        Ok(())
    }

    fn q4_1(&mut self, block: &[u8]) -> Result<()> {
        self.scales.push(half_at(block, 0)?);
        self.minimums.push(half_at(block, 2)?);
        self.nibbles(&block[4..]);
        Ok(())
    }

    fn q5_0(&mut self, block: &[u8]) -> Result<()> {
        self.scales.push(half_at(block, 0)?);
        // q - 16, relative to the 8-bit zero point 128.
        self.five_bits(&block[2..], 128 - 16);
        Ok(())
    }

    fn q5_1(&mut self, block: &[u8]) -> Result<()> {
        self.scales.push(half_at(block, 0)?);
        self.minimums.push(half_at(block, 2)?);
        self.five_bits(&block[4..], 0);
        Ok(())
    }

    /// Codes of five bits: 32 high bits, the first code's lowest, followed by nibbles with the low bits.
    fn five_bits(&mut self, bytes: &[u8], shift: u8) {
        let (high, nibbles) = bytes.split_at(4);
        let start = self.row.len();
        self.nibbles(nibbles);
        for (index, code) in self.row[start..].iter_mut().enumerate() {
            *code = (*code | (high[index / 8] >> (index % 8) & 1) << 4) + shift;
        }
    }

    /// The low nibbles of all bytes, then the high ones.
    fn nibbles(&mut self, bytes: &[u8]) {
        self.row.extend(bytes.iter().map(|byte| byte & 15));
        self.row.extend(bytes.iter().map(|byte| byte >> 4));
    }

    fn q4_k(&mut self, block: &[u8]) -> Result<()> {
        let (d, dmin) = (half_at(block, 0)?, half_at(block, 2)?);
        let (packed, codes) = block[4..].split_at(12);
        for group in 0..8 {
            let (scale, minimum) = six_bits(packed, group);
            self.scales.push(d * f32::from(scale));
            self.minimums.push(-(dmin * f32::from(minimum)));
        }
        for codes in codes.chunks_exact(32) {
            self.nibbles(codes);
        }
        Ok(())
    }

    fn q6_k(&mut self, block: &[u8]) -> Result<()> {
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (scales, _) = rest.split_at(16);
        let d = half_at(block, 208)?;
        for &scale in scales {
            self.scales.push(d * f32::from(scale as i8));
        }
        for (low, high) in low.chunks_exact(64).zip(high.chunks_exact(32)) {
            for quarter in 0..4 {
                for l in 0..32 {
                    let low = low[l + 32 * (quarter % 2)];
                    let low = if quarter < 2 { low & 15 } else { low >> 4 };
                    let code = low | (high[l] >> (2 * quarter) & 3) << 4;
                    // q - 32, relative to the 8-bit zero point 128.
                    self.row.push(code + (128 - 32));
                }
            }
        }
        Ok(())
    }

    fn tq1_0(&mut self, block: &[u8]) -> Result<()> {
        self.scales.push(half_at(block, 52)?);
        // (bytes, trits per byte)
        for (bytes, trits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
            let mut power = 1u8;
            for _ in 0..trits {
                for byte in bytes {
                    let shifted = byte.wrapping_mul(power);
                    self.row.push(((u16::from(shifted) * 3) >> 8) as u8);
                }
                power = power.wrapping_mul(3);
            }
        }
        Ok(())
    }

    fn tq2_0(&mut self, block: &[u8]) -> Result<()> {
        self.scales.push(half_at(block, 64)?);
        for bytes in block[..64].chunks_exact(32) {
            for shift in [0, 2, 4, 6] {
                self.row.extend(bytes.iter().map(|byte| byte >> shift & 3));
            }
        }
        let codes = &self.row[self.row.len() - 256..];
        if codes.contains(&3) {
            return Err(Error::invalid_checkpoint(
                "expected the ternary codes 0, 1 and 2 in TQ2_0 blocks but found 3",
            ));
        }
        Ok(())
    }
}

/// Decodes rows of blocks to weights, as a reader of the file does.
///
/// # Errors
/// `non_finite` for a scale that is NaN or infinite; `invalid_checkpoint` for the ternary code 3. Both name the row.
///
/// # Panics
/// If the type has no blocks, or if `bytes` and `out` are not the same whole rows of `cols` columns.
pub fn decode_rows(tensor_type: TensorType, cols: usize, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let rows = out.len() / cols;
    let mut decoder = Decoder::new(tensor_type, rows, cols)?;
    decoder.push_rows(bytes)?;
    decoder.finish()?.decode_rows(0..rows, out);
    Ok(())
}

/// Encodes a matrix whose coding matches a block type's.
///
/// # Errors
/// `unsupported_format` if no type has this coding; `non_finite` for a scale outside the range of half precision.
pub(super) fn encode(tensor: &QuantizedTensor) -> Result<Vec<u8>> {
    let (coding, cols) = (tensor.coding(), tensor.cols());
    let Some(tensor_type) = type_of(coding, cols) else {
        return Err(Error::unsupported_format(format!("no GGUF type holds {coding} rows of {cols} columns")));
    };
    let mut codes = vec![0; cols];
    let mut out = Vec::new();
    for row in 0..tensor.rows() {
        tensor.codes_of_row(row, &mut codes);
        for (group, codes) in codes.chunks_exact(tensor_type.block_elements() as usize).enumerate() {
            push_half(tensor.scale(row, group), &mut out)?;
            push_nibbles(codes, &mut out);
        }
    }
    Ok(out)
}

/// The 6-bit scale and minimum of one of the eight groups of `Q4_K`.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4;
    let minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    (scale, minimum)
}

/// The half-precision number at byte `at` of a block.
fn half_at(block: &[u8], at: usize) -> Result<f32> {
    let value = f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    if !value.is_finite() {
        return Err(Error::new(ErrorCode::NonFinite, format!("expected finite scales but found {value}")));
    }
    Ok(value)
}
