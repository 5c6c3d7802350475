//! AVX2 with FMA and F16C.

use super::{Avx2, Dot256, UNIT, at, exactly, reduce_four_ps, reduce_ps};
use crate::backend::cpu::simd::Simd;
use std::arch::x86_64::*;

impl Simd for Avx2 {
    const LANES: usize = 8;
    const TILE_TOKENS: usize = 3;
    const TILE_QUERIES: usize = 2;
    type F32 = __m256;
    /// Scale, and `minimum - zero_point * scale`.
    type Codebook = (__m256, __m256);
    type Codes<'a, const N: usize> = &'a [u8; N];

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves the features, here and below.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, unit: &[f32; UNIT], part: usize) -> __m256 {
        // SAFETY: features by `self`; `at` checks the eight elements.
        unsafe { _mm256_loadu_ps(at(unit, part, 8)) }
    }

    #[inline(always)]
    fn load_f16(self, unit: &[u16; UNIT], part: usize) -> __m256 {
        // SAFETY: as in `load`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at(unit, part, 8).cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, unit: &[u16; UNIT], part: usize) -> __m256 {
        // SAFETY: as in `load`.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at(unit, part, 8).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn store(self, value: __m256, unit: &mut [f32; UNIT], part: usize) {
        let target = unit[part * 8..][..8].as_mut_ptr();
        // SAFETY: features by `self`; the slice has eight elements.
        unsafe { _mm256_storeu_ps(target, value) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: features by `self`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul_then_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: features by `self`.
        unsafe { _mm256_add_ps(_mm256_mul_ps(a, b), c) }
    }

    #[inline(always)]
    fn reduce(self, value: __m256) -> f32 {
        // SAFETY: features by `self`.
        unsafe { reduce_ps(value) }
    }

    #[inline(always)]
    fn reduce_four(self, values: [__m256; 4]) -> [f32; 4] {
        // SAFETY: features by `self`.
        unsafe { reduce_four_ps(values) }
    }

    #[inline(always)]
    fn codebook<const N: usize>(self, scale: f32, zero_point: u8, minimum: f32) -> (__m256, __m256) {
        (self.splat(scale), self.splat(minimum - scale * f32::from(zero_point)))
    }

    #[inline(always)]
    fn open<const N: usize>(self, unit: &[u8; N]) -> &[u8; N] {
        unit
    }

    #[inline(always)]
    fn decode<const N: usize, const OFFSET: u8>(
        self,
        unit: &[u8; N],
        codebook: (__m256, __m256),
        part: usize,
    ) -> __m256 {
        match N {
            8 => self.decode2(exactly(unit), codebook, part),
            16 => self.decode4(exactly(unit), codebook, part),
            _ => self.decode8(exactly(unit), codebook, part),
        }
    }
}

impl Avx2 {
    #[inline(always)]
    fn decode8(self, unit: &[u8; 32], (scale, offset): (__m256, __m256), part: usize) -> __m256 {
        // SAFETY: features by `self`; `at` checks the eight bytes.
        unsafe {
            let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at(unit, part, 8).cast()));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), scale, offset)
        }
    }

    #[inline(always)]
    fn decode4(self, unit: &[u8; 16], (scale, offset): (__m256, __m256), part: usize) -> __m256 {
        // SAFETY: features by `self`.
        unsafe {
            // Written so that the parts of a unit share the first step.
            let codes = self.unpack4(unit);
            let half =
                if part < 2 { _mm256_castsi256_si128(codes) } else { _mm256_extracti128_si256::<1>(codes) };
            let codes =
                _mm256_cvtepu8_epi32(if part.is_multiple_of(2) { half } else { _mm_srli_si128::<8>(half) });
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), scale, offset)
        }
    }

    #[inline(always)]
    fn decode2(self, unit: &[u8; 8], (scale, offset): (__m256, __m256), part: usize) -> __m256 {
        // SAFETY: features by `self`; eight bytes are read.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(unit.as_ptr().cast()));
            let shifted = _mm256_srlv_epi32(bytes, _mm256_set1_epi32(part as i32 * 2));
            let codes = _mm256_and_si256(shifted, _mm256_set1_epi32(3));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), scale, offset)
        }
    }

    #[inline(always)]
    pub(super) fn unpack8(self, unit: &[u8; 32]) -> __m256i {
        // SAFETY: features by `self`; 32 bytes are read.
        unsafe { _mm256_loadu_si256(unit.as_ptr().cast()) }
    }

    #[inline(always)]
    pub(super) fn unpack4(self, unit: &[u8; 16]) -> __m256i {
        // SAFETY: features by `self`; 16 bytes are read.
        unsafe {
            let twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(unit.as_ptr().cast()));
            let shifted = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4));
            _mm256_and_si256(shifted, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    pub(super) fn unpack2(self, unit: &[u8; 8]) -> __m256i {
        // SAFETY: features by `self`.
        unsafe {
            let four_times = _mm256_set1_epi64x(i64::from_le_bytes(*unit));
            let shifted = _mm256_srlv_epi64(four_times, _mm256_setr_epi64x(0, 2, 4, 6));
            _mm256_and_si256(shifted, _mm256_set1_epi8(3))
        }
    }
}

impl Dot256 for Avx2 {
    /// Sums of products in 16 bits.
    const NARROW: i32 = i16::MAX as i32;

    #[inline(always)]
    fn dot256<const NARROW: bool>(self, sums: __m256i, codes: __m256i, x: &[i8; UNIT]) -> __m256i {
        // SAFETY: features by `self`; 32 bytes of `x` are read.
        unsafe {
            let x: *const __m128i = x.as_ptr().cast();
            if NARROW {
                // Two products of at most 15 * 128 fit 16 bits.
                let pairs = _mm256_maddubs_epi16(codes, _mm256_loadu_si256(x.cast()));
                return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
            let low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(codes));
            let high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(codes));
            let low = _mm256_madd_epi16(low, _mm256_cvtepi8_epi16(_mm_loadu_si128(x)));
            let high = _mm256_madd_epi16(high, _mm256_cvtepi8_epi16(_mm_loadu_si128(x.add(1))));
            _mm256_add_epi32(sums, _mm256_add_epi32(low, high))
        }
    }

    #[inline(always)]
    fn dot256_narrow(self, sums: __m256i, codes: __m256i, x: &[i8; UNIT]) -> __m256i {
        // SAFETY: features by `self`; 32 bytes of `x` are read.
        unsafe {
            let pairs = _mm256_maddubs_epi16(codes, _mm256_loadu_si256(x.as_ptr().cast()));
            _mm256_add_epi16(sums, pairs)
        }
    }

    #[inline(always)]
    fn add256_narrow(self, sums: __m256i, narrow: __m256i) -> __m256i {
        // SAFETY: features by `self`.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1))) }
    }
}
