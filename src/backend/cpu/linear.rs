//! `y = W x + bias` for every weight format: prepares the input once, splits the work into tasks, and selects the
//! kernel.
//!
//! The kernels are in [`super::linear_float`] and [`super::linear_int8`], those of split products in [`super::amx`].

use super::amx::{Amx, Block, EDGE, Region, Split, Step, Terms};
use super::columns::UNIT;
use super::linear_float::{Dot, Expand, MAX_ROWS, Multiply, OutputColumns, TILE_ROWS};
use super::linear_input::{BLOCK, Input, Values, at_least};
use super::linear_int8::{Int8Task, QuantizedTokens, nearest};
use super::parallel::{Tiles, Workers};
use super::rows::{Bf16Matrix, CodeMatrix, F16Matrix, F32Matrix, FloatMatrix};
use super::rows::{MINIMUMS, NO_OFFSET, ZERO_POINTS};
use super::simd::Isa;
use super::weight::{CpuWeight, Data, Packed, Part, Zeros};
use crate::error::Result;
use crate::quant::linalg::{Matrix, add_product};
use std::cell::RefCell;
use std::ops::Range;

/// Elements of a block of dequantized rows. The block and as many elements of tokens fit in the L2 cache.
const BLOCK_ELEMENTS: usize = 32 * 1024;
/// Tokens per task: enough to amortize dequantizing a block of rows, few enough to split a prompt into tasks.
const TASK_TOKENS: usize = 128;
/// Minimum tokens for split products to pay off: half a panel.
const SPLIT_TOKENS: usize = EDGE / 2;
/// Minimum tokens for whole matrix products: enough to amortize packing both operands.
pub(super) const WHOLE_TOKENS: usize = 64;
/// Steps of a task's weight panels in split products. With one panel of tokens they fit in the L2 cache, and they have
/// enough rows to amortize loading each panel of tokens.
const SPLIT_STEPS: usize = 160;
/// Tasks per thread for a single token: enough to balance the load, few enough to start fast.
const DECODE_TASKS_PER_THREAD: usize = 4;

/// Some rows of one part times some tokens.
struct ProductTask {
    part: usize,
    rows: Range<usize>,
    tokens: Range<usize>,
}

/// Splits the products of one part into tasks. `split` says whether they are split products.
fn cut(index: usize, part: &Part, count: usize, threads: usize, split: bool, tasks: &mut Vec<ProductTask>) {
    let (rows, tokens) = if split {
        ((SPLIT_STEPS / part.columns.units).max(1) * EDGE, count)
    } else if count == 1 {
        (part.rows.div_ceil(threads * DECODE_TASKS_PER_THREAD), 1)
    } else {
        ((BLOCK_ELEMENTS / part.columns.padded()).min(MAX_ROWS), TASK_TOKENS)
    };
    let rows = rows.clamp(1, part.rows).next_multiple_of(TILE_ROWS);
    for first_row in (0..part.rows).step_by(rows) {
        for token in (0..count).step_by(tokens) {
            tasks.push(ProductTask {
                part: index,
                rows: first_row..(first_row + rows).min(part.rows),
                tokens: token..(token + tokens).min(count),
            });
        }
    }
}

/// How products of many tokens may be summed.
pub(super) enum Products<'a> {
    /// Each token as if it were alone.
    Repeatable,
    /// In any order, from `bfloat16` parts on the matrix unit.
    Split(&'a mut Split),
    /// In any order, as whole matrix products.
    Whole,
}

/// `y[t, :] = W x[t, :] + bias`; `x` is `[count, cols]`, `y` is `[count, rows of all parts]`.
///
/// # Errors
/// `out_of_memory` when the padded or rounded input does not fit.
pub(super) fn linear(
    isa: Isa,
    products: Products<'_>,
    workers: &Workers,
    x: &[f32],
    count: usize,
    weight: &CpuWeight,
    y: &mut [f32],
) -> Result<()> {
    let (mut split, whole) = match products {
        Products::Repeatable => (None, false),
        Products::Split(split) => (Some(split), false),
        Products::Whole => (None, count >= WHOLE_TOKENS),
    };
    let mut inputs: Vec<Input<'_>> = Vec::new();
    // For each part: its input, and its first column in `y`.
    let mut places = Vec::new();
    let mut column = 0;
    let mut tasks = Vec::new();
    for (index, part) in weight.parts.iter().enumerate() {
        if let (true, Some(matrix)) = (whole, part.floats()) {
            whole_product(workers, x, (matrix, part), (y, weight.rows, column));
            places.push((usize::MAX, column));
            column += part.rows;
            continue;
        }
        let input = match inputs.iter().position(|input| input.serves(part)) {
            Some(input) => input,
            None => {
                let input = Input::prepare(workers, x, part)?;
                inputs.push(match split.as_deref_mut().filter(|_| count >= SPLIT_TOKENS) {
                    Some(split) => input.split(split, workers, part)?,
                    None => input,
                });
                inputs.len() - 1
            }
        };
        let is_split = matches!(inputs[input].values, Values::Split { .. } | Values::Int8Split { .. });
        cut(index, part, count, workers.threads(), is_split, &mut tasks);
        places.push((input, column));
        column += part.rows;
    }
    let y = Tiles::new(y, weight.rows);
    let work = weight.rows.saturating_mul(weight.cols).saturating_mul(count);
    workers.run(tasks.len(), work, |task| {
        let task = &tasks[task];
        let (input, column) = places[task.part];
        let part = &weight.parts[task.part];
        let target = OutputColumns { y: &y, column, bias: part.bias.as_deref() };
        ProductJob { isa, part, task, input: &inputs[input], target }.run();
    });
    if let Some(split) = split {
        // Keeps the panels' memory for the next product.
        for input in inputs {
            if let Values::Split { panels, .. } | Values::Int8Split { panels, .. } = input.values {
                split.shared = panels;
            }
        }
    }
    Ok(())
}

