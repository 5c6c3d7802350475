//! Checks that the vector instructions in use compute correct results.
//!
//! Engines miscompile: the baseline compiler of V8 11.3 (Node 20) drops the accumulator of a relaxed dot product until
//! the optimizing compiler takes over. A WebAssembly build therefore runs [`self_check`] when it is loaded, before any
//! kernel has run. If it fails, a plainer build is loaded instead. A test runs the same check natively. The inputs are
//! fixed and small, and sums do not start from zero.

use super::columns::UNIT;
use super::linear;
use super::linear_int8::round_trip;
use super::parallel::Workers;
use super::rows::MINIMUMS;
use super::simd::{Isa, Kernel, Portable, Simd, for_each_part};
use super::{CpuBackend, CpuWeight};
use crate::backend::sample::{Numbers, fill};
use crate::backend::{WeightDesc, WeightFormat};
use crate::dtype::DType;
use crate::error::{Error, ErrorCode, Result};
use crate::quant::codings::Codebook;
use crate::quant::{ActivationGrid, Activations, Bits, Granularity, Scheme};

/// Largest relative difference of products from the reference, in the Euclidean norm: the reference has another order
/// and precision of sums. Measured at most 8.6e-7 over all cases of [`check_kernels`], for portable code, AVX2 and
/// AVX-512.
const TOLERANCE: f64 = 1e-5;
/// Rows and columns of [`self_check`]: not multiples of a tile, and with a tail in every kind of group.
const SHAPE: [usize; 2] = [5, 100];
/// Numbers of tokens: decode, and a prompt with a partial tile.
const TOKENS: [usize; 2] = [1, 5];

/// Checks the kernels of the instruction set that a [`CpuBackend`] uses, on small inputs. Instructions are compared
/// with portable code, products with a plain reference in double precision. Takes a millisecond; the first time in
/// WebAssembly ten, because the kernels must be compiled.
///
/// # Errors
/// `wrong_result` with the first kernel that differs.
pub fn self_check() -> Result<()> {
    let isa = Isa::detect();
    instructions(isa, &halves().step_by(83).collect::<Vec<_>>())?;
    let integer = |bits, granularity, symmetric| {
        WeightFormat::Packed(Scheme::symmetric(bits, granularity).with_symmetry(symmetric).into())
    };
    for format in [
        WeightFormat::Dense(DType::F32),
        WeightFormat::Dense(DType::F16),
        WeightFormat::Dense(DType::BF16),
        integer(Bits::Eight, Granularity::Channel, true),
        integer(Bits::Four, Granularity::Group(32), false),
        WeightFormat::Packed(
            Scheme::IntegerMinimum { bits: Bits::Two, granularity: Granularity::Group(64) }.into(),
        ),
    ] {
        products(isa, SHAPE, format, &TOKENS, 1)?;
    }
    Ok(())
}

/// As [`self_check`], for every weight format in many shapes and every finite half-precision number. For tests of
/// builds that cannot run unit tests. Returns the number of products compared, and the largest difference.
///
/// # Errors
/// As [`self_check`].
#[doc(hidden)]
pub fn check_kernels(seed: u32) -> Result<(usize, f64)> {
    check(Isa::detect(), seed)
}

/// Shapes of [`check_kernels`]: one row, one column, primes, and groups that do not divide.
const SHAPES: [[usize; 2]; 7] = [[1, 1], [1, 256], [7, 31], [13, 172], [64, 128], [33, 331], [3, 1000]];

fn check(isa: Isa, seed: u32) -> Result<(usize, f64)> {
    instructions(isa, &halves().collect::<Vec<_>>())?;
    let (mut count, mut worst) = (0, 0.0f64);
    for (index, shape) in SHAPES.into_iter().enumerate() {
        for format in formats() {
            let tokens = [1, 2, 3, 9];
            worst = worst.max(products(isa, shape, format, &tokens, seed.wrapping_add(index as u32))?);
            count += tokens.len();
        }
    }
    Ok((count, worst))
}

/// Every weight format, with groups that divide the columns and groups that do not.
pub(super) fn formats() -> Vec<WeightFormat> {
    let mut formats: Vec<_> =
        [DType::F32, DType::F16, DType::BF16].into_iter().map(WeightFormat::Dense).collect();
    for granularity in [
        Granularity::Tensor,
        Granularity::Channel,
        Granularity::Group(32),
        Granularity::Group(128),
        Granularity::Group(43),
    ] {
        for bits in [Bits::Two, Bits::Three, Bits::Four, Bits::Eight] {
            for symmetric in [true, false] {
                formats.push(WeightFormat::Packed(
                    Scheme::symmetric(bits, granularity).with_symmetry(symmetric).into(),
                ));
            }
            formats.push(WeightFormat::Packed(Scheme::IntegerMinimum { bits, granularity }.into()));
        }
    }
    for granularity in [Granularity::Tensor, Granularity::Channel] {
        formats.push(WeightFormat::Packed(Scheme::ternary(granularity).into()));
    }
    formats.push(WeightFormat::Packed(Codebook::Iq4Nl.into()));
    formats
}

