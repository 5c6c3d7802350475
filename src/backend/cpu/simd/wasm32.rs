//! WebAssembly's 128-bit vectors, with relaxed SIMD if the build has it.
//!
//! With `f32` activations arithmetic is the limit: four INT4 weights take six instructions, at least two of them for
//! the product. Measured, with alternatives that did not help: `docs/measurements.md`, "WebAssembly vector kernels".

use super::{Integers, Simd, UNIT, exactly};
use crate::backend::cpu::rows::MINIMUMS;
use std::arch::wasm32::*;

/// Vectors of four floats. WebAssembly has no detection at run time: a module with instructions that the host lacks
/// does not load.
#[derive(Clone, Copy)]
pub(in super::super) struct Wasm128;

impl Wasm128 {
    #[cfg(not(target_feature = "relaxed-simd"))]
    pub(super) const NAME: &str = "simd128";
    #[cfg(target_feature = "relaxed-simd")]
    pub(super) const NAME: &str = "relaxed-simd";
}

/// Sixteen codes as 16-bit numbers.
#[inline(always)]
fn widen(codes: v128) -> [v128; 2] {
    let zero = u8x16_splat(0);
    [
        i8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(codes, zero),
        i8x16_shuffle::<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(codes, zero),
    ]
}

/// A unit of codes as 16-bit numbers.
#[inline(always)]
fn open([first, second]: [v128; 2]) -> [v128; 4] {
    let ([a, b], [c, d]) = (widen(first), widen(second));
    [a, b, c, d]
}

/// Weights `4 * part..` of a unit.
#[inline(always)]
fn weights<const OFFSET: u8>(words: [v128; 4], codebook: Codebook, part: usize) -> v128 {
    // The upper half of the float 2^23 above each code makes `2^23 + code`, without a conversion.
    let counted = interleave(words[part / 2], u16x8_splat((ONES.to_bits() >> 16) as u16), part);
    let weight = f32x4_mul(f32x4_sub(counted, codebook.zero), codebook.scale);
    if OFFSET == MINIMUMS { f32x4_add(weight, codebook.minimum) } else { weight }
}

/// Four of eight 16-bit numbers as the lower halves of 32 bits, with the upper halves from `high`.
#[inline(always)]
fn interleave(low: v128, high: v128, quad: usize) -> v128 {
    if quad.is_multiple_of(2) {
        i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(low, high)
    } else {
        i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(low, high)
    }
}

/// Sixteen bytes.
#[inline(always)]
fn load<T: bytemuck::Pod>(values: &[T]) -> v128 {
    let bytes: &[u8; 16] = bytemuck::cast_slice(values).try_into().expect("sixteen bytes");
    // SAFETY: sixteen bytes are there; no alignment is needed.
    unsafe { v128_load(bytes.as_ptr().cast()) }
}

/// 2^23: the last bit of a float of this size is worth 1.
const ONES: f32 = 8_388_608.0;

/// Operands that turn the codes of a group into weights.
#[derive(Clone, Copy)]
pub(in super::super) struct Codebook {
    /// `2^23 + zero point`
    zero: v128,
    scale: v128,
    minimum: v128,
}

/// Thirty-two codes in the form that dot products read: the even and the odd codes of each sixteen, as 16-bit numbers.
/// With relaxed SIMD, codes of at most four bits are bytes in their order, in two vectors.
#[derive(Clone, Copy)]
pub(in super::super) struct Codes([v128; 4]);

/// The low bits of all bytes, then the bits four places higher.
#[inline(always)]
fn fields<const MASK: u8>(bytes: v128) -> [v128; 2] {
    let mask = u8x16_splat(MASK);
    [v128_and(bytes, mask), v128_and(u16x8_shr(bytes, 4), mask)]
}

/// Codes of at most four bits.
#[inline(always)]
fn narrow<const MASK: u8>(bytes: v128) -> Codes {
    if cfg!(target_feature = "relaxed-simd") {
        let ([first, second], none) = (fields::<MASK>(bytes), u8x16_splat(0));
        return Codes([first, second, none, none]);
    }
    let mask = u16x8_splat(MASK.into());
    Codes([
        v128_and(bytes, mask),
        v128_and(u16x8_shr(bytes, 8), mask),
        v128_and(u16x8_shr(bytes, 4), mask),
        v128_and(u16x8_shr(bytes, 12), mask),
    ])
}

impl Simd for Wasm128 {
    const LANES: usize = 4;
    const TILE_TOKENS: usize = 2;
    const TILE_QUERIES: usize = 1;
    type F32 = v128;
    type Codebook = Codebook;
    type Codes<'a, const N: usize> = [v128; 4];

    #[inline(always)]
    fn splat(self, value: f32) -> v128 {
        f32x4_splat(value)
    }

    #[inline(always)]
    fn load(self, unit: &[f32; UNIT], part: usize) -> v128 {
        load(&unit[part * 4..][..4])
    }

    #[inline(always)]
    fn load_f16(self, unit: &[u16; UNIT], part: usize) -> v128 {
        let halves = load(&unit[part / 2 * 8..][..8]);
        let high = interleave(u16x8_splat(0), halves, part);
        let moved = v128_and(i32x4_shr(high, 3), u32x4_splat(0x8FFF_E000));
        // Multiplying by 2^112 moves the exponent's bias, and makes subnormal halves normal.
        f32x4_mul(moved, f32x4_splat(f32::from_bits((127 + 112) << 23)))
    }

    #[inline(always)]
    fn load_bf16(self, unit: &[u16; UNIT], part: usize) -> v128 {
        interleave(u16x8_splat(0), load(&unit[part / 2 * 8..][..8]), part)
    }

