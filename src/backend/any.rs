//! Either device behind one type, for callers that choose the device at run time.
//!
//! Code that is generic over [`Backend`](super::Backend) is compiled once with it, not once per device. In a
//! WebAssembly module that halves the size of the decoder. The cost is one comparison per step, of which a token has a
//! few dozen. Every operation is forwarded to the device's backend.

use super::cpu::{CpuBackend, CpuBuffer, CpuWeight, CpuWeightBuilder};
#[cfg(feature = "gpu")]
use super::gpu::{GpuBackend, GpuBuffer, GpuReading, GpuWeight, GpuWeightBuilder};
use super::{
    Capabilities, DeviceOps, Element, Elements, KvLayer, Matrices, Norm, QkNorm, Step, Sums, TopK,
    WeightDesc, WeightView,
};
use crate::error::{Error, Result};
use std::ops::Range;

/// The backend of one device.
pub enum AnyBackend {
    /// The CPU.
    Cpu(CpuBackend),
    /// A GPU.
    #[cfg(feature = "gpu")]
    Gpu(Box<GpuBackend>),
}

impl AnyBackend {
    /// Another backend on the same device, for a second model.
    ///
    /// # Errors
    /// `device_lost`, `out_of_memory`.
    pub fn sibling(&self) -> Result<Self> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.sibling().into()),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => Ok(gpu.sibling()?.into()),
        }
    }
}

impl From<CpuBackend> for AnyBackend {
    fn from(cpu: CpuBackend) -> Self {
        Self::Cpu(cpu)
    }
}

#[cfg(feature = "gpu")]
impl From<GpuBackend> for AnyBackend {
    fn from(gpu: GpuBackend) -> Self {
        Self::Gpu(Box::new(gpu))
    }
}

/// An object that belongs to one backend: a buffer, a weight.
pub enum PerDevice<C, G> {
    /// Of the CPU backend.
    Cpu(C),
    /// Of a GPU backend.
    Gpu(G),
}

#[cfg(not(feature = "gpu"))]
use std::convert::Infallible as GpuReading;
#[cfg(not(feature = "gpu"))]
use std::convert::Infallible as GpuWeightBuilder;
// Without GPU code no GPU buffers exist. The CPU's types fill in where a type is needed.
#[cfg(not(feature = "gpu"))]
use {CpuBuffer as GpuBuffer, CpuWeight as GpuWeight};

/// An operand of a step. It must be on the device that runs the step.
trait Operand {
    type OnCpu;
    type OnGpu;

    fn on_cpu(self) -> Result<Self::OnCpu>;

    #[cfg(feature = "gpu")]
    fn on_gpu(self) -> Result<Self::OnGpu>;
}

#[cold]
fn elsewhere() -> Error {
    Error::invalid_argument("expected operands on one device but found one on another")
}

macro_rules! operand {
    ($([$($lifetime:lifetime)?] $of:ty => $on_cpu:ty, $on_gpu:ty;)*) => {$(
        impl<$($lifetime,)? C, G> Operand for $of {
            type OnCpu = $on_cpu;
            type OnGpu = $on_gpu;

            fn on_cpu(self) -> Result<Self::OnCpu> {
                match self {
                    PerDevice::Cpu(operand) => Ok(operand),
                    PerDevice::Gpu(_) => Err(elsewhere()),
                }
            }

            #[cfg(feature = "gpu")]
            fn on_gpu(self) -> Result<Self::OnGpu> {
                match self {
                    PerDevice::Gpu(operand) => Ok(operand),
                    PerDevice::Cpu(_) => Err(elsewhere()),
                }
            }
        }
    )*};
}

