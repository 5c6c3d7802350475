//! The matrix unit on Linux, which grants it to processes that request it. Its instructions are inline assembly,
//! because Rust has no stable intrinsics for them.

use super::{Block, EDGE, PARTS, Region, Step, TILE, Terms, Tile};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ffi::c_long;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Proof that the processor has AMX for `bfloat16` and the vector instructions that pack its operands, and that this
/// process may use it.
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

    /// Packs at most 32 rows into a left panel, with the parts that `terms` reads. `factors` multiplies each column.
    /// Missing elements are 0. Returns the largest number of parts of an element.
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

    /// Packs at most 32 columns into a right panel: they become the panel's rows. `factors` multiplies each row.
    /// Missing elements are 0. Returns the largest number of parts of an element.
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

    /// Transposes a left panel into a right one or back, for the parts that `terms` reads.
    pub(in super::super) fn turn(self, panel: &mut [Step], terms: Terms) {
        for half in panel.iter_mut().flat_map(|step| &mut step.0) {
            for tile in &mut half[..terms.parts()] {
                // SAFETY: as above.
                unsafe { transpose(tile) };
            }
        }
    }

    /// Configures the unit for this thread.
    pub(in super::super) fn tiles(self) -> Tiles {
        /// The operand of `ldtilecfg`: palette 1, then for each of eight registers the bytes per row and the rows.
        #[repr(C, align(64))]
        struct Shapes([u8; 64]);
        let mut shapes = Shapes([0; 64]);
        shapes.0[0] = 1;
        for register in 0..8 {
            shapes.0[16 + 2 * register] = size_of::<[u32; TILE]>() as u8;
            shapes.0[48 + register] = TILE as u8;
        }
        // SAFETY: the process may use the unit. No register of it is in use: only holders of a `Tiles` use them, and
        // every `Tiles` has the same shapes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        Tiles(PhantomData)
    }
}

/// The configured unit of one thread. It cannot leave the thread.
pub(in super::super) struct Tiles(PhantomData<*const ()>);

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the process may use the unit. Releasing it spares the system from saving idle registers at thread
        // switches.
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
        // The accumulators are tmm0 to tmm3: upper and lower rows, left and right columns. Tiles of the left side are
        // in tmm4 (upper) and tmm5 (lower), tiles of the right side in tmm6 and tmm7. Consecutive products share one
        // side, and the largest terms are added last.
        // SAFETY: each step of a panel is 6 KiB: high, middle and low tile of the upper rows, then of the lower ones.
        // The loop reads `left.len()` steps on both sides, and stores four tiles into the block, whose rows are 128
        // bytes. `self` is the proof that the unit is configured.
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

    /// As [`multiply`](Self::multiply), for numbers that have only a high part ([`Terms::One`]).
    fn multiply_high(&self, left: &[Step], right: &[Step], products: &mut Block) {
        assert!(left.len() == right.len() && !left.is_empty(), "as many columns on both sides");
        let lower = (&raw mut products.0[TILE]).cast::<f32>();
        // SAFETY: as above; of each step it reads the high tiles of the upper and of the lower rows.
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

/// Whether processor and system have AMX with `bfloat16`. Leaf 7 lists the unit; `xgetbv` lists the state that the
/// system saves.
fn has_tiles() -> bool {
    const TILES: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    /// State of the unit: shapes and registers.
    const STATE: u64 = 3 << 17;
    #[target_feature(enable = "xsave")]
    fn kept() -> u64 {
        // SAFETY: XCR0 exists if the system uses XSAVE, which the caller has detected.
        unsafe { _xgetbv(0) }
    }
    // AVX-512 was detected before this call, so leaf 7 and XSAVE exist.
    let features = __cpuid_count(7, 0).edx;
    features & (TILES | BF16) == TILES | BF16
        && is_x86_feature_detected!("xsave")
        // SAFETY: detected in the line above.
        && unsafe { kept() } & STATE == STATE
}

/// Requests the unit for all threads of this process. The system saves its registers (8 KiB) only for processes that
/// request it.
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

/// The first `N` parts of sixteen numbers, each in the lower half of its 32-bit lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn split<const N: usize>(values: __m512) -> [__m512i; N] {
    let mut rest = values;
    let mut parts = [_mm512_setzero_si512(); N];
    for part in &mut parts {
        // SAFETY: both types are 32 plain bytes.
        let rounded = unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(rest)) };
        *part = _mm512_cvtepu16_epi32(rounded);
        rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*part)));
    }
    parts
}

/// How many parts the numbers have, given the union of the bits of all their middle parts and of all their low parts.
/// Sign bits are ignored: the remainder of a negative number may be -0.
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

/// Loads up to sixteen numbers; missing ones are 0.
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

/// The lower halves of 32 lanes, in order.
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

/// Transposes the pairs of a tile.
#[target_feature(enable = "avx512f")]
fn transpose(tile: &mut Tile) {
    let mut a = [_mm512_setzero_si512(); TILE];
    let mut b = a;
    for (value, row) in a.iter_mut().zip(&tile.0) {
        // SAFETY: sixteen elements.
        *value = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    // Interleaves two rows, then four, within each lane of four elements.
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

/// The even lanes of both vectors, and the odd ones. A lane has four elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
    (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b))
}
