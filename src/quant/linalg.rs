//! Linear algebra of calibrated methods: products, and factorization of a symmetric matrix.
//!
//! Matrices are row-major `f32`. The number of threads does not change the split of sums. Products are
//! `matrixmultiply`'s, whose last bits depend on the instruction set. Factorization runs in steps, with a
//! [`Pace`].

use crate::parallel;
use crate::task::Pace;
use crate::task::steps::STEP_WORK;
use multiversion::multiversion;

/// Rows of the trailing matrix updated by one task.
const BAND: usize = 64;
/// Panel width of the factorization: wide enough for efficient products, narrow enough for the cache.
const PANEL: usize = 64;

/// A matrix in a slice: element `(i, j)` is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `[rows, cols]` with rows `stride` elements apart.
    ///
    /// # Panics
    /// When the slice is too short.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(has_rows(data.len(), rows, cols, stride), "a matrix has whole rows");
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transposed view.
    pub fn transposed(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// Whether `len` elements hold `rows` rows of `cols` elements with this stride. Strides must fit a signed integer.
fn has_rows(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    let needed = || rows.checked_sub(1)?.checked_mul(stride)?.checked_add(cols);
    cols <= stride
        && isize::try_from(stride).is_ok()
        && (rows == 0 || needed().is_some_and(|needed| needed <= len))
}

/// `c += alpha * a b`, with `c` of rows `stride` elements apart.
///
/// # Panics
/// When shapes do not match or `c` is too short.
pub fn add_product(alpha: f32, a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], stride: usize) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "the inner sizes of a product are equal");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(has_rows(c.len(), m, n, stride), "the result has room for every row");
    // SAFETY: `Matrix` checked that every element of `a` and `b` is inside its slice (transposing keeps the set of
    // elements), the assertion above that every element of `c` is, and `c` is borrowed mutably, so it overlaps neither.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            alpha,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.col_stride as isize,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            1.0,
            c.as_mut_ptr(),
            stride as isize,
            1,
        );
    }
}

/// The factorization of a symmetric positive definite matrix: `H = U D U^T` with `U` unit upper triangular.
#[derive(Clone, Debug)]
pub struct Factor {
    /// Rows and columns.
    pub size: usize,
    /// `[size, size]`: `U`, including ones and zeros.
    pub upper: Vec<f32>,
    /// `[size]`: `D`, all positive.
    pub diagonal: Vec<f32>,
}

impl Factor {
    /// Factors the matrix with its upper triangle in `h`, `[size, size]`, in place and in steps. `None` if it is not
    /// positive definite in `f32`.
    ///
    /// # Panics
    /// When `h` has another length.
    pub async fn paced(mut h: Vec<f32>, size: usize, pace: &mut Pace) -> Option<Self> {
        assert_eq!(h.len(), size * size, "a square matrix");
        let mut diagonal = vec![0.0; size];
        // From the last column to the first: column k of U and D[k] are known after all later columns are subtracted.
        let mut end = size;
        while end > 0 {
            let start = end.saturating_sub(PANEL);
            factor_panel(&mut h, size, start, end, &mut diagonal)?;
            pace.spend((end * (end - start) * (end - start) / 2) as u64).await;
            update_trailing(&mut h, size, start, end, &diagonal, pace).await;
            end = start;
        }
        for (k, row) in h.chunks_exact_mut(size.max(1)).enumerate() {
            row[..k].fill(0.0);
            row[k] = 1.0;
        }
        Some(Self { size, upper: h, diagonal })
    }

