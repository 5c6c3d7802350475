//! Random operands, exact values and shorthands for the tests of this folder.

pub(super) use super::self_check::formats;
use super::simd::Isa;
use super::{CpuBackend, CpuBuffer, CpuOptions, CpuWeight};
use crate::backend::{Backend, DeviceOps, Element, Elements, WeightDesc, WeightFormat, WeightView};
use crate::dtype::{DType, encode_f32};
use crate::quant::{ActivationGrid, Activations, PackedTensor, QuantizedTensor, Scales, Scheme};
use crate::task::block_on;
use half::f16;

/// A small deterministic generator (Marsaglia's xorshift64), so that failures are reproducible.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in `[-1, 1)`.
    pub(super) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A test matrix with its exact values.
pub(super) enum Matrix {
    Dense(DType, Vec<u8>, Vec<f32>),
    Packed(QuantizedTensor),
}

impl Matrix {
    pub(super) fn random(random: &mut Random, rows: usize, cols: usize, format: WeightFormat) -> Self {
        match format {
            WeightFormat::Dense(dtype) => {
                let mut bytes = Vec::new();
                encode_f32(dtype, &random.floats(rows * cols), &mut bytes).unwrap();
                let mut values = vec![0.0; rows * cols];
                crate::dtype::decode_f32(dtype, &bytes, &mut values).unwrap();
                Self::Dense(dtype, bytes, values)
            }
            WeightFormat::Packed(coding) => Self::Packed(match coding.affine() {
                Some(scheme) => random_packed(random, rows, cols, scheme).into(),
                None => coding.sample(rows, cols, &mut |end| random.below(end.into()) as u32).unwrap(),
            }),
        }
    }

    pub(super) fn value(&self, row: usize, col: usize, cols: usize) -> f64 {
        match self {
            Self::Dense(_, _, values) => f64::from(values[row * cols + col]),
            Self::Packed(tensor) => {
                if let Some(tensor) = tensor.affine() {
                    let (code, zero, scale, minimum) = parts_of(tensor, row, col);
                    return f64::from(code - zero) * scale + minimum;
                }
                let mut weights = vec![0.0; cols];
                tensor.decode_rows(row..row + 1, &mut weights);
                f64::from(weights[col])
            }
        }
    }
}

/// Whether matrices of this format are integer codes, which can have a column order.
pub(super) fn is_affine(format: &WeightFormat) -> bool {
    matches!(format, WeightFormat::Packed(coding) if coding.affine().is_some())
}

/// Code, zero point, scale and minimum at `(row, col)`.
pub(super) fn parts_of(tensor: &PackedTensor, row: usize, col: usize) -> (i32, i32, f64, f64) {
    let scheme = tensor.scheme();
    let index =
        tensor.scale_index(row, tensor.stored_column(col) / scheme.granularity().group_size(tensor.cols()));
    let zero = tensor.zero_points().map_or_else(
        || scheme.constant_zero_point().expect("a scheme without stored zero points") as i32,
        |zeros| i32::from(zeros[index]),
    );
    let minimum = tensor.minimums().map_or(0.0, |minimums| f64::from(minimums.get(index)));
    (tensor.code(row, col) as i32, zero, f64::from(tensor.scales().get(index)), minimum)
}

fn random_packed(random: &mut Random, rows: usize, cols: usize, scheme: Scheme) -> PackedTensor {
    let bits = scheme.storage_bits() as usize;
    let words = scheme.words_per_row(cols);
    let mut codes = vec![0u32; rows * words];
    for row in 0..rows {
        for col in 0..cols {
            let code = random.below(u64::from(scheme.max_code()) + 1) as u32;
            for bit in 0..bits {
                let at = col * bits + bit;
                codes[row * words + at / 32] |= (code >> bit & 1) << (at % 32);
            }
        }
    }
    let count = scheme.granularity().scale_count(rows, cols);
    // Scales of both signs: some tools search for a signed maximum.
    let scale = |x: f32| f16::from_f32(x / 50.0 + 0.01f32.copysign(x));
    let scales = (0..count).map(|_| scale(random.float())).collect();
    if scheme.has_minimums() {
        let minimums = Scales::F16((0..count).map(|_| f16::from_f32(random.float() / 10.0)).collect());
        return PackedTensor::with_minimums(scheme, rows, cols, codes, Scales::F16(scales), minimums)
            .unwrap();
    }
    let zeros = scheme
        .constant_zero_point()
        .is_none()
        .then(|| (0..count).map(|_| random.below(u64::from(scheme.max_code()) + 1) as u8).collect());
    PackedTensor::new(scheme, rows, cols, codes, Scales::F16(scales), zeros).unwrap()
}

