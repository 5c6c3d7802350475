//! Backward step of `y = W x + bias`: two matrix products for each part, and a sum over rows for the bias.

use crate::backend::cpu::amx::{Region, Split};
use crate::backend::cpu::columns::{Columns, UNIT};
use crate::backend::cpu::linear::WHOLE_TOKENS;
use crate::backend::cpu::linear_float::Expand;
use crate::backend::cpu::linear_int8::{nearest, round_to_codes, round_trip};
use crate::backend::cpu::parallel::Workers;
use crate::backend::cpu::rows::{CodeMatrix, MINIMUMS, NO_OFFSET, ZERO_POINTS};
use crate::backend::cpu::simd::Isa;
use crate::backend::cpu::split_product::{self, Side, Sum};
use crate::backend::cpu::weight::{CpuWeight, Data, Packed, Part, Zeros};
use crate::error::{Error, ErrorCode, Result};
use crate::quant::ActivationGrid;
use crate::quant::linalg::{Matrix, add_product};
use std::ops::Range;

/// Minimum rows of a result per task: with fewer, packing the other operand would cost more than the product. The order
/// of a sum does not depend on the split into tasks.
const FEWEST_ROWS: usize = 32;
/// Rows that one task converts to floats.
const EXPANDED: usize = 32;

/// Destination of the derivatives by one matrix.
pub(super) struct Gradient<'a> {
    /// `[rows, cols]`
    pub(super) weight: &'a mut [f32],
    /// `[rows]`
    pub(super) bias: Option<&'a mut [f32]>,
}

/// What matrix products run on.
pub(super) struct MatmulContext<'a> {
    pub(super) isa: Isa,
    pub(super) workers: &'a Workers,
    /// The matrix unit, if the product may use one.
    pub(super) split: Option<&'a mut Split>,
}

/// A matrix with an optional scale per row.
#[derive(Clone, Copy)]
struct Scaled<'a> {
    values: &'a [f32],
    scales: Option<&'a [f32]>,
}

/// Memory for such matrices, kept between steps: allocating memory costs about as much as filling it.
#[derive(Default)]
pub(in super::super) struct LinearBuffers {
    weight: ScaledBuffer,
    input: ScaledBuffer,
}

#[derive(Default)]
struct ScaledBuffer {
    values: Vec<f32>,
    /// Empty if there are none.
    scales: Vec<f32>,
}

impl ScaledBuffer {
    fn matrix(&self, len: usize) -> Scaled<'_> {
        Scaled { values: &self.values[..len], scales: (!self.scales.is_empty()).then_some(&self.scales) }
    }

    /// Memory for `len` values, with arbitrary content.
    fn values(&mut self, len: usize) -> Result<&mut [f32]> {
        let more = len.saturating_sub(self.values.len());
        self.values.try_reserve_exact(more).map_err(|_| {
            Error::new(ErrorCode::OutOfMemory, format!("a matrix of {len} elements does not fit in memory"))
        })?;
        self.values.resize(self.values.len() + more, 0.0);
        Ok(&mut self.values[..len])
    }
}

/// `x` and `dx` are `[count, cols]`, `dy` is `[count, rows of all parts]`.
///
/// # Errors
/// `invalid_argument` for gradients of other shapes than the weight's; `out_of_memory`.
pub(super) fn linear(
    mut context: MatmulContext<'_>,
    kept: &mut LinearBuffers,
    x: &[f32],
    dy: &[f32],
    weight: &CpuWeight,
    dx: &mut [f32],
    gradients: Vec<Gradient<'_>>,
) -> Result<()> {
    let (cols, stride) = (weight.cols, weight.rows);
    let count = x.len() / cols;
    if count < WHOLE_TOKENS {
        context.split = None;
    }
    dx.fill(0.0);
    let mut first = 0;
    // Consecutive parts with the same grid share the rounded input.
    let mut rounded = None;
    for (part, gradient) in weight.parts.iter().zip(gradients) {
        if gradient.weight.len() != part.rows * cols {
            return Err(Error::invalid_argument(format!(
                "expected a gradient of {} x {cols} but found {} elements",
                part.rows,
                gradient.weight.len()
            )));
        }
        let met = match part.grid {
            None => Scaled { values: x, scales: None },
            Some(grid) => {
                if rounded != Some(grid) {
                    context.round(x, cols, grid, &mut kept.input)?;
                    rounded = Some(grid);
                }
                kept.input.matrix(x.len())
            }
        };
        let dense = match part.floats() {
            Some(values) => Scaled { values, scales: None },
            None => {
                context.expand(part, &mut kept.weight)?;
                kept.weight.matrix(part.rows * cols)
            }
        };
        let product = Product { dy, first, count, rows: part.rows, stride, cols };
        product.input(&mut context, dense, dx)?;
        product.weight(&mut context, met, gradient.weight)?;
        if let Some(bias) = gradient.bias {
            product.bias(bias);
        }
        first += part.rows;
    }
    Ok(())
}

