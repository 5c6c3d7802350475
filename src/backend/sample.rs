//! Small pseudorandom operands for the self-checks of devices.

#[cfg(feature = "gpu")]
use super::Element;
use super::{Backend, WeightDesc, WeightFormat, WeightView};
use crate::dtype::encode_f32;
use crate::error::Result;

/// A deterministic pseudorandom number generator.
pub(super) struct Numbers(u32);

impl Numbers {
    pub(super) fn new(seed: u32) -> Self {
        Self(seed)
    }

    /// In `0..end`.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        // A linear congruential generator (Numerical Recipes). Its high bits are of better quality.
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(self.0) * u64::from(end)) >> 32) as u32
    }

    /// In `[-1, 1)`.
    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

#[cfg(feature = "gpu")]
pub(super) fn buffer<B: Backend>(b: &mut B, data: &[f32]) -> Result<B::Buffer> {
    let mut buffer = b.buffer(Element::F32, data.len())?;
    b.write_f32(&mut buffer, data)?;
    Ok(buffer)
}

#[cfg(feature = "gpu")]
pub(super) async fn read<B: Backend>(b: &mut B, buffer: &B::Buffer, len: usize) -> Result<Vec<f32>> {
    let mut out = vec![f32::NAN; len];
    b.read(buffer, 0, &mut out).await?;
    Ok(out)
}

/// A pseudorandom weight with a bias, not yet finished.
pub(super) fn fill<B: Backend>(b: &mut B, desc: &WeightDesc, seed: u32) -> Result<B::WeightBuilder> {
    let WeightDesc { rows, cols, .. } = *desc;
    let mut numbers = Numbers::new(seed);
    let mut builder = b.begin_weight(std::slice::from_ref(desc))?;
    match desc.format {
        WeightFormat::Dense(dtype) => {
            let mut bytes = Vec::new();
            encode_f32(dtype, &numbers.floats(rows * cols), &mut bytes)?;
            b.put_rows(&mut builder, 0, 0..rows, WeightView::Dense(&bytes))?;
        }
        WeightFormat::Packed(coding) => {
            let tensor = coding.sample(rows, cols, &mut |end| numbers.below(end))?;
            b.put_rows(&mut builder, 0, 0..rows, WeightView::Packed(tensor.rows_view(0..rows)))?;
        }
    }
    b.put_bias(&mut builder, 0, &numbers.floats(rows))?;
    Ok(builder)
}
