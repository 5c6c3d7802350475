//! `y = W x + bias`, backward: two products, and a sum of columns. Floor 4.

use crate::backend::Columns;
use crate::backend::cpu::parallel::Workers;
use crate::quant::linalg::{Matrix, add_product};

/// Rows of a result that one task makes. A result's element has the same sum whatever the cut.
const BAND: usize = 64;

/// What the derivatives are made of.
pub(super) struct Operands<'a> {
    /// `[count, cols]`
    pub(super) x: &'a [f32],
    /// `[count, columns.stride]`
    pub(super) dy: &'a [f32],
    pub(super) columns: Columns,
    pub(super) cols: usize,
    /// `[columns.len, cols]`
    pub(super) weight: &'a [f32],
}

impl Operands<'_> {
    fn count(&self) -> usize {
        self.x.len() / self.cols.max(1)
    }

    fn work(&self) -> usize {
        self.x.len().saturating_mul(self.columns.len)
    }

    /// `dx += dy W`
    pub(super) fn input(&self, workers: &Workers, dx: &mut [f32]) {
        let Self { dy, columns: Columns { first, len, stride }, cols, weight, .. } = *self;
        workers.run_chunks(dx, BAND * cols, self.work(), |band, dx| {
            let rows = dx.len() / cols;
            let dy = Matrix::new(&dy[band * BAND * stride + first..], rows, len, stride);
            add_product(1.0, dy, Matrix::new(weight, len, cols, cols), dx, cols);
        });
    }

    /// `dW += dy^T x`
    pub(super) fn weight(&self, workers: &Workers, dweight: &mut [f32]) {
        let Self { x, dy, columns: Columns { first, stride, .. }, cols, .. } = *self;
        let count = self.count();
        if count == 0 {
            return;
        }
        workers.run_chunks(dweight, BAND * cols, self.work(), |band, dweight| {
            let rows = dweight.len() / cols;
            let dy = Matrix::new(&dy[first + band * BAND..], count, rows, stride).transposed();
            add_product(1.0, dy, Matrix::new(x, count, cols, cols), dweight, cols);
        });
    }

    /// `dbias += sum of dy`
    pub(super) fn bias(&self, dbias: &mut [f32]) {
        let Columns { first, len, stride } = self.columns;
        for dy in self.dy.chunks_exact(stride) {
            for (sum, dy) in dbias.iter_mut().zip(&dy[first..first + len]) {
                *sum += dy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Checked, check};
    use crate::backend::{BackwardStep, Columns};

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        for (count, cols, columns) in [
            (1, 3, Columns { first: 0, len: 2, stride: 2 }),
            (5, 7, Columns { first: 4, len: 70, stride: 90 }),
            (130, 33, Columns { first: 0, len: 3, stride: 3 }),
        ] {
            // x, W, bias: y is a part of a wider row, so dy has more columns than the rest knows.
            let case = Case::new(&[count * cols, columns.len * cols, columns.len], count * columns.len);
            let wide = |dy: &[f32]| -> Vec<f32> {
                let mut wide = vec![f32::NAN; count * columns.stride];
                for (wide, dy) in wide.chunks_mut(columns.stride).zip(dy.chunks(columns.len)) {
                    wide[columns.first..columns.first + columns.len].copy_from_slice(dy);
                }
                wide
            };
            check(
                case,
                |inputs| {
                    let (x, w, b) = (&inputs[0], &inputs[1], &inputs[2]);
                    let row = |t: usize, i: usize| {
                        (0..cols).map(|j| x[t * cols + j] * w[i * cols + j]).sum::<f64>() + b[i]
                    };
                    (0..count)
                        .flat_map(|t| (0..columns.len).map(move |i| (t, i)))
                        .map(|(t, i)| row(t, i))
                        .collect()
                },
                |backend, inputs, dy, derivatives| {
                    let dy = super::super::testing::buffer(backend, &wide(dy));
                    let [dx, dweight, dbias] = derivatives else { unreachable!() };
                    backend.backward_checked(BackwardStep::Linear {
                        x: &inputs[0],
                        dy: &dy,
                        columns,
                        count,
                        cols,
                        weight: &inputs[1],
                        dx,
                        dweight,
                        dbias: Some(dbias),
                    });
                },
            );
        }
    }
}
