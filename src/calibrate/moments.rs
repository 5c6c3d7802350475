//! Accumulates the second moments of linear layers' inputs on the device: for the [`Hessian`], and optionally the
//! [`Drift`].
//!
//! A token's row is the input `x`. With a drift it is `[x, d]`, where `d = x_o - x` is the difference from the original
//! model's input `x_o`. One product of such rows gives both statistics, so the backend needs no second kernel. `walk`
//! runs the model.

use crate::backend::{Backend, Element};
use crate::error::Result;
use crate::quant::{Drift, Hessian};
use crate::task::steps::STEP_WORK;

/// Sums on the device, in tiles of input columns.
pub(super) struct MomentSums<B: Backend> {
    width: usize,
    /// Elements of a row.
    stride: usize,
    /// Columns of a tile. The last tile may have fewer.
    columns: usize,
    /// Each `[columns, stride]`
    tiles: Vec<B::Buffer>,
    /// `[tokens, stride]`: a chunk of rows with their differences; only with a drift.
    joined: Option<B::Buffer>,
    /// Staging buffer for `joined`, if that is not in host memory.
    values: Vec<f32>,
}

impl<B: Backend> MomentSums<B> {
    /// Starts sums for inputs of `width` features, in chunks of at most `tokens` tokens.
    pub(super) fn new(backend: &mut B, tokens: usize, width: usize, with_drift: bool) -> Result<Self> {
        let stride = if with_drift { 2 * width } else { width };
        Self::in_tiles(backend, tokens, width, with_drift, gram_columns(tokens, stride))
    }

    fn in_tiles(
        backend: &mut B,
        tokens: usize,
        width: usize,
        with_drift: bool,
        columns: usize,
    ) -> Result<Self> {
        let stride = if with_drift { 2 * width } else { width };
        let mut tiles = Vec::new();
        for start in (0..width).step_by(columns) {
            tiles.push(backend.buffer(Element::F32, columns.min(width - start) * stride)?);
        }
        let joined = if with_drift { Some(backend.buffer(Element::F32, tokens * stride)?) } else { None };
        Ok(Self { width, stride, columns, tiles, joined, values: Vec::new() })
    }

    /// Writes a chunk of rows, `[count, width]`, and their difference from `original` to the device, for
    /// [`add`](Self::add). Does nothing without a drift.
    pub(super) fn join(&mut self, backend: &mut B, rows: &[f32], original: &[f32]) -> Result<()> {
        let Self { joined: Some(joined), values, width, .. } = self else { return Ok(()) };
        let fill = |values: &mut [f32]| {
            let rows = rows.chunks_exact(*width).zip(original.chunks_exact(*width));
            for (values, (row, original)) in values.chunks_exact_mut(2 * *width).zip(rows) {
                let (inputs, drifts) = values.split_at_mut(*width);
                inputs.copy_from_slice(row);
                for ((drift, original), x) in drifts.iter_mut().zip(original).zip(row) {
                    *drift = original - x;
                }
            }
        };
        let len = 2 * rows.len();
        if let Some(values) = backend.in_memory_mut(joined, len) {
            fill(values);
            return Ok(());
        }
        values.resize(len, 0.0);
        fill(values);
        backend.write_f32(joined, values)
    }

    /// The number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.tiles.len()
    }

    /// Adds a chunk of `count` rows to one tile: the joined rows with a drift, otherwise `rows`.
    pub(super) fn add(&mut self, backend: &mut B, tile: usize, count: usize, rows: &B::Buffer) -> Result<()> {
        let start = tile * self.columns;
        let columns = start..self.width.min(start + self.columns);
        let rows = self.joined.as_ref().unwrap_or(rows);
        backend.gram(rows, count, self.stride, columns, &mut self.tiles[tile])
    }

    /// Reads the statistics of `tokens` tokens.
    pub(super) async fn read(self, backend: &mut B, tokens: u64) -> Result<(Hessian, Option<Drift>)> {
        let Self { width, stride, columns, tiles, joined, values } = self;
        let mut sum = vec![0.0; width * width];
        if joined.is_none() {
            for (tile, sum) in tiles.into_iter().zip(sum.chunks_mut(columns * width)) {
                backend.read(&tile, 0, sum).await?;
            }
            return Ok((Hessian::new(width, sum, tokens), None));
        }
        drop((joined, values));
        let mut drift = vec![0.0; width * width];
        let parts = sum.chunks_mut(columns * width).zip(drift.chunks_mut(columns * width));
        let mut rows = Vec::new();
        for (tile, (sum, drift)) in tiles.into_iter().zip(parts) {
            let slabs = sum.chunks_mut(BAND * width).zip(drift.chunks_mut(BAND * width));
            for (slab, (sum, drift)) in slabs.enumerate() {
                rows.resize(sum.len() / width * stride, 0.0);
                backend.read(&tile, slab * BAND * stride, &mut rows).await?;
                let parts = sum.chunks_exact_mut(width).zip(drift.chunks_exact_mut(width));
                for (row, (sum, drift)) in rows.chunks_exact(stride).zip(parts) {
                    sum.copy_from_slice(&row[..width]);
                    drift.copy_from_slice(&row[width..]);
                }
            }
        }
        Ok((Hessian::new(width, sum, tokens), Some(Drift::new(width, drift, tokens))))
    }
}

