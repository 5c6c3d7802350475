//! The matrix unit on Linux, which hands it to programs that ask for it. Its instructions are written as assembly, because Rust has
//! no stable functions for them.

use super::{Block, EDGE, PARTS, Region, Step, TILE, Terms, Tile};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ffi::c_long;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Proof that the processor has AMX for `bfloat16` with the vector instructions that prepare its operands, and that this process may
/// use it.
#[derive(Clone, Copy)]
pub(in super::super) struct Amx(());

impl Amx {
    pub(in super::super) fn detect() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        let found = *FOUND.get_or_init(|| {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512bf16")
                && has_tiles()
                && may_use_tiles()
        });
        found.then_some(Self(()))
    }

    /// Makes a left panel of rows, at most 32, with the parts that `terms` are of; there may be a factor for each column. What is not
    /// there is 0. Returns how many parts numbers have here.
    pub(in super::super) fn split_rows(
        self,
        rows: Region<'_>,
        factors: Option<&[f32]>,
        panel: &mut [Step],
        terms: Terms,
    ) -> usize {
        assert!(rows.rows <= EDGE, "at most as many rows as a panel has");
        assert!(factors.is_none_or(|factors| factors.len() == rows.cols), "a factor for every column");
        assert_eq!(panel.len(), rows.cols.div_ceil(EDGE), "a step for every 32 columns");
        // SAFETY: a value of this type exists only where `detect` found the features.
        unsafe {
            match terms.parts() {
                1 => split_rows::<1>(rows, factors, panel),
                2 => split_rows::<2>(rows, factors, panel),
                _ => split_rows::<PARTS>(rows, factors, panel),
            }
        }
    }

    /// Makes a right panel of columns, at most 32: they are the panel's rows, and the rows its columns; there may be a factor for each
    /// row. What is not there is 0. Returns how many parts numbers have here.
    pub(in super::super) fn split_columns(
        self,
        columns: Region<'_>,
        factors: Option<&[f32]>,
        panel: &mut [Step],
    ) -> usize {
        assert!(columns.cols <= EDGE, "at most as many columns as a panel has");
        assert!(factors.is_none_or(|factors| factors.len() == columns.rows), "a factor for every row");
        assert_eq!(panel.len(), columns.rows.div_ceil(EDGE), "a step for every 32 rows");
        // SAFETY: as above.
        unsafe { split_columns(columns, factors, panel) }
    }

    /// Turns a left panel into a right one, and a right one into a left one: the parts that `terms` are of.
    pub(in super::super) fn turn(self, panel: &mut [Step], terms: Terms) {
        for half in panel.iter_mut().flat_map(|step| &mut step.0) {
            for tile in &mut half[..terms.parts()] {
                // SAFETY: as above.
                unsafe { transpose(tile) };
            }
        }
    }

    /// Sets up the unit of this thread.
    pub(in super::super) fn tiles(self) -> Tiles {
        /// What `ldtilecfg` reads: palette 1, and for each of eight registers the bytes of a row and the rows.
        #[repr(C, align(64))]
        struct Shapes([u8; 64]);
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for register in 0..8 {
            shapes.0[16 + 2 * register] = size_of::<[u32; TILE]>() as u8;
            shapes.0[48 + register] = TILE as u8;
        }
        // SAFETY: the process may use the unit. No register of it is in use: whoever uses one holds a `Tiles`, and all of those want
        // the same shapes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        Tiles(PhantomData)
    }
}