operand! {
    [] PerDevice<C, G> => C, G;
    ['a] &'a PerDevice<C, G> => &'a C, &'a G;
    ['a] &'a mut PerDevice<C, G> => &'a mut C, &'a mut G;
}

/// The same for structs of several operands. Each operand is checked.
macro_rules! operands {
    ($($of:ident { $($operand:ident),* } { $($value:ident),* })*) => {$(
        impl<T: Operand> Operand for $of<T> {
            type OnCpu = $of<T::OnCpu>;
            type OnGpu = $of<T::OnGpu>;

            fn on_cpu(self) -> Result<Self::OnCpu> {
                Ok($of { $($operand: self.$operand.on_cpu()?,)* $($value: self.$value,)* })
            }

            #[cfg(feature = "gpu")]
            fn on_gpu(self) -> Result<Self::OnGpu> {
                Ok($of { $($operand: self.$operand.on_gpu()?,)* $($value: self.$value,)* })
            }
        }
    )*};
}

operands! {
    Norm { weight } { width, epsilon }
    QkNorm { q, k } {}
    KvLayer { keys, values } {}
    TopK { ids, values, found } { capacity }
}

impl<T: Operand> Operand for Option<T> {
    type OnCpu = Option<T::OnCpu>;
    type OnGpu = Option<T::OnGpu>;

    fn on_cpu(self) -> Result<Self::OnCpu> {
        self.map(T::on_cpu).transpose()
    }

    #[cfg(feature = "gpu")]
    fn on_gpu(self) -> Result<Self::OnGpu> {
        self.map(T::on_gpu).transpose()
    }
}

/// The same for steps. Each operand is checked.
macro_rules! steps {
    ($($name:ident { $($operand:ident),*; $($value:ident),* })*) => {
        impl<'a, C, D, G, H> Operand for Step<'a, PerDevice<C, G>, PerDevice<D, H>> {
            type OnCpu = Step<'a, C, D>;
            type OnGpu = Step<'a, G, H>;

            fn on_cpu(self) -> Result<Self::OnCpu> {
                Ok(match self {$(
                    Step::$name { $($operand,)* $($value,)* } => {
                        Step::$name { $($operand: $operand.on_cpu()?,)* $($value,)* }
                    }
                )*})
            }

            #[cfg(feature = "gpu")]
            fn on_gpu(self) -> Result<Self::OnGpu> {
                Ok(match self {$(
                    Step::$name { $($operand,)* $($value,)* } => {
                        Step::$name { $($operand: $operand.on_gpu()?,)* $($value,)* }
                    }
                )*})
            }
        }
    };
}

steps! {
    Embed { tokens, table, out; count }
    Linear { x, w, y; count }
    AddRmsNorm { residual, delta, norm, out; count }
    RopeAndAppendKv { qkv, rope, qk_norm, cache; segments, shape }
    Attention { qkv, cache, out; segments, shape }
    Gate { gate_up, out; count, width, activation }
    Gram { x, out; count, width, columns }
    Argmax { x, out; count, width }
    TopK { x, out; count, width, k }
}

impl<C: Elements, G: Elements> Elements for PerDevice<C, G> {
    fn element(&self) -> Element {
        match self {
            Self::Cpu(buffer) => buffer.element(),
            Self::Gpu(buffer) => buffer.element(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Cpu(buffer) => buffer.len(),
            Self::Gpu(buffer) => buffer.len(),
        }
    }
}

impl<C: Matrices, G: Matrices> Matrices for PerDevice<C, G> {
    fn cols(&self) -> usize {
        match self {
            Self::Cpu(weight) => weight.cols(),
            Self::Gpu(weight) => weight.cols(),
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Cpu(weight) => weight.rows(),
            Self::Gpu(weight) => weight.rows(),
        }
    }

    fn parts(&self) -> usize {
        match self {
            Self::Cpu(weight) => weight.parts(),
            Self::Gpu(weight) => weight.parts(),
        }
    }
}

/// Runs `$step` on the device of `$any`, with the operands converted to that device's types.
macro_rules! step {
    ($any:expr, $($operand:ident)* => |$backend:ident| $step:expr) => {
        match $any {
            AnyBackend::Cpu($backend) => {
                $(let $operand = $operand.on_cpu()?;)*
                $step
            }
            #[cfg(feature = "gpu")]
            AnyBackend::Gpu($backend) => {
                $(let $operand = $operand.on_gpu()?;)*
                $step
            }
        }
    };
}

/// Creates an object on the device of `$any`.
macro_rules! make {
    ($any:expr, |$backend:ident| $made:expr) => {
        Ok(match $any {
            AnyBackend::Cpu($backend) => PerDevice::Cpu($made?),
            #[cfg(feature = "gpu")]
            AnyBackend::Gpu($backend) => PerDevice::Gpu($made?),
        })
    };
}

impl DeviceOps for AnyBackend {
    type Buffer = PerDevice<CpuBuffer, GpuBuffer>;
    type Weight = PerDevice<CpuWeight, GpuWeight>;
    type WeightBuilder = PerDevice<CpuWeightBuilder, GpuWeightBuilder>;
    type Reading = PerDevice<Vec<u32>, GpuReading>;

    fn capabilities(&self) -> &Capabilities {
        step!(self, => |b| b.capabilities())
    }

    fn begin_weight(&mut self, parts: &[WeightDesc]) -> Result<Self::WeightBuilder> {
        make!(self, |b| b.begin_weight(parts))
    }

    fn put_rows(
        &mut self,
        builder: &mut Self::WeightBuilder,
        part: usize,
        rows: Range<usize>,
        data: WeightView<'_>,
    ) -> Result<()> {
        step!(self, builder => |b| b.put_rows(builder, part, rows, data))
    }

    fn put_bias(&mut self, builder: &mut Self::WeightBuilder, part: usize, bias: &[f32]) -> Result<()> {
        step!(self, builder => |b| b.put_bias(builder, part, bias))
    }

    async fn finish_weight(&mut self, builder: Self::WeightBuilder) -> Result<Self::Weight> {
        Ok(match self {
            Self::Cpu(cpu) => PerDevice::Cpu(cpu.finish_weight(builder.on_cpu()?).await?),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => PerDevice::Gpu(gpu.finish_weight(builder.on_gpu()?).await?),
        })
    }

    fn buffer(&mut self, element: Element, len: usize) -> Result<Self::Buffer> {
        make!(self, |b| b.buffer(element, len))
    }

    fn write(&mut self, out: &mut Self::Buffer, words: &[u32]) -> Result<()> {
        step!(self, out => |b| b.write(out, words))
    }

    fn run(&mut self, step: Step<'_, Self::Buffer, Self::Weight>) -> Result<()> {
        step!(self, step => |b| b.run(step))
    }

    fn set_sums(&mut self, sums: Sums) {
        step!(self, => |b| b.set_sums(sums))
    }

    fn flush(&mut self) -> Result<()> {
        step!(self, => |b| b.flush())
    }

    fn dispatches(&self) -> Option<u64> {
        step!(self, => |b| b.dispatches())
    }

    fn begin_reading(&mut self, ranges: &[(&Self::Buffer, Range<usize>)]) -> Result<Self::Reading> {
        let ranges = ranges.iter().map(|(source, range)| (*source, range.clone()));
        Ok(match self {
            Self::Cpu(cpu) => {
                let here: Result<Vec<_>> =
                    ranges.map(|(source, range)| Ok((source.on_cpu()?, range))).collect();
                PerDevice::Cpu(cpu.begin_reading(&here?)?)
            }
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => {
                let here: Result<Vec<_>> =
                    ranges.map(|(source, range)| Ok((source.on_gpu()?, range))).collect();
                PerDevice::Gpu(gpu.begin_reading(&here?)?)
            }
        })
    }

    async fn finish_read(&mut self, reading: Self::Reading) -> Result<Vec<u32>> {
        step!(self, reading => |b| b.finish_read(reading).await)
    }

    async fn read_words(&mut self, source: &Self::Buffer, offset: usize, out: &mut [u32]) -> Result<()> {
        step!(self, source => |b| b.read_words(source, offset, out).await)
    }

    fn in_memory<'b>(&self, buffer: &'b Self::Buffer, len: usize) -> Option<&'b [f32]> {
        match (self, buffer) {
            (Self::Cpu(backend), PerDevice::Cpu(buffer)) => backend.in_memory(buffer, len),
            _ => None,
        }
    }

    fn in_memory_mut<'b>(&self, buffer: &'b mut Self::Buffer, len: usize) -> Option<&'b mut [f32]> {
        match (self, buffer) {
            (Self::Cpu(backend), PerDevice::Cpu(buffer)) => backend.in_memory_mut(buffer, len),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuOptions;

    #[test]
    fn another_backend_runs_as_the_first_was_told_to() {
        for options in [
            CpuOptions { threads: Some(1), simd: false },
            CpuOptions { threads: Some(2), simd: true },
            CpuOptions::default(),
        ] {
            let first: AnyBackend = CpuBackend::with_options(options).into();
            let second = first.sibling().unwrap();
            assert_eq!(second.capabilities().device, first.capabilities().device);
        }
    }
}