/// Input columns of one `gram` call, for chunks of `tokens` rows of `stride` elements. `GRAM_BYTES` limits them. In
/// WebAssembly the step budget limits them too, because the call blocks the event loop.
pub fn gram_columns(tokens: usize, stride: usize) -> usize {
    let by_bytes = GRAM_BYTES / (stride * size_of::<f32>()).max(1);
    let by_work = (STEP_WORK / (tokens * stride).max(1) as u64) as usize;
    let columns = if cfg!(target_arch = "wasm32") { by_bytes.min(by_work) } else { by_bytes };
    (columns / BAND * BAND).max(BAND)
}

/// Tiles have a multiple of this many columns. They are read in slabs of this many rows.
const BAND: usize = 64;

/// Largest buffer of second moments: half of the smallest binding limit of GPUs.
const GRAM_BYTES: usize = 64 << 20;

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::backend::DeviceOps;
    use crate::backend::cpu::CpuBackend;
    use crate::task::block_on;
    use rand_pcg::Pcg32;
    use rand_pcg::rand_core::{Rng, SeedableRng};

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = Pcg32::seed_from_u64(seed);
        (0..len).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).collect()
    }

    /// Largest error of a mean of products, each at most 1. Measured 1.9e-8.
    const MEAN_ERROR: f64 = 2e-7;

    #[test]
    fn sums_are_those_of_single_products() {
        let mut worst = 0.0f64;
        for (width, columns, counts) in
            [(1, 64, vec![3]), (70, 64, vec![5, 8, 1]), (150, 64, vec![8, 8]), (150, 192, vec![7])]
        {
            let tokens: usize = counts.iter().sum();
            let (x, original) = (random(tokens * width, 1), random(tokens * width, 2));
            for with_drift in [false, true] {
                let mut backend = CpuBackend::new();
                let mut sums = MomentSums::in_tiles(&mut backend, 8, width, with_drift, columns).unwrap();
                assert_eq!(sums.tiles(), usize::div_ceil(width, columns));
                let mut first = 0;
                for &count in &counts {
                    let span = first * width..(first + count) * width;
                    let mut rows = backend.buffer(Element::F32, 8 * width).unwrap();
                    backend.write_f32(&mut rows, &x[span.clone()]).unwrap();
                    sums.join(&mut backend, &x[span.clone()], &original[span]).unwrap();
                    for tile in 0..sums.tiles() {
                        sums.add(&mut backend, tile, count, &rows).unwrap();
                    }
                    first += count;
                }
                let (hessian, drift) = block_on(sums.read(&mut backend, tokens as u64)).unwrap();
                assert_eq!(drift.is_some(), with_drift);
                let mean = |product: &dyn Fn(usize) -> f32| {
                    (0..tokens).map(|token| f64::from(product(token * width))).sum::<f64>() / tokens as f64
                };
                for i in 0..width {
                    for j in 0..width {
                        let expected = mean(&|at| x[at + i] * x[at + j]);
                        let error = (f64::from(hessian.get(i, j)) - expected).abs();
                        worst = worst.max(error);
                        assert!(error < MEAN_ERROR, "{width}, {i}, {j}: {error:e}");
                        let Some(drift) = &drift else { continue };
                        let expected = mean(&|at| x[at + i] * (original[at + j] - x[at + j]));
                        let found = f64::from(drift.mean()[i * width + j]);
                        worst = worst.max((found - expected).abs());
                        assert!((found - expected).abs() < MEAN_ERROR, "drift of {width}, {i}, {j}");
                    }
                }
            }
        }
        println!("largest error of a mean {worst:e}");
    }
}
