//! Loads single modules from a checkpoint onto a backend, a few rows at a time.
//!
//! Peak host memory is one chunk of rows, or one packed matrix if the module is quantized.

use super::checkpoint::Checkpoint;
use super::names::Linear;
use crate::backend::{Backend, Element, Norm, WeightDesc, WeightFormat, WeightView};
use crate::dtype::{DType, decode_f32, encode_f32, first_non_finite};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::layout::ModuleStorage;
use crate::quant::{ActivationGrid, Activations, QuantizedTensor};
use crate::task::{self, Control};
use std::ops::Range;

/// Bytes of stored rows per read.
pub const CHUNK_BYTES: usize = 4 << 20;
/// Bytes of stored rows per read if the rows stay in memory for some time. Smaller reads would be many requests for a
/// remote file.
pub const MIN_CHUNK_BYTES: usize = 1 << 20;

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Precision of the activations in the linear layers of the blocks. `None` follows the checkpoint: INT8 for ternary
    /// and W8A8, otherwise `f32`.
    pub activations: Option<Activations>,
    /// How INT8 activations are rounded. `None` follows the checkpoint's layout.
    pub grid: Option<ActivationGrid>,
    /// Hold F32 weights as F16: half the memory, but rounded.
    pub dense_as_f16: bool,
}

impl LoadOptions {
    /// Unquantized activations, for calibration and sensitivity.
    pub const EXACT: Self = Self { activations: Some(Activations::F32), grid: None, dense_as_f16: false };
}

/// The source of a matrix.
#[derive(Clone, Copy)]
pub enum WeightSource<'a> {
    /// The checkpoint.
    Checkpoint,
    /// A packed matrix of the same shape.
    Packed(&'a QuantizedTensor),
    /// A packed matrix whose columns were multiplied by these scales, `[cols]`. It is held in floating point with the
    /// scales divided out.
    Scaled(&'a QuantizedTensor, &'a [f32]),
}

/// One matrix of a fused weight.
pub struct Part<'a> {
    /// Module name: `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Whether the module has a bias, `<module>.bias`.
    pub bias: bool,
    /// The source of its values.
    pub source: WeightSource<'a>,
}

impl<'a> Part<'a> {
    /// A linear layer of a block.
    pub fn of(checkpoint: &Checkpoint, layer: usize, linear: Linear, source: WeightSource<'a>) -> Self {
        Self { module: linear.module(layer), bias: linear.has_bias(checkpoint.config()), source }
    }

    /// An embedding or a head from the checkpoint.
    pub fn table(module: &str) -> Self {
        Self { module: module.to_owned(), bias: false, source: WeightSource::Checkpoint }
    }

    fn storage(&self, checkpoint: &Checkpoint) -> Result<ModuleStorage> {
        match self.source {
            WeightSource::Checkpoint => checkpoint.module(&self.module),
            WeightSource::Packed(tensor) | WeightSource::Scaled(tensor, _) => Ok(ModuleStorage::Packed {
                coding: tensor.coding(),
                activations: Activations::F32,
                rows: tensor.rows(),
                cols: tensor.cols(),
            }),
        }
    }
}

