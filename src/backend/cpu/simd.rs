//! The small vector instruction set that the kernels are written in, and the selection of its implementation.
//!
//! A kernel is one function, generic over [`Simd`]. Implementations are thin. [`Portable`] uses arrays, which compilers
//! turn into the target's default vectors (SSE2, NEON). Per-architecture files exist where that is not enough. The
//! implementation is selected once, when the backend is created. [`super::self_check()`] compares it with the portable
//! one.

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm32;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use super::columns::UNIT;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
use wasm32::Wasm128;
#[cfg(target_arch = "x86_64")]
use x86_64::{Avx2, Avx512};

/// Floating-point vectors of one instruction set. Values of the implementing type prove that the processor has it.
///
/// Codes come in units of `N` bytes: 8, 16 or 32 for 32 codes of 2, 4 or 8 bits. All methods must be inlined into the
/// target-feature functions of [`Isa::run`].
pub(super) trait Simd: Integers {
    /// Elements of an `f32` vector. Divides [`UNIT`], which has at most eight vectors.
    const LANES: usize;
    /// Tokens of a register tile of four rows; at most four.
    const TILE_TOKENS: usize;
    /// Queries of a register tile that holds their scores for one unit of positions: one, two or four.
    const TILE_QUERIES: usize;
    /// `LANES` floats.
    type F32: Copy;
    /// Scale, zero point and minimum of a group, in the form that `decode` uses.
    type Codebook: Copy;
    /// A unit of codes after the steps that its parts share.
    type Codes<'a, const N: usize>: Copy;

    fn splat(self, value: f32) -> Self::F32;
    /// Elements `part * LANES..` of a unit.
    fn load(self, unit: &[f32; UNIT], part: usize) -> Self::F32;
    /// As [`Simd::load`] from IEEE half precision. None of the elements is NaN or infinite.
    fn load_f16(self, unit: &[u16; UNIT], part: usize) -> Self::F32;
    /// As [`Simd::load`] from bfloat16.
    fn load_bf16(self, unit: &[u16; UNIT], part: usize) -> Self::F32;
    fn store(self, value: Self::F32, unit: &mut [f32; UNIT], part: usize);
    /// `a * b + c`, with one rounding if the processor has it.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a * b + c`, with two roundings on every target.
    fn mul_then_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The sum of all elements, by repeatedly adding halves.
    fn reduce(self, value: Self::F32) -> f32;
    /// As [`Simd::reduce`] of each.
    #[inline(always)]
    fn reduce_four(self, [a, b, c, d]: [Self::F32; 4]) -> [f32; 4] {
        [self.reduce(a), self.reduce(b), self.reduce(c), self.reduce(d)]
    }

    /// The first step of [`Simd::decode`], shared by the parts of a unit.
    fn open<const N: usize>(self, unit: &[u8; N]) -> Self::Codes<'_, N>;
    /// Prepares [`Simd::decode`] for the codes of one group.
    fn codebook<const N: usize>(self, scale: f32, zero_point: u8, minimum: f32) -> Self::Codebook;
    /// Weights `part * LANES..` of a unit of codes: `(code - zero_point) * scale + minimum`. The result is rounded once
    /// if `zero_point * scale` is exact, as it is for scales stored in 16 bits, and if zero point or minimum is 0. The
    /// minimum is 0 unless `OFFSET` is [`super::rows::MINIMUMS`].
    fn decode<const N: usize, const OFFSET: u8>(
        self,
        codes: Self::Codes<'_, N>,
        codebook: Self::Codebook,
        part: usize,
    ) -> Self::F32;
}

/// Integer dot products of one instruction set.
pub(super) trait Integers: Copy + Send + Sync {
    /// 32 bytes.
    type Bytes: Copy;
    /// Partial sums of an integer dot product.
    type Ints: Copy;
    /// As many floats as `Ints` has integers.
    type Sums: Copy;

