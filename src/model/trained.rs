//! Trained parameters: the master weights that an optimizer changes, and the running weights computed from them.
//!
//! The running weights are exactly what a file will hold: a matrix is quantized as it will be stored, and a norm is
//! rounded to its stored type. So training optimizes the weights that are written.

use super::weights::refuse_non_finite;
use crate::backend::{
    Backend, Element, Master, Norm, PartGradient, ScaledGrid, Train, WeightDesc, WeightFormat, WeightView,
};
use crate::dtype::{DType, decode_f32, encode_f32};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::parallel;
use crate::quant::{
    ActivationGrid, Activations, PackedTensor, QuantizedTensor, ScaleType, Scales, Scheme,
    encode_with_params, to_nearest,
};
use std::borrow::Cow;

/// Number of values per parallel task.
const CHUNK: usize = 1 << 16;

/// The format in which a parameter is stored and runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    /// Floating point.
    Float(DType),
    /// Codes with scales.
    Packed {
        /// The scheme of the codes.
        scheme: Scheme,
        /// The type of the scales.
        scale_type: ScaleType,
        /// The precision of the activations that the weight multiplies.
        activations: Activations,
        /// How INT8 activations are rounded.
        grid: ActivationGrid,
    },
}

/// The type of the optimizer's master weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MasterType {
    /// `F32`: 4 bytes per value.
    #[default]
    Single,
    /// `BF16` with stochastic rounding: 2 bytes per value.
    Half,
}

/// A parameter and its gradient.
pub struct Parameter<B: Train> {
    /// The tensor's name.
    pub tensor: String,
    /// Rows of a matrix; a vector has one row.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Whether it is a matrix.
    pub is_matrix: bool,
    /// The format in which it is stored and runs.
    pub stored: Stored,
    /// `[rows, cols]`
    pub master: Master<B::Buffer>,
    /// `[rows, cols]`: the sum over the backward passes since it was last set to 0.
    pub gradient: B::Buffer,
    /// Explicit scales of the codes, instead of scales computed from the weights.
    pub scales: Option<ExplicitScales<B>>,
}

/// Explicit scales of a parameter's codes, fixed or learned.
pub struct ExplicitScales<B: Train> {
    /// Master values of the optimizer.
    pub master: B::Buffer,
    /// Values as stored, by which the forward pass multiplies.
    pub used: B::Buffer,
    /// Gradient with respect to `used`.
    pub gradient: B::Buffer,
    /// Whether the scales are learned. Otherwise gradients pass through rounding by the straight-through estimator.
    pub learned: bool,
    /// Layout of the scales, and the range of codes.
    pub grid: ScaledGrid,
}