/// The same matrix with its columns in a random order.
pub(super) fn reordered(random: &mut Random, matrix: &Matrix) -> Matrix {
    let Matrix::Packed(QuantizedTensor::Affine(tensor)) = matrix else {
        panic!("only packed matrices have an order of columns")
    };
    let mut order: Vec<u32> = (0..tensor.cols() as u32).collect();
    for left in (1..order.len()).rev() {
        order.swap(left, random.below(left as u64 + 1) as usize);
    }
    Matrix::Packed(tensor.clone().with_column_order(order).unwrap().into())
}

pub(super) fn backend(threads: usize, simd: bool) -> CpuBackend {
    CpuBackend::with_options(CpuOptions { threads: Some(threads), simd })
}

/// A backend for each instruction set that this processor has, the portable one first.
pub(super) fn backends(threads: usize) -> Vec<CpuBackend> {
    Isa::available().into_iter().map(|isa| CpuBackend::on(isa, Some(threads))).collect()
}

pub(super) fn f32_buffer(backend: &mut CpuBackend, data: &[f32]) -> CpuBuffer {
    let mut buffer = backend.buffer(Element::F32, data.len()).unwrap();
    backend.write_f32(&mut buffer, data).unwrap();
    buffer
}

pub(super) fn u32_buffer(backend: &mut CpuBackend, data: &[u32]) -> CpuBuffer {
    let mut buffer = backend.buffer(Element::U32, data.len()).unwrap();
    backend.write_u32(&mut buffer, data).unwrap();
    buffer
}

pub(super) fn read(backend: &mut CpuBackend, buffer: &CpuBuffer) -> Vec<f32> {
    let mut out = vec![f32::NAN; buffer.len()];
    block_on(backend.read(buffer, 0, &mut out)).unwrap();
    out
}

/// Loads matrices, each in two ranges of rows if it has two rows, with a bias for each part that has one.
pub(super) fn load(
    backend: &mut CpuBackend,
    parts: &[(&Matrix, usize)],
    cols: usize,
    grid: Option<ActivationGrid>,
    biases: &[Option<Vec<f32>>],
) -> CpuWeight {
    let descs: Vec<_> = parts
        .iter()
        .zip(biases)
        .map(|((matrix, rows), bias)| WeightDesc {
            rows: *rows,
            cols,
            format: match matrix {
                Matrix::Dense(dtype, ..) => WeightFormat::Dense(*dtype),
                Matrix::Packed(tensor) => WeightFormat::Packed(tensor.coding()),
            },
            activations: if grid.is_some() { Activations::Int8 } else { Activations::F32 },
            grid: grid.unwrap_or_default(),
            bias: bias.is_some(),
        })
        .collect();
    let mut builder = backend.begin_weight(&descs).unwrap();
    for (part, ((matrix, rows), bias)) in parts.iter().zip(biases).enumerate() {
        let middle = rows / 2;
        for range in [middle..*rows, 0..middle] {
            let view = match matrix {
                Matrix::Dense(dtype, bytes, _) => {
                    let stride = cols * dtype.size();
                    WeightView::Dense(&bytes[range.start * stride..range.end * stride])
                }
                Matrix::Packed(tensor) => WeightView::Packed(tensor.rows_view(range.clone())),
            };
            backend.put_rows(&mut builder, part, range, view).unwrap();
        }
        if let Some(bias) = bias {
            backend.put_bias(&mut builder, part, bias).unwrap();
        }
    }
    block_on(backend.finish_weight(builder)).unwrap()
}

/// A tall matrix for benchmarks: the rows of a small one, `repeats` times.
pub(super) fn load_repeated(
    backend: &mut CpuBackend,
    matrix: &Matrix,
    rows: usize,
    cols: usize,
    repeats: usize,
    activations: Activations,
) -> CpuWeight {
    let (format, view) = match matrix {
        Matrix::Dense(dtype, bytes, _) => (WeightFormat::Dense(*dtype), WeightView::Dense(bytes)),
        Matrix::Packed(tensor) => {
            (WeightFormat::Packed(tensor.coding()), WeightView::Packed(tensor.rows_view(0..rows)))
        }
    };
    let desc = WeightDesc {
        rows: rows * repeats,
        cols,
        format,
        activations,
        grid: ActivationGrid::default(),
        bias: false,
    };
    let mut builder = backend.begin_weight(&[desc]).unwrap();
    for repeat in 0..repeats {
        backend.put_rows(&mut builder, 0, repeat * rows..(repeat + 1) * rows, view.clone()).unwrap();
    }
    block_on(backend.finish_weight(builder)).unwrap()
}
