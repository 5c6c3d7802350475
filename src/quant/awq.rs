//! AWQ: scales up columns with large inputs before rounding, so that their relative error is smaller.
//!
//! Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han: *AWQ: Activation-aware Weight Quantization for LLM
//! Compression and Acceleration* (2023). With `Q` rounding to nearest and `s` a positive factor for each column,
//! `Q(W s) (x / s)` approximates `W x`. The steps, for linear layers that share an input:
//!
//! 1. `m[k]` is the mean of `|x[k]|` over calibration tokens;
//! 2. for 20 ratios `r = i / 20`: `s = max(m^r, 1e-4)`, divided by `sqrt(max s * min s)`. The caller measures the loss
//!    of `Q(W s) / s` and may stop early above the best loss. The best ratio is kept ([`ScaleSearch`]). `r = 0` is
//!    rounding to nearest;
//! 3. the division by `s` is folded into the preceding norm or linear layer ([`fold`]);
//! 4. the ranges of the groups of `W s` are clipped if that reduces the error ([`AwqQuantizer`]), except for q and k.
//!
//! Departures from the authors' code:
//!
//! 1. Clipping minimizes `e H e^T` of a group, with `H` the group's block of the mean of `x x^T` over all tokens. This
//!    is the exact squared output error of the group; the authors estimate it from a few hundred tokens.
//! 2. Both ends of a range shrink equally, in 20 steps of 2.5 %. The authors use 10 steps of 5 % and shrink the longer
//!    end first. A module's clipping is dropped if it does not improve the whole output.
//! 3. The loss of a single linear layer (o, down) is `tr(E H E^T)`, exact for all tokens, instead of a
//!    run of the layer. Other losses are of the parent module's output on the first tokens (`calibrate`).
//! 4. The divisors of a norm are rounded so that the norm stored in the source's type exactly
//!    matches the scaled weights.
//! 5. With grouped-query attention the output projection is scaled too, with one `s` for the features that share a row
//!    of v. The authors skip such layers.
//! 6. Blocks, and inputs within them, are quantized in the order of the data flow, each on the outputs of the quantized
//!    layers before it. The authors use the original block.
//!
//! Layers are only clipped, not scaled, if another layer with the same input is not quantized. The same holds if the
//! division would be folded into a linear layer that is not quantized.
//!
//! `calibrate` runs the model and decides what is folded where.

pub mod fold;
mod rows;

use super::builder::PackedBuilder;
use super::hessian::Hessian;
use super::packed_tensor::PackedTensor;
use super::qparams::ScaleType;
use super::row_queue::{RowQuantizer, RowQueue, TASK_ROWS};
use super::scheme::{Granularity, Scheme};
use super::stats::WeightError;
use crate::error::{Error, Result};
use crate::task::Steps;
use rows::{ClippedRows, Grid};

/// Number of ratios.
pub const RATIOS: usize = 20;
/// The smallest scale before normalization, for columns without input.
const SMALLEST: f32 = 1e-4;

/// Candidate scales.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleCandidate {
    /// The exponent of the mean input.
    pub ratio: f32,
    /// The factor of each input column of the weights; positive and finite.
    pub scales: Vec<f32>,
}

/// A search over ratios: returns candidates, receives their losses, and keeps the best.
#[derive(Clone, Debug)]
pub struct ScaleSearch {
    /// Mean of `|x|`, for each input column.
    mean: Vec<f32>,
    /// Candidates returned so far.
    next: usize,
    best: usize,
    least: f64,
}

impl ScaleSearch {
    /// Starts a search with the mean of `|x|` of each input column.
    pub fn new(mean: Vec<f32>) -> Self {
        Self { mean, next: 0, best: 0, least: f64::INFINITY }
    }

    /// The next candidate; `None` after the last. The first leaves the weights unchanged.
    pub fn next_candidate(&mut self) -> Option<ScaleCandidate> {
        (self.next < RATIOS).then(|| {
            self.next += 1;
            self.candidate(self.next - 1)
        })
    }

    /// Records the loss of the last candidate. The smallest wins, the earlier one among equals, and NaN never.
    pub fn report(&mut self, loss: f64) {
        if loss < self.least {
            (self.best, self.least) = (self.next.saturating_sub(1), loss);
        }
    }

