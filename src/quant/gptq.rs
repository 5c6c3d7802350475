//! GPTQ: rounds column by column, and compensates errors in later columns.
//!
//! Frantar, Ashkboos, Hoefler, Alistarh: *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
//! Transformers* (2022), in the form of LDLQ, which Chee, Cai, Kuleshov, De Sa, *QuIP* (2023), prove to give the same
//! codes. `H` is the mean of `x x^T` over calibration tokens, `H = U D U^T` (`quant::linalg`), and `e = w - q` are the
//! errors of a row.
//!
//! 1. Dead columns (inputs that are always 0) get the diagonal 1 and the weight 0. `damping * mean(diag H)` is added to
//!    the diagonal, and increased stepwise while `H` has no factor.
//! 2. Column `k` is rounded at `t[k] = w[k] + sum over j < k of e[j] U[j, k]`.
//! 3. The layer's output error is then exactly `e H e^T = sum of D[k] (t[k] - q[k])^2`.
//! 4. A group's scale is determined when its first column is reached, from the best values of its weights given
//!    the errors so far: `w + y` with `y U_G = (sum over j before the group of e[j] U[j, k])` over the group's columns.
//! 5. Columns can be ordered by descending diagonal ("act-order"), or groups and the columns within
//!    a group can ("group-aware reordering", which needs no record of the order).
//!
//! The target is `W x_o`, with `x_o` the unquantized model's input. Matching it instead of `W x` corrects the error of
//! earlier layers: Li, Yin, Lee, Xiao, Panda, *GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
//! Calibration* (2025). With the ridge of the damping, the best weights are `w + w C H^-1`, where `C` is the mean of
//! `(x_o - x) x^T` ([`Drift`], transposed). They replace `w` in all steps. (The paper propagates the difference column
//! by column, with the same sum.) `ReferenceInputs::Quantized` turns this off.
//!
//! Departures from the paper's code:
//!
//! 1. No inverse of `H` is formed, which halves the work and is more accurate.
//! 2. Sums over earlier columns are computed in blocks, as matrix products.
//! 3. Every row is also rounded to nearest, and the caller gets both output errors.
//! 4. By default a group's scale is searched for the least `sum of D[k] (w[k] - q[k])^2`
//!    instead of spanning the range; on symmetric grids also among negative scales.
//! 5. Refinement passes follow (`gptq/refine.rs`).
//!
//! Measured: `docs/measurements.md`, "Parts of GPTQ". `calibrate` captures `H`.

mod options;
mod refine;
mod rows;

pub use options::{ColumnOrder, GptqOptions, ReferenceInputs, ScaleRule};

use super::builder::PackedBuilder;
use super::column_order;
use super::hessian::{Drift, Hessian};
use super::linalg::Factor;
use super::packed_tensor::PackedTensor;
use super::qparams::{QParams, ScaleType, non_finite_weight, range};
use super::row_queue::{RowQuantizer, RowQueue, TASK_ROWS};
use super::scale_search;
use super::scheme::{Bits, Granularity, Scheme};
use crate::error::{Error, Result};
use crate::parallel;
use crate::task::{Pace, Steps};
use rows::{RoundedRow, RoundedRows, Sums};

/// The Hessian of an input, prepared for all layers that share the input.
#[derive(Clone, Debug)]
pub struct Prepared<'a> {
    factor: Factor,
    /// The drift from the original inputs, if it is corrected.
    drift: Option<&'a Drift>,
    /// `[size, size]`: the damped Hessian in input order.
    damped: Vec<f32>,
    /// The damping.
    ridge: f32,
    refinement_passes: usize,
    order: ColumnOrder,
    scales: ScaleRule,
    group_size: usize,
    /// `[size]`: the input column at each position of the order, or `None` for the stored order.
    columns: Option<Vec<u32>>,
    /// `[size]`, in order: the amount added to the diagonal.
    added: Vec<f32>,
    /// `[size]`, in order.
    dead: Vec<bool>,
    damping: f32,
}