/// Loads one or several modules that share an input as one weight.
///
/// # Errors
/// Errors of reading; `non_finite` if a stored value is NaN or infinite.
pub async fn load_linear<B: Backend>(
    backend: &mut B,
    checkpoint: &Checkpoint,
    parts: &[Part<'_>],
    options: LoadOptions,
) -> Result<B::Weight> {
    let mut storages = Vec::with_capacity(parts.len());
    let mut descs = Vec::with_capacity(parts.len());
    for part in parts {
        let storage = part.storage(checkpoint)?;
        let (rows, cols) = storage.shape();
        let format = match &storage {
            ModuleStorage::Dense { dtype, .. } => WeightFormat::Dense(held_as(*dtype, options)),
            _ if matches!(part.source, WeightSource::Scaled(..)) => WeightFormat::Dense(DType::F32),
            ModuleStorage::Packed { coding, .. } => WeightFormat::Packed(*coding),
        };
        let activations = options.activations.unwrap_or(storage.activations());
        let grid = options.grid.unwrap_or(checkpoint.layout().activation_grid());
        descs.push(WeightDesc { rows, cols, format, activations, grid, bias: part.bias });
        storages.push(storage);
    }
    let mut builder = backend.begin_weight(&descs)?;
    for (index, (part, storage)) in parts.iter().zip(&storages).enumerate() {
        let put = async {
            match storage {
                ModuleStorage::Dense { tensor, dtype, rows, cols, .. } => {
                    let row_bytes = cols * dtype.size();
                    let rows_at_once = (CHUNK_BYTES / row_bytes).max(1);
                    let mut bytes = Vec::new();
                    for start in (0..*rows).step_by(rows_at_once) {
                        let end = (start + rows_at_once).min(*rows);
                        bytes.resize((end - start) * row_bytes, 0);
                        let range = (start * row_bytes) as u64..(end * row_bytes) as u64;
                        checkpoint.store().read_range(tensor, range, &mut bytes).await?;
                        refuse_non_finite(tensor, *dtype, &bytes, start * cols)?;
                        let held = held_as(*dtype, options);
                        if held != *dtype {
                            bytes = convert(*dtype, &bytes, held)?;
                        }
                        backend.put_rows(&mut builder, index, start..end, WeightView::Dense(&bytes))?;
                    }
                }
                ModuleStorage::Packed { rows, .. } => {
                    let read;
                    let packed = match part.source {
                        WeightSource::Packed(packed) | WeightSource::Scaled(packed, _) => packed,
                        WeightSource::Checkpoint => {
                            read = checkpoint.layout().read_packed(checkpoint.store(), &part.module).await?;
                            &read
                        }
                    };
                    if let WeightSource::Scaled(_, scales) = part.source {
                        put_scaled(backend, &mut builder, index, packed, scales)?;
                    } else {
                        let view = WeightView::Packed(packed.rows_view(0..*rows));
                        backend.put_rows(&mut builder, index, 0..*rows, view)?;
                    }
                }
            }
            put_bias(backend, &mut builder, index, part, storage.shape().0, checkpoint).await
        };
        put.await.context_with(|| format!("module `{}`", part.module))?;
    }
    backend.finish_weight(builder).await
}

/// Loads the bias of part `index`. If the part has none, refuses a nonzero bias in the checkpoint.
async fn put_bias<B: Backend>(
    backend: &mut B,
    builder: &mut B::WeightBuilder,
    index: usize,
    part: &Part<'_>,
    rows: usize,
    checkpoint: &Checkpoint,
) -> Result<()> {
    if !part.bias {
        return refuse_unexpected_bias(checkpoint, &part.module).await;
    }
    let bias = read_vector(checkpoint, &format!("{}.bias", part.module), rows).await?;
    backend.put_bias(builder, index, &bias)
}

/// Loads the rows of a packed matrix with the scales of its columns divided out, a few at a time.
fn put_scaled<B: Backend>(
    backend: &mut B,
    builder: &mut B::WeightBuilder,
    index: usize,
    packed: &QuantizedTensor,
    scales: &[f32],
) -> Result<()> {
    let cols = packed.cols();
    let rows_at_once = (CHUNK_BYTES / (cols * DType::F32.size())).max(1);
    let mut values = Vec::new();
    for start in (0..packed.rows()).step_by(rows_at_once) {
        let range = start..(start + rows_at_once).min(packed.rows());
        values.resize(range.len() * cols, 0.0);
        packed.decode_rows(range.clone(), &mut values);
        for row in values.chunks_exact_mut(cols) {
            for (value, scale) in row.iter_mut().zip(scales) {
                *value /= scale;
            }
        }
        let mut bytes = Vec::new();
        encode_f32(DType::F32, &values, &mut bytes)?;
        backend.put_rows(builder, index, range, WeightView::Dense(&bytes))?;
    }
    Ok(())
}

/// Refuses NaN and infinity among some elements of a tensor. `first` is the index of the first element.
///
/// # Errors
/// `non_finite` naming the tensor and the element.
pub fn refuse_non_finite(tensor: &str, dtype: DType, bytes: &[u8], first: usize) -> Result<()> {
    match first_non_finite(dtype, bytes) {
        None => Ok(()),
        Some(index) => Err(Error::new(
            ErrorCode::NonFinite,
            format!(
                "tensor `{tensor}`: expected finite values but element {} is NaN or infinite",
                first + index
            ),
        )),
    }
}

/// The type in which dense weights of a stored type are held on the device.
fn held_as(stored: DType, options: LoadOptions) -> DType {
    if options.dense_as_f16 && stored == DType::F32 { DType::F16 } else { stored }
}

fn convert(from: DType, bytes: &[u8], to: DType) -> Result<Vec<u8>> {
    let mut values = vec![0.0; bytes.len() / from.size()];
    decode_f32(from, bytes, &mut values)?;
    let mut converted = Vec::new();
    encode_f32(to, &values, &mut converted)?;
    Ok(converted)
}

/// Loads the weight of an RMS norm.
pub async fn load_norm<B: Backend>(
    backend: &mut B,
    checkpoint: &Checkpoint,
    module: &str,
    width: usize,
) -> Result<Norm<B::Buffer>> {
    let values = read_vector(checkpoint, &format!("{module}.weight"), width).await?;
    let mut weight = backend.buffer(Element::F32, width)?;
    backend.write_f32(&mut weight, &values)?;
    Ok(Norm { weight, width, epsilon: checkpoint.config().rms_norm_eps })
}

/// The type of a floating-point vector.
///
/// # Errors
/// `invalid_checkpoint` for another shape, `unsupported_format` for another type.
pub fn vector_type(checkpoint: &Checkpoint, tensor: &str, len: usize) -> Result<DType> {
    let info = checkpoint.store().require(tensor)?;
    if info.shape.dims() != [len as u64] {
        return Err(Error::invalid_checkpoint(format!(
            "tensor `{tensor}`: expected shape [{len}] but found {}",
            info.shape
        )));
    }
    let dtype = info.dtype;
    if !dtype.is_float() {
        return Err(Error::unsupported_format(format!(
            "tensor `{tensor}`: expected F32, F16 or BF16 values but found {dtype}"
        )));
    }
    Ok(dtype)
}

/// Reads a whole floating-point vector.
///
/// # Errors
/// As [`vector_type`]; `non_finite` for NaN and infinity.
pub async fn read_vector(checkpoint: &Checkpoint, tensor: &str, len: usize) -> Result<Vec<f32>> {
    let dtype = vector_type(checkpoint, tensor, len)?;
    let bytes = checkpoint.store().read(tensor).await?;
    let mut values = vec![0.0; len];
    decode_f32(dtype, &bytes, &mut values).context_with(|| format!("tensor `{tensor}`"))?;
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::new(
            ErrorCode::NonFinite,
            format!("tensor `{tensor}`: expected finite values but found {} at {index}", values[index]),
        ));
    }
    Ok(values)
}

