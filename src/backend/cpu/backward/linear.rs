//! `y = W x + bias`, backward: two products for each matrix, and a sum of columns. Floor 4.

use crate::backend::cpu::columns::{Columns, UNIT};
use crate::backend::cpu::linear_float::Expand;
use crate::backend::cpu::linear_int8::round_trip;
use crate::backend::cpu::parallel::Workers;
use crate::backend::cpu::rows::{CodeMatrix, MINIMUMS, NO_OFFSET, ZERO_POINTS};
use crate::backend::cpu::simd::Isa;
use crate::backend::cpu::weight::{CpuWeight, Data, Packed, Part, Zeros};
use crate::error::{Error, Result};
use crate::quant::linalg::{Matrix, add_product};
use std::borrow::Cow;
use std::ops::Range;

/// Fewest rows of a result that one task makes: for fewer, bringing the other operand in order would cost more than the product.
/// A result's element has the same sum whatever the cut.
const FEWEST_ROWS: usize = 32;
/// Rows that one task makes floats of.
const EXPANDED: usize = 32;

/// Where the derivatives by one matrix go.
pub(super) struct Gradient<'a> {
    /// `[rows, cols]`
    pub(super) weight: &'a mut [f32],
    /// `[rows]`
    pub(super) bias: Option<&'a mut [f32]>,
}

/// `x` and `dx` are `[count, cols]`, `dy` is `[count, rows of all parts]`.
///
/// # Errors
/// `invalid_argument` for gradients of other shapes than the weight's.
pub(super) fn linear(
    isa: Isa,
    workers: &Workers,
    x: &[f32],
    dy: &[f32],
    weight: &CpuWeight,
    dx: &mut [f32],
    gradients: Vec<Gradient<'_>>,
) -> Result<()> {
    let (cols, stride) = (weight.cols, weight.rows);
    let count = x.len() / cols;
    dx.fill(0.0);
    let mut first = 0;
    // Parts that round their input do it alike, so that it is done once.
    let mut rounded: Option<(_, Vec<f32>)> = None;
    for (part, gradient) in weight.parts.iter().zip(gradients) {
        if gradient.weight.len() != part.rows * cols {
            return Err(Error::invalid_argument(format!(
                "expected a gradient of {} x {cols} but found {} elements",
                part.rows,
                gradient.weight.len()
            )));
        }
        let x = match part.grid {
            None => x,
            Some(grid) => {
                if rounded.as_ref().is_none_or(|(other, _)| *other != grid) {
                    let mut values = x.to_vec();
                    workers.run_chunks(&mut values, cols, x.len(), |_, row| round_trip(row, grid));
                    rounded = Some((grid, values));
                }
                rounded.as_ref().map_or(x, |(_, values)| values)
            }
        };
        let product = Product { dy: &dy[first..], count, rows: part.rows, stride, cols };
        product.input(workers, &dense(isa, workers, part), dx);
        product.weight(workers, x, gradient.weight);
        if let Some(bias) = gradient.bias {
            product.bias(bias);
        }
        first += part.rows;
    }
    Ok(())
}

/// The values that the forward step multiplied, `[rows, cols]`.
fn dense<'a>(isa: Isa, workers: &Workers, part: &'a Part) -> Cow<'a, [f32]> {
    if let Some(values) = part.floats() {
        return Cow::Borrowed(values);
    }
    let Part { rows, columns, data, order, .. } = part;
    let is_plain = order.is_none() && columns.is_plain();
    let mut values = vec![0.0; rows * columns.cols];
    workers.run_chunks(&mut values, columns.cols * EXPANDED, rows * columns.cols, |index, out| {
        let rows = index * EXPANDED..index * EXPANDED + out.len() / columns.cols;
        match data {
            Data::Packed(packed) if is_plain => expand(isa, packed, *columns, rows, out.as_chunks_mut().0),
            _ => {
                for (row, out) in rows.zip(out.chunks_exact_mut(columns.cols)) {
                    part.dequantize_row(row, out);
                }
            }
        }
    });
    Cow::Owned(values)
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

/// The derivatives of the outputs of one matrix, which stand among those of others, and sizes.
struct Product<'a> {
    /// Rows of `stride` elements, of which the first `rows` are meant.
    dy: &'a [f32],
    count: usize,
    rows: usize,
    stride: usize,
    cols: usize,
}

impl Product<'_> {
    fn work(&self) -> usize {
        self.count.saturating_mul(self.rows).saturating_mul(self.cols)
    }

    /// Rows of a result of so many that one task makes.
    fn band(rows: usize, workers: &Workers) -> usize {
        rows.div_ceil(workers.threads()).max(FEWEST_ROWS)
    }

    /// `dx += dy W`
    fn input(&self, workers: &Workers, weight: &[f32], dx: &mut [f32]) {
        let Self { dy, count, rows: len, stride, cols } = *self;
        let band = Self::band(count, workers);
        workers.run_chunks(dx, band * cols, self.work(), |index, dx| {
            let rows = dx.len() / cols;
            let dy = Matrix::new(&dy[index * band * stride..], rows, len, stride);
            add_product(1.0, dy, Matrix::new(weight, len, cols, cols), dx, cols);
        });
    }

    /// `dW += dy^T x`
    fn weight(&self, workers: &Workers, x: &[f32], dweight: &mut [f32]) {
        let Self { dy, count, stride, cols, rows } = *self;
        if count == 0 {
            return;
        }
        let band = Self::band(rows, workers);
        workers.run_chunks(dweight, band * cols, self.work(), |index, dweight| {
            let rows = dweight.len() / cols;
            let dy = Matrix::new(&dy[index * band..], count, rows, stride).transposed();
            add_product(1.0, dy, Matrix::new(x, count, cols, cols), dweight, cols);
        });
    }

    /// `dbias += sum of dy`
    fn bias(&self, dbias: &mut [f32]) {
        for dy in self.dy.chunks(self.stride).take(self.count) {
            for (sum, dy) in dbias.iter_mut().zip(&dy[..self.rows]) {
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
    use crate::backend::{BackwardStep, DeviceOps, PartGradient, WeightDesc, WeightFormat, WeightView};
    use crate::dtype::DType;
    use crate::quant::{ActivationGrid, Activations};
    use crate::task::block_on;

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        // Two matrices of one weight, the first with a bias.
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

    /// Largest deviation from sums in double precision, over the sum of magnitudes. Measured 1.2e-7.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn every_format_is_multiplied_as_the_forward_step_has_it() {
        let (rows, cols, count) = (6, 80, 4);
        let mut random = Random::new(7);
        for format in formats() {
            for grid in [None, Some(ActivationGrid::Absmax127)] {
                let matrix = Matrix::random(&mut random, rows, cols, format);
                let mut backend = backend(1, true);
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