impl<'a> Prepared<'a> {
    /// Orders (for groups of `group_size` columns), damps and factors. With a `drift`, targets are the outputs on the
    /// original inputs. `None` if the Hessian has no factor with any damping, or has entries that are not finite.
    ///
    /// # Panics
    /// When the drift has another size.
    pub fn new(
        hessian: &Hessian,
        drift: Option<&'a Drift>,
        group_size: usize,
        options: GptqOptions,
    ) -> Option<Self> {
        Self::in_steps(hessian, drift, group_size, options).finish()
    }

    /// As [`Prepared::new`], in steps.
    ///
    /// # Panics
    /// When the drift has another size.
    pub fn in_steps<'h>(
        hessian: &'h Hessian,
        drift: Option<&'a Drift>,
        group_size: usize,
        options: GptqOptions,
    ) -> Steps<'h, Option<Self>>
    where
        'a: 'h,
    {
        assert!(drift.is_none_or(|drift| drift.size() == hessian.size()), "the drift is of the same input");
        Steps::new(move |mut pace| async move {
            let prepared = Self::paced(hessian, group_size, options, &mut pace).await?;
            Some(Self { drift, ..prepared })
        })
    }

    async fn paced(
        hessian: &Hessian,
        group_size: usize,
        options: GptqOptions,
        pace: &mut Pace,
    ) -> Option<Self> {
        let size = hessian.size();
        if !hessian.is_finite() {
            return None;
        }
        let columns = options.act_order.columns(hessian, group_size);
        let column = |place: usize| columns.as_ref().map_or(place, |columns| columns[place] as usize);
        let dead: Vec<bool> = (0..size).map(|place| hessian.diagonal(column(place)) <= 0.0).collect();
        let sum: f64 = (0..size)
            .map(|place| if dead[place] { 1.0 } else { f64::from(hessian.diagonal(column(place))) })
            .sum();
        let mean = (sum / size as f64) as f32;
        for step in 0..ESCALATIONS {
            let damping = options.damping + DAMPING_STEP * ((1 << step) - 1) as f32;
            let mut h = vec![0.0; size * size];
            for (band, rows) in h.chunks_mut(BAND * size).enumerate() {
                parallel::for_each_chunk(rows, size, |row, values| {
                    let i = band * BAND + row;
                    for (j, value) in values.iter_mut().enumerate().skip(i) {
                        *value = hessian.get(column(i), column(j));
                    }
                });
                pace.spend(LOOK_UP * rows.len() as u64).await;
            }
            let added: Vec<f32> =
                dead.iter().map(|&dead| damping * mean + if dead { 1.0 } else { 0.0 }).collect();
            for (place, added) in added.iter().enumerate() {
                h[place * size + place] += added;
            }
            if let Some(factor) = Factor::paced(h, size, pace).await {
                let ridge = damping * mean;
                let mut damped = vec![0.0; size * size];
                for (band, rows) in damped.chunks_mut(BAND * size).enumerate() {
                    parallel::for_each_chunk(rows, size, |row, values| {
                        let damped = hessian.damped_row(band * BAND + row, ridge);
                        values.iter_mut().zip(damped).for_each(|(value, damped)| *value = damped);
                    });
                    pace.spend(LOOK_UP * rows.len() as u64).await;
                }
                return Some(Self {
                    drift: None,
                    damped,
                    ridge,
                    // Refinement expects contiguous groups.
                    refinement_passes: if options.act_order == ColumnOrder::GroupIndex {
                        0
                    } else {
                        options.refinement_passes
                    },
                    factor,
                    order: options.act_order,
                    scales: options.scales,
                    group_size,
                    columns,
                    added,
                    dead,
                    damping,
                });
            }
        }
        None
    }

    /// The damping that was needed.
    pub fn damping(&self) -> f32 {
        self.damping
    }

    /// The input column at a position of the order.
    fn column(&self, place: usize) -> usize {
        self.columns.as_ref().map_or(place, |columns| columns[place] as usize)
    }

    /// Whether scales are known before the first column is rounded.
    fn has_static_groups(&self) -> bool {
        self.order == ColumnOrder::StaticGroups
    }

    /// The group of the column at a position.
    fn group(&self, place: usize) -> usize {
        let along_order = matches!(self.order, ColumnOrder::Stored | ColumnOrder::GroupIndex);
        if along_order { place } else { self.column(place) }.checked_div(self.group_size).unwrap_or(0)
    }

    /// The stored order of columns: groups in rounding order, and input order within a group.
    fn stored_order(&self) -> Result<Option<Vec<u32>>> {
        let Some(columns) = self.columns.as_ref().filter(|_| self.order == ColumnOrder::GroupIndex) else {
            return Ok(None);
        };
        let mut g_idx = vec![0; columns.len()];
        for (place, &column) in columns.iter().enumerate() {
            g_idx[column as usize] = (place / self.group_size) as i32;
        }
        column_order::order_of_groups(&g_idx, self.group_size).map(Some)
    }
}

