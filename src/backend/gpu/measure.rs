//! Upper limits of a device for benchmarks: copies, and arithmetic without memory access. Models do not use them.

use super::{GpuBackend, GpuBuffer, kernels, params, select};
use crate::backend::step::check;
use crate::backend::{Element, Elements};
use crate::error::{Context, Error, Result};

/// Multiply-adds per invocation and round.
const MULTIPLY_ADDS: u64 = 16;

impl GpuBackend {
    /// Records a copy of a whole `F32` buffer.
    ///
    /// # Errors
    /// `invalid_argument` unless `to` is an `F32` buffer of the same length.
    pub fn copy(&mut self, from: &GpuBuffer, to: &mut GpuBuffer) -> Result<()> {
        check("from", from, Element::F32, &[from.len()]).context_with(|| "copy")?;
        check("to", to, Element::F32, &[from.len()]).context_with(|| "copy")?;
        if from.len() != to.len() {
            return Err(Error::invalid_argument(format!(
                "copy: expected a buffer of {} elements but found {}",
                from.len(),
                to.len()
            )));
        }
        self.recording.copy((from.memory(), 0), (to.memory().buffer(), 0), from.len() as u64 * 4);
        Ok(())
    }

    /// Records `rounds` rounds of `x = 0.5 x + 1` on 16 numbers for each element of `out`, and returns the number of
    /// multiplications and additions. The numbers start at the element's index modulo 64, divided by 64. The element
    /// becomes their sum. `rounds` must be a multiple of 4, the length of `out` a multiple of 64.
    ///
    /// # Errors
    /// `invalid_argument` for other rounds or lengths.
    pub fn multiply_add(&mut self, out: &mut GpuBuffer, rounds: u32) -> Result<u64> {
        let op = "multiply_add";
        let len = out.len();
        if !len.is_multiple_of(64) || !rounds.is_multiple_of(4) {
            return Err(Error::invalid_argument(format!(
                "{op}: expected a multiple of 64 elements and of 4 rounds but found {len} and {rounds}"
            )));
        }
        check("out", out, Element::F32, &[len]).context_with(|| op)?;
        let params = params::MultiplyAdd { rounds, factor: 0.5, summand: 1.0, padding: 0 };
        self.record(select::each(&kernels::MULTIPLY_ADD, len / 64)?, &[out.memory()], &params)?;
        Ok(2 * MULTIPLY_ADDS * u64::from(rounds) * len as u64)
    }
}