/// All finite half-precision numbers.
fn halves() -> impl Iterator<Item = u16> {
    (0..=u16::MAX).filter(|half| half & 0x7C00 != 0x7C00)
}

fn wrong(isa: Isa, kernel: &str, detail: &str) -> Error {
    Error::new(ErrorCode::WrongResult, format!("{kernel} gives a wrong result with {}: {detail}", isa.name()))
}

/// Compares the operations that have one correct result, bit for bit.
fn instructions(isa: Isa, halves: &[u16]) -> Result<()> {
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    isa.run(Instructions { halves, out: &mut found });
    Instructions { halves, out: &mut expected }.run(Portable);
    for ((kernel, found), (_, expected)) in found.iter().zip(&expected) {
        for (found, expected) in found.iter().zip(expected) {
            if found != expected && !(found.is_nan() && expected.is_nan()) {
                return Err(wrong(
                    isa,
                    kernel,
                    &format!("expected {expected} as in portable code but found {found}"),
                ));
            }
        }
    }
    Ok(())
}

/// Runs the methods of [`Simd`] with one correct result on fixed operands.
pub(super) struct Instructions<'a> {
    pub(super) halves: &'a [u16],
    pub(super) out: &'a mut Vec<(&'static str, Vec<f32>)>,
}

impl Kernel for Instructions<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let out = self.out;
        let floats: [f32; UNIT] = std::array::from_fn(|i| i as f32 - 11.0);
        let bytes: [u8; 32] = std::array::from_fn(|i| (i * 73 % 256) as u8);
        let x: [i8; UNIT] = std::array::from_fn(|i| (i as i32 * 91 % 255 - 127) as i8);
        let (nibbles, pairs) = (bytes.first_chunk().expect("16 bytes"), bytes.last_chunk().expect("8 bytes"));
        macro_rules! unit {
            ($name:literal, $part:ident: $value:expr) => {{
                let mut unit = [0.0; UNIT];
                for_each_part!($part of S {
                    s.store($value, &mut unit, $part);
                });
                out.push(($name, unit.to_vec()));
            }};
        }
        for unit in self.halves.chunks(UNIT) {
            let mut halves = [0; UNIT];
            halves[..unit.len()].copy_from_slice(unit);
            unit!("load_f16", part: s.load_f16(&halves, part));
            unit!("load_bf16", part: s.load_bf16(&halves, part));
        }
        unit!("mul_add", part: s.mul_add(s.load(&floats, part), s.splat(2.0), s.load(&floats, part)));
        let mut total = 0.0;
        for part in 0..UNIT / S::LANES {
            total += s.reduce(s.load(&floats, part));
        }
        out.push(("reduce", vec![total]));
        // The second scale has eleven bits, like half precision.
        for (scale, zero, minimum) in [(0.25, 9, 0.0), (1711.0 / 131_072.0, 3, 0.0), (0.25, 0, -1.5)] {
            let codes = (s.open(&bytes), s.open(nibbles), s.open(pairs));
            let books = (
                s.codebook::<32>(scale, zero, minimum),
                s.codebook::<16>(scale, zero, minimum),
                s.codebook::<8>(scale, zero, minimum),
            );
            unit!("decode8", part: s.decode::<32, MINIMUMS>(codes.0, books.0, part));
            unit!("decode4", part: s.decode::<16, MINIMUMS>(codes.1, books.1, part));
            unit!("decode2", part: s.decode::<8, MINIMUMS>(codes.2, books.2, part));
        }
        let most = [[i8::MIN; UNIT], [i8::MAX; UNIT]];
        for x in [x, most[0], most[1]] {
            let sums = |ints| s.reduce_ints(ints) as f32;
            let scaled =
                |ints| s.reduce_sums(s.add_scaled(s.add_scaled(s.no_sums(), ints, 0.25), s.start(3), 2.0));
            for (name, codes) in [
                ("dot of 8 bits", s.unpack(&bytes)),
                ("dot of 8 bits", s.unpack(&[255; 32])),
                ("dot of 4 bits", s.unpack(nibbles)),
                ("dot of 4 bits", s.unpack(&[255; 16])),
                ("dot of 2 bits", s.unpack(pairs)),
            ] {
                let narrow = name != "dot of 8 bits";
                let twice = if narrow {
                    s.dot::<true>(s.dot::<true>(s.start(-7), codes, &x), codes, &x)
                } else {
                    s.dot::<false>(s.dot::<false>(s.start(-7), codes, &x), codes, &x)
                };
                out.push((name, vec![sums(twice), scaled(twice)]));
            }
        }
    }
}

