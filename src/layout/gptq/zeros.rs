//! How GPTQ files store zero points.
//!
//! A row of `qzeros` is a dense bit stream along the outputs. Version 2 stores the zero point `z`. Version 1 stores
//! `z - 1`, in one of two ways that differ if a `z` is 0:
//!
//! - per field, `(z - 1) mod 2^b`;
//! - per word: a version 2 word minus a word with one in every field, so that a `z` of 0 borrows from its neighbour.
//!   AutoGPTQ and GPTQModel write 2, 4 and 8 bits this way. Adding the same word restores the zero points exactly.

use crate::error::Error;
use crate::options::named;
use crate::quant::{Bits, packing};

named! {
    /// The two versions, under their usual names.
    pub enum GptqZeros {
        /// Files store the zero point minus one
        V1 = "v1",
        /// Files store the zero point as it is
        V2 = "v2",
    }
}

/// The stored form of a zero point `z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// `(z - 1) mod 2^b`
    V1Fields,
    /// `z`, with one subtracted from every field of a word at once
    V1Words,
    /// `z`
    V2,
}

/// A word with one in every field, for bit widths that divide 32.
fn ones(bits: Bits) -> Option<u32> {
    match bits {
        Bits::Two => Some(0x5555_5555),
        Bits::Four => Some(0x1111_1111),
        Bits::Eight => Some(0x0101_0101),
        Bits::Three => None,
    }
}

impl Storage {
    /// Decodes the zero points of a row, `[zeros.len()]`; overwrites `words`.
    pub(super) fn decode(self, words: &mut [u32], bits: Bits, zeros: &mut [u8]) {
        if let (Self::V1Words, Some(ones)) = (self, ones(bits)) {
            words.iter_mut().for_each(|word| *word = word.wrapping_add(ones));
            return packing::unpack_row(words, bits.get(), zeros);
        }
        packing::unpack_row(words, bits.get(), zeros);
        if self != Self::V2 {
            let mask = bits.max_code() as u8;
            zeros.iter_mut().for_each(|zero| *zero = zero.wrapping_add(1) & mask);
        }
    }

    /// The inverse of [`Storage::decode`].
    pub(super) fn encode(self, zeros: &[u8], bits: Bits, words: &mut [u32]) {
        if let (Self::V1Words, Some(ones)) = (self, ones(bits)) {
            packing::pack_row(zeros, bits.get(), words);
            words.iter_mut().for_each(|word| *word = word.wrapping_sub(ones));
            return;
        }
        if self == Self::V2 {
            return packing::pack_row(zeros, bits.get(), words);
        }
        let mask = bits.max_code() as u8;
        let stored: Vec<u8> = zeros.iter().map(|zero| zero.wrapping_sub(1) & mask).collect();
        packing::pack_row(&stored, bits.get(), words);
    }
}

/// The zero point 4 in three adjacent words, as GPTQModel wrote it before version 7: it permuted the words that it
/// subtracts from 3-bit zero points.
const DISORDERED_3_BIT: [u32; 3] = [0x0000_0000, 0xb6db_6db7, 0x4924_9249];

/// The version in which these rows, `[groups, words_per_group]`, hold the zero points of symmetric weights; `None` if
/// they do not.
pub(super) fn version_of_symmetric(
    words: &[u32],
    words_per_group: usize,
    fields: usize,
    bits: Bits,
) -> Option<GptqZeros> {
    let mut row = vec![0u8; fields];
    let mut all = |expected: u8| {
        words.chunks_exact(words_per_group).all(|words| {
            packing::unpack_row(words, bits.get(), &mut row);
            row.iter().all(|&zero| zero == expected)
        })
    };
    let midpoint = bits.midpoint() as u8;
    if all(midpoint - 1) {
        return Some(GptqZeros::V1);
    }
    if all(midpoint) {
        return Some(GptqZeros::V2);
    }
    let disordered = bits == Bits::Three
        && words_per_group.is_multiple_of(3)
        && words.chunks_exact(3).all(|words| words == DISORDERED_3_BIT);
    disordered.then_some(GptqZeros::V1)
}

/// The error for weights that are labelled symmetric but are not.
pub(super) fn not_symmetric(bits: Bits) -> Error {
    let midpoint = bits.midpoint();
    Error::invalid_checkpoint(format!(
        "expected the zero points of symmetric weights, all {} (version 1) or all {midpoint} (version 2), but found others",
        midpoint - 1
    ))
}