impl MatmulContext<'_> {
    /// The activations that the forward step multiplied. For the matrix unit they are integers with one scale per
    /// token, because integers have one part instead of three.
    fn round(&self, x: &[f32], cols: usize, grid: ActivationGrid, out: &mut ScaledBuffer) -> Result<()> {
        out.scales.clear();
        if self.split.is_some() {
            out.scales.resize(x.len() / cols, 1.0);
        }
        out.values(x.len())?;
        let ScaledBuffer { values, scales } = out;
        let mut scales = scales.iter_mut();
        let rows = values.chunks_exact_mut(cols).zip(x.chunks_exact(cols));
        let mut rows: Vec<_> = rows.map(|(out, x)| (out, x, scales.next())).collect();
        self.workers.run_chunks(&mut rows, EXPANDED, x.len(), |_, rows| {
            for (out, x, scale) in rows {
                out.copy_from_slice(x);
                match scale {
                    Some(scale) => **scale = round_to_codes(out, grid),
                    None => round_trip(out, grid),
                }
            }
        });
        Ok(())
    }

    /// The weights that the forward step multiplied, `[rows, cols]`. For the matrix unit, codes with one scale per row
    /// are integers, as above.
    fn expand(&self, part: &Part, out: &mut ScaledBuffer) -> Result<()> {
        let Part { rows, columns, data, order, .. } = part;
        let is_plain = order.is_none() && columns.is_plain();
        out.scales.clear();
        if let (Data::Packed(packed), true, true) = (data, is_plain, self.split.is_some()) {
            out.scales.extend_from_slice(packed.scales_of_rows(*columns).unwrap_or_default());
        }
        let len = rows * columns.cols;
        out.values(len)?;
        let ScaledBuffer { values, scales } = out;
        self.workers.run_chunks(&mut values[..len], columns.cols * EXPANDED, len, |index, out| {
            let rows = index * EXPANDED..index * EXPANDED + out.len() / columns.cols;
            match data {
                Data::Packed(packed) if is_plain => {
                    expand(self.isa, packed, *columns, rows.clone(), out.as_chunks_mut().0);
                    let scales = scales.get(rows).unwrap_or_default();
                    for (row, scale) in out.chunks_exact_mut(columns.cols).zip(scales) {
                        // Restores the integers: their products with the scale were rounded.
                        row.iter_mut().for_each(|value| *value = nearest(*value / scale));
                    }
                }
                _ => {
                    for (row, out) in rows.zip(out.chunks_exact_mut(columns.cols)) {
                        part.dequantize_row(row, out);
                    }
                }
            }
        });
        Ok(())
    }
}

/// Rows of codes as floats, `[rows, units]`.
fn expand(isa: Isa, packed: &Packed, columns: Columns, rows: Range<usize>, out: &mut [[f32; UNIT]]) {
    match packed.unit_bytes() {
        8 => expand_units::<8>(isa, packed, columns, rows, out),
        16 => expand_units::<16>(isa, packed, columns, rows, out),
        _ => expand_units::<32>(isa, packed, columns, rows, out),
    }
}

fn expand_units<const N: usize>(
    isa: Isa,
    packed: &Packed,
    columns: Columns,
    rows: Range<usize>,
    out: &mut [[f32; UNIT]],
) {
    match &packed.zeros {
        Zeros::Constant(_) => {
            let matrix = &CodeMatrix::<N, NO_OFFSET> { packed, columns };
            isa.run(Expand { matrix, columns, rows, out });
        }
        Zeros::PerGroup(_) => {
            let matrix = &CodeMatrix::<N, ZERO_POINTS> { packed, columns };
            isa.run(Expand { matrix, columns, rows, out });
        }
        Zeros::Minimums(_) => {
            let matrix = &CodeMatrix::<N, MINIMUMS> { packed, columns };
            isa.run(Expand { matrix, columns, rows, out });
        }
    }
}