    /// The smallest loss so far, initially infinite. A larger loss may be a lower bound.
    pub fn least(&self) -> f64 {
        self.least
    }

    /// The best candidate so far, initially the one that leaves the weights unchanged.
    pub fn best(&self) -> ScaleCandidate {
        self.candidate(self.best)
    }

    fn candidate(&self, index: usize) -> ScaleCandidate {
        let ratio = index as f32 / RATIOS as f32;
        let powers = self.mean.iter().map(|&mean| libm::powf(mean, ratio).max(SMALLEST));
        let mut scales: Vec<f32> = powers.collect();
        let (min, max) = scales.iter().fold((f32::INFINITY, 0f32), |(min, max), &s| (s.min(min), s.max(max)));
        let middle = (max * min).sqrt();
        for scale in &mut scales {
            *scale /= middle;
        }
        // A ratio of 0, and NaN inputs, leave the weights unchanged.
        if index == 0 || scales.iter().any(|scale| !(scale.is_finite() && *scale > 0.0)) {
            scales.fill(1.0);
        }
        ScaleCandidate { ratio, scales }
    }
}

/// Second moments of an input, prepared for output errors.
#[derive(Clone, Debug)]
pub struct Moments {
    size: usize,
    /// `[size, size]`: the upper triangle, half of the diagonal, zeros below.
    upper: Vec<f32>,
}

impl Moments {
    /// Prepares an input's Hessian.
    pub fn new(hessian: &Hessian) -> Self {
        Self::in_steps(hessian).finish()
    }

    /// As [`Moments::new`], in steps.
    pub fn in_steps(hessian: &Hessian) -> Steps<'_, Self> {
        Steps::new(move |mut pace| async move {
            let size = hessian.size();
            let mut upper = vec![0.0; size * size];
            for i in 0..size {
                upper[i * size + i] = hessian.diagonal(i) / 2.0;
                for j in i + 1..size {
                    upper[i * size + j] = hessian.get(i, j);
                }
                pace.spend(LOOK_UP * (size - i) as u64).await;
            }
            Self { size, upper }
        })
    }
}

/// Cost matrices of group errors, for scaled columns.
#[derive(Clone, Debug)]
pub struct Clipping {
    group_size: usize,
    /// `[columns, columns]` for each group.
    blocks: Vec<Vec<f32>>,
}

impl Clipping {
    /// The groups' blocks of the Hessian of `x / scales`.
    pub fn new(hessian: &Hessian, scales: &[f32], group_size: usize) -> Self {
        Self::in_steps(hessian, scales, group_size).finish()
    }

    /// As [`Clipping::new`], in steps.
    pub fn in_steps<'a>(hessian: &'a Hessian, scales: &'a [f32], group_size: usize) -> Steps<'a, Self> {
        Steps::new(move |mut pace| async move {
            let size = hessian.size();
            let mut blocks = Vec::with_capacity(size.div_ceil(group_size.max(1)));
            for start in (0..size).step_by(group_size.max(1)) {
                let columns = start..size.min(start + group_size);
                let mut block = Vec::with_capacity(columns.len() * columns.len());
                for i in columns.clone() {
                    block.extend(columns.clone().map(|j| hessian.get(i, j) / scales[i] / scales[j]));
                    pace.spend(LOOK_UP * columns.len() as u64).await;
                }
                blocks.push(block);
            }
            Self { group_size, blocks }
        })
    }
}

/// Cost of reading an entry of a Hessian, in multiply-adds. Not measured.
const LOOK_UP: u64 = 8;

/// Measurements during quantization. Output and output error each cost a product with the Hessian.
#[derive(Clone, Copy, Debug)]
pub enum Measure<'a> {
    /// Nothing.
    Nothing,
    /// The output error.
    Error(&'a Moments),
    /// The output error and the output.
    ErrorAndSignal(&'a Moments),
    /// The output error and the weight error.
    ErrorAndWeights(&'a Moments),
}

impl<'a> Measure<'a> {
    fn moments(self) -> Option<&'a Moments> {
        match self {
            Self::Nothing => None,
            Self::Error(moments) | Self::ErrorAndSignal(moments) | Self::ErrorAndWeights(moments) => {
                Some(moments)
            }
        }
    }
}

/// A scaled and rounded matrix.
#[derive(Clone, Debug)]
pub struct AwqOutcome {
    /// `Q(W s)`.
    pub tensor: PackedTensor,
    /// Squared output error, mean over tokens, sum over rows; 0 if not measured.
    pub error: f64,
    /// Squared output, mean over tokens, sum over rows; 0 if not measured.
    pub signal: f64,
    /// Weight error of `Q(W s) / s`; empty if not measured.
    pub weights: WeightError,
}

/// Scales and quantizes a matrix as its rows arrive.
pub struct AwqQuantizer<'a> {
    grid: Grid<'a>,
    builder: PackedBuilder,
    error: f64,
    signal: f64,
    weights: WeightError,
    /// Rows in progress.
    tasks: RowQueue<'a, Result<ClippedRows>>,
    /// Received rows.
    taken: usize,
}

