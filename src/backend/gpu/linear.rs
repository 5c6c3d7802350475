//! Recording of linear steps and embeddings, with one dispatch for each shard of a weight.

use super::buffers::Memory;
use super::weight::{Shard, StackedMatrices};
use super::{GpuBackend, kernels, params, select};
use crate::error::Result;
use crate::quant::{ActivationGrid, Activations};

impl GpuBackend {
    /// `y = W x` for one matrix; `x` are the unrounded activations.
    pub(super) fn record_matrix(
        &mut self,
        x: &Memory,
        count: usize,
        matrix: &StackedMatrices,
        y: &Memory,
        y_stride: usize,
    ) -> Result<()> {
        let units = &matrix.units;
        let int8 = select::meets_int8(units, matrix.activations);
        let x = if int8 {
            self.record_quantize(x, count, matrix)?;
            None
        } else if matrix.activations == Activations::Int8 {
            Some(self.record_round_trip(x, count, matrix)?)
        } else {
            Some(x.clone())
        };
        let unused = self.unused.clone();
        for Shard { rows, values, scales, zeros, bias } in &matrix.shards {
            let plan = select::linear(
                units,
                matrix.has_zeros,
                matrix.activations,
                rows.len(),
                count,
                self.variants,
            )?;
            let params = params::Linear {
                rows: rows.len() as u32,
                cols: units.cols as u32,
                units: units.units as u32,
                units_per_group: units.units_per_group as u32,
                groups: units.groups as u32,
                group_size: units.group_size as u32,
                zero_point: matrix.zero_point,
                tokens: count as u32,
                y_stride: y_stride as u32,
                y_start: (matrix.y_start + rows.start) as u32,
                has_bias: u32::from(bias.is_some()),
                padding: 0,
            };
            let scales = scales.as_ref().unwrap_or(&unused);
            let zeros = zeros.as_ref().unwrap_or(&unused);
            let bias = bias.as_ref().unwrap_or(&unused);
            match (&x, &self.rounded.0, &self.factors.0) {
                (Some(x), ..) => self.record(plan, &[values, scales, zeros, bias, x, y], &params)?,
                (None, Some(rounded), Some(factors)) => {
                    let (rounded, factors) = (rounded.clone(), factors.clone());
                    self.record(plan, &[values, scales, zeros, bias, &rounded, &factors, y], &params)?;
                }
                _ => unreachable!("rounding has made both"),
            }
        }
        Ok(())
    }

    /// Rounds activations to INT8, in the order of the units of `matrix`. If the previous command is the norm that
    /// produces them, one kernel does both.
    fn record_quantize(&mut self, x: &Memory, count: usize, matrix: &StackedMatrices) -> Result<()> {
        let units = &matrix.units;
        let bytes = count as u64 * units.quads() as u64 * 4;
        let rounded = self.rounded.reserve(&self.device, &self.pool, bytes)?;
        let factors = self.factors.reserve(&self.device, &self.pool, count as u64 * 4)?;
        let unit_quads = (units.values.unit_columns() / 4) as u32;
        let full_range = u32::from(matrix.grid == ActivationGrid::FullRange);
        if self.variants.rounding_norm
            && let Some(norm) = self.recording.take_norm(|norm| {
                let made = (norm.params.rows, norm.params.width);
                norm.out.id() == x.id() && made == (count as u32, units.cols as u32)
            })
        {
            let params = params::AddRmsNormQuantize {
                tokens: count as u32,
                cols: units.cols as u32,
                units: units.units as u32,
                units_per_group: units.units_per_group as u32,
                group_size: units.group_size as u32,
                unit_quads,
                nan_bits: params::NAN_BITS,
                full_range,
                has_delta: norm.params.has_delta,
                epsilon: norm.params.epsilon,
                ..Default::default()
            };
            let bindings = [&norm.residual, &norm.delta, &norm.weight, &norm.out, &rounded, &factors];
            let plan = select::each_sum(&kernels::ADD_RMS_NORM_QUANTIZE, count, self.variants)?;
            return self.record(plan, &bindings, &params);
        }
        let params = params::Quantize {
            tokens: count as u32,
            cols: units.cols as u32,
            units: units.units as u32,
            units_per_group: units.units_per_group as u32,
            group_size: units.group_size as u32,
            unit_quads,
            nan_bits: params::NAN_BITS,
            full_range,
        };
        self.record(select::each(&kernels::INT8_QUANTIZE, count)?, &[x, &rounded, &factors], &params)
    }

    /// Rounds activations to INT8 and back.
    fn record_round_trip(&mut self, x: &Memory, count: usize, matrix: &StackedMatrices) -> Result<Memory> {
        let cols = matrix.units.cols;
        let bytes = count as u64 * cols as u64 * 4;
        let rounded = self.rounded.reserve(&self.device, &self.pool, bytes)?;
        let params = params::RoundTrip {
            tokens: count as u32,
            cols: cols as u32,
            full_range: u32::from(matrix.grid == ActivationGrid::FullRange),
            padding: 0,
        };
        self.record(select::each(&kernels::INT8_ROUND_TRIP, count)?, &[x, &rounded], &params)?;
        Ok(rounded)
    }

    /// Embeddings of `count` tokens; each shard of the table writes its own tokens.
    pub(super) fn record_embed(
        &mut self,
        tokens: &Memory,
        count: usize,
        matrix: &StackedMatrices,
        out: &Memory,
    ) -> Result<()> {
        let units = &matrix.units;
        let unused = self.unused.clone();
        for Shard { rows, values, scales, zeros, .. } in &matrix.shards {
            let params = params::Embed {
                rows: rows.len() as u32,
                first_row: rows.start as u32,
                table_rows: matrix.rows as u32,
                cols: units.cols as u32,
                units: units.units as u32,
                units_per_group: units.units_per_group as u32,
                groups: units.groups as u32,
                group_size: units.group_size as u32,
                zero_point: matrix.zero_point,
                tokens: count as u32,
                nan_bits: params::NAN_BITS,
                padding: 0,
            };
            let (scales, zeros) = (scales.as_ref().unwrap_or(&unused), zeros.as_ref().unwrap_or(&unused));
            let plan = select::embed(units, matrix.has_zeros, count)?;
            self.record(plan, &[values, scales, zeros, tokens, out], &params)?;
        }
        Ok(())
    }
}
