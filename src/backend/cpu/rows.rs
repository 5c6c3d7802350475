//! Rows of weight matrices as the dot products read them: one unit of 32 columns at a time, as floats or as codes.
//! Floor 4.

use super::columns::{Columns, UNIT};
use super::simd::Simd;
use super::weight::{Packed, Zeros};
use std::marker::PhantomData;

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

/// Rows of floats: the values, and the units of a row.
pub(super) struct F32Matrix<'a>(pub(super) &'a [[f32; UNIT]], pub(super) usize);
/// As [`F32Matrix`], IEEE half precision, without NaN and infinity.
pub(super) struct F16Matrix<'a>(pub(super) &'a [[u16; UNIT]], pub(super) usize);
/// As [`F32Matrix`], bfloat16.
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

/// How wide the codes of a packed matrix are kept.
pub(super) trait Width: Copy + Send + Sync + 'static {
    type Unit: Copy + Sync;
    /// What the parts of a unit share.
    type Codes<'a, S: Simd>: Copy;
    /// Whether codes are below 16.
    const NARROW: bool;
    fn units(codes: &[u8]) -> &[Self::Unit];
    fn unpack<S: Simd>(s: S, unit: &Self::Unit) -> S::Bytes;
    fn codebook<S: Simd>(s: S, scale: f32, zero_point: u8, minimum: f32) -> S::Codebook;
    fn open<S: Simd>(s: S, unit: &Self::Unit) -> Self::Codes<'_, S>;
    fn decode<S: Simd, const OFFSET: u8>(
        s: S,
        codes: Self::Codes<'_, S>,
        codebook: S::Codebook,
        part: usize,
    ) -> S::F32;
}

macro_rules! width {
    ($name:ident, $bytes:literal, $narrow:literal, $unpack:ident, $codes:ident, $open:ident, $decode:ident) => {
        /// Codes of as many bits as the name says.
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Width for $name {
            type Unit = [u8; $bytes];
            type Codes<'a, S: Simd> = S::$codes<'a>;
            const NARROW: bool = $narrow;

            #[inline(always)]
            fn units(codes: &[u8]) -> &[Self::Unit] {
                codes.as_chunks::<$bytes>().0
            }

            #[inline(always)]
            fn unpack<S: Simd>(s: S, unit: &Self::Unit) -> S::Bytes {
                s.$unpack(unit)
            }

            #[inline(always)]
            fn codebook<S: Simd>(s: S, scale: f32, zero_point: u8, minimum: f32) -> S::Codebook {
                s.codebook::<{ $bytes / 4 }>(scale, zero_point, minimum)
            }

            #[inline(always)]
            fn open<S: Simd>(s: S, unit: &Self::Unit) -> S::$codes<'_> {
                s.$open(unit)
            }

            #[inline(always)]
            fn decode<S: Simd, const OFFSET: u8>(
                s: S,
                codes: S::$codes<'_>,
                codebook: S::Codebook,
                part: usize,
            ) -> S::F32 {
                s.$decode::<OFFSET>(codes, codebook, part)
            }
        }
    };
}

width!(Bits2, 8, true, unpack2, Codes2, open2, decode2);
width!(Bits4, 16, true, unpack4, Codes4, open4, decode4);
width!(Bits8, 32, false, unpack8, Codes8, open8, decode8);

/// `OFFSET` of a matrix that stores none.
pub(super) const NO_OFFSET: u8 = 0;
/// `OFFSET` of a matrix that stores zero points.
pub(super) const ZERO_POINTS: u8 = 1;
/// `OFFSET` of a matrix that stores minimums.
pub(super) const MINIMUMS: u8 = 2;

/// A packed matrix with codes of a known width; `OFFSET` says what it stores beside scales.
pub(super) struct CodeMatrix<'a, W, const OFFSET: u8> {
    pub(super) packed: &'a Packed,
    pub(super) columns: Columns,
    pub(super) width: PhantomData<W>,
}

/// One row of a [`CodeMatrix`].
#[derive(Clone, Copy)]
pub(super) struct CodeRow<'a, W: Width, const OFFSET: u8> {
    codes: &'a [W::Unit],
    scales: &'a [f32],
    /// Empty where the zero point is constant.
    zeros: &'a [u8],
    /// Empty where there are none.
    minimums: &'a [f32],
    constant_zero: u8,
}

impl<W: Width, const OFFSET: u8> CodeRow<'_, W, OFFSET> {
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
        W::unpack(s, &self.codes[unit])
    }
}

impl<W: Width, const OFFSET: u8> FloatMatrix for CodeMatrix<'_, W, OFFSET> {
    type Row<'a>
        = CodeRow<'a, W, OFFSET>
    where
        Self: 'a;

    #[inline(always)]
    fn row(&self, row: usize) -> CodeRow<'_, W, OFFSET> {
        let (units, groups) = (self.columns.units, self.columns.groups);
        let groups = row * groups..(row + 1) * groups;
        let (zeros, minimums, constant_zero) = match &self.packed.zeros {
            Zeros::Constant(zero) => (&[][..], &[][..], *zero),
            Zeros::PerGroup(zeros) => (&zeros[groups.clone()], &[][..], 0),
            Zeros::Minimums(minimums) => (&[][..], &minimums[groups.clone()], 0),
        };
        CodeRow {
            codes: &W::units(&self.packed.codes)[row * units..(row + 1) * units],
            scales: &self.packed.scales[groups],
            zeros,
            minimums,
            constant_zero,
        }
    }
}

impl<'a, W: Width, const OFFSET: u8> FloatRow for CodeRow<'a, W, OFFSET> {
    type Group<S: Simd> = S::Codebook;
    type Unit<S: Simd> = W::Codes<'a, S>;

    #[inline(always)]
    fn group<S: Simd>(self, s: S, group: usize) -> S::Codebook {
        W::codebook(s, self.scale(group), self.zero(group), self.minimum(group))
    }

    #[inline(always)]
    fn unit<S: Simd>(self, s: S, unit: usize) -> W::Codes<'a, S> {
        W::open(s, &self.codes[unit])
    }

    #[inline(always)]
    fn part<S: Simd>(s: S, codebook: S::Codebook, codes: W::Codes<'a, S>, part: usize) -> S::F32 {
        W::decode::<S, OFFSET>(s, codes, codebook, part)
    }
}
