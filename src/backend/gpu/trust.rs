//! Opening a backend, and deciding by self-checks which of a device's kernels to use.

use super::device::Device;
use super::pipeline::Pipelines;
use super::variants::{Variant, Variants};
use super::{
    AdapterDescription, GpuBackend, GpuOptions, Memory, Pool, Recording, Scratch, Staging, Submitter, Table,
    self_check,
};
use crate::backend::{Capabilities, DeviceOps, WeightDesc, WeightFormat};
use crate::dtype::DType;
use crate::error::Result;
use crate::quant::{ActivationGrid, Activations, Bits, Granularity, Scheme};
use std::sync::Arc;

/// Columns of the weights that [`GpuBackend::check_formats`] checks.
const USUAL_COLUMNS: usize = 256;

impl GpuBackend {
    /// Opens an adapter and checks its results against the CPU's.
    ///
    /// # Errors
    /// `no_device` if none fits or it cannot be opened; `wrong_result` and `shader_error` if its base kernels fail the
    /// self-check.
    pub async fn new(options: &GpuOptions) -> Result<Self> {
        Self::with_variants(options, |offered| offered).await
    }

    /// As [`GpuBackend::new`]; `choose` selects from the offered variants.
    pub(super) async fn with_variants(
        options: &GpuOptions,
        choose: impl FnOnce(Variants) -> Variants,
    ) -> Result<Self> {
        let mut gpu = Self::on(Arc::new(Device::open(options).await?))?;
        gpu.variants = choose(gpu.variants);
        gpu.check_variants(self_check::steps).await?;
        Ok(gpu)
    }

    /// Opens another backend on the same device.
    ///
    /// # Errors
    /// The first error of the device so far.
    pub fn sibling(&self) -> Result<Self> {
        let mut other = Self::on(self.device.clone())?;
        // The results of self-checks are valid for the device, so they are copied.
        other.capabilities = self.capabilities.clone();
        other.variants = self.variants;
        other.checked = self.checked.clone();
        Ok(other)
    }

    fn on(device: Arc<Device>) -> Result<Self> {
        let pool = Arc::new(Pool::default());
        let unused: Memory = pool.weight(&device, 16)?;
        Ok(Self {
            capabilities: Capabilities {
                device: format!("gpu: {}", device.description),
                runs_ahead: true,
                replaced: Vec::new(),
            },
            variants: device.variants,
            pipelines: Pipelines::default(),
            recording: Recording::default(),
            submitter: Submitter::default(),
            staging: Staging::default(),
            rounded: Scratch::default(),
            factors: Scratch::default(),
            segments: Table::default(),
            checked: Vec::new(),
            unused,
            pool,
            device,
        })
    }

    /// The adapter of this backend.
    pub fn adapter(&self) -> &AdapterDescription {
        &self.device.description
    }

    /// Names of the fast kernel variants in use.
    pub fn fast_kernels(&self) -> Vec<&'static str> {
        Variant::ALL.into_iter().filter(|&variant| self.variants.has(variant)).map(Variant::name).collect()
    }

    /// Checks the kernels of common weight formats. Otherwise a check runs when the first weight of a format is loaded.
    ///
    /// # Errors
    /// As [`GpuBackend::new`]. A failing fast kernel is not an error: see [`Capabilities::replaced`].
    pub async fn check_formats(&mut self) -> Result<()> {
        let integer = |bits, granularity, symmetric| {
            WeightFormat::Packed(Scheme::symmetric(bits, granularity).with_symmetry(symmetric).into())
        };
        let ternary = WeightFormat::Packed(Scheme::ternary(Granularity::Tensor).into());
        for (format, activations) in [
            (WeightFormat::Dense(DType::F16), Activations::F32),
            (integer(Bits::Four, Granularity::Group(32), false), Activations::F32),
            (integer(Bits::Four, Granularity::Group(32), true), Activations::Int8),
            (integer(Bits::Eight, Granularity::Channel, true), Activations::Int8),
            (ternary, Activations::Int8),
        ] {
            let grid = ActivationGrid::Absmax127;
            let desc = WeightDesc { rows: 1, cols: USUAL_COLUMNS, format, activations, grid, bias: false };
            self.trust(&desc).await?;
        }
        Ok(())
    }

    /// Checks the kernels of a weight with the format of `desc`, unless that was done before. Variants that fail are
    /// replaced by their base.
    ///
    /// # Errors
    /// Errors of base kernels or of the device.
    pub(super) async fn trust(&mut self, desc: &WeightDesc) -> Result<()> {
        let key = (desc.format, desc.cols, desc.activations, desc.grid);
        if self.checked.contains(&key) {
            return Ok(());
        }
        self.check_variants(async |gpu| self_check::weight(gpu, desc).await).await?;
        self.checked.push(key);
        Ok(())
    }

    /// Runs a check. If it fails, repeats it with fewer variants.
    ///
    /// # Errors
    /// The error of the first attempt, if all attempts fail.
    async fn check_variants(&mut self, check: impl AsyncFn(&mut Self) -> Result<()>) -> Result<()> {
        // Errors from here on are caused by the check.
        self.flush()?;
        self.device.settle().await?;
        let Err(error) = check(self).await else { return Ok(()) };
        let before = self.variants;
        for fewer in before.fallbacks() {
            if !self.forget_check() {
                break;
            }
            self.variants = fewer;
            if check(self).await.is_ok() {
                self.report_replaced(before, fewer, &error.to_string());
                return Ok(());
            }
        }
        Err(error)
    }

    fn report_replaced(&mut self, before: Variants, now: Variants, why: &str) {
        for variant in before.and_not(now) {
            let name = variant.name();
            self.capabilities.device.push_str(&format!(", without {name}"));
            self.capabilities.replaced.push(format!("{name} are replaced by their base: {why}"));
        }
    }

    /// Cleans up after a failed check. Returns whether the device is still usable.
    fn forget_check(&mut self) -> bool {
        self.recording = Recording::default();
        self.device.forget_refused()
    }
}
