//! Vectors of x86-64: which ones the processor has, and what both implementations use. Floor 4.

mod avx2;
mod avx512;

use super::Kernel;
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

/// Proof that the processor has what [`Avx2`] stands for and AVX-512 F, BW, VL and VNNI.
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

    /// The instructions that 256-bit work uses.
    pub(in super::super) fn avx2(self) -> Avx2 {
        self.0
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

/// The first element of a part, in bounds for all elements of the part.
#[inline(always)]
fn at<T>(unit: &[T], part: usize, lanes: usize) -> *const T {
    unit[part * lanes..][..lanes].as_ptr()
}