impl<B: Train> Parameter<B> {
    /// A parameter with the initial `values`, `[rows, cols]`.
    ///
    /// # Errors
    /// `non_finite` naming the tensor; errors of the device.
    pub fn new(
        backend: &mut B,
        tensor: String,
        shape: Shape,
        stored: Stored,
        master: MasterType,
        values: &[f32],
    ) -> Result<Self> {
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::new(
                ErrorCode::NonFinite,
                format!("tensor `{tensor}`: expected finite values but found {} at {index}", values[index]),
            ));
        }
        let (rows, cols) = shape.rows_and_cols();
        let gradient = backend.buffer(Element::F32, rows * cols)?;
        let master = match master {
            MasterType::Single => Master::Single(backend.buffer(Element::F32, rows * cols)?),
            MasterType::Half => Master::Half(backend.buffer(Element::U32, (rows * cols).div_ceil(2))?),
        };
        let is_matrix = matches!(shape, Shape::Matrix(..));
        let mut parameter = Self { tensor, rows, cols, is_matrix, stored, master, gradient, scales: None };
        parameter.set(backend, values)?;
        Ok(parameter)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Overwrites the master weights. `BF16` master weights are rounded to nearest.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn set(&mut self, backend: &mut B, values: &[f32]) -> Result<()> {
        match &mut self.master {
            Master::Single(buffer) => backend.write_f32(buffer, values),
            Master::Half(buffer) => {
                let half = |value: f32| u32::from(half::bf16::from_f32(value).to_bits());
                let words: Vec<u32> = values
                    .chunks(2)
                    .map(|pair| half(pair[0]) | pair.get(1).map_or(0, |&value| half(value)) << 16)
                    .collect();
                backend.write_u32(buffer, &words)
            }
        }
    }

    /// The master weights, `[rows, cols]`.
    ///
    /// # Errors
    /// Errors of the device.
    pub async fn values<'a>(&'a self, backend: &mut B) -> Result<Cow<'a, [f32]>> {
        let len = self.len();
        let mut values = vec![0.0; len];
        match &self.master {
            Master::Single(buffer) => {
                if let Some(values) = backend.in_memory(buffer, len) {
                    return Ok(Cow::Borrowed(values));
                }
                backend.read(buffer, 0, &mut values).await?;
            }
            Master::Half(buffer) => {
                let mut words = vec![0; len.div_ceil(2)];
                backend.read_u32(buffer, 0, &mut words).await?;
                for (pair, word) in values.chunks_mut(2).zip(words) {
                    pair[0] = f32::from_bits(word << 16);
                    if let Some(high) = pair.get_mut(1) {
                        *high = f32::from_bits(word & 0xFFFF_0000);
                    }
                }
            }
        }
        Ok(Cow::Owned(values))
    }

    /// Uses these scales from now on, in the order of a [`PackedTensor`]'s scales. With `learned`, they are trained
    /// too.
    ///
    /// # Errors
    /// `invalid_argument` if the parameter has no codes, if the codes are not symmetric, if the number of scales is
    /// wrong, or if a scale is 0 or not finite.
    pub fn set_scales(&mut self, backend: &mut B, scales: &[f32], learned: bool) -> Result<()> {
        let refuse = |message: String| Err(Error::invalid_argument(format!("`{}`: {message}", self.tensor)));
        let Stored::Packed { scheme, scale_type, .. } = self.stored else {
            return refuse("expected a quantized parameter for scales but found floating point".into());
        };
        let Some(zero) = scheme.constant_zero_point() else {
            return refuse(format!(
                "expected codes with a constant zero point for given scales but found {scheme}"
            ));
        };
        let expected = scheme.granularity().scale_count(self.rows, self.cols);
        if scales.len() != expected || scales.iter().any(|scale| !scale.is_finite() || *scale == 0.0) {
            return refuse(format!(
                "expected {expected} finite scales other than 0 but found {}",
                scales.len()
            ));
        }
        let zero = zero as f32;
        let group_size = if expected == 1 { 0 } else { scheme.granularity().group_size(self.cols) };
        let grid = ScaledGrid {
            rows: self.rows,
            cols: self.cols,
            group_size,
            low: -zero,
            high: scheme.max_code() as f32 - zero,
        };
        let mut held = ExplicitScales {
            master: backend.buffer(Element::F32, expected)?,
            used: backend.buffer(Element::F32, expected)?,
            gradient: backend.buffer(Element::F32, expected)?,
            learned,
            grid,
        };
        backend.write_f32(&mut held.master, scales)?;
        let used: Vec<f32> = scales.iter().map(|&scale| scale_type.round(scale)).collect::<Result<_>>()?;
        backend.write_f32(&mut held.used, &used)?;
        self.scales = Some(held);
        Ok(())
    }

    /// The values as stored in floating point, rounded to their type.
    ///
    /// # Errors
    /// `non_finite` if a value exceeds the range of its type; `invalid_argument` for a parameter that is stored as
    /// codes.
    pub async fn floats(&self, backend: &mut B) -> Result<(DType, Vec<u8>)> {
        let Stored::Float(dtype) = self.stored else {
            return Err(Error::invalid_argument(format!("`{}` is stored as codes", self.tensor)));
        };
        let values = self.values(backend).await?;
        Ok((dtype, bytes(&self.tensor, dtype, &values)?.into_owned()))
    }

    /// The codes as stored; `None` for floating point.
    ///
    /// # Errors
    /// `non_finite` naming the tensor, if training produced a NaN or an infinity.
    pub async fn codes(&mut self, backend: &mut B) -> Result<Option<PackedTensor>> {
        let Stored::Packed { scheme, scale_type, .. } = self.stored else { return Ok(None) };
        let scales = self.use_scales(backend).await?;
        let values = self.values(backend).await?;
        codes(&self.tensor, (self.rows, self.cols), (scheme, scale_type), &values, scales).map(Some)
    }

    /// The explicit scales as stored. The forward pass uses them from now on.
    async fn use_scales(&mut self, backend: &mut B) -> Result<Option<Scales>> {
        let (Stored::Packed { scale_type, .. }, Some(held)) = (self.stored, &mut self.scales) else {
            return Ok(None);
        };
        let mut values = vec![0.0; held.grid.scales()];
        backend.read(&held.master, 0, &mut values).await?;
        let mut stored = Scales::with_capacity(scale_type, values.len());
        for value in &mut values {
            *value = scale_type.round(*value).context_with(|| format!("tensor `{}`", self.tensor))?;
            stored.push(*value);
        }
        backend.write_f32(&mut held.used, &values)?;
        Ok(Some(stored))
    }
}

