//! WebAssembly's 128-bit vectors, with relaxed SIMD where the build has it. Floor 4.

use super::{MINIMUMS, Simd, UNIT};
use std::arch::wasm32::*;

/// Vectors of four floats. WebAssembly has no detection at run time: a module with instructions that the host lacks
/// does not load.
///
/// It carries two constants that LLVM must not see. Where it knows an operand of an interleaving shuffle, it merges it
/// with the next one into a shuffle that no processor has an instruction for.
#[derive(Clone, Copy)]
pub(in super::super) struct Wasm128 {
    zero: v128,
    /// The upper half of [`ONES`] in each 16 bits.
    high: v128,
}

impl Wasm128 {
    #[cfg(not(target_feature = "relaxed-simd"))]
    pub(super) const NAME: &str = "simd128";
    #[cfg(target_feature = "relaxed-simd")]
    pub(super) const NAME: &str = "relaxed-simd";

    pub(super) fn new() -> Self {
        std::hint::black_box(Self { zero: u16x8_splat(0), high: u16x8_splat((ONES.to_bits() >> 16) as u16) })
    }

    /// Sixteen codes as 16-bit numbers.
    #[inline(always)]
    fn widen(self, codes: v128) -> [v128; 2] {
        let zero = self.zero;
        [
            i8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(codes, zero),
            i8x16_shuffle::<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(codes, zero),
        ]
    }

    /// A unit of codes as 16-bit numbers; of the first sixteen, then of the others.
    #[inline(always)]
    fn open(self, first: v128, second: v128) -> [v128; 4] {
        let ([a, b], [c, d]) = (self.widen(first), self.widen(second));
        [a, b, c, d]
    }

    /// Weights `4 * part..` of a unit.
    #[inline(always)]
    fn weights<const OFFSET: u8>(self, words: [v128; 4], codebook: Codebook, part: usize) -> v128 {
        let counted = interleave(words[part / 2], self.high, part);
        let weight = f32x4_mul(f32x4_sub(counted, codebook.zero), codebook.scale);
        if OFFSET == MINIMUMS { f32x4_add(weight, codebook.minimum) } else { weight }
    }
}

/// Four of eight 16-bit numbers as the lower halves of 32 bits.
#[inline(always)]
fn interleave(low: v128, high: v128, quad: usize) -> v128 {
    if quad.is_multiple_of(2) {
        i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(low, high)
    } else {
        i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(low, high)
    }
}

/// Sixteen bytes from `at` on.
#[inline(always)]
fn load<T: bytemuck::Pod>(values: &[T]) -> v128 {
    let bytes: &[u8; 16] = bytemuck::cast_slice(values).try_into().expect("sixteen bytes");
    // SAFETY: sixteen bytes are there; no alignment is needed.
    unsafe { v128_load(bytes.as_ptr().cast()) }
}

/// 2^23: a float whose last bit counts ones.
const ONES: f32 = 8_388_608.0;

/// What turns the codes of a group into weights.
#[derive(Clone, Copy)]
pub(in super::super) struct Codebook {
    /// `2^23 + zero point`
    zero: v128,
    scale: v128,
    minimum: v128,
}

/// Thirty-two codes, as dot products read them: even ones and odd ones of each sixteen, as 16-bit numbers.
#[derive(Clone, Copy)]
pub(in super::super) struct Codes([v128; 4]);

/// The low bits of all bytes, then those four bits higher.
#[inline(always)]
fn fields<const MASK: u8>(bytes: v128) -> [v128; 2] {
    let mask = u8x16_splat(MASK);
    [v128_and(bytes, mask), v128_and(u16x8_shr(bytes, 4), mask)]
}

