//! Packs codes to dense bit streams: least significant bit first in 32-bit words, without padding between codes.
//!
//! [`PackedTensor`](super::PackedTensor) rows use this stream. The bit orders of files are in `layout`.

/// 32-bit words of `count` codes with `bits` bits.
pub fn words(count: usize, bits: u32) -> usize {
    // Splitting the count keeps the product small on 32-bit targets.
    let (blocks, rest) = (count / 32, count % 32);
    blocks * bits as usize + (rest * bits as usize).div_ceil(32)
}

/// Writes `codes` with `bits` (1 to 8) bits each as one stream. Bits after the last code become zero.
///
/// # Panics
/// When `out` is not [`words`] long. The high bits of too large codes are dropped.
pub fn pack_row(codes: &[u8], bits: u32, out: &mut [u32]) {
    assert!((1..=8).contains(&bits), "codes have 1 to 8 bits");
    assert_eq!(out.len(), words(codes.len(), bits), "word count and code count disagree");
    debug_assert!(
        codes.iter().all(|&code| u32::from(code) >> bits == 0),
        "a code needs more than {bits} bits"
    );
    match bits {
        8 => pack_whole_words::<4>(codes, 8, out),
        4 => pack_whole_words::<8>(codes, 4, out),
        2 => pack_whole_words::<16>(codes, 2, out),
        _ => pack_stream(codes, bits, out),
    }
}

/// Reads `codes.len()` codes of `bits` (1 to 8) bits from a stream.
///
/// # Panics
/// When `stream` is not [`words`] long.
pub fn unpack_row(stream: &[u32], bits: u32, codes: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes have 1 to 8 bits");
    assert_eq!(stream.len(), words(codes.len(), bits), "word count and code count disagree");
    match bits {
        8 => unpack_whole_words::<4>(stream, 8, codes),
        4 => unpack_whole_words::<8>(stream, 4, codes),
        2 => unpack_whole_words::<16>(stream, 2, codes),
        _ => unpack_stream(stream, bits, codes),
    }
}

/// For widths that divide 32, with `N` codes in a word.
fn pack_whole_words<const N: usize>(codes: &[u8], bits: u32, out: &mut [u32]) {
    let mask = u32::MAX >> (32 - bits);
    let (chunks, rest) = codes.as_chunks::<N>();
    for (word, chunk) in out.iter_mut().zip(chunks) {
        *word = pack_word(chunk, bits, mask);
    }
    if !rest.is_empty() {
        out[chunks.len()] = pack_word(rest, bits, mask);
    }
}

#[inline(always)]
fn pack_word(codes: &[u8], bits: u32, mask: u32) -> u32 {
    let mut word = 0;
    for (index, &code) in codes.iter().enumerate() {
        word |= (u32::from(code) & mask) << (index as u32 * bits);
    }
    word
}

fn unpack_whole_words<const N: usize>(stream: &[u32], bits: u32, codes: &mut [u8]) {
    let mask = u32::MAX >> (32 - bits);
    let (chunks, rest) = codes.as_chunks_mut::<N>();
    for (chunk, &word) in chunks.iter_mut().zip(stream) {
        for (index, code) in chunk.iter_mut().enumerate() {
            *code = ((word >> (index as u32 * bits)) & mask) as u8;
        }
    }
    for (index, code) in rest.iter_mut().enumerate() {
        *code = ((stream[chunks.len()] >> (index as u32 * bits)) & mask) as u8;
    }
}

/// For other widths, where a code may span two words.
fn pack_stream(codes: &[u8], bits: u32, out: &mut [u32]) {
    let mask = u64::from(u32::MAX >> (32 - bits));
    let (mut pending, mut filled, mut next) = (0u64, 0u32, 0);
    for &code in codes {
        pending |= (u64::from(code) & mask) << filled;
        filled += bits;
        if filled >= 32 {
            out[next] = pending as u32;
            next += 1;
            pending >>= 32;
            filled -= 32;
        }
    }
    if filled > 0 {
        out[next] = pending as u32;
    }
}

fn unpack_stream(stream: &[u32], bits: u32, codes: &mut [u8]) {
    let mask = u64::from(u32::MAX >> (32 - bits));
    let (mut pending, mut filled, mut next) = (0u64, 0u32, 0);
    for code in codes {
        if filled < bits {
            pending |= u64::from(stream[next]) << filled;
            next += 1;
            filled += 32;
        }
        *code = (pending & mask) as u8;
        pending >>= bits;
        filled -= bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, from the definition.
    fn oracle_pack(codes: &[u8], bits: u32) -> Vec<u32> {
        let mut out = vec![0u32; (codes.len() * bits as usize).div_ceil(32)];
        for (index, &code) in codes.iter().enumerate() {
            for bit in 0..bits as usize {
                let position = index * bits as usize + bit;
                out[position / 32] |= u32::from((code >> bit) & 1) << (position % 32);
            }
        }
        out
    }

    #[test]
    fn known_words() {
        let cases: [(u32, &[u8], &[u32]); 5] = [
            (4, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[0x8765_4321, 0x9]),
            (8, &[0x11, 0x22, 0x33, 0x44, 0x55], &[0x4433_2211, 0x55]),
            (2, &[1, 2, 3, 0, 1], &[0b01_00_11_10_01]),
            // The eleventh 3-bit code has two bits in the first word and one in the second.
            (3, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], &[0xc000_0000, 1]),
            (4, &[], &[]),
        ];
        for (bits, codes, expected) in cases {
            let mut out = vec![u32::MAX; words(codes.len(), bits)];
            pack_row(codes, bits, &mut out);
            assert_eq!(out, expected, "{bits} bits");
        }
    }

    proptest! {
        #[test]
        fn packing_agrees_with_the_bitwise_oracle_and_reverses(
            bits in 1u32..=8,
            raw in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let codes: Vec<u8> = raw.iter().map(|&c| c & (0xff >> (8 - bits))).collect();
            let expected = oracle_pack(&codes, bits);
            prop_assert_eq!(words(codes.len(), bits), expected.len());
            let mut out = vec![u32::MAX; expected.len()];
            pack_row(&codes, bits, &mut out);
            prop_assert_eq!(&out, &expected);
            let mut back = vec![0xff; codes.len()];
            unpack_row(&out, bits, &mut back);
            prop_assert_eq!(back, codes);
        }
    }
}
