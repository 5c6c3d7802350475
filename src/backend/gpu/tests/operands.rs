//! Random operands and helpers, for any backend.

use crate::backend::{Backend, Element, WeightDesc, WeightFormat, WeightView};
use crate::dtype::{DType, decode_f32, encode_f32};
use crate::quant::codings::Codebook;
use crate::quant::{ActivationGrid, Activations, Bits, Granularity, PackedTensor, QuantizedTensor, Scheme};

/// A deterministic generator (Marsaglia's xorshift64), so that failures are reproducible.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    /// Uniform in `[-1, 1)`.
    pub(super) fn float(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// A matrix with its exact values.
pub(super) struct TestMatrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) format: WeightFormat,
    pub(super) bias: Option<Vec<f32>>,
    /// `[rows, cols]`
    pub(super) values: Vec<f64>,
    data: Data,
}

enum Data {
    Dense(Vec<u8>),
    Packed(QuantizedTensor),
}

impl TestMatrix {
    pub(super) fn random(random: &mut Random, rows: usize, cols: usize, format: WeightFormat) -> Self {
        let (data, values) = match format {
            WeightFormat::Dense(dtype) => {
                let mut bytes = Vec::new();
                encode_f32(dtype, &random.floats(rows * cols), &mut bytes).unwrap();
                let mut values = vec![0.0; rows * cols];
                decode_f32(dtype, &bytes, &mut values).unwrap();
                (Data::Dense(bytes), values.into_iter().map(f64::from).collect())
            }
            WeightFormat::Packed(coding) => {
                let tensor = coding.sample(rows, cols, &mut |end| random.below(end as usize) as u32).unwrap();
                let affine = tensor.affine().map(|affine| {
                    (0..rows * cols).map(|i| value(affine, i / cols, i % cols)).collect::<Vec<f64>>()
                });
                let values = affine.unwrap_or_else(|| {
                    let mut values = vec![0.0; rows * cols];
                    tensor.decode_rows(0..rows, &mut values);
                    values.into_iter().map(f64::from).collect()
                });
                (Data::Packed(tensor), values)
            }
        };
        let bias = (random.below(2) == 0).then(|| random.floats(rows));
        Self { rows, cols, format, bias, values, data }
    }

    /// Removes the bias, as in embedding tables.
    pub(super) fn without_bias(mut self) -> Self {
        self.bias = None;
        self
    }
}

fn value(tensor: &PackedTensor, row: usize, col: usize) -> f64 {
    let scheme = tensor.scheme();
    let index = tensor.scale_index(row, col / scheme.granularity().group_size(tensor.cols()));
    let zero = match tensor.zero_points() {
        Some(zeros) => f64::from(zeros[index]),
        None => f64::from(scheme.constant_zero_point().unwrap()),
    };
    (f64::from(tensor.code(row, col)) - zero) * f64::from(tensor.scales().get(index))
}

/// All cases for format number `index`. In WebAssembly, where tests are slow, only one, chosen in rotation: each format
/// then runs some case, and each case runs some formats.
pub(super) fn some<T>(cases: &[T], index: usize) -> &[T] {
    if cfg!(target_arch = "wasm32") { std::slice::from_ref(&cases[index % cases.len()]) } else { cases }
}

/// Every weight format, with group sizes that divide the columns and that do not.
pub(super) fn formats() -> Vec<WeightFormat> {
    let mut formats: Vec<_> =
        [DType::F32, DType::F16, DType::BF16].into_iter().map(WeightFormat::Dense).collect();
    let groups = [32, 128, 43, 8].map(Granularity::Group);
    for granularity in [Granularity::Tensor, Granularity::Channel].into_iter().chain(groups) {
        for bits in [Bits::Two, Bits::Three, Bits::Four, Bits::Eight] {
            for symmetric in [true, false] {
                formats.push(WeightFormat::Packed(Scheme::Integer { bits, granularity, symmetric }.into()));
            }
        }
    }
    for granularity in [Granularity::Tensor, Granularity::Channel] {
        formats.push(WeightFormat::Packed(Scheme::Ternary { granularity }.into()));
    }
    formats.push(WeightFormat::Packed(Codebook::Iq4Nl.into()));
    formats
}

/// Loads matrices as one weight, each in two runs of rows, the second first.
pub(super) async fn load<B: Backend>(
    backend: &mut B,
    parts: &[TestMatrix],
    activations: Activations,
    grid: ActivationGrid,
) -> B::Weight {
    let descs: Vec<_> = parts
        .iter()
        .map(|part| WeightDesc {
            rows: part.rows,
            cols: part.cols,
            format: part.format,
            activations,
            grid,
            bias: part.bias.is_some(),
        })
        .collect();
    let mut builder = backend.begin_weight(&descs).unwrap();
    for (index, part) in parts.iter().enumerate() {
        let middle = part.rows / 3;
        for rows in [middle..part.rows, 0..middle] {
            let view = match &part.data {
                Data::Dense(bytes) => {
                    let stride = bytes.len() / part.rows;
                    WeightView::Dense(&bytes[rows.start * stride..rows.end * stride])
                }
                Data::Packed(tensor) => WeightView::Packed(tensor.rows_view(rows.clone())),
            };
            backend.put_rows(&mut builder, index, rows, view).unwrap();
        }
        if let Some(bias) = &part.bias {
            backend.put_bias(&mut builder, index, bias).unwrap();
        }
    }
    backend.finish_weight(builder).await.unwrap()
}

pub(super) fn buffer<B: Backend>(backend: &mut B, data: &[f32]) -> B::Buffer {
    let mut buffer = backend.buffer(Element::F32, data.len()).unwrap();
    backend.write_f32(&mut buffer, data).unwrap();
    buffer
}

pub(super) fn ids<B: Backend>(backend: &mut B, data: &[u32]) -> B::Buffer {
    let mut buffer = backend.buffer(Element::U32, data.len()).unwrap();
    backend.write_u32(&mut buffer, data).unwrap();
    buffer
}

pub(super) fn zeros<B: Backend>(backend: &mut B, len: usize) -> B::Buffer {
    backend.buffer(Element::F32, len).unwrap()
}

pub(super) async fn read<B: Backend>(backend: &mut B, buffer: &B::Buffer, len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    backend.read(buffer, 0, &mut out).await.unwrap();
    out
}

/// The largest `|found - expected| / scale`; infinite for NaN.
pub(super) fn worst(found: &[f32], expected: &[(f64, f64)]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let errors = found.iter().zip(expected).map(|(&found, &(expected, scale))| {
        let error = (f64::from(found) - expected).abs() / scale.max(f64::MIN_POSITIVE);
        if error.is_nan() { f64::INFINITY } else { error }
    });
    errors.fold(0.0, f64::max)
}