impl<'a> AwqQuantizer<'a> {
    /// Starts a `[rows, cols]` matrix whose columns are multiplied by `scales`. Measurements refer to the
    /// unscaled input.
    ///
    /// # Errors
    /// `invalid_argument` for a scheme other than integers per channel or group, and for an empty matrix.
    ///
    /// # Panics
    /// When `scales`, the moments or `clipping` are for another number of columns or another group size.
    pub fn new(
        scheme: Scheme,
        (rows, cols): (usize, usize),
        scales: &'a [f32],
        measure: Measure<'a>,
        clipping: Option<&'a Clipping>,
        scale_type: ScaleType,
    ) -> Result<Self> {
        let Scheme::Integer { bits, granularity: Granularity::Channel | Granularity::Group(_), symmetric } =
            scheme
        else {
            return Err(Error::invalid_argument(format!(
                "awq makes integer codes per channel or per group, not {scheme}"
            )));
        };
        let builder = PackedBuilder::new(scheme, rows, cols, scale_type)?;
        let group_size = scheme.granularity().group_size(cols);
        assert_eq!(scales.len(), cols, "scales are of the layer's input");
        if let Some(moments) = measure.moments() {
            assert_eq!(moments.size, cols, "moments are of the layer's input");
        }
        assert!(
            clipping.is_none_or(|clipping| clipping.group_size == group_size
                && clipping.blocks.len() == cols.div_ceil(group_size)),
            "clipping is of the layer's groups"
        );
        let grid = Grid { bits, symmetric, cols, group_size, scale_type, scales, measure, clipping };
        let (weights, tasks) = (WeightError::default(), RowQueue::default());
        Ok(Self { grid, builder, error: 0.0, signal: 0.0, weights, tasks, taken: 0 })
    }

    /// The matrix and its errors.
    ///
    /// # Errors
    /// `invalid_checkpoint` when rows are missing.
    pub fn finish(self) -> Result<AwqOutcome> {
        Ok(AwqOutcome {
            tensor: self.builder.finish()?,
            // Rounding errors can make the sum negative.
            error: self.error.max(0.0),
            signal: self.signal.max(0.0),
            weights: self.weights,
        })
    }
}

impl RowQuantizer for AwqQuantizer<'_> {
    fn take_rows(&mut self, weights: &[f32]) {
        let cols = self.grid.cols;
        assert_eq!(weights.len() % cols, 0, "weights come in whole rows");
        let grid = self.grid;
        for rows in weights.chunks(TASK_ROWS * cols) {
            let (first_row, rows) = (self.taken, rows.to_vec());
            self.taken += rows.len() / cols;
            self.tasks.push(Steps::new(move |mut pace| async move {
                ClippedRows::run(grid, rows, first_row, &mut pace).await
            }));
        }
    }

    fn wants_rows(&self) -> bool {
        self.tasks.wants_more()
    }

    fn step(&mut self) -> Result<bool> {
        let cols = self.grid.cols;
        for task in self.tasks.step() {
            let task = task?;
            for codes in task.codes.chunks_exact(cols) {
                self.builder.push_codes(codes);
            }
            for params in &task.params {
                self.builder.push_scale(params.scale);
                if !self.grid.symmetric {
                    self.builder.push_zero_point(params.zero_point);
                }
            }
            if let Measure::ErrorAndWeights(_) = self.grid.measure {
                self.weights.add(&task.weights, &task.effective);
            }
            self.error += task.error;
            self.signal += task.signal;
        }
        Ok(!self.tasks.is_empty())
    }
}

#[cfg(test)]
mod tests;