/// The unit of one thread, set up. Does not leave the thread.
pub(in super::super) struct Tiles(PhantomData<*const ()>);

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the process may use the unit. The system need not save an idle one when it changes between threads.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl Tiles {
    /// Sums the products of two panels over their columns.
    pub(in super::super) fn multiply(
        &self,
        left: &[Step],
        right: &[Step],
        terms: Terms,
        products: &mut Block,
    ) {
        assert_eq!(left.len(), right.len(), "a product sums over as many columns on both sides");
        if left.is_empty() {
            *products = Block::ZERO;
            return;
        }
        if terms == Terms::One {
            return self.multiply_high(left, right, products);
        }
        let lower = (&raw mut products.0[TILE]).cast::<f32>();
        // The accumulators are tmm0 to tmm3: upper and lower rows, left and right columns. Tiles of the left side are in tmm4 (upper)
        // and tmm5 (lower), of the right side in tmm6 and tmm7. Of two products that follow each other one side stays, and the largest
        // terms come last.
        // SAFETY: each step of a panel is 6 KiB: high, middle and low tile of the upper rows, then of the lower ones. The loop reads
        // `left.len()` of them on both sides, and stores four tiles into the block, whose rows are 128 bytes. `self` is the proof that
        // the unit is set up.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{left} + {row}*1]",
                "tileloadd tmm5, [{left} + {row}*1 + 3072]",
                // high low
                "test {six}, {six}",
                "jz 3f",
                "tileloadd tmm6, [{right} + {row}*1 + 2048]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {row}*1 + 5120]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "3:",
                // high middle
                "test {middle}, {middle}",
                "jz 6f",
                "tileloadd tmm6, [{right} + {row}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {row}*1 + 4096]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "6:",
                "tileloadd tmm4, [{left} + {row}*1 + 1024]",
                "tileloadd tmm5, [{left} + {row}*1 + 4096]",
                // middle middle
                "test {five}, {five}",
                "jz 4f",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "4:",
                // middle high
                "tileloadd tmm6, [{right} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {row}*1 + 3072]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // low high
                "test {low}, {low}",
                "jz 5f",
                "tileloadd tmm4, [{left} + {row}*1 + 2048]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{left} + {row}*1 + 5120]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "5:",
                // high high
                "tileloadd tmm4, [{left} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{left} + {row}*1 + 3072]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 6144",
                "add {right}, 6144",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{upper} + {row}*2], tmm0",
                "tilestored [{upper} + {row}*2 + 64], tmm1",
                "tilestored [{lower} + {row}*2], tmm2",
                "tilestored [{lower} + {row}*2 + 64], tmm3",
                left = inout(reg) left.as_ptr() => _,
                right = inout(reg) right.as_ptr() => _,
                steps = inout(reg) left.len() => _,
                upper = in(reg) products,
                lower = in(reg) lower,
                row = in(reg) size_of::<[u32; TILE]>(),
                six = in(reg) usize::from(terms == Terms::Six),
                five = in(reg) usize::from(matches!(terms, Terms::Six | Terms::Five)),
                middle = in(reg) usize::from(terms != Terms::Codes),
                low = in(reg) usize::from(terms != Terms::Three),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// As [`multiply`](Self::multiply), for numbers that are their high parts.
    fn multiply_high(&self, left: &[Step], right: &[Step], products: &mut Block) {
        assert!(left.len() == right.len() && !left.is_empty(), "as many columns on both sides");
        let lower = (&raw mut products.0[TILE]).cast::<f32>();
        // SAFETY: as above; of each step the first tile of the upper rows is read, and of the lower ones.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{left} + {row}*1]",
                "tileloadd tmm6, [{right} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {row}*1 + 3072]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{left} + {row}*1 + 3072]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 6144",
                "add {right}, 6144",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{upper} + {row}*2], tmm0",
                "tilestored [{upper} + {row}*2 + 64], tmm1",
                "tilestored [{lower} + {row}*2], tmm2",
                "tilestored [{lower} + {row}*2 + 64], tmm3",
                left = inout(reg) left.as_ptr() => _,
                right = inout(reg) right.as_ptr() => _,
                steps = inout(reg) left.len() => _,
                upper = in(reg) products,
                lower = in(reg) lower,
                row = in(reg) size_of::<[u32; TILE]>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }
}

const _: () =
    assert!(size_of::<Step>() == 6144 && size_of::<Block>() == EDGE * 128 && size_of::<Tile>() == 1024);

/// Whether processor and system have AMX with `bfloat16`: leaf 7 names the unit, and `xgetbv` what the system keeps of it.
fn has_tiles() -> bool {
    const TILES: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    /// The unit's shapes and registers.
    const STATE: u64 = 3 << 17;
    #[target_feature(enable = "xsave")]
    fn kept() -> u64 {
        // SAFETY: XCR0 exists where the system uses XSAVE, which the caller found.
        unsafe { _xgetbv(0) }
    }
    // AVX-512 was found before this is called, so there are leaf 7 and XSAVE.
    let features = __cpuid_count(7, 0).edx;
    features & (TILES | BF16) == TILES | BF16
        && is_x86_feature_detected!("xsave")
        // SAFETY: found just now.
        && unsafe { kept() } & STATE == STATE
}

/// Asks the system for the unit, for all threads of this process: its registers are 8 KiB that are kept for those alone who ask.
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: c_long = 158;
    const ARCH_REQ_XCOMP_PERM: c_long = 0x1023;
    const XFEATURE_XTILEDATA: c_long = 18;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    // SAFETY: the call takes two numbers and touches no memory.
    unsafe { syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// The first parts of sixteen numbers, each in the lower half of its place.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn split<const N: usize>(values: __m512) -> [__m512i; N] {
    let mut rest = values;
    let mut parts = [_mm512_setzero_si512(); N];
    for part in &mut parts {
        // SAFETY: both are 32 bytes without a meaning of their own.
        let rounded = unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(rest)) };
        *part = _mm512_cvtepu16_epi32(rounded);
        rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*part)));
    }
    parts
}

/// How many parts numbers have, by the bits of all their middle and of all their low ones: all but the sign's, for the rest of a
/// negative number may be -0.
#[inline]
#[target_feature(enable = "avx512f")]
fn parts_of(middle: __m512i, low: __m512i) -> usize {
    let any = |bits| _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7FFF)) != 0;
    if any(low) {
        3
    } else if any(middle) {
        2
    } else {
        1
    }
}