    /// Unpacks a unit of codes, interleaved as in [`super::weight`].
    fn unpack<const N: usize>(self, unit: &[u8; N]) -> Self::Bytes;
    /// Partial sums that add up to `value`.
    fn start(self, value: i32) -> Self::Ints;
    /// `sums + codes . x`, exact modulo 2^32. With `NARROW`, codes are below 16.
    fn dot<const NARROW: bool>(self, sums: Self::Ints, codes: Self::Bytes, x: &[i8; UNIT]) -> Self::Ints;
    /// The largest sum that an element of [`Integers::Narrow`] can hold.
    const NARROW: i32;
    /// Partial sums of products with codes below 16, in the width that is fastest to add.
    type Narrow: Copy;
    fn no_narrow(self) -> Self::Narrow;
    /// As [`Integers::dot`] with `NARROW`. Each sum grows by at most the products of two codes.
    fn dot_narrow(self, sums: Self::Narrow, codes: Self::Bytes, x: &[i8; UNIT]) -> Self::Narrow;
    fn add_narrow(self, sums: Self::Ints, narrow: Self::Narrow) -> Self::Ints;
    fn reduce_ints(self, sums: Self::Ints) -> i32;
    /// As [`Integers::reduce_ints`] of each.
    #[inline(always)]
    fn reduce_four_ints(self, [a, b, c, d]: [Self::Ints; 4]) -> [i32; 4] {
        [self.reduce_ints(a), self.reduce_ints(b), self.reduce_ints(c), self.reduce_ints(d)]
    }
    fn no_sums(self) -> Self::Sums;
    /// `sums + ints * scale`, lane by lane.
    fn add_scaled(self, sums: Self::Sums, ints: Self::Ints, scale: f32) -> Self::Sums;
    fn reduce_sums(self, sums: Self::Sums) -> f32;
}

/// A unit as an array of length `M`, which equals `N` wherever this runs.
#[inline(always)]
fn exactly<const M: usize, const N: usize>(unit: &[u8; N]) -> &[u8; M] {
    unit.first_chunk().expect("a unit of that length")
}

/// Runs a block for each part of a unit. Eight parts are written out, because LLVM would not unroll that many and would
/// choose instructions at run time.
macro_rules! for_each_part {
    ($part:ident of $simd:ident $body:block) => {
        if UNIT / $simd::LANES == 8 {
            $crate::backend::cpu::simd::for_each_part!(@ $part $body 0 1 2 3 4 5 6 7)
        } else {
            for $part in 0..UNIT / $simd::LANES $body
        }
    };
    (@ $part:ident $body:block $($index:literal)*) => {
        {$({
            let $part: usize = $index;
            $body
        })*}
    };
}
pub(super) use for_each_part;

/// A computation that runs on every instruction set. `run` and the functions that it calls must be `#[inline(always)]`.
pub(super) trait Kernel {
    fn run<S: Simd>(self, s: S);
}

/// The instruction set in use. A WebAssembly build with vector instructions has no other kernels, because hosts without
/// those instructions cannot load it.
#[derive(Clone, Copy)]
pub(super) enum Isa {
    #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Wasm128(Wasm128),
}

impl Isa {
    /// The best instruction set of this processor.
    pub(super) fn detect() -> Self {
        Self::available().pop().expect("there is always one")
    }

    /// The instruction set with the fewest requirements.
    pub(super) fn plainest() -> Self {
        Self::available()[0]
    }

    /// Whether this processor has no better one.
    pub(super) fn is_best(self) -> bool {
        self.name() == Self::detect().name()
    }

    /// The instruction sets of this processor, the best one last; at least one.
    pub(super) fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let all = [Some(Self::Portable), Avx2::detect().map(Self::Avx2), Avx512::detect().map(Self::Avx512)];
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        let all = [Some(Self::Wasm128(Wasm128))];
        #[cfg(not(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128"))))]
        let all = [Some(Self::Portable)];
        all.into_iter().flatten().collect()
    }

    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Self::Wasm128(_) => Wasm128::NAME,
        }
    }

    /// Runs a kernel with this instruction set.
    pub(super) fn run(self, kernel: impl Kernel) {
        match self {
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            Self::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(s) => s.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(s) => s.run(kernel),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Self::Wasm128(s) => kernel.run(s),
        }
    }
}

/// Arrays of eight elements, for every target.
#[derive(Clone, Copy)]
pub(super) struct Portable;

const WIDTH: usize = 8;

/// Applies `f` to eight elements of a unit.
#[inline(always)]
fn lanes<T: Copy, U>(unit: &[T; UNIT], part: usize, f: impl Fn(T) -> U) -> [U; WIDTH] {
    std::array::from_fn(|i| f(unit[part * WIDTH + i]))
}

/// The exact value of an IEEE half-precision number, without a branch.
#[inline(always)]
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7FFF) << 13;
    let special = if bits & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
    // Multiplying by 2^112 moves the exponent's bias, and makes subnormal halves normal.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    f32::from_bits(finite | special | u32::from(bits & 0x8000) << 16)
}

