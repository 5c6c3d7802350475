//! Reading the small set of tensor shapes that layouts are made of, with every check in one place. Floor 3.

use crate::dtype::DType;
use crate::error::{Error, ErrorCode, Result};
use crate::format::quoted;
use crate::format::safetensors::TensorInfo;
use crate::format::shard_index::TensorStore;
use crate::quant::Scales;
use half::{bf16, f16};

/// Names the tensor that an error is about.
pub(super) fn in_tensor(name: &str, error: Error) -> Error {
    error.context(format!("tensor {}", quoted(name)))
}

/// Rows and columns of a matrix that has both.
pub(super) fn matrix(name: &str, info: &TensorInfo) -> Result<(usize, usize)> {
    match info.shape.as_matrix() {
        Some((rows, cols)) if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => Err(in_tensor(
            name,
            Error::invalid_checkpoint(format!(
                "expected a matrix with elements but found shape {}",
                info.shape
            )),
        )),
    }
}

/// The tensor `name`, which must be of type `dtype`.
pub(super) fn require_type<'s>(store: &'s TensorStore, name: &str, dtype: DType) -> Result<&'s TensorInfo> {
    let info = store.require(name)?;
    if info.dtype != dtype {
        return Err(in_tensor(
            name,
            Error::invalid_checkpoint(format!("expected values of type {dtype} but found {}", info.dtype)),
        ));
    }
    Ok(info)
}

/// An error unless the tensor has one of these shapes.
pub(super) fn require_shape(name: &str, info: &TensorInfo, accepted: &[&[u64]]) -> Result<()> {
    if accepted.contains(&info.shape.dims()) {
        return Ok(());
    }
    let expected = accepted.first().copied().unwrap_or_default();
    Err(in_tensor(
        name,
        Error::invalid_checkpoint(format!("expected shape {expected:?} but found {}", info.shape)),
    ))
}

/// `rows * words` zero words for the codes of a matrix, or `out_of_memory`.
///
/// A matrix takes no more than its tensor in the file, except that every row is rounded up to whole words.
pub(super) fn zeroed_words(rows: usize, words: usize) -> Result<Vec<u32>> {
    let too_much = || {
        Error::new(
            ErrorCode::OutOfMemory,
            format!("the codes of {rows} rows of {words} words do not fit in memory"),
        )
    };
    let len = rows.checked_mul(words).ok_or_else(too_much)?;
    let mut zeroed: Vec<u32> = Vec::new();
    zeroed.try_reserve_exact(len).map_err(|_| too_much())?;
    zeroed.resize(len, 0);
    Ok(zeroed)
}

/// An `I32` matrix as its words.
pub(super) async fn words(store: &TensorStore, name: &str) -> Result<Vec<u32>> {
    let (rows, cols) = matrix(name, require_type(store, name, DType::I32)?)?;
    let mut words = zeroed_words(rows, cols).map_err(|error| in_tensor(name, error))?;
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    store.read_range(name, 0..bytes.len() as u64, bytes).await?;
    for word in &mut words {
        *word = u32::from_le(*word);
    }
    Ok(words)
}

/// An `I32` vector.
pub(super) async fn integers(store: &TensorStore, name: &str) -> Result<Vec<i32>> {
    let bytes = store.read(name).await?;
    Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
}

/// Scales in the type in which they are stored, all finite.
pub(super) async fn scales(store: &TensorStore, name: &str) -> Result<Scales> {
    let dtype = store.require(name)?.dtype;
    if !dtype.is_float() {
        return Err(in_tensor(
            name,
            Error::unsupported_format(format!("expected scales of type F16, BF16 or F32 but found {dtype}")),
        ));
    }
    let bytes = store.read(name).await?;
    let scales = match dtype {
        DType::F16 => Scales::F16(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
        DType::BF16 => Scales::BF16(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()),
        _ => Scales::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
    };
    if let Some(index) = (0..scales.len()).find(|&index| !scales.get(index).is_finite()) {
        return Err(in_tensor(
            name,
            Error::new(
                ErrorCode::NonFinite,
                format!("expected finite scales but found {} at index {index}", scales.get(index)),
            ),
        ));
    }
    Ok(scales)
}

/// Scales as little-endian bytes.
pub(super) fn scale_bytes(scales: &Scales) -> Vec<u8> {
    match scales {
        Scales::F16(v) => v.iter().flat_map(|s| s.to_le_bytes()).collect(),
        Scales::BF16(v) => v.iter().flat_map(|s| s.to_le_bytes()).collect(),
        Scales::F32(v) => v.iter().flat_map(|s| s.to_le_bytes()).collect(),
    }
}
