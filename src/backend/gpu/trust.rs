//! Opening a backend, and finding out which of a device's kernels are to be trusted.

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

/// Columns of the weights that [`GpuBackend::check_formats`] makes.
const USUAL_COLUMNS: usize = 256;

impl GpuBackend {
    /// Opens an adapter and checks that it computes what the CPU computes.
    ///
    /// # Errors
    /// `no_device` when there is none that fits, or it cannot be opened; `wrong_result` and `shader_error` when it is not
    /// to be trusted.
    pub async fn new(options: &GpuOptions) -> Result<Self> {
        Self::with_variants(options, |offered| offered).await
    }

    /// As [`GpuBackend::new`], with some of the variants that are offered.
    pub(super) async fn with_variants(
        options: &GpuOptions,
        choose: impl FnOnce(Variants) -> Variants,
    ) -> Result<Self> {
        let mut gpu = Self::on(Arc::new(Device::open(options).await?))?;
        gpu.variants = choose(gpu.variants);
        gpu.check_variants(self_check::steps).await?;
        Ok(gpu)
    }

    /// Another backend on the same device.
    ///
    /// # Errors
    /// What has gone wrong on the device so far.
    pub fn another(&self) -> Result<Self> {
        let mut other = Self::on(self.device.clone())?;
        // What is known of the device's kernels need not be found out again.
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

    /// The adapter that it runs on.
    pub fn adapter(&self) -> &AdapterDescription {
        &self.device.description
    }

    /// The fast kernels that run in the place of base kernels, in words.
    pub fn fast_kernels(&self) -> Vec<&'static str> {
        Variant::ALL.into_iter().filter(|&variant| self.variants.has(variant)).map(Variant::name).collect()
    }

    /// Checks the kernels of the usual weights, which otherwise happens when the first weight of a format is loaded.
    ///
    /// # Errors
    /// As [`GpuBackend::new`]. A fast kernel that fails is no error: see [`Capabilities::replaced`].
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

    /// Checks the kernels of a weight that is written as `desc` says, unless they were checked before. Variants that fail
    /// are replaced by their base.
    ///
    /// # Errors
    /// What is wrong with base kernels, or with the device.
    pub(super) async fn trust(&mut self, desc: &WeightDesc) -> Result<()> {
        let key = (desc.format, desc.cols, desc.activations, desc.grid);
        if self.checked.contains(&key) {
            return Ok(());
        }
        self.check_variants(async |gpu| self_check::weight(gpu, desc).await).await?;
        self.checked.push(key);
        Ok(())
    }

    /// Runs a check; where it fails, again with fewer variants.
    ///
    /// # Errors
    /// Those of the first try, where none is right.
    async fn check_variants(&mut self, check: impl AsyncFn(&mut Self) -> Result<()>) -> Result<()> {
        // What goes wrong from here on is the check's.
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

    /// After a check that failed: drops what it left behind. Whether the device can go on.
    fn forget_check(&mut self) -> bool {
        self.recording = Recording::default();
        self.device.forget_refused()
    }
}
