//! Forms of a written tensor: floating-point numbers, or blocks with ggml's rounding.

use crate::dtype::{DType, decode_f32, encode_f32};
use crate::error::Result;
use crate::format::gguf::TensorType;
use crate::format::safetensors::TensorInfo;
use crate::layout::TargetLayout;
use crate::layout::gguf::{block_type, decode_rows, quantize_rows};
use crate::quant::Coding;

/// The form of written values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum Form {
    /// Plain numbers.
    Plain(DType),
    /// Blocks of rows.
    Blocks(TensorType),
}

impl From<TensorType> for Form {
    fn from(tensor_type: TensorType) -> Self {
        match tensor_type {
            TensorType::F32 => Self::Plain(DType::F32),
            TensorType::F16 => Self::Plain(DType::F16),
            TensorType::BF16 => Self::Plain(DType::BF16),
            blocks => Self::Blocks(blocks),
        }
    }
}

impl Form {
    /// The form of a layout's tensor of a packed matrix.
    pub(in crate::pipeline) fn of_piece(
        layout: TargetLayout,
        dtype: DType,
        coding: Coding,
        cols: usize,
    ) -> Self {
        let blocks = block_type(coding, cols).filter(|_| layout == TargetLayout::Gguf);
        blocks.map_or(Self::Plain(dtype), Self::Blocks)
    }

    /// Its type's name.
    pub(in crate::pipeline) fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Blocks(tensor_type) => tensor_type.name(),
        }
    }

    /// Type and shape of a matrix. Rows of blocks are bytes.
    ///
    /// # Panics
    /// When rows are not whole blocks.
    pub(super) fn info(self, rows: usize, cols: usize) -> TensorInfo {
        match self {
            Self::Plain(dtype) => TensorInfo::new(dtype, [rows as u64, cols as u64]),
            Self::Blocks(tensor_type) => {
                let row_bytes = tensor_type.row_bytes(cols as u64).expect("rows are whole blocks");
                TensorInfo::new(DType::U8, [rows as u64, row_bytes])
            }
        }
    }

    /// Appends whole rows of values.
    ///
    /// # Errors
    /// `non_finite` for a value that the form cannot hold.
    pub(super) fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Plain(dtype) => encode_f32(dtype, values, out),
            Self::Blocks(tensor_type) => quantize_rows(tensor_type, values, out),
        }
    }

    /// The largest distance of a value from the decoded `bytes`.
    pub(super) fn difference(self, cols: usize, values: &[f32], bytes: &[u8]) -> Result<f32> {
        let mut read = vec![0.0; values.len()];
        match self {
            Self::Plain(dtype) => decode_f32(dtype, bytes, &mut read)?,
            Self::Blocks(tensor_type) => decode_rows(tensor_type, cols, bytes, &mut read)?,
        }
        Ok(farthest(values, &read))
    }
}

/// The largest distance of corresponding values.
pub(super) fn farthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |largest: f32, (a, b)| largest.max((a - b).abs()))
}