/// Codes of at most four bits: the low ones of all bytes, then those four bits higher.
#[inline(always)]
fn narrow<const MASK: u8>(bytes: v128) -> Codes {
    let all = u8x16_splat(MASK);
    let none = u8x16_splat(0);
    if cfg!(target_feature = "relaxed-simd") {
        return Codes([v128_and(bytes, all), v128_and(u16x8_shr(bytes, 4), all), none, none]);
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
    type F32 = v128;
    type Codebook = Codebook;
    type Codes8<'a> = [v128; 4];
    type Codes4<'a> = [v128; 4];
    type Codes2<'a> = [v128; 4];
    type Bytes = Codes;
    type Ints = v128;
    type Sums = v128;

    #[inline(always)]
    fn splat(self, value: f32) -> v128 {
        f32x4_splat(value)
    }

    #[inline(always)]
    fn load(self, unit: &[f32; UNIT], part: usize) -> v128 {
        load(&unit[part * 4..][..4])
    }

    #[inline(always)]
    fn load_f16<const FINITE: bool>(self, unit: &[u16; UNIT], part: usize) -> v128 {
        let halves = load(&unit[part / 2 * 8..][..8]);
        let high = interleave(self.zero, halves, part);
        let moved = v128_and(i32x4_shr(high, 3), u32x4_splat(0x8FFF_E000));
        // Multiplying by 2^112 moves the exponent's bias, and makes subnormal halves normal.
        let finite = f32x4_mul(moved, f32x4_splat(f32::from_bits((127 + 112) << 23)));
        if FINITE {
            return finite;
        }
        let special = f32x4_ge(f32x4_abs(finite), f32x4_splat(65536.0));
        v128_or(finite, v128_and(special, u32x4_splat(0x7F80_0000)))
    }

    #[inline(always)]
    fn load_bf16(self, unit: &[u16; UNIT], part: usize) -> v128 {
        interleave(self.zero, load(&unit[part / 2 * 8..][..8]), part)
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
        return f32x4_add(f32x4_mul(a, b), c);
        #[cfg(target_feature = "relaxed-simd")]
        f32x4_relaxed_madd(a, b, c)
    }

    #[inline(always)]
    fn reduce(self, v: v128) -> f32 {
        let two = f32x4_add(v, i32x4_shuffle::<2, 3, 2, 3>(v, v));
        f32x4_extract_lane::<0>(two) + f32x4_extract_lane::<1>(two)
    }

    #[inline(always)]
    fn unpack8(self, unit: &[u8; 32]) -> Codes {
        let (first, second) = (load(&unit[..16]), load(&unit[16..]));
        let even = u16x8_splat(0xFF);
        Codes([v128_and(first, even), u16x8_shr(first, 8), v128_and(second, even), u16x8_shr(second, 8)])
    }

    #[inline(always)]
    fn unpack4(self, unit: &[u8; 16]) -> Codes {
        let bytes = load(unit);
        narrow::<15>(bytes)
    }

    #[inline(always)]
    fn unpack2(self, unit: &[u8; 8]) -> Codes {
        narrow::<3>(spread2(unit))
    }

    #[inline(always)]
    fn codebook<const BITS: usize>(self, scale: f32, zero_point: u8, minimum: f32) -> Codebook {
        Codebook {
            zero: f32x4_splat(ONES + f32::from(zero_point)),
            scale: f32x4_splat(scale),
            minimum: f32x4_splat(minimum),
        }
    }

    #[inline(always)]
    fn open8(self, unit: &[u8; 32]) -> [v128; 4] {
        self.open(load(&unit[..16]), load(&unit[16..]))
    }

    #[inline(always)]
    fn open4(self, unit: &[u8; 16]) -> [v128; 4] {
        let [first, second] = fields::<15>(load(unit));
        self.open(first, second)
    }

    #[inline(always)]
    fn open2(self, unit: &[u8; 8]) -> [v128; 4] {
        let [first, second] = fields::<3>(spread2(unit));
        self.open(first, second)
    }

    #[inline(always)]
    fn decode8<const OFFSET: u8>(self, words: [v128; 4], codebook: Codebook, part: usize) -> v128 {
        self.weights::<OFFSET>(words, codebook, part)
    }

    #[inline(always)]
    fn decode4<const OFFSET: u8>(self, words: [v128; 4], codebook: Codebook, part: usize) -> v128 {
        self.weights::<OFFSET>(words, codebook, part)
    }

    #[inline(always)]
    fn decode2<const OFFSET: u8>(self, words: [v128; 4], codebook: Codebook, part: usize) -> v128 {
        self.weights::<OFFSET>(words, codebook, part)
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
            return if cfg!(i32dot) {
                i32x4_relaxed_dot_i8x16_i7x16_add(
                    second,
                    codes[1],
                    i32x4_relaxed_dot_i8x16_i7x16_add(first, codes[0], sums),
                )
            } else {
                let pairs = i16x8_add(
                    i16x8_relaxed_dot_i8x16_i7x16(first, codes[0]),
                    i16x8_relaxed_dot_i8x16_i7x16(second, codes[1]),
                );
                i32x4_add(sums, i32x4_dot_i16x8(pairs, i16x8_splat(1)))
            };
        }
        let [even, odd] = split(first);
        let sums = i32x4_add(sums, i32x4_dot_i16x8(codes[0], even));
        let sums = i32x4_add(sums, i32x4_dot_i16x8(codes[1], odd));
        let [even, odd] = split(second);
        let sums = i32x4_add(sums, i32x4_dot_i16x8(codes[2], even));
        i32x4_add(sums, i32x4_dot_i16x8(codes[3], odd))
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

/// The bytes of a unit of 2-bit codes twice, the second time moved by a code.
#[inline(always)]
fn spread2(unit: &[u8; 8]) -> v128 {
    let bytes = u64::from_le_bytes(*unit);
    u64x2(bytes, bytes >> 2)
}

/// Even and odd bytes as 16-bit numbers with their sign.
#[inline(always)]
fn split(bytes: v128) -> [v128; 2] {
    [i16x8_shr(i16x8_shl(bytes, 8), 8), i16x8_shr(bytes, 8)]
}