/// `y[:, column..] = x matrix^T + bias` of a part, by `matrixmultiply`. Rows of `y` are `stride` elements apart.
fn whole_product(
    workers: &Workers,
    x: &[f32],
    (matrix, part): (&[f32], &Part),
    (y, stride, column): (&mut [f32], usize, usize),
) {
    let (rows, cols) = (part.rows, part.columns.cols);
    let count = y.len() / stride;
    let band = count.div_ceil(workers.threads()).max(WHOLE_TOKENS);
    workers.run_chunks(y, band * stride, count.saturating_mul(rows).saturating_mul(cols), |index, y| {
        let count = y.len() / stride;
        for y in y.chunks_mut(stride) {
            match &part.bias {
                Some(bias) => y[column..column + rows].copy_from_slice(bias),
                None => y[column..column + rows].fill(0.0),
            }
        }
        let x = Matrix::new(&x[index * band * cols..], count, cols, cols);
        let matrix = Matrix::new(matrix, rows, cols, cols).transposed();
        add_product(1.0, x, matrix, &mut y[column..], stride);
    });
}

/// One task with its operands.
struct ProductJob<'a> {
    isa: Isa,
    part: &'a Part,
    task: &'a ProductTask,
    input: &'a Input<'a>,
    target: OutputColumns<'a>,
}

/// Bytes kept for split products of `tokens` tokens of `width` elements: panels of the tokens and, for each thread, a
/// task's weight panels and a block of dequantized rows.
pub(super) fn split_bytes(tokens: usize, width: usize, threads: usize) -> usize {
    let units = width.div_ceil(UNIT);
    let tokens = tokens.div_ceil(EDGE) * units;
    let rows = (SPLIT_STEPS / units.max(1)).max(1) * units;
    (tokens + threads * rows) * size_of::<Step>() + threads * EDGE * width * size_of::<f32>()
}

thread_local! {
    /// Weight rows as right panels; kept between tasks like [`BLOCK`].
    static PANELS: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
}

