//! Affine coding: weight = `(code - zero_point) * scale`, or `code * scale + minimum`.
//!
//! The matrix is in `packed_tensor`, the methods in `rtn`, `gptq`, ...

use super::{Coded, Coding, Format, QuantizedTensor, Section, section};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quant::packed_tensor::{PackedTensor, Scales};
use crate::quant::scheme::{Granularity, Scheme};
use crate::quant::{ScaleType, dequantize, packing};
use half::f16;
use std::ops::Range;

impl Scheme {
    /// The scheme as a coding.
    pub const fn coding(self) -> Coding {
        Coding::Affine(self)
    }
}

impl Format for Scheme {
    fn granularity(&self) -> Granularity {
        Self::granularity(*self)
    }

    fn code_bits(&self) -> u32 {
        self.storage_bits()
    }

    fn levels(&self) -> u32 {
        self.max_code() + 1
    }

    fn affine(&self) -> Option<Scheme> {
        Some(*self)
    }

    fn sample(&self, rows: usize, cols: usize, below: &mut dyn FnMut(u32) -> u32) -> Result<QuantizedTensor> {
        let words = self.words_per_row(cols);
        let mut codes = vec![0u32; rows * words];
        for row in codes.chunks_exact_mut(words) {
            let values: Vec<u8> = (0..cols).map(|_| below(self.levels()) as u8).collect();
            packing::pack_row(&values, self.storage_bits(), row);
        }
        let count = Self::granularity(*self).scale_count(rows, cols);
        let scales =
            Scales::F16((0..count).map(|_| f16::from_f32(0.01 + below(100) as f32 / 5000.0)).collect());
        let tensor = if self.has_minimums() {
            let minimum = |below: &mut dyn FnMut(u32) -> u32| below(1 << 11) as f32 / (10 << 10) as f32 - 0.1;
            let minimums = (0..count).map(|_| f16::from_f32(minimum(below))).collect();
            PackedTensor::with_minimums(*self, rows, cols, codes, scales, Scales::F16(minimums))?
        } else {
            let zeros = self.constant_zero_point().is_none();
            let zeros = zeros.then(|| (0..count).map(|_| below(self.levels()) as u8).collect());
            PackedTensor::new(*self, rows, cols, codes, scales, zeros)?
        };
        Ok(tensor.into())
    }

    fn join(&self, rows: usize, cols: usize, sections: &[Section]) -> Result<QuantizedTensor> {
        let words = |section: &Section| {
            section.bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>()
        };
        let codes = words(section(sections, "codes")?);
        let scales = Scales::from_section(section(sections, "scales")?)?;
        let tensor = if self.has_minimums() {
            let minimums = Scales::from_section(section(sections, "minimums")?)?;
            PackedTensor::with_minimums(*self, rows, cols, codes, scales, minimums)?
        } else {
            let zeros = section(sections, "zero_points").ok().map(|section| section.bytes.clone());
            PackedTensor::new(*self, rows, cols, codes, scales, zeros)?
        };
        let tensor = match section(sections, "column_order") {
            Ok(order) => tensor.with_column_order(words(order))?,
            Err(_) => tensor,
        };
        Ok(tensor.into())
    }

    fn named(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}

impl Coded for PackedTensor {
    fn coding(&self) -> Coding {
        self.scheme().coding()
    }

    fn affine(&self) -> Option<&PackedTensor> {
        Some(self)
    }

    fn rows(&self) -> usize {
        Self::rows(self)
    }

    fn cols(&self) -> usize {
        Self::cols(self)
    }

    fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        dequantize::rows(self, rows, out);
    }

    fn codes_of_row(&self, row: usize, codes: &mut [u8]) {
        self.unpack_row(row, codes);
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales().get(self.scale_index(row, group))
    }

    fn take_rows(&self, rows: Range<usize>) -> QuantizedTensor {
        self.copy_rows(rows).into()
    }

    fn sections(&self) -> Vec<Section> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let mut sections =
            vec![Section { name: "codes".to_owned(), dtype: DType::U32, bytes: words(self.codes()) }];
        sections.push(self.scales().to_section("scales"));
        if let Some(zeros) = self.zero_points() {
            let name = "zero_points".to_owned();
            sections.push(Section { name, dtype: DType::U8, bytes: zeros.to_vec() });
        }
        sections.extend(self.minimums().map(|minimums| minimums.to_section("minimums")));
        if let Some(order) = self.column_order() {
            let name = "column_order".to_owned();
            sections.push(Section { name, dtype: DType::U32, bytes: words(order) });
        }
        sections
    }

    /// Counts zero points with the bits of codes, as in files.
    fn bytes(&self) -> u64 {
        self.packed_bytes()
    }
}

impl Scales {
    /// The scales as a section with a name.
    pub(super) fn to_section(&self, name: &str) -> Section {
        Section { name: name.to_owned(), dtype: self.scale_type().dtype(), bytes: self.to_bytes() }
    }

    /// Reads the section of [`to_section`](Self::to_section).
    ///
    /// # Errors
    /// `invalid_checkpoint` for a type that is not floating point.
    pub(super) fn from_section(section: &Section) -> Result<Self> {
        let Section { name, dtype, bytes } = section;
        let scale_type = ScaleType::from_dtype(*dtype).ok_or_else(|| {
            Error::invalid_checkpoint(format!("expected {name} of F16, BF16 or F32 but found {dtype}"))
        })?;
        Ok(Self::from_bytes(scale_type, bytes))
    }
}