/// The damping grows by this, then by twice this, and so on, while there is no factor.
const DAMPING_STEP: f32 = 0.01;
/// Up to 0.64 above the first damping. Calibration does not produce matrices without a factor at that damping.
const ESCALATIONS: u32 = 7;

/// Cost of reading an entry of a Hessian, which is seldom cached, in multiply-adds. Not measured.
const LOOK_UP: u64 = 8;
/// Rows read between two pauses.
const BAND: usize = 64;

/// Columns between two products. Within a block, errors propagate one by one.
const BLOCK: usize = 128;

/// A matrix rounded by GPTQ and to nearest.
#[derive(Clone, Debug)]
pub struct GptqOutcome {
    /// GPTQ's result; `None` if numbers were not finite.
    pub gptq: Option<PackedTensor>,
    /// The result of rounding to nearest.
    pub rtn: PackedTensor,
    /// GPTQ's squared output error, mean over tokens, sum over rows. With a drift, the distance from the best output
    /// that any weights can make.
    pub gptq_error: f64,
    /// The same for rounding to nearest.
    pub rtn_error: f64,
    /// Squared output, mean over tokens, sum over rows. With a drift, of the best weights.
    pub signal: f64,
}

/// Quantizes a matrix as its rows arrive.
pub struct GptqQuantizer<'a> {
    prepared: &'a Prepared<'a>,
    grid: Grid,
    /// `[cols]`: the stored order of GPTQ's columns, if not the identity.
    stored_order: Option<Vec<u32>>,
    gptq: PackedBuilder,
    rtn: PackedBuilder,
    sums: Sums,
    /// Rows in progress.
    tasks: RowQueue<'a, Result<RoundedRows>>,
    /// Received rows.
    taken: usize,
}

/// The source of scales.
#[derive(Clone, Copy)]
struct Grid {
    bits: Bits,
    symmetric: bool,
    cols: usize,
    group_size: usize,
    scale_type: ScaleType,
    scales: ScaleRule,
}

impl Grid {
    /// Scale and zero point of a group. `importance` is the cost of each weight's squared rounding error.
    fn params(&self, weights: &[f32], importance: &[f32]) -> Result<QParams> {
        let (min, max) = range(weights).map_err(|index| non_finite_weight(weights[index], 0, index))?;
        let Self { bits, symmetric, scale_type, .. } = *self;
        match self.scales {
            ScaleRule::Range => QParams::from_range(min, max, bits, symmetric, scale_type),
            ScaleRule::LeastError => {
                scale_search::search(weights, importance, (min, max), bits, symmetric, scale_type)
            }
        }
    }
}

impl<'a> GptqQuantizer<'a> {
    /// Starts a `[rows, cols]` matrix.
    ///
    /// # Errors
    /// `invalid_argument` for a scheme other than integers per channel or group, and for an empty matrix.
    ///
    /// # Panics
    /// When `prepared` is for another number of columns or another group size.
    pub fn new(
        prepared: &'a Prepared<'a>,
        scheme: Scheme,
        rows: usize,
        cols: usize,
        scale_type: ScaleType,
    ) -> Result<Self> {
        assert_eq!(prepared.factor.size, cols, "the Hessian is of the layer's input");
        let Scheme::Integer { bits, granularity: Granularity::Channel | Granularity::Group(_), symmetric } =
            scheme
        else {
            return Err(Error::invalid_argument(format!(
                "gptq makes integer codes per channel or per group, not {scheme}"
            )));
        };
        let group_size = scheme.granularity().group_size(cols);
        assert_eq!(prepared.group_size, group_size, "the order of columns is for the same groups");
        Ok(Self {
            prepared,
            grid: Grid { bits, symmetric, cols, group_size, scale_type, scales: prepared.scales },
            stored_order: prepared.stored_order()?,
            gptq: PackedBuilder::new(scheme, rows, cols, scale_type)?,
            rtn: PackedBuilder::new(scheme, rows, cols, scale_type)?,
            sums: Sums::default(),
            tasks: RowQueue::default(),
            taken: 0,
        })
    }