/// One row of a region.
#[inline(always)]
fn row_of<'a>(region: &Region<'a>, row: usize) -> &'a [f32] {
    &region.values[row * region.stride..][..region.cols]
}

/// The first of sixteen numbers: as many as there are.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32]) -> __m512 {
    let mask = ((1u32 << values.len().min(TILE)) - 1) as __mmask16;
    // SAFETY: the mask has no more elements than the slice.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
}

/// See [`Amx::split_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_rows<const N: usize>(rows: Region<'_>, factors: Option<&[f32]>, panel: &mut [Step]) -> usize {
    let (mut middle, mut low) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for row in 0..EDGE {
        if row >= rows.rows {
            for step in &mut *panel {
                step.0[row / TILE].iter_mut().for_each(|tile| tile.0[row % TILE] = [0; TILE]);
            }
            continue;
        }
        for (index, (values, step)) in row_of(&rows, row).chunks(EDGE).zip(&mut *panel).enumerate() {
            let tiles = &mut step.0[row / TILE];
            let (first, second) = values.split_at(values.len().min(TILE));
            let (mut first, mut second) = (load(first), load(second));
            if let Some(factors) = factors {
                let factors = &factors[index * EDGE..][..values.len()];
                let (left, right) = factors.split_at(values.len().min(TILE));
                (first, second) = (_mm512_mul_ps(first, load(left)), _mm512_mul_ps(second, load(right)));
            }
            let (first, second): ([_; N], [_; N]) = (split(first), split(second));
            if N > 1 {
                middle = _mm512_or_si512(middle, _mm512_or_si512(first[N.min(2) - 1], second[N.min(2) - 1]));
            }
            if N == PARTS {
                low = _mm512_or_si512(low, _mm512_or_si512(first[N - 1], second[N - 1]));
            }
            for ((tile, first), second) in tiles.iter_mut().zip(first).zip(second) {
                store(join(first, second), &mut tile.0[row % TILE]);
            }
        }
    }
    parts_of(middle, low)
}

/// The lower halves of sixteen and sixteen numbers, in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn join(first: __m512i, second: __m512i) -> __m512i {
    let first = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(first));
    _mm512_inserti64x4::<1>(first, _mm512_cvtepi32_epi16(second))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(values: __m512i, row: &mut [u32; TILE]) {
    // SAFETY: sixteen elements.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), values) }
}

/// See [`Amx::split_columns`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_columns(columns: Region<'_>, factors: Option<&[f32]>, panel: &mut [Step]) -> usize {
    let (mut middle, mut low) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for (index, step) in panel.iter_mut().enumerate() {
        for pair in 0..TILE {
            let first = index * EDGE + 2 * pair;
            for half in 0..2 {
                let mut row = |row: usize| {
                    if row >= columns.rows {
                        return [_mm512_setzero_si512(); PARTS];
                    }
                    let values = row_of(&columns, row);
                    let mut values = load(&values[(half * TILE).min(values.len())..]);
                    if let Some(factors) = factors {
                        values = _mm512_mul_ps(values, _mm512_set1_ps(factors[row]));
                    }
                    let parts = split::<PARTS>(values);
                    middle = _mm512_or_si512(middle, parts[1]);
                    low = _mm512_or_si512(low, parts[2]);
                    parts
                };
                let (even, odd) = (row(first), row(first + 1));
                for ((tile, even), odd) in step.0[half].iter_mut().zip(even).zip(odd) {
                    store(_mm512_or_si512(even, _mm512_slli_epi32::<16>(odd)), &mut tile.0[pair]);
                }
            }
        }
    }
    parts_of(middle, low)
}

/// Exchanges rows and pairs.
#[target_feature(enable = "avx512f")]
fn transpose(tile: &mut Tile) {
    let mut a = [_mm512_setzero_si512(); TILE];
    let mut b = a;
    for (value, row) in a.iter_mut().zip(&tile.0) {
        // SAFETY: sixteen elements.
        *value = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    // Two rows, then four, in each lane of four elements.
    for i in 0..TILE / 2 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for i in (0..TILE).step_by(4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    // Lane `l` of `a[4 q + c]` is now column `4 l + c` of rows `4 q` to `4 q + 3`.
    for c in 0..4 {
        let (even_01, odd_01) = halves(a[c], a[4 + c]);
        let (even_23, odd_23) = halves(a[8 + c], a[12 + c]);
        (b[c], b[8 + c]) = halves(even_01, even_23);
        (b[4 + c], b[12 + c]) = halves(odd_01, odd_23);
    }
    for (row, value) in tile.0.iter_mut().zip(b) {
        store(value, row);
    }
}

/// The even lanes of both, and the odd ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
    (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b))
}
