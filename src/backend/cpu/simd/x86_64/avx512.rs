//! AVX-512 with VNNI. Integer sums stay in 256 bits, where they can use AVX2 instructions.

use super::{Avx512, Dot256, UNIT, at, exactly, reduce_four_ps, reduce_ps};
use crate::backend::cpu::simd::Simd;
use std::arch::x86_64::*;

impl Simd for Avx512 {
    const LANES: usize = 16;
    const TILE_TOKENS: usize = 4;
    const TILE_QUERIES: usize = 4;
    type F32 = __m512;
    /// For codes of 2 and 4 bits, the weight of each code. For 8 bits, scale and `minimum - zero_point * scale`.
    type Codebook = (__m512, __m512);
    type Codes<'a, const N: usize> = &'a [u8; N];

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves the features, here and below.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, unit: &[f32; UNIT], part: usize) -> __m512 {
        // SAFETY: features by `self`; `at` checks the sixteen elements.
        unsafe { _mm512_loadu_ps(at(unit, part, 16)) }
    }

    #[inline(always)]
    fn load_f16(self, unit: &[u16; UNIT], part: usize) -> __m512 {
        // SAFETY: as in `load`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at(unit, part, 16).cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, unit: &[u16; UNIT], part: usize) -> __m512 {
        // SAFETY: as in `load`.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at(unit, part, 16).cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn store(self, value: __m512, unit: &mut [f32; UNIT], part: usize) {
        let target = unit[part * 16..][..16].as_mut_ptr();
        // SAFETY: features by `self`; the slice has sixteen elements.
        unsafe { _mm512_storeu_ps(target, value) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: features by `self`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul_then_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: features by `self`.
        unsafe { _mm512_add_ps(_mm512_mul_ps(a, b), c) }
    }

    #[inline(always)]
    fn reduce(self, value: __m512) -> f32 {
        // SAFETY: features by `self`.
        unsafe { reduce_ps(halves(value)) }
    }

    #[inline(always)]
    fn reduce_four(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: features by `self`.
        unsafe { reduce_four_ps([halves(a), halves(b), halves(c), halves(d)]) }
    }

    #[inline(always)]
    fn codebook<const N: usize>(self, scale: f32, zero_point: u8, minimum: f32) -> (__m512, __m512) {
        let (scale, zero) = (self.splat(scale), f32::from(zero_point));
        // SAFETY: features by `self`.
        unsafe {
            if N == 32 {
                return (scale, _mm512_fmadd_ps(scale, self.splat(-zero), self.splat(minimum)));
            }
            // Weights are looked up by the last four bits of a byte. The table repeats, so bits above the code do not
            // matter.
            let index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            let code = _mm512_and_si512(index, _mm512_set1_epi32((1 << (N / 4)) - 1));
            let code = _mm512_sub_ps(_mm512_cvtepi32_ps(code), self.splat(zero));
            (_mm512_fmadd_ps(code, scale, self.splat(minimum)), scale)
        }
    }

    #[inline(always)]
    fn open<const N: usize>(self, unit: &[u8; N]) -> &[u8; N] {
        unit
    }

    #[inline(always)]
    fn decode<const N: usize, const OFFSET: u8>(
        self,
        unit: &[u8; N],
        codebook: (__m512, __m512),
        part: usize,
    ) -> __m512 {
        match N {
            8 => self.decode2(exactly(unit), codebook, part),
            16 => self.decode4(exactly(unit), codebook, part),
            _ => self.decode8(exactly(unit), codebook, part),
        }
    }
}

impl Avx512 {
    #[inline(always)]
    fn decode8(self, unit: &[u8; 32], (scale, offset): (__m512, __m512), part: usize) -> __m512 {
        // SAFETY: features by `self`; `at` checks the sixteen bytes.
        unsafe {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at(unit, part, 16).cast()));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), scale, offset)
        }
    }

    #[inline(always)]
    fn decode4(self, unit: &[u8; 16], (weights, _): (__m512, __m512), part: usize) -> __m512 {
        // SAFETY: features by `self`; sixteen bytes are read.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(unit.as_ptr().cast()));
            let codes = if part == 0 { bytes } else { _mm512_srli_epi32::<4>(bytes) };
            _mm512_permutexvar_ps(codes, weights)
        }
    }

    #[inline(always)]
    fn decode2(self, unit: &[u8; 8], (weights, _): (__m512, __m512), part: usize) -> __m512 {
        // SAFETY: features by `self`.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_set1_epi64x(i64::from_le_bytes(*unit)));
            let shifts = _mm512_set_epi32(2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0);
            let shifts = _mm512_add_epi32(shifts, _mm512_set1_epi32(part as i32 * 4));
            _mm512_permutexvar_ps(_mm512_srlv_epi32(bytes, shifts), weights)
        }
    }
}

impl Dot256 for Avx512 {
    #[inline(always)]
    fn dot256<const NARROW: bool>(self, sums: __m256i, codes: __m256i, x: &[i8; UNIT]) -> __m256i {
        // SAFETY: features by `self`; 32 bytes of `x` are read.
        unsafe { _mm256_dpbusd_epi32(sums, codes, _mm256_loadu_si256(x.as_ptr().cast())) }
    }

    const NARROW: i32 = i32::MAX;

    #[inline(always)]
    fn dot256_narrow(self, sums: __m256i, codes: __m256i, x: &[i8; UNIT]) -> __m256i {
        self.dot256::<true>(sums, codes, x)
    }

    #[inline(always)]
    fn add256_narrow(self, sums: __m256i, narrow: __m256i) -> __m256i {
        // SAFETY: features by `self`.
        unsafe { _mm256_add_epi32(sums, narrow) }
    }
}

/// The sum of both halves.
///
/// # Safety
/// Needs AVX-512 F.
#[inline(always)]
unsafe fn halves(value: __m512) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let high = _mm256_castsi256_ps(_mm512_extracti64x4_epi64::<1>(_mm512_castps_si512(value)));
        _mm256_add_ps(_mm512_castps512_ps256(value), high)
    }
}