/// The derivatives by the outputs of one matrix, which are columns of `dy`, and sizes.
struct Product<'a> {
    /// Rows of `stride` elements; this matrix has `rows` of them, from `first` on.
    dy: &'a [f32],
    first: usize,
    count: usize,
    rows: usize,
    stride: usize,
    cols: usize,
}

impl Product<'_> {
    fn work(&self) -> usize {
        self.count.saturating_mul(self.rows).saturating_mul(self.cols)
    }

    fn derivatives(&self) -> Region<'_> {
        let Self { dy, first, count, rows, stride, .. } = *self;
        Region::new(dy, stride, count, stride).part(0..count, first..first + rows)
    }

    /// Rows per task of a result with `rows` rows.
    fn band(rows: usize, workers: &Workers) -> usize {
        rows.div_ceil(workers.threads()).max(FEWEST_ROWS)
    }

    /// `dx += dy W`
    fn input(&self, context: &mut MatmulContext<'_>, weight: Scaled<'_>, dx: &mut [f32]) -> Result<()> {
        let Self { dy, first, count, rows: len, stride, cols, .. } = *self;
        let work = self.work();
        let MatmulContext { workers, split, .. } = context;
        if let Some(split) = split {
            let dy = Side::rows(self.derivatives()).times(weight.scales);
            let weight = Side::columns(Region::new(weight.values, cols, len, cols));
            let sum = Sum { rows: dx, stride: cols, column: 0, is_symmetric: false };
            return split_product::add_product(workers, split, dy, weight, sum);
        }
        let band = Self::band(count, workers);
        workers.run_chunks(dx, band * cols, work, |index, dx| {
            let rows = dx.len() / cols;
            let dy = Matrix::new(&dy[first + index * band * stride..], rows, len, stride);
            add_product(1.0, dy, Matrix::new(weight.values, len, cols, cols), dx, cols);
        });
        Ok(())
    }

    /// `dW += dy^T x`
    fn weight(&self, context: &mut MatmulContext<'_>, x: Scaled<'_>, dweight: &mut [f32]) -> Result<()> {
        let Self { dy, first, count, stride, cols, rows: len, .. } = *self;
        if count == 0 {
            return Ok(());
        }
        let work = self.work();
        let MatmulContext { workers, split, .. } = context;
        if let Some(split) = split {
            let dy = Side::columns(self.derivatives()).times(x.scales);
            let x = Side::columns(Region::new(x.values, cols, count, cols));
            let sum = Sum { rows: dweight, stride: cols, column: 0, is_symmetric: false };
            return split_product::add_product(workers, split, dy, x, sum);
        }
        let band = Self::band(len, workers);
        workers.run_chunks(dweight, band * cols, work, |index, dweight| {
            let rows = dweight.len() / cols;
            let dy = Matrix::new(&dy[first + index * band..], count, rows, stride).transposed();
            add_product(1.0, dy, Matrix::new(x.values, count, cols, cols), dweight, cols);
        });
        Ok(())
    }

    /// `dbias += sum of dy`
    fn bias(&self, dbias: &mut [f32]) {
        for dy in self.dy.chunks(self.stride).take(self.count) {
            for (sum, dy) in dbias.iter_mut().zip(&dy[self.first..self.first + self.rows]) {
                *sum += dy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Checked, buffer, check};
    use crate::backend::cpu::linear_int8::round_trip;
    use crate::backend::cpu::testing::{Matrix, Random, backend, formats, load, read};
    use crate::backend::{BackwardStep, DeviceOps, PartGradient, Sums, WeightDesc, WeightFormat, WeightView};
    use crate::dtype::DType;
    use crate::quant::{ActivationGrid, Activations};
    use crate::task::block_on;

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        // A weight of two matrices, the first with a bias.
        for (count, cols, rows) in [(1, 3, [2, 1]), (5, 7, [70, 9]), (130, 33, [3, 2])] {
            let [first, second] = rows;
            let all = first + second;
            let case = Case::new(&[count * cols, first * cols, first, second * cols], count * all);
            check(
                case,
                |inputs| {
                    let [x, w, bias, other] = inputs else { unreachable!() };
                    let dot = |t: usize, w: &[f64], i: usize| {
                        (0..cols).map(|j| x[t * cols + j] * w[i * cols + j]).sum::<f64>()
                    };
                    let mut y = Vec::new();
                    for t in 0..count {
                        y.extend((0..first).map(|i| dot(t, w, i) + bias[i]));
                        y.extend((0..second).map(|i| dot(t, other, i)));
                    }
                    y
                },
                |backend, inputs, dy, derivatives| {
                    let dy = buffer(backend, dy);
                    let desc = |rows, bias| WeightDesc {
                        rows,
                        cols,
                        format: WeightFormat::Dense(DType::F32),
                        activations: Activations::F32,
                        grid: ActivationGrid::FullRange,
                        bias,
                    };
                    let mut builder =
                        backend.begin_weight(&[desc(first, true), desc(second, false)]).unwrap();
                    for (part, (rows, values)) in
                        [(first, &inputs[1]), (second, &inputs[3])].into_iter().enumerate()
                    {
                        let values = read(backend, values);
                        let view = WeightView::Dense(bytemuck::cast_slice(&values));
                        backend.put_rows(&mut builder, part, 0..rows, view).unwrap();
                    }
                    let bias = read(backend, &inputs[2]);
                    backend.put_bias(&mut builder, 0, &bias).unwrap();
                    let weight = block_on(backend.finish_weight(builder)).unwrap();
                    let [dx, dweight, dbias, dother] = derivatives else { unreachable!() };
                    backend.backward_checked(BackwardStep::Linear {
                        x: &inputs[0],
                        dy: &dy,
                        count,
                        weight: &weight,
                        dx,
                        parts: vec![
                            PartGradient { rows: first, weight: dweight, bias: Some(dbias) },
                            PartGradient { rows: second, weight: dother, bias: None },
                        ],
                    });
                },
            );
        }
    }

    /// Largest deviation from sums in double precision, relative to the sum of magnitudes. Measured 1.2e-7.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn every_format_is_multiplied_as_the_forward_step_has_it() {
        let mut random = Random::new(7);
        // The second count is large enough for whole matrix products, on the matrix unit if there is one.
        let cases = [(4, Sums::Repeatable), (70, Sums::Whole)];
        let grids = [None, Some(ActivationGrid::Absmax127)];
        // Rows with and without padding.
        let formats = formats();
        let all = [(6, 80), (6, 96)]
            .into_iter()
            .flat_map(|shape| formats.iter().map(move |format| (shape, *format)));
        for (((rows, cols), format), (count, sums)) in all.flat_map(|of| cases.map(|case| (of, case))) {
            for grid in grids {
                let matrix = Matrix::random(&mut random, rows, cols, format);
                let mut backend = backend(1, true);
                backend.set_sums(sums);
                let weight = load(&mut backend, &[(&matrix, rows)], cols, grid, &[None]);
                let (x, dy) = (random.floats(count * cols), random.floats(count * rows));
                let mut met = x.clone();
                if let Some(grid) = grid {
                    met.chunks_mut(cols).for_each(|row| round_trip(row, grid));
                }
                let (inputs, outputs) = (buffer(&mut backend, &x), buffer(&mut backend, &dy));
                let mut dx = buffer(&mut backend, &vec![f32::NAN; count * cols]);
                let mut dweight = buffer(&mut backend, &vec![0.0; rows * cols]);
                backend.backward_checked(BackwardStep::Linear {
                    x: &inputs,
                    dy: &outputs,
                    count,
                    weight: &weight,
                    dx: &mut dx,
                    parts: vec![PartGradient { rows, weight: &mut dweight, bias: None }],
                });
                let (dx, dweight) = (read(&mut backend, &dx), read(&mut backend, &dweight));
                let near = |found: f32, terms: &mut dyn Iterator<Item = f64>| {
                    let (sum, size) = terms.fold((0.0, 1e-9), |(sum, size), t| (sum + t, size + t.abs()));
                    assert!(
                        (f64::from(found) - sum).abs() < TOLERANCE * size,
                        "{format:?}: {found}, not {sum}"
                    );
                };
                for (t, j) in (0..count).flat_map(|t| (0..cols).map(move |j| (t, j))) {
                    let term = |i: usize| f64::from(dy[t * rows + i]) * matrix.value(i, j, cols);
                    near(dx[t * cols + j], &mut (0..rows).map(term));
                }
                for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                    let term = |t: usize| f64::from(dy[t * rows + i]) * f64::from(met[t * cols + j]);
                    near(dweight[i * cols + j], &mut (0..count).map(term));
                }
            }
        }
    }
}
