//! Codebook coding: weight = `values[code] * scale`, with a fixed table of values and a scale for each group.
//!
//! `Iq4Nl` is ggml's IQ4_NL, whose values are denser where weights are frequent (`kvalues_iq4nl` in `ggml-common.h`, 16
//! bytes that llama.cpp's authors found by experiment). File encodings are in `layout`.

use super::{Coded, Coding, Format, QuantizedTensor, Section, section};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quant::packed_tensor::Scales;
use crate::quant::packing;
use crate::quant::scheme::Granularity;
use half::f16;
use std::fmt;
use std::ops::Range;

/// The codebooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// 16 values, one scale for 32 weights: 4.5 bits per weight.
    Iq4Nl,
}

/// Bits of a code.
const BITS: u32 = 4;
/// Codes in a word.
const CODES: usize = 32 / BITS as usize;

impl Codebook {
    /// The table of values.
    pub const fn values(self) -> [i8; 1 << BITS] {
        match self {
            Self::Iq4Nl => [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Iq4Nl => "iq4_nl",
        }
    }

    /// Weights per scale.
    const fn group_size(self) -> usize {
        match self {
            Self::Iq4Nl => 32,
        }
    }
}

impl fmt::Display for Codebook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A matrix `[rows, cols]` of codebook codes.
#[derive(Clone, Debug, PartialEq)]
pub struct CodebookTensor {
    book: Codebook,
    rows: usize,
    cols: usize,
    /// `[rows, words]`: the codes of a row as a dense stream that starts at a word, the first code in the lowest bits
    codes: Vec<u32>,
    /// `[rows, groups]`
    scales: Scales,
}

impl CodebookTensor {
    /// Assembles a matrix and checks its parts.
    ///
    /// # Errors
    /// `invalid_checkpoint` if a length does not match the shape.
    pub fn new(book: Codebook, rows: usize, cols: usize, codes: Vec<u32>, scales: Scales) -> Result<Self> {
        let groups = cols.div_ceil(book.group_size());
        for (what, expected, found) in [
            ("code words", rows.checked_mul(packing::words(cols, BITS)), codes.len()),
            ("scales", rows.checked_mul(groups), scales.len()),
        ] {
            if expected != Some(found) {
                return Err(Error::invalid_checkpoint(format!(
                    "expected {} {what} for {rows} x {cols} weights of {book} but found {found}",
                    expected.map_or("fewer".to_owned(), |expected| expected.to_string()),
                )));
            }
        }
        Ok(Self { book, rows, cols, codes, scales })
    }

    fn groups(&self) -> usize {
        self.cols.div_ceil(self.book.group_size())
    }
}

impl Format for Codebook {
    fn granularity(&self) -> Granularity {
        Granularity::Group(self.group_size())
    }

    fn code_bits(&self) -> u32 {
        BITS
    }

    fn levels(&self) -> u32 {
        1 << BITS
    }

    fn sample(&self, rows: usize, cols: usize, below: &mut dyn FnMut(u32) -> u32) -> Result<QuantizedTensor> {
        let words = packing::words(cols, BITS);
        let mut codes = vec![0u32; rows * words];
        for row in codes.chunks_exact_mut(words) {
            let values: Vec<u8> = (0..cols).map(|_| below(self.levels()) as u8).collect();
            packing::pack_row(&values, BITS, row);
        }
        let count = rows * cols.div_ceil(self.group_size());
        let scales = (0..count).map(|_| f16::from_f32((1 + below(100)) as f32 / 50_000.0)).collect();
        Ok(CodebookTensor::new(*self, rows, cols, codes, Scales::F16(scales))?.into())
    }

    fn join(&self, rows: usize, cols: usize, sections: &[Section]) -> Result<QuantizedTensor> {
        let codes = section(sections, "codes")?.bytes.as_chunks().0.iter();
        let codes = codes.map(|word| u32::from_le_bytes(*word)).collect();
        let scales = Scales::from_section(section(sections, "scales")?)?;
        Ok(CodebookTensor::new(*self, rows, cols, codes, scales)?.into())
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Iq4Nl].into_iter().find(|book| book.name() == name)
    }
}