/// The values as bytes of a type, little endian.
fn bytes<'a>(tensor: &str, dtype: DType, values: &'a [f32]) -> Result<Cow<'a, [u8]>> {
    let bytes = if dtype == DType::F32 && cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        let mut pieces: Vec<_> = values.chunks(CHUNK).map(|values| (values, Vec::new(), Ok(()))).collect();
        parallel::for_each_chunk(&mut pieces, 1, |_, pieces| {
            for (values, bytes, done) in pieces {
                *done = encode_f32(dtype, values, bytes);
            }
        });
        let mut bytes = Vec::with_capacity(values.len() * 4);
        for (_, piece, done) in pieces {
            done.context_with(|| format!("tensor `{tensor}`"))?;
            bytes.extend_from_slice(&piece);
        }
        Cow::Owned(bytes)
    };
    if !all_finite(values) {
        refuse_non_finite(tensor, dtype, &bytes, 0)?;
    }
    Ok(bytes)
}

/// Checks all values, which is faster than a search for the first one that is not finite.
fn all_finite(values: &[f32]) -> bool {
    let mut finite = vec![true; values.len().div_ceil(CHUNK)];
    parallel::for_each_chunk(&mut finite, 1, |index, finite| {
        let values = values.chunks(CHUNK).nth(index).unwrap_or_default();
        finite[0] = values.iter().fold(true, |finite, value| finite & value.is_finite());
    });
    !finite.contains(&false)
}

/// The codes of a matrix, with explicit scales or with scales computed from its values.
fn codes(
    tensor: &str,
    (rows, cols): (usize, usize),
    (scheme, scale_type): (Scheme, ScaleType),
    values: &[f32],
    held: Option<Scales>,
) -> Result<PackedTensor> {
    let codes = match held {
        Some(scales) => encode_with_params(scheme, rows, cols, values, scales, None),
        None => to_nearest(scheme, (rows, cols), scale_type, values),
    };
    codes.context_with(|| format!("tensor `{tensor}`"))
}

/// The shape of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Number of elements.
    Vector(usize),
    /// Rows and columns.
    Matrix(usize, usize),
}

impl Shape {
    /// A vector has one row.
    fn rows_and_cols(self) -> (usize, usize) {
        match self {
            Self::Vector(len) => (1, len),
            Self::Matrix(rows, cols) => (rows, cols),
        }
    }
}

/// The parameters of a linear layer, an embedding or a head.
pub struct LinearParameters<B: Train> {
    /// `[rows, cols]`
    pub weight: Parameter<B>,
    /// `[rows]`
    pub bias: Option<Parameter<B>>,
}

impl<B: Train> LinearParameters<B> {
    /// The gradients of weight and bias.
    pub fn gradient(&mut self) -> PartGradient<'_, B::Buffer> {
        PartGradient {
            rows: self.weight.rows,
            weight: &mut self.weight.gradient,
            bias: self.bias.as_mut().map(|bias| &mut bias.gradient),
        }
    }
}