    #[inline(always)]
    fn store(self, value: v128, unit: &mut [f32; UNIT], part: usize) {
        let target = unit[part * 4..][..4].as_mut_ptr();
        // SAFETY: the slice has sixteen bytes.
        unsafe { v128_store(target.cast(), value) }
    }

    #[inline(always)]
    fn mul_add(self, a: v128, b: v128, c: v128) -> v128 {
        #[cfg(not(target_feature = "relaxed-simd"))]
        return self.mul_then_add(a, b, c);
        #[cfg(target_feature = "relaxed-simd")]
        f32x4_relaxed_madd(a, b, c)
    }

    #[inline(always)]
    fn mul_then_add(self, a: v128, b: v128, c: v128) -> v128 {
        f32x4_add(f32x4_mul(a, b), c)
    }

    #[inline(always)]
    fn reduce(self, v: v128) -> f32 {
        let two = f32x4_add(v, i32x4_shuffle::<2, 3, 2, 3>(v, v));
        f32x4_extract_lane::<0>(two) + f32x4_extract_lane::<1>(two)
    }

    #[inline(always)]
    fn codebook<const N: usize>(self, scale: f32, zero_point: u8, minimum: f32) -> Codebook {
        Codebook {
            zero: f32x4_splat(ONES + f32::from(zero_point)),
            scale: f32x4_splat(scale),
            minimum: f32x4_splat(minimum),
        }
    }

    #[inline(always)]
    fn open<const N: usize>(self, unit: &[u8; N]) -> [v128; 4] {
        match N {
            8 => open(fields::<3>(spread2(exactly(unit)))),
            16 => open(fields::<15>(load(unit))),
            _ => open([load(&unit[..16]), load(&unit[16..])]),
        }
    }

    #[inline(always)]
    fn decode<const N: usize, const OFFSET: u8>(
        self,
        words: [v128; 4],
        codebook: Codebook,
        part: usize,
    ) -> v128 {
        weights::<OFFSET>(words, codebook, part)
    }
}

impl Integers for Wasm128 {
    type Bytes = Codes;
    type Ints = v128;
    type Sums = v128;

    #[inline(always)]
    fn unpack<const N: usize>(self, unit: &[u8; N]) -> Codes {
        match N {
            8 => narrow::<3>(spread2(exactly(unit))),
            16 => narrow::<15>(load(unit)),
            _ => {
                let (first, second) = (load(&unit[..16]), load(&unit[16..]));
                let even = u16x8_splat(0xFF);
                Codes([
                    v128_and(first, even),
                    u16x8_shr(first, 8),
                    v128_and(second, even),
                    u16x8_shr(second, 8),
                ])
            }
        }
    }

    #[inline(always)]
    fn start(self, value: i32) -> v128 {
        i32x4_replace_lane::<0>(i32x4_splat(0), value)
    }

    #[inline(always)]
    fn dot<const NARROW: bool>(self, sums: v128, Codes(codes): Codes, x: &[i8; UNIT]) -> v128 {
        let (first, second) = (load(&x[..16]), load(&x[16..]));
        #[cfg(target_feature = "relaxed-simd")]
        if NARROW {
            let sums = i32x4_relaxed_dot_i8x16_i7x16_add(first, codes[0], sums);
            return i32x4_relaxed_dot_i8x16_i7x16_add(second, codes[1], sums);
        }
        let [even, odd] = split(first);
        let sums = i32x4_add(sums, i32x4_dot_i16x8(codes[0], even));
        let sums = i32x4_add(sums, i32x4_dot_i16x8(codes[1], odd));
        let [even, odd] = split(second);
        let sums = i32x4_add(sums, i32x4_dot_i16x8(codes[2], even));
        i32x4_add(sums, i32x4_dot_i16x8(codes[3], odd))
    }

    const NARROW: i32 = i32::MAX;
    type Narrow = v128;

    #[inline(always)]
    fn no_narrow(self) -> v128 {
        i32x4_splat(0)
    }

    #[inline(always)]
    fn dot_narrow(self, sums: v128, codes: Codes, x: &[i8; UNIT]) -> v128 {
        self.dot::<true>(sums, codes, x)
    }

    #[inline(always)]
    fn add_narrow(self, sums: v128, narrow: v128) -> v128 {
        i32x4_add(sums, narrow)
    }

    #[inline(always)]
    fn reduce_ints(self, sums: v128) -> i32 {
        let two = i32x4_add(sums, i32x4_shuffle::<2, 3, 2, 3>(sums, sums));
        i32x4_extract_lane::<0>(two).wrapping_add(i32x4_extract_lane::<1>(two))
    }

    #[inline(always)]
    fn no_sums(self) -> v128 {
        f32x4_splat(0.0)
    }

    #[inline(always)]
    fn add_scaled(self, sums: v128, ints: v128, scale: f32) -> v128 {
        self.mul_add(f32x4_convert_i32x4(ints), f32x4_splat(scale), sums)
    }

    #[inline(always)]
    fn reduce_sums(self, sums: v128) -> f32 {
        self.reduce(sums)
    }
}

/// The bytes of a unit of 2-bit codes twice, the second time shifted by one code.
#[inline(always)]
fn spread2(unit: &[u8; 8]) -> v128 {
    let bytes = u64::from_le_bytes(*unit);
    u64x2(bytes, bytes >> 2)
}

/// Even and odd bytes, sign-extended to 16 bits.
#[inline(always)]
fn split(bytes: v128) -> [v128; 2] {
    [i16x8_shr(i16x8_shl(bytes, 8), 8), i16x8_shr(bytes, 8)]
}