/// Decodes the zero points `[outputs, groups]` from rows of words `[groups, words_per_group]`.
pub(super) fn decode_all(
    mut words: Vec<u32>,
    words_per_group: usize,
    outputs: usize,
    bits: Bits,
    storage: Storage,
) -> Vec<u8> {
    let groups = words.len() / words_per_group;
    let mut zeros = vec![0u8; outputs * groups];
    let mut row = vec![0u8; outputs];
    for (group, words) in words.chunks_exact_mut(words_per_group).enumerate() {
        storage.decode(words, bits, &mut row);
        for (zero, &value) in zeros[group..].iter_mut().step_by(groups).zip(&row) {
            *zero = value;
        }
    }
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_words_of_symmetric_weights_are_the_documented_ones() {
        let cases = [
            (Bits::Two, 16, 0x5555_5555, 0xaaaa_aaaa),
            (Bits::Four, 8, 0x7777_7777, 0x8888_8888),
            (Bits::Eight, 4, 0x7f7f_7f7f, 0x8080_8080),
        ];
        for (bits, fields, v1, v2) in cases {
            let zeros = vec![bits.midpoint() as u8; fields];
            for (storage, expected) in [(Storage::V1Fields, v1), (Storage::V1Words, v1), (Storage::V2, v2)] {
                let mut words = [0];
                storage.encode(&zeros, bits, &mut words);
                assert_eq!(words, [expected], "{bits:?} {storage:?}");
            }
            assert_eq!(version_of_symmetric(&[v1; 3], 1, fields, bits), Some(GptqZeros::V1));
            assert_eq!(version_of_symmetric(&[v2; 3], 1, fields, bits), Some(GptqZeros::V2));
            assert_eq!(version_of_symmetric(&[v1, v2], 1, fields, bits), None);
        }
        let zeros = [4; 32];
        let mut words = [0; 3];
        Storage::V1Words.encode(&zeros, Bits::Three, &mut words);
        assert_eq!(version_of_symmetric(&words, 3, 32, Bits::Three), Some(GptqZeros::V1));
        assert_eq!(version_of_symmetric(&DISORDERED_3_BIT, 3, 32, Bits::Three), Some(GptqZeros::V1));
        // The words that GPTQModel subtracted: the first and the third are swapped.
        let constants = [0x2492_4924u32, 0x9249_2492, 0x4924_9249];
        Storage::V2.encode(&zeros, Bits::Three, &mut words);
        let subtracted: Vec<u32> = words.iter().zip(constants).map(|(w, c)| w.wrapping_sub(c)).collect();
        assert_eq!(subtracted, DISORDERED_3_BIT);
    }

    /// When whole words are subtracted, a zero point of 0 borrows from its neighbour.
    #[test]
    fn a_borrow_is_given_back() {
        let zeros = [0, 5, 0, 0, 15, 1, 8, 0];
        let (mut words, mut fields, mut back) = ([0], [0], [0; 8]);
        Storage::V1Words.encode(&zeros, Bits::Four, &mut words);
        Storage::V1Fields.encode(&zeros, Bits::Four, &mut fields);
        assert_eq!(words, [0x081f_0050u32.wrapping_sub(0x1111_1111)]);
        assert_ne!(words, fields);
        Storage::V1Words.decode(&mut words, Bits::Four, &mut back);
        assert_eq!(back, zeros);
        Storage::V1Fields.decode(&mut fields, Bits::Four, &mut back);
        assert_eq!(back, zeros);
    }

    proptest! {
        #[test]
        fn zero_points_come_back(
            bits in prop::sample::select(vec![Bits::Two, Bits::Three, Bits::Four, Bits::Eight]),
            storage in prop::sample::select(vec![Storage::V1Fields, Storage::V1Words, Storage::V2]),
            values in prop::collection::vec(any::<u8>(), 32),
        ) {
            let zeros: Vec<u8> = values.iter().map(|v| v & bits.max_code() as u8).collect();
            let mut words = vec![0; packing::words(32, bits.get())];
            storage.encode(&zeros, bits, &mut words);
            let mut back = vec![0; 32];
            storage.decode(&mut words, bits, &mut back);
            prop_assert_eq!(back, zeros);
        }
    }
}