    /// The matrix, rounded in both ways.
    ///
    /// # Errors
    /// `invalid_checkpoint` when rows are missing.
    pub fn finish(self) -> Result<GptqOutcome> {
        let gptq = self.gptq.finish()?;
        let gptq = match self.stored_order {
            Some(order) => gptq.with_column_order(order)?,
            None => gptq,
        };
        let failed = self.sums.failed || !self.sums.gptq.is_finite();
        Ok(GptqOutcome {
            gptq: (!failed).then_some(gptq),
            rtn: self.rtn.finish()?,
            // Subtracting the damping can leave a negative rounding error.
            gptq_error: if failed { f64::INFINITY } else { self.sums.gptq.max(0.0) },
            rtn_error: self.sums.rtn.max(0.0),
            signal: self.sums.signal.max(0.0),
        })
    }
}

impl RowQuantizer for GptqQuantizer<'_> {
    fn take_rows(&mut self, weights: &[f32]) {
        let cols = self.grid.cols;
        assert_eq!(weights.len() % cols, 0, "weights come in whole rows");
        let (grid, prepared) = (self.grid, self.prepared);
        for rows in weights.chunks(TASK_ROWS * cols) {
            let (first_row, rows) = (self.taken, rows.to_vec());
            self.taken += rows.len() / cols;
            self.tasks.push(Steps::new(move |mut pace| async move {
                RoundedRows::run(prepared, grid, &rows, first_row, &mut pace).await
            }));
        }
    }

    fn wants_rows(&self) -> bool {
        self.tasks.wants_more()
    }

    fn step(&mut self) -> Result<bool> {
        let grid = self.grid;
        for task in self.tasks.step() {
            let task = task?;
            for mut row in task.gptq {
                if let Some(order) = &self.stored_order {
                    row.codes = order.iter().map(|&column| row.codes[column as usize]).collect();
                }
                push(&mut self.gptq, &row, grid.symmetric);
            }
            for row in &task.rtn {
                push(&mut self.rtn, row, grid.symmetric);
            }
            self.sums.gptq += task.sums.gptq;
            self.sums.rtn += task.sums.rtn;
            self.sums.signal += task.sums.signal;
            self.sums.failed |= task.sums.failed;
        }
        Ok(!self.tasks.is_empty())
    }
}

