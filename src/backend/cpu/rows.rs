//! Weight rows in the form that kernels read: one unit of 32 columns at a time, as floats or as codes.

use super::columns::{Columns, UNIT};
use super::simd::Simd;
use super::weight::{Packed, Zeros};

/// A row whose values are converted to `f32` in registers.
pub(super) trait FloatRow: Copy {
    /// What the units of a group share.
    type Group<S: Simd>: Copy;
    /// What the parts of a unit share.
    type Unit<S: Simd>: Copy;
    fn group<S: Simd>(self, s: S, group: usize) -> Self::Group<S>;
    fn unit<S: Simd>(self, s: S, unit: usize) -> Self::Unit<S>;
    /// Elements `part * LANES..` of a unit.
    fn part<S: Simd>(s: S, group: Self::Group<S>, unit: Self::Unit<S>, part: usize) -> S::F32;
}

/// A matrix of such rows.
pub(super) trait FloatMatrix: Sync {
    type Row<'a>: FloatRow
    where
        Self: 'a;
    fn row(&self, row: usize) -> Self::Row<'_>;
}

/// Rows of floats: the values, and the number of units per row.
pub(super) struct F32Matrix<'a>(pub(super) &'a [[f32; UNIT]], pub(super) usize);
/// As [`F32Matrix`], in IEEE half precision without NaN and infinity.
pub(super) struct F16Matrix<'a>(pub(super) &'a [[u16; UNIT]], pub(super) usize);
/// As [`F32Matrix`], in bfloat16.
pub(super) struct Bf16Matrix<'a>(pub(super) &'a [[u16; UNIT]], pub(super) usize);

macro_rules! dense_rows {
    ($matrix:ident, $row:ident, $element:ty, $load:ident) => {
        #[derive(Clone, Copy)]
        pub(super) struct $row<'a>(pub(super) &'a [[$element; UNIT]]);

        impl FloatMatrix for $matrix<'_> {
            type Row<'a>
                = $row<'a>
            where
                Self: 'a;

            #[inline(always)]
            fn row(&self, row: usize) -> $row<'_> {
                $row(&self.0[row * self.1..(row + 1) * self.1])
            }
        }

        impl<'a> FloatRow for $row<'a> {
            type Group<S: Simd> = ();
            type Unit<S: Simd> = &'a [$element; UNIT];

            #[inline(always)]
            fn group<S: Simd>(self, _: S, _: usize) {}

            #[inline(always)]
            fn unit<S: Simd>(self, _: S, unit: usize) -> &'a [$element; UNIT] {
                &self.0[unit]
            }

            #[inline(always)]
            fn part<S: Simd>(s: S, (): (), unit: &[$element; UNIT], part: usize) -> S::F32 {
                s.$load(unit, part)
            }
        }
    };
}

dense_rows!(F32Matrix, F32Row, f32, load);
dense_rows!(F16Matrix, F16Row, u16, load_f16);
dense_rows!(Bf16Matrix, Bf16Row, u16, load_bf16);

/// `OFFSET` of a matrix that stores neither zero points nor minimums.
pub(super) const NO_OFFSET: u8 = 0;
/// `OFFSET` of a matrix that stores zero points.
pub(super) const ZERO_POINTS: u8 = 1;
/// `OFFSET` of a matrix that stores minimums.
pub(super) const MINIMUMS: u8 = 2;

/// A packed matrix whose units of codes have `N` bytes. `OFFSET` says what it stores besides scales.
pub(super) struct CodeMatrix<'a, const N: usize, const OFFSET: u8> {
    pub(super) packed: &'a Packed,
    pub(super) columns: Columns,
}

/// One row of a [`CodeMatrix`].
#[derive(Clone, Copy)]
pub(super) struct CodeRow<'a, const N: usize, const OFFSET: u8> {
    codes: &'a [[u8; N]],
    scales: &'a [f32],
    /// Empty if the zero point is constant.
    zeros: &'a [u8],
    /// Empty if there are none.
    minimums: &'a [f32],
    constant_zero: u8,
}

impl<const N: usize, const OFFSET: u8> CodeRow<'_, N, OFFSET> {
    #[inline(always)]
    pub(super) fn scale(self, group: usize) -> f32 {
        self.scales[group]
    }

    #[inline(always)]
    pub(super) fn zero(self, group: usize) -> u8 {
        if OFFSET == ZERO_POINTS { self.zeros[group] } else { self.constant_zero }
    }

    #[inline(always)]
    pub(super) fn minimum(self, group: usize) -> f32 {
        if OFFSET == MINIMUMS { self.minimums[group] } else { 0.0 }
    }

    #[inline(always)]
    pub(super) fn codes<S: Simd>(self, s: S, unit: usize) -> S::Bytes {
        s.unpack(&self.codes[unit])
    }
}

impl<const N: usize, const OFFSET: u8> FloatMatrix for CodeMatrix<'_, N, OFFSET> {
    type Row<'a>
        = CodeRow<'a, N, OFFSET>
    where
        Self: 'a;

    #[inline(always)]
    fn row(&self, row: usize) -> CodeRow<'_, N, OFFSET> {
        let (units, groups) = (self.columns.units, self.columns.groups);
        let groups = row * groups..(row + 1) * groups;
        let (zeros, minimums, constant_zero) = match &self.packed.zeros {
            Zeros::Constant(zero) => (&[][..], &[][..], *zero),
            Zeros::PerGroup(zeros) => (&zeros[groups.clone()], &[][..], 0),
            Zeros::Minimums(minimums) => (&[][..], &minimums[groups.clone()], 0),
        };
        CodeRow {
            codes: &self.packed.codes.as_chunks().0[row * units..(row + 1) * units],
            scales: &self.packed.scales[groups],
            zeros,
            minimums,
            constant_zero,
        }
    }
}

impl<'a, const N: usize, const OFFSET: u8> FloatRow for CodeRow<'a, N, OFFSET> {
    type Group<S: Simd> = S::Codebook;
    type Unit<S: Simd> = S::Codes<'a, N>;

    #[inline(always)]
    fn group<S: Simd>(self, s: S, group: usize) -> S::Codebook {
        s.codebook::<N>(self.scale(group), self.zero(group), self.minimum(group))
    }

    #[inline(always)]
    fn unit<S: Simd>(self, s: S, unit: usize) -> S::Codes<'a, N> {
        s.open(&self.codes[unit])
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, codebook: S::Codebook, codes: S::Codes<'a, N>, part: usize) -> S::F32 {
        s.decode::<N, OFFSET>(codes, codebook, part)
    }
}
