//! What calibration learns of the input of a linear layer: the mean of `x x^T` over the tokens that it saw, and of
//! `x (x_o - x)^T`, where `x_o` is the original model's input for the same token.
//!
//! Up to a factor of two the first is the Hessian of the layer's squared output error; the second says what the output is
//! short of because of the layers before. Not here: running a model to see the tokens (`calibrate`).

/// Second moments of the input of a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    size: usize,
    /// `[size, size]`, symmetric: sum of `x x^T` over the tokens.
    sum: Vec<f32>,
    tokens: u64,
}

impl Hessian {
    /// From the sum of `x x^T` over `tokens` tokens, of which the upper triangle is read.
    ///
    /// # Panics
    /// When `sum` is not `[size, size]`.
    pub fn new(size: usize, sum: Vec<f32>, tokens: u64) -> Self {
        assert_eq!(sum.len(), size * size, "a square matrix");
        Self { size, sum, tokens }
    }

    /// Input features.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean of `x[k]^2`.
    pub fn diagonal(&self, k: usize) -> f32 {
        self.sum[k * self.size + k] / self.tokens.max(1) as f32
    }

    /// The mean of `x[i] * x[j]`.
    pub fn get(&self, i: usize, j: usize) -> f32 {
        self.sum[i.min(j) * self.size + i.max(j)] / self.tokens.max(1) as f32
    }

    /// A row of the matrix, whole, with `ridge` added to its diagonal.
    pub fn damped_row(&self, row: usize, ridge: f32) -> impl Iterator<Item = f32> + '_ {
        (0..self.size).map(move |j| self.get(row, j) + if row == j { ridge } else { 0.0 })
    }

    /// Whether every entry is a number: activations of a broken model are not.
    pub fn is_finite(&self) -> bool {
        (0..self.size).all(|i| self.sum[i * self.size + i..(i + 1) * self.size].iter().all(|v| v.is_finite()))
    }
}

/// How far the inputs of a linear layer are from those that it had before others were quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    size: usize,
    /// `[size, size]`: mean of `x (x_o - x)^T` over the tokens.
    mean: Vec<f32>,
}

impl Drift {
    /// From the sum of `x (x_o - x)^T` over `tokens` tokens.
    ///
    /// # Panics
    /// When `sum` is not `[size, size]`.
    pub fn new(size: usize, mut sum: Vec<f32>, tokens: u64) -> Self {
        assert_eq!(sum.len(), size * size, "a square matrix");
        for value in &mut sum {
            *value /= tokens.max(1) as f32;
        }
        Self { size, mean: sum }
    }

    /// Input features.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `[size, size]`: row `i` is the mean of `x[i] * (x_o - x)`.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }
}