    /// Solves `x H = b` for each row of `rows`, `[n, size]`, in place.
    ///
    /// # Panics
    /// When `rows` is not whole rows.
    pub async fn solve(&self, rows: &mut [f32], pace: &mut Pace) {
        let Self { size, upper, diagonal } = self;
        let size = *size;
        assert_eq!(rows.len() % size.max(1), 0, "whole rows");
        let count = rows.len() / size.max(1);
        let panel_of = |rows: &[f32], start: usize, end: usize| -> Vec<f32> {
            rows.chunks_exact(size).flat_map(|row| &row[start..end]).copied().collect()
        };
        // z U^T = b, backwards.
        let mut end = size;
        while end > 0 {
            let start = end.saturating_sub(PANEL);
            for row in rows.chunks_exact_mut(size) {
                for k in (start..end).rev() {
                    let sum: f32 =
                        row[k + 1..end].iter().zip(&upper[k * size + k + 1..]).map(|(z, u)| z * u).sum();
                    row[k] -= sum;
                }
            }
            let panel = panel_of(rows, start, end);
            let done = Matrix::new(&panel, count, end - start, end - start);
            let handed_on = Matrix::new(&upper[start..], start, end - start, size).transposed();
            add_product(-1.0, done, handed_on, rows, size);
            pace.spend((count * (end - start) * end) as u64).await;
            end = start;
        }
        for row in rows.chunks_exact_mut(size) {
            for (value, d) in row.iter_mut().zip(diagonal) {
                *value /= d;
            }
        }
        // x U = z, forwards.
        for start in (0..size).step_by(PANEL) {
            let end = size.min(start + PANEL);
            for row in rows.chunks_exact_mut(size) {
                for k in start..end {
                    let x = row[k];
                    for (value, u) in row[k + 1..end].iter_mut().zip(&upper[k * size + k + 1..]) {
                        *value -= x * u;
                    }
                }
            }
            if end < size {
                let panel = panel_of(rows, start, end);
                let done = Matrix::new(&panel, count, end - start, end - start);
                let later = Matrix::new(&upper[start * size + end..], end - start, size - end, size);
                add_product(-1.0, done, later, &mut rows[end..], size);
            }
            pace.spend((count * (end - start) * (size - start)) as u64).await;
        }
    }
}

/// Factors columns `start..end` after later ones were subtracted.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn factor_panel(h: &mut [f32], size: usize, start: usize, end: usize, diagonal: &mut [f32]) -> Option<()> {
    let mut pivot_row = [0.0f32; PANEL];
    for k in (start..end).rev() {
        let pivot = h[k * size + k];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        diagonal[k] = pivot;
        let width = k - start;
        // Row i decreases by U[i, k] times column k above the diagonal, which is a row of the transposed panel.
        for (j, value) in pivot_row[..width].iter_mut().enumerate() {
            *value = h[(start + j) * size + k];
        }
        for i in 0..k {
            let row = &mut h[i * size + start..i * size + end];
            let u = row[width] / pivot;
            row[width] = u;
            let first = i.saturating_sub(start);
            for (value, p) in row[first..width].iter_mut().zip(&pivot_row[first..width]) {
                *value -= u * p;
            }
        }
    }
    Some(())
}