impl Coded for CodebookTensor {
    fn coding(&self) -> Coding {
        self.book.into()
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "row range outside the matrix");
        assert_eq!(out.len(), rows.len() * self.cols, "one value for each weight of the rows");
        if self.cols == 0 {
            return;
        }
        let values = self.book.values().map(f32::from);
        let words = packing::words(self.cols, BITS);
        // Groups begin at words.
        let size = self.book.group_size();
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
            let words = self.codes[row * words..(row + 1) * words].chunks(size / CODES);
            for (group, (words, out)) in words.zip(out.chunks_mut(size)).enumerate() {
                let scale = self.scale(row, group);
                let scaled = values.map(|value| value * scale);
                for (&word, out) in words.iter().zip(out.chunks_mut(CODES)) {
                    for (place, out) in out.iter_mut().enumerate() {
                        *out = scaled[(word >> (place * BITS as usize) & 15) as usize];
                    }
                }
            }
        }
    }

    fn codes_of_row(&self, row: usize, codes: &mut [u8]) {
        let words = packing::words(self.cols, BITS);
        packing::unpack_row(&self.codes[row * words..(row + 1) * words], BITS, codes);
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales.get(row * self.groups() + group)
    }

    fn take_rows(&self, rows: Range<usize>) -> QuantizedTensor {
        let (words, groups) = (packing::words(self.cols, BITS), self.groups());
        Self {
            rows: rows.len(),
            codes: self.codes[rows.start * words..rows.end * words].to_vec(),
            scales: self.scales.part(rows.start * groups..rows.end * groups),
            ..*self
        }
        .into()
    }

    fn sections(&self) -> Vec<Section> {
        let codes = self.codes.iter().flat_map(|word| word.to_le_bytes()).collect();
        let codes = Section { name: "codes".to_owned(), dtype: DType::U32, bytes: codes };
        vec![codes, self.scales.to_section("scales")]
    }

    fn bytes(&self) -> u64 {
        self.codes.len() as u64 * 4 + self.scales.len() as u64 * u64::from(self.scales.bits()) / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of 40 columns: a whole group and a part of one.
    fn tensor() -> QuantizedTensor {
        let mut next = 0u32;
        Codebook::Iq4Nl
            .sample(2, 40, &mut |end| {
                next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (next >> 8) % end
            })
            .unwrap()
    }

    #[test]
    fn weights_are_values_of_the_table_times_the_scale_of_their_group() {
        let tensor = tensor();
        let mut weights = vec![0.0; 80];
        tensor.decode_rows(0..2, &mut weights);
        let mut codes = vec![0; 40];
        for row in 0..2 {
            tensor.codes_of_row(row, &mut codes);
            for (col, &code) in codes.iter().enumerate() {
                let value = f32::from(Codebook::Iq4Nl.values()[usize::from(code)]);
                assert_eq!(weights[row * 40 + col], value * tensor.scale(row, col / 32));
            }
        }
        // 5 words of codes and 2 scales a row.
        assert_eq!((tensor.bytes(), tensor.bits_per_weight()), (48, 4.8));
    }

    #[test]
    fn rows_and_sections_are_the_same_matrix() {
        let tensor = tensor();
        let (mut all, mut second) = (vec![0.0; 80], vec![0.0; 40]);
        tensor.decode_rows(0..2, &mut all);
        tensor.take_rows(1..2).decode_rows(0..1, &mut second);
        assert_eq!(all[40..], second);
        let name = tensor.coding().to_string();
        let coding: Coding = name.parse().unwrap();
        assert_eq!((name.as_str(), coding), ("iq4_nl", Codebook::Iq4Nl.into()));
        assert_eq!(coding.join(2, 40, &tensor.sections()).unwrap(), tensor);
        let error = coding.join(2, 41, &tensor.sections()).unwrap_err();
        assert_eq!(error.to_string(), "expected 12 code words for 2 x 41 weights of iq4_nl but found 10");
        let error = coding.join(2, 40, &tensor.sections()[..1]).unwrap_err();
        assert_eq!(error.to_string(), "expected scales but found none");
    }
}