fn push(builder: &mut PackedBuilder, row: &RoundedRow, symmetric: bool) {
    builder.push_codes(&row.codes);
    for params in &row.params {
        builder.push_scale(params.scale);
        if !symmetric {
            builder.push_zero_point(params.zero_point);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel;
    use crate::quant::dequantize;
    use crate::task::steps::STEP_WORK;
    use rand_pcg::Pcg32;
    use rand_pcg::rand_core::{Rng, SeedableRng};

    /// The paper's code with its defaults.
    const PAPER: GptqOptions = GptqOptions {
        damping: 0.01,
        act_order: ColumnOrder::Stored,
        scales: ScaleRule::Range,
        refinement_passes: 0,
        reference_inputs: ReferenceInputs::Quantized,
    };

    const ORDERS: [ColumnOrder; 4] =
        [ColumnOrder::Stored, ColumnOrder::GroupAware, ColumnOrder::StaticGroups, ColumnOrder::GroupIndex];

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = Pcg32::seed_from_u64(seed);
        (0..len).map(|_| (0..4).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).sum()).collect()
    }

    /// Inputs with correlated features of very different sizes, like activations.
    fn inputs(cols: usize, tokens: usize, seed: u64) -> Vec<f32> {
        let mix = random(cols * cols, seed + 1);
        let mut x = Vec::with_capacity(cols * tokens);
        for source in random(cols * tokens, seed).chunks(cols) {
            for (i, mix) in mix.chunks(cols).enumerate() {
                let mixed: f32 = mix.iter().zip(source).map(|(m, s)| m * s).sum();
                x.push((mixed * 0.3 + source[i]) * (0.2 + (i % 7) as f32));
            }
        }
        x
    }

    fn hessian(x: &[f32], cols: usize) -> Hessian {
        let mut sum = vec![0.0; cols * cols];
        for x in x.chunks(cols) {
            for i in 0..cols {
                for j in 0..cols {
                    sum[i * cols + j] += x[i] * x[j];
                }
            }
        }
        Hessian::new(cols, sum, (x.len() / cols) as u64)
    }

    fn scheme(bits: Bits, granularity: Granularity, symmetric: bool) -> Scheme {
        Scheme::Integer { bits, granularity, symmetric }
    }

    fn quantize(w: &[f32], h: &Hessian, scheme: Scheme, options: GptqOptions) -> GptqOutcome {
        quantize_with(w, h, None, scheme, options)
    }

    fn quantize_with(
        w: &[f32],
        h: &Hessian,
        drift: Option<&Drift>,
        scheme: Scheme,
        options: GptqOptions,
    ) -> GptqOutcome {
        let cols = h.size();
        let prepared = Prepared::new(h, drift, scheme.granularity().group_size(cols), options).unwrap();
        let mut quantizer =
            GptqQuantizer::new(&prepared, scheme, w.len() / cols, cols, ScaleType::F32).unwrap();
        // Two chunks, as a checkpoint is read.
        let middle = w.len() / cols / 2 * cols;
        quantizer.push_rows(&w[..middle]).unwrap();
        quantizer.push_rows(&w[middle..]).unwrap();
        quantizer.finish().unwrap()
    }

    fn weights(tensor: &PackedTensor) -> Vec<f32> {
        let mut out = vec![0.0; tensor.rows() * tensor.cols()];
        dequantize::rows(tensor, 0..tensor.rows(), &mut out);
        out
    }

    /// Mean over tokens of the squared distance of the outputs.
    fn output_error(x: &[f32], w: &[f32], q: &[f32], cols: usize) -> f64 {
        let mut sum = 0.0;
        for x in x.chunks(cols) {
            for (w, q) in w.chunks(cols).zip(q.chunks(cols)) {
                let y: f64 =
                    x.iter().zip(w.iter().zip(q)).map(|(x, (w, q))| f64::from(*x) * f64::from(w - q)).sum();
                sum += y * y;
            }
        }
        sum / (x.len() / cols) as f64
    }

    /// The paper's code in `f64`: inverse, upper Cholesky factor, errors propagated column by
    /// column, in stored order.
    fn paper(w: &[f32], h: &Hessian, scheme: Scheme, damping: f64) -> Vec<f32> {
        let n = h.size();
        let Scheme::Integer { bits, granularity, symmetric } = scheme else { unreachable!() };
        let group_size = granularity.group_size(n);
        let mean = (0..n).map(|k| f64::from(h.diagonal(k))).sum::<f64>() / n as f64;
        // Gauss-Jordan on [H | 1].
        let mut a: Vec<Vec<f64>> = (0..n)
            .map(|i| {
                let row = (0..n).map(|j| f64::from(h.get(i, j)) + if i == j { damping * mean } else { 0.0 });
                row.chain((0..n).map(|j| f64::from(u8::from(i == j)))).collect()
            })
            .collect();
        for k in 0..n {
            let pivot = a[k].clone();
            for (i, row) in a.iter_mut().enumerate() {
                let factor = if i == k { 1.0 - 1.0 / pivot[k] } else { row[k] / pivot[k] };
                for (value, p) in row.iter_mut().zip(&pivot) {
                    *value -= factor * p;
                }
            }
        }
        // Upper Cholesky: inverse = R^T R.
        let mut r = vec![vec![0.0; n]; n];
        for i in 0..n {
            for j in i..n {
                let sum: f64 = (0..i).map(|k| r[k][i] * r[k][j]).sum();
                let value = a[i][n + j] - sum;
                r[i][j] = if i == j { f64::sqrt(value) } else { value / r[i][i] };
            }
        }
        let mut out = Vec::new();
        for row in w.chunks(n) {
            let mut row: Vec<f64> = row.iter().map(|&w| f64::from(w)).collect();
            let mut params = QParams { scale: 1.0, zero_point: 0 };
            for k in 0..n {
                if k % group_size == 0 {
                    let group: Vec<f32> = row[k..n.min(k + group_size)].iter().map(|&w| w as f32).collect();
                    let (min, max) = range(&group).unwrap();
                    params = QParams::from_range(min, max, bits, symmetric, ScaleType::F32).unwrap();
                }
                let q = params.decode(params.encode(row[k] as f32, bits));
                out.push(q);
                let error = (row[k] - f64::from(q)) / r[k][k];
                for j in k..n {
                    row[j] -= error * r[k][j];
                }
            }
        }
        out
    }

    /// Largest number of rows in which a rounding tie may differ and change later columns. Measured: none of
    /// 320.
    const DIFFERENT_ROWS: usize = 1;

    #[test]
    fn codes_are_those_of_the_papers_own_steps() {
        for (cols, bits, granularity, symmetric) in [
            (40, Bits::Four, Granularity::Group(8), true),
            (40, Bits::Four, Granularity::Group(8), false),
            (70, Bits::Three, Granularity::Group(32), false),
            (70, Bits::Two, Granularity::Channel, true),
            (150, Bits::Four, Granularity::Group(64), true),
            (150, Bits::Eight, Granularity::Group(48), false),
            (300, Bits::Four, Granularity::Group(140), true),
            (300, Bits::Four, Granularity::Channel, false),
        ] {
            let scheme = scheme(bits, granularity, symmetric);
            let h = hessian(&inputs(cols, 2 * cols, 5), cols);
            let w = random(40 * cols, 9);
            let found = weights(&quantize(&w, &h, scheme, PAPER).gptq.unwrap());
            let expected = paper(&w, &h, scheme, 0.01);
            let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
            let different =
                found.chunks(cols).zip(expected.chunks(cols)).filter(|(a, b)| !close(a, b)).count();
            println!("{cols} {scheme}: {different} rows differ");
            assert!(different <= DIFFERENT_ROWS, "{scheme} of {cols} columns: {different} rows differ");
        }
    }

    /// Largest relative difference of the factor's errors from direct output errors. Measured: 3.4e-7.
    const ERROR_OF_ERROR: f64 = 5e-6;

    #[test]
    fn errors_are_those_of_the_output_and_gptq_is_below_rounding() {
        let worst = std::cell::Cell::new(0.0f64);
        for order in ORDERS {
            for (cols, bits, granularity, symmetric) in [
                (96, Bits::Four, Granularity::Group(32), true),
                (100, Bits::Three, Granularity::Group(32), false),
                (200, Bits::Two, Granularity::Group(64), false),
                (64, Bits::Four, Granularity::Channel, true),
            ] {
                let x = inputs(cols, 3 * cols, 3);
                let h = hessian(&x, cols);
                let w = random(50 * cols, 4);
                let options = GptqOptions { act_order: order, ..GptqOptions::default() };
                let outcome = quantize(&w, &h, scheme(bits, granularity, symmetric), options);
                let near = |found: f64, expected: f64| {
                    let error = (found / expected - 1.0).abs();
                    worst.set(worst.get().max(error));
                    error < ERROR_OF_ERROR
                };
                let gptq = output_error(&x, &w, &weights(outcome.gptq.as_ref().unwrap()), cols);
                let rtn = output_error(&x, &w, &weights(&outcome.rtn), cols);
                assert!(near(outcome.gptq_error, gptq), "{order:?}: {} {gptq}", outcome.gptq_error);
                assert!(near(outcome.rtn_error, rtn), "{order:?}: {} {rtn}", outcome.rtn_error);
                assert!(near(outcome.signal, output_error(&x, &w, &vec![0.0; w.len()], cols)));
                assert!(gptq < 0.9 * rtn, "{order:?}, {bits:?}: {gptq} against {rtn}");
            }
        }
        println!("largest error of an error {:e}", worst.get());
    }

    /// The weights whose outputs on `x` best match those of `w` on `original`, with a ridge towards `w`, in `f64`.
    fn best_on(x: &[f32], original: &[f32], w: &[f32], cols: usize, damping: f64) -> Vec<f32> {
        let tokens = (x.len() / cols) as f64;
        let moment = |i: usize, other: &dyn Fn(usize) -> f64| -> f64 {
            (0..x.len() / cols).map(|t| f64::from(x[t * cols + i]) * other(t * cols)).sum::<f64>() / tokens
        };
        let mut h: Vec<Vec<f64>> =
            (0..cols).map(|i| (0..cols).map(|j| moment(i, &|at| f64::from(x[at + j]))).collect()).collect();
        let ridge = damping * (0..cols).map(|k| h[k][k]).sum::<f64>() / cols as f64;
        (0..cols).for_each(|k| h[k][k] += ridge);
        // Right-hand sides: (W x_o) x^T + ridge W.
        let sides = w.chunks(cols).map(|w| -> Vec<f64> {
            let output =
                |at: usize| -> f64 { (0..cols).map(|j| f64::from(w[j]) * f64::from(original[at + j])).sum() };
            (0..cols).map(|i| moment(i, &output) + ridge * f64::from(w[i])).collect()
        });
        let mut sides: Vec<Vec<f64>> = sides.collect();
        for k in 0..cols {
            let pivot = h[k].clone();
            for i in (0..cols).filter(|&i| i != k) {
                let factor = h[i][k] / pivot[k];
                for j in k..cols {
                    h[i][j] -= factor * pivot[j];
                }
                sides.iter_mut().for_each(|side| side[i] -= factor * side[k]);
            }
        }
        sides.iter().flat_map(|side| (0..cols).map(|k| (side[k] / h[k][k]) as f32)).collect()
    }

    #[test]
    fn with_a_drift_outputs_are_those_of_the_original_inputs() {
        for order in ORDERS {
            for (cols, bits, granularity, symmetric) in [
                (96, Bits::Four, Granularity::Group(32), true),
                (100, Bits::Three, Granularity::Group(32), false),
                (64, Bits::Four, Granularity::Channel, true),
            ] {
                let original = inputs(cols, 3 * cols, 3);
                let noise = random(original.len(), 8);
                let x: Vec<f32> = original.iter().zip(&noise).map(|(x, e)| 0.9 * x + 0.1 * e).collect();
                let mut sum = vec![0.0; cols * cols];
                for (x, original) in x.chunks(cols).zip(original.chunks(cols)) {
                    for (i, sum) in sum.chunks_mut(cols).enumerate() {
                        sum.iter_mut()
                            .zip(original.iter().zip(x))
                            .for_each(|(s, (o, x_j))| *s += x[i] * (o - x_j));
                    }
                }
                let (h, drift) = (hessian(&x, cols), Drift::new(cols, sum, 3 * cols as u64));
                let w = random(20 * cols, 4);
                let options = GptqOptions { act_order: order, ..GptqOptions::default() };
                let scheme = scheme(bits, granularity, symmetric);
                let (with, without) =
                    (quantize_with(&w, &h, Some(&drift), scheme, options), quantize(&w, &h, scheme, options));
                let wanted = best_on(&x, &original, &w, cols, f64::from(options.damping));
                let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < ERROR_OF_ERROR;
                let rounded = weights(with.gptq.as_ref().unwrap());
                assert!(near(with.gptq_error, output_error(&x, &wanted, &rounded, cols)), "{order:?}");
                let rtn = output_error(&x, &wanted, &weights(&with.rtn), cols);
                assert!(near(with.rtn_error, rtn), "{order:?}: {} {rtn}", with.rtn_error);
                // Direct error W x_o - Q x, as the output of [W, Q] on [x_o, -x].
                let distance = |q: &[f32]| {
                    let mut sum = 0.0;
                    for (x, original) in x.chunks(cols).zip(original.chunks(cols)) {
                        for (w, q) in w.chunks(cols).zip(q.chunks(cols)) {
                            let y: f32 = (0..cols).map(|k| w[k] * original[k] - q[k] * x[k]).sum();
                            sum += f64::from(y) * f64::from(y);
                        }
                    }
                    sum
                };
                let (found, before) = (distance(&rounded), distance(&weights(&without.gptq.unwrap())));
                assert!(found < 0.9 * before, "{order:?}, {scheme}: {found} against {before}");
            }
        }
    }

    #[test]
    fn columns_without_input_get_no_weight_and_do_no_harm() {
        let cols = 40;
        let mut x = inputs(cols, 100, 3);
        for (index, value) in x.iter_mut().enumerate() {
            if index % cols % 5 == 0 {
                *value = 0.0;
            }
        }
        let w = random(20 * cols, 4);
        for order in ORDERS {
            let options = GptqOptions { act_order: order, ..GptqOptions::default() };
            let h = hessian(&x, cols);
            let outcome = quantize(&w, &h, scheme(Bits::Four, Granularity::Group(8), true), options);
            let q = weights(&outcome.gptq.unwrap());
            assert!(q.iter().enumerate().all(|(index, &q)| index % cols % 5 != 0 || q == 0.0), "{order:?}");
            assert!(outcome.gptq_error < outcome.rtn_error);
        }
    }

    #[test]
    fn a_matrix_of_low_rank_is_damped_until_it_has_a_factor() {
        let cols = 64;
        // Three tokens, one of them huge: without damping the matrix has rank 3.
        let mut x = inputs(cols, 3, 1);
        x[..cols].iter_mut().for_each(|v| *v *= 1e4);
        let h = hessian(&x, cols);
        let options = GptqOptions { damping: 0.0, ..GptqOptions::default() };
        let prepared = Prepared::new(&h, None, 32, options).unwrap();
        assert!(prepared.damping() > 0.0);
        let outcome =
            quantize(&random(8 * cols, 2), &h, scheme(Bits::Four, Granularity::Group(32), true), options);
        assert!(outcome.gptq_error.is_finite());
    }

    #[test]
    fn what_is_not_finite_is_refused_or_left_to_rounding() {
        let cols = 8;
        let mut sum = vec![1.0; cols * cols];
        sum[3] = f32::NAN;
        assert!(Prepared::new(&Hessian::new(cols, sum, 1), None, 4, GptqOptions::default()).is_none());
        assert!(
            Prepared::new(&Hessian::new(cols, vec![f32::INFINITY; 64], 1), None, 4, GptqOptions::default())
                .is_none()
        );

        let h = hessian(&inputs(cols, 20, 1), cols);
        let prepared = Prepared::new(&h, None, 4, GptqOptions::default()).unwrap();
        let scheme = scheme(Bits::Four, Granularity::Group(4), true);
        let mut quantizer = GptqQuantizer::new(&prepared, scheme, 2, cols, ScaleType::F16).unwrap();
        let mut w = random(2 * cols, 1);
        w[cols + 5] = f32::NAN;
        let error = quantizer.push_rows(&w).unwrap_err();
        assert_eq!(error.to_string(), "expected finite weights but found NaN at row 1, column 5");
        assert!(
            GptqQuantizer::new(
                &prepared,
                Scheme::Ternary { granularity: Granularity::Tensor },
                1,
                cols,
                ScaleType::F16
            )
            .is_err()
        );
    }

    /// Lower bound of multiply-adds for factoring and rounding `rows` rows of `cols` columns: a third of the
    /// cube for the factor, and for each row products with half of the square (outputs, output errors, propagation)
    /// and with the whole square (before the refinement passes).
    fn least_work(rows: u64, cols: u64) -> u64 {
        cols.pow(3) / 6 + rows * cols.pow(2) * 5 / 2
    }

    #[test]
    fn long_work_stops_often() {
        let (rows, cols) = (96, 640);
        let h = hessian(&inputs(cols, 30, 3), cols);
        let scheme = scheme(Bits::Four, Granularity::Group(32), true);
        let mut preparing = Prepared::in_steps(&h, None, 32, GptqOptions::default());
        let mut steps = 1;
        while preparing.step() {
            steps += 1;
        }
        let prepared = preparing.take().flatten().unwrap();
        let mut quantizer = GptqQuantizer::new(&prepared, scheme, rows, cols, ScaleType::F16).unwrap();
        quantizer.take_rows(&random(rows * cols, 4));
        while quantizer.step().unwrap() {
            steps += 1;
        }
        assert!(quantizer.finish().unwrap().gptq.is_some());
        // Parallel tasks pause together.
        let least = least_work(rows as u64, cols as u64) / STEP_WORK / parallel::lanes() as u64 / 3;
        println!("{steps} steps, at least {least} expected");
        assert!(least >= 1 && steps > least, "{steps} steps");
    }
}
