//! Calibration statistics of a linear layer's input: the means of `x x^T` and of `x (x_o - x)^T` over tokens, where
//! `x_o` is the original model's input for the same token.
//!
//! The first is, up to a factor of two, the Hessian of the layer's squared output error. The second measures the drift
//! caused by earlier layers. `calibrate` runs the model.

/// Second moments of the input of a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    size: usize,
    /// `[size, size]`, symmetric: sum of `x x^T` over the tokens.
    sum: Vec<f32>,
    tokens: u64,
}

impl Hessian {
    /// From the sum of `x x^T` over `tokens` tokens. Only the upper triangle is read.
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

    /// The number of tokens.
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

    /// A full row of the matrix, with `ridge` added to the diagonal.
    pub fn damped_row(&self, row: usize, ridge: f32) -> impl Iterator<Item = f32> + '_ {
        (0..self.size).map(move |j| self.get(row, j) + if row == j { ridge } else { 0.0 })
    }

    /// Whether every entry is finite. Activations of a broken model are not.
    pub fn is_finite(&self) -> bool {
        (0..self.size).all(|i| self.sum[i * self.size + i..(i + 1) * self.size].iter().all(|v| v.is_finite()))
    }
}

/// The drift of a linear layer's inputs caused by quantized earlier layers.
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