/// Subtracts columns `start..end` from the part above and left of them: `H -= U_P D_P U_P^T`, upper triangle only.
async fn update_trailing(
    h: &mut [f32],
    size: usize,
    start: usize,
    end: usize,
    diagonal: &[f32],
    pace: &mut Pace,
) {
    let width = end - start;
    if start == 0 {
        return;
    }
    let mut panel = vec![0.0; start * width];
    for (i, out) in panel.chunks_exact_mut(width).enumerate() {
        out.copy_from_slice(&h[i * size + start..i * size + end]);
    }
    let panel = &panel;
    // Enough bands for every thread, without exceeding a step by much.
    let lanes = parallel::lanes();
    let band_work = (BAND * width * start) as u64;
    let together = lanes * (STEP_WORK / band_work).max(1) as usize;
    for (index, slab) in h[..start * size].chunks_mut(together * BAND * size).enumerate() {
        let before = index * together * BAND;
        let rows_of_slab = slab.len() / size;
        parallel::for_each_chunk(slab, BAND * size, |band, rows| {
            let first = before + band * BAND;
            let count = rows.len() / size;
            let mut scaled = panel[first * width..(first + count) * width].to_vec();
            for row in scaled.chunks_exact_mut(width) {
                for (value, d) in row.iter_mut().zip(&diagonal[start..end]) {
                    *value *= d;
                }
            }
            let others = Matrix::new(&panel[first * width..], start - first, width, width).transposed();
            add_product(-1.0, Matrix::new(&scaled, count, width, width), others, &mut rows[first..], size);
        });
        pace.spend((rows_of_slab * width * start / lanes) as u64).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Steps;
    use rand_pcg::Pcg32;
    use rand_pcg::rand_core::{Rng, SeedableRng};

    fn factored(h: Vec<f32>, size: usize) -> Option<Factor> {
        Steps::new(|mut pace| async move { Factor::paced(h, size, &mut pace).await }).finish()
    }

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = Pcg32::seed_from_u64(seed);
        (0..len).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).collect()
    }

    /// `X^T X / n + ridge` in `f64`.
    fn gram(x: &[f32], size: usize, ridge: f64) -> Vec<f64> {
        let n = x.len() / size;
        let mut h = vec![0.0; size * size];
        for row in x.chunks(size) {
            for i in 0..size {
                for j in 0..size {
                    h[i * size + j] += f64::from(row[i]) * f64::from(row[j]) / n as f64;
                }
            }
        }
        for i in 0..size {
            h[i * size + i] += ridge;
        }
        h
    }

    /// Largest distance of an element of `U D U^T` from `H`, over H's largest element. Measured 3.6e-7.
    const FACTOR_ERROR: f64 = 1e-6;

    #[test]
    fn factors_multiply_back_to_the_matrix() {
        let mut worst = 0.0f64;
        for (size, samples) in [(1, 3), (2, 5), (63, 100), (64, 100), (65, 100), (130, 40), (200, 600)] {
            let h = gram(&random(size * samples, size as u64), size, 0.01);
            let factor = factored(h.iter().map(|&v| v as f32).collect(), size).unwrap();
            let u = |i: usize, j: usize| f64::from(factor.upper[i * size + j]);
            let largest = h.iter().fold(0f64, |a, v| a.max(v.abs()));
            for i in 0..size {
                for j in i..size {
                    let product: f64 =
                        (j..size).map(|k| u(i, k) * f64::from(factor.diagonal[k]) * u(j, k)).sum();
                    let error = (product - h[i * size + j]).abs() / largest;
                    worst = worst.max(error);
                    assert!(error < FACTOR_ERROR, "size {size}, element {i}, {j}: {error:e}");
                }
            }
        }
        println!("largest error of a factor {worst:e}");
    }

    /// Largest distance of `x H` from `b`, over `b`'s largest element. Measured 1.0e-6.
    const SOLUTION_ERROR: f64 = 1e-5;

    #[test]
    fn solutions_multiply_back_to_the_rows() {
        for (size, samples) in [(1, 3), (2, 5), (64, 100), (65, 100), (130, 400), (200, 600)] {
            let h = gram(&random(size * samples, size as u64), size, 0.01);
            let factor = factored(h.iter().map(|&v| v as f32).collect(), size).unwrap();
            let b = random(3 * size, 7);
            let mut x = b.clone();
            let worst = Steps::new(|mut pace| async move {
                factor.solve(&mut x, &mut pace).await;
                let mut worst = 0.0f64;
                for (x, b) in x.chunks(size).zip(b.chunks(size)) {
                    for j in 0..size {
                        let product: f64 = (0..size).map(|k| f64::from(x[k]) * h[k * size + j]).sum();
                        let error = (product - f64::from(b[j])).abs() / 0.5;
                        worst = worst.max(error);
                        assert!(error < SOLUTION_ERROR, "size {size}, column {j}: {error:e}");
                    }
                }
                worst
            })
            .finish();
            println!("size {size}: largest error of a solution {worst:e}");
        }
    }

    #[test]
    fn what_is_not_positive_has_no_factor() {
        // A zero pivot, a negative one, NaN, and a matrix of rank one.
        for h in [[1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 2.0, 1.0], [1.0, f32::NAN, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
        {
            assert!(factored(h.to_vec(), 2).is_none(), "{h:?}");
        }
        assert!(factored(Vec::new(), 0).is_some());
    }

    #[test]
    fn products_of_strided_matrices() {
        let (a, b) = (random(7 * 9, 1), random(5 * 9, 2));
        let mut c = vec![1.0; 6 * 8];
        add_product(2.0, Matrix::new(&a, 6, 5, 9), Matrix::new(&b, 4, 5, 9).transposed(), &mut c, 8);
        for i in 0..6 {
            for j in 0..8 {
                let sum: f32 = (0..5).map(|k| a[i * 9 + k] * b[j.min(3) * 9 + k]).sum();
                let expected = if j < 4 { 1.0 + 2.0 * sum } else { 1.0 };
                assert!((c[i * 8 + j] - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn rows_that_are_not_there_are_refused_whatever_the_arithmetic_says() {
        const HALF: usize = 1 << (usize::BITS - 1);
        // Length, rows, columns, stride, and whether they fit.
        let cases = [
            (6, 2, 3, 3, true),
            (5, 2, 2, 3, true),
            (4, 2, 2, 3, false),
            (6, 2, 4, 3, false),
            (0, 0, 3, 3, true),
            (2, 1, 2, isize::MAX as usize, true),
            // Products and sums that overflow.
            (4, 3, 2, HALF, false),
            (4, 2, 2, HALF, false),
            (4, 2, 2, usize::MAX, false),
            (4, usize::MAX, 2, 2, false),
        ];
        for (len, rows, cols, stride, expected) in cases {
            assert_eq!(has_rows(len, rows, cols, stride), expected, "{len} {rows} {cols} {stride}");
        }
        let refused = std::panic::catch_unwind(|| Matrix::new(&[0.0; 4], 3, 2, HALF).rows);
        assert!(refused.is_err());
    }
}