/// Some tools write zero biases that the configuration does not declare. Other values would be silently ignored, so
/// they are refused.
async fn refuse_unexpected_bias(checkpoint: &Checkpoint, module: &str) -> Result<()> {
    let tensor = format!("{module}.bias");
    let Some(info) = checkpoint.store().get(&tensor) else { return Ok(()) };
    let len = info.shape.element_count().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    if read_vector(checkpoint, &tensor, len).await?.iter().any(|&value| value != 0.0) {
        return Err(Error::unsupported_model(format!(
            "found a bias, `{tensor}`, that config.json does not declare"
        )));
    }
    Ok(())
}

/// Reads the rows of a dense matrix as `f32`, a few at a time.
pub struct DenseRows<'a> {
    checkpoint: &'a Checkpoint,
    tensor: String,
    dtype: DType,
    rows: usize,
    cols: usize,
    /// Number of rows per read.
    rows_at_once: usize,
    next: usize,
    memory: RowMemory,
}

/// Buffers for rows as stored and as values. They are reused for the next matrix, because allocating them takes about
/// as long as reading the rows.
#[derive(Debug, Default)]
pub struct RowMemory {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl<'a> DenseRows<'a> {
    /// A reader at the first row of `module`.
    ///
    /// # Errors
    /// `invalid_argument` if the module is quantized.
    pub fn new(checkpoint: &'a Checkpoint, module: &str) -> Result<Self> {
        match checkpoint.master(module)? {
            ModuleStorage::Dense { tensor, dtype, rows, cols, .. } => Ok(Self {
                checkpoint,
                tensor,
                dtype,
                rows,
                cols,
                rows_at_once: (CHUNK_BYTES / (cols * dtype.size()).max(1)).max(1),
                next: 0,
                memory: RowMemory::default(),
            }),
            ModuleStorage::Packed { coding, .. } => Err(Error::invalid_argument(format!(
                "module `{module}`: expected floating-point weights but found {coding}"
            ))),
        }
    }

    /// Limits reads to about `rows` rows, but to no less than [`MIN_CHUNK_BYTES`] and no more than [`CHUNK_BYTES`].
    pub fn limit_rows(&mut self, rows: usize) {
        let few = rows.max(MIN_CHUNK_BYTES / (self.cols * self.dtype.size()).max(1));
        self.rows_at_once = self.rows_at_once.min(few).max(1);
    }

    /// Uses these buffers.
    pub fn with_memory(self, memory: RowMemory) -> Self {
        Self { memory, ..self }
    }

    /// Returns the buffers for reuse.
    pub fn into_memory(self) -> RowMemory {
        self.memory
    }

    /// Type of the stored values.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Calls `each` with the range and the values, `[rows, cols]`, of all rows, a few at a time.
    pub async fn for_each(
        mut self,
        control: &dyn Control,
        mut each: impl FnMut(Range<usize>, &[f32]) -> Result<()>,
    ) -> Result<()> {
        while let Some((range, values)) = self.next().await? {
            each(range, values)?;
            task::yield_point(control).await?;
        }
        Ok(())
    }

    /// The range and the values of the next rows, `[rows, cols]`; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<(Range<usize>, &[f32])>> {
        if self.next == self.rows {
            return Ok(None);
        }
        let row_bytes = self.cols * self.dtype.size();
        let range = self.next..self.rows.min(self.next + self.rows_at_once);
        let RowMemory { bytes, values } = &mut self.memory;
        bytes.resize(range.len() * row_bytes, 0);
        values.resize(range.len() * self.cols, 0.0);
        let stored = (range.start * row_bytes) as u64..(range.end * row_bytes) as u64;
        self.checkpoint.store().read_range(&self.tensor, stored, bytes).await?;
        decode_f32(self.dtype, bytes, values)?;
        self.next = range.end;
        Ok(Some((range, values)))
    }
}