/// Compares products of a weight with the reference, and tokens in a batch with the same tokens alone. Returns the
/// largest difference.
fn products(
    isa: Isa,
    [rows, cols]: [usize; 2],
    format: WeightFormat,
    counts: &[usize],
    seed: u32,
) -> Result<f64> {
    let mut worst = 0.0f64;
    for grid in [None, Some(ActivationGrid::Absmax127), Some(ActivationGrid::FullRange)] {
        if grid.is_some() && matches!(format, WeightFormat::Dense(_)) {
            continue;
        }
        let activations = if grid.is_some() { Activations::Int8 } else { Activations::F32 };
        let (rounded, grid) = (grid, grid.unwrap_or_default());
        let desc = WeightDesc { rows, cols, format, activations, grid, bias: true };
        let weight = fill(&mut CpuBackend::on(isa, Some(1)), &desc, seed)?.finish()?;
        let x = Numbers::new(seed).floats(counts.iter().max().map_or(0, |count| count * cols));
        for &count in counts {
            let x = &x[..count * cols];
            let found = product(isa, &weight, x)?;
            let expected = reference(&weight, rounded, x);
            let kernel =
                || format!("`linear` of {count} tokens, {rows} x {cols}, {format:?}, {activations:?}");
            let off = difference(&found, &expected);
            worst = worst.max(off);
            if off.is_nan() || off > TOLERANCE {
                return Err(wrong(isa, &kernel(), &format!("the relative error is {off:.1e}")));
            }
            for (x, found) in x.chunks(cols).zip(found.chunks(rows)) {
                if product(isa, &weight, x)? != found {
                    return Err(wrong(isa, &kernel(), "it differs from each token alone"));
                }
            }
        }
    }
    Ok(worst)
}

/// The products by definition, in double precision, with rows dequantized as for embeddings. It uses no kernel code, so
/// a WebAssembly build needs no second set of kernels for this check.
fn reference(weight: &CpuWeight, grid: Option<ActivationGrid>, x: &[f32]) -> Vec<f32> {
    let part = &weight.parts[0];
    let mut matrix = vec![0.0; part.rows * weight.cols];
    for (row, values) in matrix.chunks_exact_mut(weight.cols).enumerate() {
        part.dequantize_row(row, values);
    }
    let bias = |row: usize| part.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
    let mut y = Vec::new();
    for x in x.chunks_exact(weight.cols) {
        let mut x = x.to_vec();
        if let Some(grid) = grid {
            round_trip(&mut x, grid);
        }
        for (row, w) in matrix.chunks_exact(weight.cols).enumerate() {
            let products = w.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            y.push(products.fold(bias(row), |sum, product| sum + product) as f32);
        }
    }
    y
}

fn product(isa: Isa, weight: &CpuWeight, x: &[f32]) -> Result<Vec<f32>> {
    let count = x.len() / weight.cols;
    let mut y = vec![f32::NAN; count * weight.rows];
    linear::linear(isa, linear::Products::Repeatable, &Workers::new(Some(1)), x, count, weight, &mut y)?;
    Ok(y)
}

/// `|found - expected| / |expected|`.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let pairs = found.iter().zip(expected);
    let off = square(&mut pairs.map(|(&found, &expected)| f64::from(found) - f64::from(expected)));
    (off / square(&mut expected.iter().map(|&v| f64::from(v))).max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_in_use_passes() {
        self_check().unwrap();
    }

    #[test]
    fn every_instruction_set_computes_what_it_should() {
        for isa in Isa::available() {
            for seed in [1, 2] {
                let (count, worst) = check(isa, seed).unwrap();
                println!("{}: {count} products, at most {worst:.1e} off", isa.name());
            }
        }
    }

    #[test]
    fn portable_code_gives_the_right_answers() {
        let mut out = Vec::new();
        Instructions { halves: &[0x3C00, 0xC000, 0x0001, 0x7BFF], out: &mut out }.run(Portable);
        let find = |name: &str, index: usize| &out.iter().filter(|(n, _)| *n == name).nth(index).unwrap().1;
        assert_eq!(find("load_f16", 0)[..4], [1.0, -2.0, 2f32.powi(-24), 65504.0]);
        assert_eq!(find("mul_add", 0)[0], -33.0);
        assert_eq!(find("reduce", 0), &[(0..32).sum::<i32>() as f32 - 11.0 * 32.0]);
        assert_eq!(find("decode8", 0)[..3], [-9.0 / 4.0, 16.0, (146.0 - 9.0) / 4.0]);
        // 32 products of 255 and -128, twice.
        assert_eq!(find("dot of 8 bits", 3)[0], -7.0 - 2.0 * 1_044_480.0);
        assert_eq!(find("dot of 4 bits", 5)[0], -7.0 + 2.0 * 60_960.0);
    }
}