/// Builds the running weight of one or several layers that share an input.
///
/// # Errors
/// As [`Parameter::codes`] and [`Parameter::floats`]; errors of the device.
pub async fn weight<B: Train>(backend: &mut B, parts: &mut [LinearParameters<B>]) -> Result<B::Weight> {
    let mut descs = Vec::with_capacity(parts.len());
    for LinearParameters { weight, bias } in parts.iter() {
        let (format, activations, grid) = match weight.stored {
            Stored::Float(dtype) => (WeightFormat::Dense(dtype), Activations::F32, ActivationGrid::default()),
            Stored::Packed { scheme, activations, grid, .. } => {
                (WeightFormat::Packed(scheme.into()), activations, grid)
            }
        };
        let (rows, cols, bias) = (weight.rows, weight.cols, bias.is_some());
        descs.push(WeightDesc { rows, cols, format, activations, grid, bias });
    }
    let mut held = Vec::with_capacity(parts.len());
    for part in parts.iter_mut() {
        held.push(part.weight.use_scales(backend).await?);
    }
    let mut matrices_to_encode = Vec::with_capacity(parts.len());
    for (LinearParameters { weight, .. }, scales) in parts.iter().zip(held) {
        let Parameter { tensor, rows, cols, stored, .. } = weight;
        let shape = (*rows, *cols);
        let values = weight.values(backend).await?;
        matrices_to_encode.push(MatrixToEncode {
            tensor,
            shape,
            stored: *stored,
            values,
            scales,
            codes: None,
        });
    }
    parallel::for_each_chunk(&mut matrices_to_encode, 1, |_, matrices_to_encode| {
        matrices_to_encode.iter_mut().for_each(|arrival| arrival.codes = arrival.encode());
    });
    let mut builder = backend.begin_weight(&descs)?;
    for (index, (arrival, LinearParameters { weight, bias })) in
        matrices_to_encode.into_iter().zip(parts.iter()).enumerate()
    {
        let rows = 0..weight.rows;
        match (arrival.codes, weight.stored) {
            (Some(codes), _) => {
                let codes = QuantizedTensor::from(codes?);
                let view = WeightView::Packed(codes.rows_view(rows.clone()));
                backend.put_rows(&mut builder, index, rows, view)?;
            }
            (None, Stored::Float(dtype)) => {
                let bytes = bytes(&weight.tensor, dtype, &arrival.values)?;
                backend.put_rows(&mut builder, index, rows, WeightView::Dense(&bytes))?;
            }
            (None, Stored::Packed { .. }) => unreachable!("it was encoded"),
        }
        if let Some(bias) = bias {
            let values = stored_floats(bias, backend).await?;
            backend.put_bias(&mut builder, index, &values)?;
        }
    }
    backend.finish_weight(builder).await
}

/// A matrix to be encoded for the running weight. It holds only data that other threads may access.
struct MatrixToEncode<'a> {
    tensor: &'a str,
    shape: (usize, usize),
    stored: Stored,
    values: Cow<'a, [f32]>,
    /// The explicit scales.
    scales: Option<Scales>,
    codes: Option<Result<PackedTensor>>,
}

impl MatrixToEncode<'_> {
    /// The codes; `None` for floating point.
    fn encode(&mut self) -> Option<Result<PackedTensor>> {
        let Stored::Packed { scheme, scale_type, .. } = self.stored else { return None };
        Some(codes(self.tensor, self.shape, (scheme, scale_type), &self.values, self.scales.take()))
    }
}

/// Builds the running norm.
///
/// # Errors
/// As [`Parameter::floats`]; errors of the device.
pub async fn norm<B: Train>(
    backend: &mut B,
    parameter: &Parameter<B>,
    epsilon: f32,
) -> Result<Norm<B::Buffer>> {
    let values = stored_floats(parameter, backend).await?;
    let mut weight = backend.buffer(Element::F32, values.len())?;
    backend.write_f32(&mut weight, &values)?;
    Ok(Norm { weight, width: values.len(), epsilon })
}

/// The values of a vector as stored.
///
/// # Errors
/// As [`Parameter::floats`].
async fn stored_floats<B: Train>(parameter: &Parameter<B>, backend: &mut B) -> Result<Vec<f32>> {
    let (dtype, bytes) = parameter.floats(backend).await?;
    let mut values = vec![0.0; parameter.len()];
    decode_f32(dtype, &bytes, &mut values)?;
    Ok(values)
}