impl Simd for Portable {
    const LANES: usize = WIDTH;
    const TILE_TOKENS: usize = 2;
    const TILE_QUERIES: usize = 1;
    type F32 = [f32; WIDTH];
    /// Scale, zero point and minimum.
    type Codebook = (f32, f32, f32);
    type Codes<'a, const N: usize> = &'a [u8; N];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F32 {
        [value; WIDTH]
    }

    #[inline(always)]
    fn load(self, unit: &[f32; UNIT], part: usize) -> Self::F32 {
        lanes(unit, part, |v| v)
    }

    #[inline(always)]
    fn load_f16(self, unit: &[u16; UNIT], part: usize) -> Self::F32 {
        lanes(unit, part, f16_to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, unit: &[u16; UNIT], part: usize) -> Self::F32 {
        lanes(unit, part, |bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    fn store(self, value: Self::F32, unit: &mut [f32; UNIT], part: usize) {
        unit[part * WIDTH..(part + 1) * WIDTH].copy_from_slice(&value);
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // Two roundings: a fused multiply-add would be a library call on targets without the instruction.
        self.mul_then_add(a, b, c)
    }

    #[inline(always)]
    fn mul_then_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn reduce(self, v: Self::F32) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    fn open<const N: usize>(self, unit: &[u8; N]) -> &[u8; N] {
        unit
    }

    #[inline(always)]
    fn codebook<const N: usize>(self, scale: f32, zero_point: u8, minimum: f32) -> Self::Codebook {
        (scale, f32::from(zero_point), minimum)
    }

    #[inline(always)]
    fn decode<const N: usize, const OFFSET: u8>(
        self,
        codes: &[u8; N],
        (scale, zero, minimum): Self::Codebook,
        part: usize,
    ) -> Self::F32 {
        lanes(&self.unpack(codes), part, |code| (f32::from(code) - zero) * scale + minimum)
    }
}

impl Integers for Portable {
    type Bytes = [u8; UNIT];
    type Ints = [i32; WIDTH];
    type Sums = [f32; WIDTH];

    #[inline(always)]
    fn unpack<const N: usize>(self, unit: &[u8; N]) -> Self::Bytes {
        let bits = N / 4;
        std::array::from_fn(|i| (u32::from(unit[i % N]) >> (i / N * bits) & ((1 << bits) - 1)) as u8)
    }

    #[inline(always)]
    fn start(self, value: i32) -> Self::Ints {
        [value, 0, 0, 0, 0, 0, 0, 0]
    }

    #[inline(always)]
    fn dot<const NARROW: bool>(self, mut sums: Self::Ints, codes: Self::Bytes, x: &[i8; UNIT]) -> Self::Ints {
        for i in 0..UNIT {
            let product = i32::from(codes[i]) * i32::from(x[i]);
            sums[i % WIDTH] = sums[i % WIDTH].wrapping_add(product);
        }
        sums
    }

    const NARROW: i32 = i32::MAX;
    type Narrow = Self::Ints;

    #[inline(always)]
    fn no_narrow(self) -> Self::Ints {
        self.start(0)
    }

    #[inline(always)]
    fn dot_narrow(self, sums: Self::Ints, codes: Self::Bytes, x: &[i8; UNIT]) -> Self::Ints {
        self.dot::<true>(sums, codes, x)
    }

    #[inline(always)]
    fn add_narrow(self, sums: Self::Ints, narrow: Self::Ints) -> Self::Ints {
        std::array::from_fn(|i| sums[i].wrapping_add(narrow[i]))
    }

    #[inline(always)]
    fn reduce_ints(self, sums: Self::Ints) -> i32 {
        sums.into_iter().fold(0, i32::wrapping_add)
    }

    #[inline(always)]
    fn no_sums(self) -> Self::Sums {
        [0.0; WIDTH]
    }

    #[inline(always)]
    fn add_scaled(self, sums: Self::Sums, ints: Self::Ints, scale: f32) -> Self::Sums {
        std::array::from_fn(|i| ints[i] as f32 * scale + sums[i])
    }

    #[inline(always)]
    fn reduce_sums(self, sums: Self::Sums) -> f32 {
        self.reduce(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_half_becomes_the_float_that_it_is() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(found == expected || (found.is_nan() && expected.is_nan()), "{bits:#x}");
        }
    }
}
