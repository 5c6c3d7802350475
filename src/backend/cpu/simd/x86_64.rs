//! Vectors of x86-64: detection, and what both implementations share.

mod avx2;
mod avx512;

use super::{Integers, Kernel, exactly};
use crate::backend::cpu::columns::UNIT;
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    pub(super) fn run(self, kernel: impl Kernel) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<K: Kernel>(s: Avx2, kernel: K) {
            kernel.run(s);
        }
        // SAFETY: a value of this type exists only where `detect` found the features.
        unsafe { inner(self, kernel) }
    }
}

/// Proof that the processor has the features of [`Avx2`] and AVX-512 F, BW, VL and VNNI.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(Avx2);

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        Avx2::detect().filter(|_| found).map(Self)
    }

    pub(super) fn run(self, kernel: impl Kernel) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn inner<K: Kernel>(s: Avx512, kernel: K) {
            kernel.run(s);
        }
        // SAFETY: a value of this type exists only where `detect` found the features.
        unsafe { inner(self, kernel) }
    }
}

impl From<Avx512> for Avx2 {
    /// The instructions that 256-bit work uses.
    #[inline(always)]
    fn from(all: Avx512) -> Self {
        all.0
    }
}

/// Integer dot products in 256 bits. The implementations differ in one instruction.
trait Dot256: Copy + Send + Sync {
    /// As [`Integers::NARROW`].
    const NARROW: i32;
    /// As [`Integers::dot`].
    fn dot256<const NARROW: bool>(self, sums: __m256i, codes: __m256i, x: &[i8; UNIT]) -> __m256i;
    /// As [`Integers::dot_narrow`].
    fn dot256_narrow(self, sums: __m256i, codes: __m256i, x: &[i8; UNIT]) -> __m256i;
    /// As [`Integers::add_narrow`].
    fn add256_narrow(self, sums: __m256i, narrow: __m256i) -> __m256i;
}

impl<D: Dot256> Integers for D
where
    D: Into<Avx2>,
{
    type Bytes = __m256i;
    type Ints = __m256i;
    type Sums = __m256;

    #[inline(always)]
    fn unpack<const N: usize>(self, unit: &[u8; N]) -> __m256i {
        let avx2: Avx2 = self.into();
        match N {
            8 => avx2.unpack2(exactly(unit)),
            16 => avx2.unpack4(exactly(unit)),
            _ => avx2.unpack8(exactly(unit)),
        }
    }

    #[inline(always)]
    fn start(self, value: i32) -> __m256i {
        // SAFETY: features by `self`.
        unsafe { _mm256_zextsi128_si256(_mm_cvtsi32_si128(value)) }
    }

    #[inline(always)]
    fn dot<const NARROW: bool>(self, sums: __m256i, codes: __m256i, x: &[i8; UNIT]) -> __m256i {
        self.dot256::<NARROW>(sums, codes, x)
    }

    const NARROW: i32 = <D as Dot256>::NARROW;
    type Narrow = __m256i;

    #[inline(always)]
    fn no_narrow(self) -> __m256i {
        // SAFETY: features by `self`.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn dot_narrow(self, sums: __m256i, codes: __m256i, x: &[i8; UNIT]) -> __m256i {
        self.dot256_narrow(sums, codes, x)
    }

    #[inline(always)]
    fn add_narrow(self, sums: __m256i, narrow: __m256i) -> __m256i {
        self.add256_narrow(sums, narrow)
    }

    #[inline(always)]
    fn reduce_ints(self, sums: __m256i) -> i32 {
        // SAFETY: features by `self`.
        unsafe {
            let four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }

    #[inline(always)]
    fn reduce_four_ints(self, [a, b, c, d]: [__m256i; 4]) -> [i32; 4] {
        // SAFETY: features by `self`; four integers are written.
        unsafe {
            let both = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
            let all = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
            let mut sums = [0; 4];
            _mm_storeu_si128(sums.as_mut_ptr().cast(), all);
            sums
        }
    }

    #[inline(always)]
    fn no_sums(self) -> __m256 {
        // SAFETY: features by `self`.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn add_scaled(self, sums: __m256, ints: __m256i, scale: f32) -> __m256 {
        // SAFETY: features by `self`.
        unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints), _mm256_set1_ps(scale), sums) }
    }

    #[inline(always)]
    fn reduce_sums(self, sums: __m256) -> f32 {
        // SAFETY: features by `self`.
        unsafe { reduce_ps(sums) }
    }
}

/// The sum of the elements.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn reduce_ps(value: __m256) -> f32 {
    // SAFETY: as above.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// As [`reduce_ps`] of each, in fewer instructions.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn reduce_four_ps([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    // SAFETY: as above.
    unsafe {
        let [a, b, c, d] = [
            _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a)),
            _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps::<1>(b)),
            _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps::<1>(c)),
            _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps::<1>(d)),
        ];
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        let mut sums = [0.0; 4];
        let all =
            _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd));
        _mm_storeu_ps(sums.as_mut_ptr(), all);
        sums
    }
}

/// Pointer to the first element of a part. All elements of the part are in bounds.
#[inline(always)]
fn at<T>(unit: &[T], part: usize, lanes: usize) -> *const T {
    unit[part * lanes..][..lanes].as_ptr()
}