impl ProductJob<'_> {
    fn run(&self) {
        let units = self.part.columns.units;
        match &self.part.data {
            Data::F32(values) => {
                let values = values.as_chunks().0;
                if let Values::Split { amx, terms, panels, .. } = &self.input.values {
                    let split_rows = |rows: Range<usize>, panel: &mut [Step]| {
                        let rows = &values[rows.start * units..rows.end * units];
                        amx.split_rows(Region::padded(rows, units), None, panel, *terms)
                    };
                    self.split_products(*amx, *terms, panels, split_rows, |_, _, _| ());
                } else if self.task.tokens.len() == 1 {
                    self.float(&F32Matrix(values, units));
                } else {
                    let rows = self.task.rows.clone();
                    self.multiply(&values[rows.start * units..rows.end * units], rows);
                }
            }
            Data::F16 { values, .. } => self.float(&F16Matrix(values.as_chunks().0, units)),
            Data::BF16(values) => self.float(&Bf16Matrix(values.as_chunks().0, units)),
            Data::Coded(coded) => {
                self.decoded(|rows, out| coded.decode(self.part.columns, rows, out.as_flattened_mut()))
            }
            Data::Packed(packed) => match packed.unit_bytes() {
                8 => self.codes_of::<8>(packed),
                16 => self.codes_of::<16>(packed),
                _ => self.codes_of::<32>(packed),
            },
        }
    }

    fn codes_of<const N: usize>(&self, packed: &Packed) {
        match &packed.zeros {
            Zeros::Constant(_) => self.codes::<N, NO_OFFSET>(packed),
            Zeros::PerGroup(_) => self.codes::<N, ZERO_POINTS>(packed),
            Zeros::Minimums(_) => self.codes::<N, MINIMUMS>(packed),
        }
    }

    fn codes<const N: usize, const OFFSET: u8>(&self, packed: &Packed) {
        let matrix = CodeMatrix::<N, OFFSET> { packed, columns: self.part.columns };
        match &self.input.values {
            Values::F32 { .. } | Values::Split { .. } => self.float(&matrix),
            Values::Int8Split { amx, tokens, panels } => self.integers(*amx, packed, &matrix, tokens, panels),
            Values::Int8(x) => self.isa.run(Int8Task {
                matrix: &matrix,
                rows: self.task.rows.clone(),
                tokens: self.task.tokens.clone(),
                x,
                target: self.target,
            }),
        }
    }

    /// Multiplies integers by integers, then by their scales. Gives the same bits as [`Int8Task`].
    fn integers<M: FloatMatrix>(
        &self,
        amx: Amx,
        packed: &Packed,
        matrix: &M,
        tokens: &QuantizedTokens,
        panels: &[Step],
    ) {
        let columns = self.part.columns;
        let scales = packed.scales_of_rows(columns).unwrap_or_default();
        let mut kept = BLOCK.take();
        let split_rows = |rows: Range<usize>, panel: &mut [Step]| {
            let out = at_least(&mut kept, rows.len() * columns.units, [0.0; UNIT]);
            self.isa.run(Expand { matrix, columns, rows: rows.clone(), out: &mut *out });
            for (row, scale) in out.chunks_exact_mut(columns.units).zip(&scales[rows]) {
                // Restores the integers: their products with the scale were rounded.
                row.as_flattened_mut().iter_mut().for_each(|value| *value = nearest(*value / scale));
            }
            amx.split_rows(Region::padded(out, columns.units), None, panel, Terms::One)
        };
        self.split_products(amx, Terms::One, panels, split_rows, |rows, token, sums| {
            for (sum, scale) in sums.iter_mut().zip(&scales[rows]) {
                *sum = *sum / tokens.scales()[token] * scale;
            }
        });
        BLOCK.set(kept);
    }

    fn float<M: FloatMatrix>(&self, matrix: &M) {
        let columns = self.part.columns;
        let ProductTask { rows, tokens, .. } = self.task;
        if let (Values::F32 { .. }, 1) = (&self.input.values, tokens.len()) {
            let x = &self.x()[tokens.start * columns.units..(tokens.start + 1) * columns.units];
            let rows = rows.clone();
            return self.isa.run(Dot { matrix, columns, rows, token: tokens.start, x, target: self.target });
        }
        self.decoded(|rows, out| self.isa.run(Expand { matrix, columns, rows, out }));
    }

    /// Multiplies by rows that `decode` dequantizes, `[rows, units]`.
    fn decoded(&self, decode: impl Fn(Range<usize>, &mut [[f32; UNIT]])) {
        let units = self.part.columns.units;
        // Taken, not borrowed: a closure would not be compiled for the vector instructions.
        let mut kept = BLOCK.take();
        if let Values::Split { amx, terms, panels, .. } = &self.input.values {
            let split_rows = |rows: Range<usize>, panel: &mut [Step]| {
                let block = at_least(&mut kept, rows.len() * units, [0.0; UNIT]);
                decode(rows, block);
                amx.split_rows(Region::padded(block, units), None, panel, *terms)
            };
            self.split_products(*amx, *terms, panels, split_rows, |_, _, _| ());
        } else {
            // A task of one token has many rows.
            for start in self.task.rows.clone().step_by(MAX_ROWS) {
                let rows = start..self.task.rows.end.min(start + MAX_ROWS);
                let block = at_least(&mut kept, rows.len() * units, [0.0; UNIT]);
                decode(rows.clone(), block);
                self.multiply(block, rows);
            }
        }
        BLOCK.set(kept);
    }

    /// Multiplies by the tokens' `panels`, which have the parts that `terms` reads. `split_rows` packs some weight rows
    /// into a left panel and returns how many parts they have. Weights of 16 bits have no low part; nor have 4-bit
    /// codes with a 16-bit scale. `finish` receives the sums of some rows with one token.
    fn split_products(
        &self,
        amx: Amx,
        terms: Terms,
        panels: &[Step],
        mut split_rows: impl FnMut(Range<usize>, &mut [Step]) -> usize,
        finish: impl Fn(Range<usize>, usize, &mut [f32]),
    ) {
        let units = self.part.columns.units;
        let ProductTask { rows, tokens, .. } = self.task;
        let mut kept = PANELS.take();
        let matrix = at_least(&mut kept, rows.len().div_ceil(EDGE) * units, Step::ZERO);
        let mut parts = 1;
        for (panel, first) in matrix.chunks_exact_mut(units).zip(rows.clone().step_by(EDGE)) {
            parts = parts.max(split_rows(first..rows.end.min(first + EDGE), panel));
            amx.turn(panel, terms);
        }
        let terms = terms.of(parts);
        let tiles = amx.tiles();
        let mut products = Block::ZERO;
        for (panel, first) in panels.chunks_exact(units).zip(tokens.clone().step_by(EDGE)) {
            for (matrix, first_row) in matrix.chunks_exact(units).zip(rows.clone().step_by(EDGE)) {
                tiles.multiply(panel, matrix, terms, &mut products);
                let rows = first_row..rows.end.min(first_row + EDGE);
                for (token, products) in (first..tokens.end).zip(&mut products.0) {
                    finish(rows.clone(), token, &mut products[..]);
                    // SAFETY: tasks differ in rows.
                    unsafe { self.target.put_run(rows.clone(), token, products) };
                }
            }
        }
        PANELS.set(kept);
    }

    /// Multiplies by `matrix`, which holds `rows` only.
    fn multiply(&self, matrix: &[[f32; UNIT]], rows: Range<usize>) {
        self.isa.run(Multiply {
            matrix,
            units: self.part.columns.units,
            rows,
            tokens: self.task.tokens.clone(),
            x: self.x(),
            target: self.target,
        });
    }

    fn x(&self) -> &[[f32; UNIT]] {
        match &self.input.values {
            Values::F32 { values, .. } => values.units(),
            Values::Split { .. } | Values::Int8(_) | Values::Int8Split { .. } => {
                unreachable!("this part meets floating-point activations")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        Matrix, Random, backend, backends, f32_buffer, formats, is_affine, load, load_repeated, parts_of,
        read, reordered,
    };
    use crate::backend::{Backend, DeviceOps, Element, Sums, WeightDesc, WeightFormat, WeightView};
    use crate::dtype::DType;
    use crate::quant::{ActivationGrid, Activations, QuantizedTensor, Scheme};
    use crate::task::block_on;
    use half::f16;

    /// Largest deviation from the `f64` oracle, relative to `sum |w x|`. Measured 1.0e-7 over all cases, with split
    /// products 1.4e-7.
    const RELATIVE_TOLERANCE: f64 = 5e-7;

    /// Expected outputs of `linear`, each with the sum of magnitudes that its error is relative to.
    fn oracle(
        matrix: &Matrix,
        x: &[f32],
        rows: usize,
        cols: usize,
        grid: Option<ActivationGrid>,
    ) -> Vec<(f64, f64)> {
        let mut expected = Vec::new();
        for x in x.chunks_exact(cols) {
            let absmax = x.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            let rounded = |x: f32| match grid {
                None => f64::from(x),
                Some(ActivationGrid::Absmax127) => {
                    let scale = 127.0 / absmax.max(1e-5);
                    f64::from((x * scale).round_ties_even()) / f64::from(scale)
                }
                Some(ActivationGrid::FullRange) => {
                    let step = absmax / 127.5;
                    f64::from((x / step).clamp(-128.0, 127.0).round_ties_even()) * f64::from(step)
                }
            };
            for row in 0..rows {
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for (col, &x) in x.iter().enumerate() {
                    let x = rounded(x);
                    let w = matrix.value(row, col, cols);
                    sum += w * x;
                    // Zero points are subtracted from sums of codes, so their magnitude bounds the rounding error.
                    magnitude += (w * x).abs();
                    if let (Matrix::Packed(QuantizedTensor::Affine(tensor)), Some(_)) = (matrix, grid) {
                        let (_, zero, scale, minimum) = parts_of(tensor, row, col);
                        magnitude += (f64::from(zero) * scale * x).abs() + (minimum * x).abs();
                    }
                }
                expected.push((sum, magnitude));
            }
        }
        expected
    }

    #[test]
    fn every_format_agrees_with_the_oracle_and_with_itself() {
        let mut random = Random::new(1);
        let mut worst = 0.0f64;
        for (rows, cols) in [(1, 1), (7, 31), (13, 172), (67, 128), (33, 331)] {
            for format in formats() {
                let matrix = Matrix::random(&mut random, rows, cols, format);
                let x = random.floats(33 * cols);
                let bias = random.floats(rows);
                for grid in [None, Some(ActivationGrid::Absmax127), Some(ActivationGrid::FullRange)] {
                    let expected = oracle(&matrix, &x, rows, cols, grid);
                    let mut whole: Vec<Vec<f32>> = Vec::new();
                    for (count, threads) in [(33, 1), (33, 3), (1, 1), (2, 2), (5, 1), (5, 3)] {
                        for (index, mut backend) in backends(threads).into_iter().enumerate() {
                            let case = format!(
                                "{}: {rows} x {cols} {format:?} {grid:?} {count} tokens",
                                backend.capabilities().device
                            );
                            let weight =
                                load(&mut backend, &[(&matrix, rows)], cols, grid, &[Some(bias.clone())]);
                            let input = f32_buffer(&mut backend, &x[..count * cols]);
                            let mut output = backend.buffer(Element::F32, count * rows).unwrap();
                            backend.linear(&input, count, &weight, &mut output).unwrap();
                            let found = read(&mut backend, &output);
                            for (i, (&found, &(expected, size))) in found.iter().zip(&expected).enumerate() {
                                let bias = f64::from(bias[i % rows]);
                                let error =
                                    (f64::from(found) - expected - bias).abs() / (size + bias.abs() + 1e-30);
                                worst = worst.max(error);
                                assert!(
                                    error < RELATIVE_TOLERANCE,
                                    "{case}: {found}, not {}",
                                    expected + bias
                                );
                            }
                            match whole.get(index) {
                                None => whole.push(found),
                                Some(whole) => {
                                    assert_eq!(
                                        found,
                                        whole[..count * rows],
                                        "{case}: bits depend on the batch"
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
        println!("worst relative error {worst:e}");
    }

    #[test]
    fn parts_of_different_formats_stand_side_by_side() {
        let mut random = Random::new(2);
        let cols = 172;
        let formats = formats();
        let rows = [5, 3, 8, 1];
        let matrices: Vec<_> = rows
            .iter()
            .zip([
                formats[0],
                formats[1],
                formats[8],
                WeightFormat::Packed(
                    Scheme::Ternary { granularity: crate::quant::Granularity::Tensor }.into(),
                ),
            ])
            .map(|(&rows, format)| Matrix::random(&mut random, rows, cols, format))
            .collect();
        let x = random.floats(3 * cols);
        let mut backend = backend(2, true);
        let parts: Vec<_> = matrices.iter().zip(rows).collect();
        let weight = load(&mut backend, &parts, cols, None, &[None, None, None, None]);
        let input = f32_buffer(&mut backend, &x);
        let total: usize = rows.iter().sum();
        let mut output = backend.buffer(Element::F32, 3 * total).unwrap();
        backend.linear(&input, 3, &weight, &mut output).unwrap();
        let found = read(&mut backend, &output);
        let mut at = 0;
        for (matrix, rows) in &parts {
            for (i, (expected, size)) in oracle(matrix, &x, *rows, cols, None).into_iter().enumerate() {
                let found = f64::from(found[i / rows * total + at + i % rows]);
                assert!((found - expected).abs() < RELATIVE_TOLERANCE * size);
            }
            at += rows;
        }
    }

    #[test]
    fn parts_may_store_their_columns_in_different_orders() {
        let mut random = Random::new(5);
        let cols = 172;
        let rows = [5, 7, 3, 9];
        for format in formats().into_iter().filter(is_affine) {
            let plain = Matrix::random(&mut random, rows[0], cols, format);
            let mut matrices = vec![plain];
            for &rows in &rows[1..3] {
                let matrix = Matrix::random(&mut random, rows, cols, format);
                matrices.push(reordered(&mut random, &matrix));
            }
            matrices.push(Matrix::random(&mut random, rows[3], cols, formats()[0]));
            let parts: Vec<_> = matrices.iter().zip(rows).collect();
            let x = random.floats(3 * cols);
            let total: usize = rows.iter().sum();
            for grid in [None, Some(ActivationGrid::Absmax127), Some(ActivationGrid::FullRange)] {
                for (count, mut backend) in [1, 3].into_iter().zip([backend(2, true), backend(1, false)]) {
                    let weight = load(&mut backend, &parts, cols, grid, &[None, None, None, None]);
                    let input = f32_buffer(&mut backend, &x[..count * cols]);
                    let mut output = backend.buffer(Element::F32, count * total).unwrap();
                    backend.linear(&input, count, &weight, &mut output).unwrap();
                    let found = read(&mut backend, &output);
                    let mut at = 0;
                    for (matrix, rows) in &parts {
                        let expected = oracle(matrix, &x[..count * cols], *rows, cols, grid);
                        for (i, (expected, size)) in expected.into_iter().enumerate() {
                            let found = f64::from(found[i / rows * total + at + i % rows]);
                            let error = (found - expected).abs() / size;
                            assert!(
                                error < RELATIVE_TOLERANCE,
                                "{format:?} {grid:?}: {found}, not {expected}"
                            );
                        }
                        at += rows;
                    }
                }
            }
        }
    }

    #[test]
    fn a_broken_activation_is_not_hidden_by_int8() {
        let mut random = Random::new(3);
        let format =
            WeightFormat::Packed(Scheme::Ternary { granularity: crate::quant::Granularity::Channel }.into());
        let matrix = Matrix::random(&mut random, 4, 40, format);
        let mut backend = backend(1, true);
        let weight = load(&mut backend, &[(&matrix, 4)], 40, Some(ActivationGrid::Absmax127), &[None]);
        for broken in [f32::NAN, f32::INFINITY] {
            let mut x = random.floats(80);
            x[17] = broken;
            let input = f32_buffer(&mut backend, &x);
            let mut output = backend.buffer(Element::F32, 8).unwrap();
            backend.linear(&input, 2, &weight, &mut output).unwrap();
            let found = read(&mut backend, &output);
            assert!(found[..4].iter().all(|v| v.is_nan()), "the broken token");
            assert!(found[4..].iter().all(|v| v.is_finite()), "the other token");
        }
    }

    #[test]
    fn broken_weights_break_their_row_and_no_other() {
        for broken in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
            let mut values = vec![f16::ONE; 3 * 40];
            values[40 + 17] = broken;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            for mut backend in backends(1) {
                let desc = WeightDesc {
                    rows: 3,
                    cols: 40,
                    format: WeightFormat::Dense(DType::F16),
                    activations: Activations::F32,
                    grid: ActivationGrid::default(),
                    bias: false,
                };
                let mut builder = backend.begin_weight(&[desc]).unwrap();
                backend.put_rows(&mut builder, 0, 0..3, WeightView::Dense(&bytes)).unwrap();
                let weight = block_on(backend.finish_weight(builder)).unwrap();
                for count in [1, 2] {
                    let input = f32_buffer(&mut backend, &vec![0.5; count * 40]);
                    let mut output = backend.buffer(Element::F32, count * 3).unwrap();
                    backend.linear(&input, count, &weight, &mut output).unwrap();
                    for y in read(&mut backend, &output).chunks(3) {
                        assert_eq!((y[0], y[2]), (20.0, 20.0));
                        assert_eq!(y[1].to_bits() & 0xFF80_0000, broken.to_f32().to_bits() & 0xFF80_0000);
                        assert_eq!(y[1].is_nan(), broken.is_nan());
                    }
                }
            }
        }
    }

    #[test]
    fn split_products_are_as_exact() {
        split_products(Sums::Reordered, RELATIVE_TOLERANCE);
    }

    #[test]
    fn coarse_products_are_exact_enough() {
        // See `Sums::Coarse`: the omitted terms are at most 2^-15 of a product. Measured 1.2e-5.
        split_products(Sums::Coarse, 4e-5);
    }

    #[test]
    fn whole_products_are_as_exact_and_the_same_on_any_number_of_threads() {
        // Columns with and without padding, and one part of another format.
        let mut random = Random::new(8);
        let (dense, half) = (WeightFormat::Dense(DType::F32), WeightFormat::Dense(DType::F16));
        for cols in [96, 70] {
            let parts = [(40, dense), (9, half), (33, dense)];
            let matrices =
                parts.map(|(rows, format)| (Matrix::random(&mut random, rows, cols, format), rows));
            let matrices: Vec<_> = matrices.iter().map(|(matrix, rows)| (matrix, *rows)).collect();
            let biases = [Some(random.floats(40)), None, None];
            let (count, all) = (super::WHOLE_TOKENS * 2 + 5, 82);
            let x = random.floats(count * cols);
            let mut found = Vec::new();
            for threads in [1, 3] {
                let mut backend = backend(threads, false);
                backend.set_sums(Sums::Whole);
                let weight = load(&mut backend, &matrices, cols, None, &biases);
                let input = f32_buffer(&mut backend, &x);
                let mut output = backend.buffer(Element::F32, count * all).unwrap();
                backend.linear(&input, count, &weight, &mut output).unwrap();
                found.push(read(&mut backend, &output));
            }
            assert_eq!(found[0], found[1]);
            let mut first = 0;
            for ((matrix, rows), bias) in matrices.iter().zip(&biases) {
                for (i, (sum, size)) in oracle(matrix, &x, *rows, cols, None).into_iter().enumerate() {
                    let (token, row) = (i / rows, i % rows);
                    let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
                    let found = f64::from(found[0][token * all + first + row]);
                    let error = (found - sum - bias).abs() / (size + bias.abs() + 1e-30);
                    assert!(error < RELATIVE_TOLERANCE, "{rows} x {cols}: {found}, not {}", sum + bias);
                }
                first += rows;
            }
        }
    }

    fn split_products(sums: Sums, tolerance: f64) {
        if super::Split::detect().is_none() {
            return println!("skipped: this processor has no AMX");
        }
        let mut worst = 0.0f64;
        let mut random = Random::new(6);
        for (rows, cols) in [(1, 1), (67, 130), (300, 64), (33, 2100)] {
            for format in formats() {
                let matrix = Matrix::random(&mut random, rows, cols, format);
                let count = 70;
                let x = random.floats(count * cols);
                let bias = random.floats(rows);
                let expected = oracle(&matrix, &x, rows, cols, None);
                for threads in [1, 3] {
                    let mut backend = backend(threads, true);
                    backend.set_sums(sums);
                    let weight = load(&mut backend, &[(&matrix, rows)], cols, None, &[Some(bias.clone())]);
                    for count in [16, 17, 70] {
                        let input = f32_buffer(&mut backend, &x[..count * cols]);
                        let mut output = backend.buffer(Element::F32, count * rows).unwrap();
                        backend.linear(&input, count, &weight, &mut output).unwrap();
                        let found = read(&mut backend, &output);
                        for (i, (&found, &(sum, size))) in found.iter().zip(&expected).enumerate() {
                            let bias = f64::from(bias[i % rows]);
                            let error = (f64::from(found) - sum - bias).abs() / (size + bias.abs() + 1e-30);
                            worst = worst.max(error);
                            assert!(
                                error < tolerance,
                                "{rows} x {cols} {format:?}, {count} tokens: {found}, not {}: {error:e}",
                                sum + bias
                            );
                        }
                    }
                }
            }
        }
        println!("worst relative error {worst:e}");
    }

    #[test]
    fn integers_have_the_same_bits_on_the_matrix_unit() {
        if super::Split::detect().is_none() {
            return println!("skipped: this processor has no AMX");
        }
        let mut random = Random::new(9);
        let grids = [ActivationGrid::Absmax127, ActivationGrid::FullRange];
        let mut integers = 0;
        for format in formats() {
            for (rows, cols, grid) in
                [(3, 33, grids[0]), (67, 130, grids[1]), (300, 64, grids[0]), (33, 2100, grids[1])]
            {
                let matrix = Matrix::random(&mut random, rows, cols, format);
                let mut x = random.floats(70 * cols);
                x[cols..2 * cols].fill(0.0);
                x[3 * cols] = f32::NAN;
                let bias = random.floats(rows);
                let found =
                    [(1, Sums::Repeatable), (1, Sums::Reordered), (3, Sums::Whole)].map(|(threads, sums)| {
                        let mut backend = backend(threads, true);
                        backend.set_sums(sums);
                        let weight =
                            load(&mut backend, &[(&matrix, rows)], cols, Some(grid), &[Some(bias.clone())]);
                        let input = f32_buffer(&mut backend, &x);
                        let mut output = backend.buffer(Element::F32, 70 * rows).unwrap();
                        backend.linear(&input, 70, &weight, &mut output).unwrap();
                        integers +=
                            usize::from(weight.parts.iter().any(super::super::linear_input::is_exact));
                        let bits: Vec<u32> =
                            read(&mut backend, &output).into_iter().map(f32::to_bits).collect();
                        bits
                    });
                let is_integer = matches!(format, WeightFormat::Packed(_));
                if is_integer {
                    assert!(found[0] == found[1] && found[0] == found[2], "{rows} x {cols} {format:?}");
                }
            }
        }
        assert!(integers > 20, "{integers} products of integers");
    }

    #[test]
    fn every_kind_of_sums_is_the_same_after_the_others() {
        if super::Split::detect().is_none() {
            return println!("skipped: this processor has no AMX");
        }
        let mut random = Random::new(7);
        let format = WeightFormat::Dense(DType::F32);
        let matrix = Matrix::random(&mut random, 40, 70, format);
        let mut backend = backend(1, true);
        let weight = load(&mut backend, &[(&matrix, 40)], 70, None, &[None]);
        let input = f32_buffer(&mut backend, &random.floats(32 * 70));
        let kinds = [Sums::Repeatable, Sums::Reordered, Sums::Coarse];
        // In the second round the memory for split products holds leftovers of the other kinds.
        let mut round = || {
            kinds.map(|sums| {
                backend.set_sums(sums);
                let mut output = backend.buffer(Element::F32, 32 * 40).unwrap();
                backend.linear(&input, 32, &weight, &mut output).unwrap();
                read(&mut backend, &output)
            })
        };
        let first = round();
        assert_eq!(round(), first);
    }

    #[test]
    fn all_zero_activations_give_zero() {
        let mut random = Random::new(4);
        let format = WeightFormat::Dense(DType::F16);
        for (format, grid) in [format, formats()[10]].into_iter().flat_map(|format| {
            [ActivationGrid::Absmax127, ActivationGrid::FullRange].map(|grid| (format, grid))
        }) {
            let matrix = Matrix::random(&mut random, 4, 40, format);
            let mut backend = backend(1, true);
            let weight = load(&mut backend, &[(&matrix, 4)], 40, Some(grid), &[None]);
            let input = backend.buffer(Element::F32, 40).unwrap();
            let mut output = f32_buffer(&mut backend, &[f32::NAN; 4]);
            backend.linear(&input, 1, &weight, &mut output).unwrap();
            assert_eq!(read(&mut backend, &output), [0.0; 4]);
        }
    }

    /// Best and median seconds of `runs` interleaved rounds over all weights.
    fn seconds(
        backend: &mut super::super::CpuBackend,
        weights: &[super::CpuWeight],
        count: usize,
        runs: usize,
    ) -> Vec<(f64, f64)> {
        let input = f32_buffer(backend, &Random::new(9).floats(count * weights[0].cols));
        let mut output = backend.buffer(Element::F32, count * weights[0].rows).unwrap();
        let mut times = vec![Vec::new(); weights.len()];
        for _ in 0..runs {
            for (weight, times) in weights.iter().zip(&mut times) {
                let start = std::time::Instant::now();
                backend.linear(&input, count, weight, &mut output).unwrap();
                times.push(start.elapsed().as_secs_f64());
            }
        }
        times
            .into_iter()
            .map(|mut times| {
                times.sort_by(f64::total_cmp);
                (times[0], times[times.len() / 2])
            })
            .collect()
    }

    /// `cargo test --release --lib bench_ -- --ignored --nocapture --test-threads 1`. Prints; asserts nothing.
    #[test]
    #[ignore = "prints speeds, checks nothing"]
    fn bench_linear() {
        use crate::quant::{Bits, Granularity};
        let int = |bits, granularity| {
            WeightFormat::Packed(Scheme::Integer { bits, granularity, symmetric: true }.into())
        };
        let asym =
            Scheme::Integer { bits: Bits::Four, granularity: Granularity::Group(128), symmetric: false };
        let cases = [
            (WeightFormat::Dense(DType::F16), Activations::F32),
            (WeightFormat::Dense(DType::BF16), Activations::F32),
            (WeightFormat::Dense(DType::F32), Activations::F32),
            (int(Bits::Eight, Granularity::Channel), Activations::F32),
            (int(Bits::Four, Granularity::Group(32)), Activations::F32),
            (int(Bits::Four, Granularity::Group(128)), Activations::F32),
            (WeightFormat::Packed(asym.into()), Activations::F32),
            (int(Bits::Two, Granularity::Group(128)), Activations::F32),
            (int(Bits::Eight, Granularity::Channel), Activations::Int8),
            (int(Bits::Eight, Granularity::Group(128)), Activations::Int8),
            (int(Bits::Four, Granularity::Group(32)), Activations::Int8),
            (int(Bits::Four, Granularity::Group(128)), Activations::Int8),
            (
                WeightFormat::Packed(Scheme::Ternary { granularity: Granularity::Tensor }.into()),
                Activations::Int8,
            ),
        ];
        let width: usize = std::env::var("BENCH_WIDTH").map_or(4096, |width| width.parse().unwrap());
        let only = std::env::var("BENCH_DEVICE").unwrap_or_default();
        for threads in [1, 2] {
            for mut backend in backends(threads) {
                if !backend.capabilities().device.contains(&only) {
                    continue;
                }
                println!("\n{} {width} x {width}", backend.capabilities().device);
                let weights: Vec<_> = cases
                    .iter()
                    .map(|&(format, activations)| {
                        let matrix = Matrix::random(&mut Random::new(1), 64, width, format);
                        load_repeated(&mut backend, &matrix, 64, width, width / 64, activations)
                    })
                    .collect();
                // Interleaved, so that the caches hold the other weights when a weight is timed.
                for (count, runs) in [(1, 41), (128, 9)] {
                    let times = seconds(&mut backend, &weights, count, runs);
                    for (((format, activations), weight), (best, median)) in
                        cases.iter().zip(&weights).zip(&times)
                    {
                        let name = match format {
                            WeightFormat::Dense(dtype) => dtype.to_string(),
                            WeightFormat::Packed(scheme) => scheme.to_string(),
                        };
                        println!(
                            "{count:4} tokens {name:16} {:4} best {:8.3} ms {:5.1} GB/s {:6.1} GFLOP/s {:5.2} x F16; \
                             median {:8.3} ms {:5.2} x F16",
                            activations.name(),
                            best * 1e3,
                            weight.bytes() as f64 / best / 1e9,
                            (2 * count * width * width) as f64 / best / 1e9,
                            times[0].0 / best,
                            median * 1e3,
                            times[0].1 / median,
                        );
                    }
                }
            }
        }
    }
}
