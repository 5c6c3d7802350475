//! Reads the few kinds of tensors that layouts consist of, with all checks in one place.

use crate::dtype::DType;
use crate::error::{Error, ErrorCode, Result};
use crate::format::quoted;
use crate::format::safetensors::TensorInfo;
use crate::format::shard_index::TensorStore;
use crate::quant::{ScaleType, Scales, column_order, packing};

/// Adds the name of the tensor to an error.
pub(super) fn in_tensor(name: &str, error: Error) -> Error {
    error.context(format!("tensor {}", quoted(name)))
}

/// Rows and columns of a non-empty matrix.
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

/// The tensor `name`, which must have the type `dtype`.
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

/// The tensor `name`, which must have a floating-point type.
pub(super) fn require_float<'s>(store: &'s TensorStore, name: &str) -> Result<&'s TensorInfo> {
    let info = store.require(name)?;
    if !info.dtype.is_float() {
        let found = info.dtype;
        return Err(in_tensor(
            name,
            Error::unsupported_format(format!("expected scales of type F16, BF16 or F32 but found {found}")),
        ));
    }
    Ok(info)
}

/// Fails unless the tensor has one of these shapes.
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
/// This is no more than the tensor takes in the file, except that each row is rounded up to whole words.
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

/// The words of an `I32` matrix.
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

/// The column order that makes groups contiguous, computed from the stored group of each column.
pub(super) async fn read_order(store: &TensorStore, name: &str, group_size: usize) -> Result<Vec<u32>> {
    let g_idx = integers(store, name).await?;
    column_order::order_of_groups(&g_idx, group_size).map_err(|error| in_tensor(name, error))
}

/// Permutes the codes of every row.
pub(super) fn reorder(codes: &mut [u32], cols: usize, bits: u32, order: &[u32]) {
    if order.iter().enumerate().all(|(index, &column)| index == column as usize) {
        return;
    }
    let (mut row, mut stored) = (vec![0u8; cols], vec![0u8; cols]);
    for stream in codes.chunks_exact_mut(packing::words(cols, bits)) {
        packing::unpack_row(stream, bits, &mut row);
        column_order::gather(&row, order, &mut stored);
        packing::pack_row(&stored, bits, stream);
    }
}

/// Bytes per read of a matrix that is transposed.
const CHUNK_BYTES: usize = 1 << 20;

/// Calls `each` with every row of an `I32` matrix `[rows, cols]`, and reads several rows at a time.
pub(super) async fn for_each_words(
    store: &TensorStore,
    name: &str,
    mut each: impl FnMut(usize, &[u32]),
) -> Result<()> {
    let (rows, cols) = matrix(name, require_type(store, name, DType::I32)?)?;
    let rows_at_once = (CHUNK_BYTES / 4 / cols).clamp(1, rows);
    let mut chunk = zeroed_words(rows_at_once, cols).map_err(|error| in_tensor(name, error))?;
    for start in (0..rows).step_by(rows_at_once) {
        let chunk = &mut chunk[..rows_at_once.min(rows - start) * cols];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(chunk);
        let from = (start * cols * 4) as u64;
        store.read_range(name, from..from + bytes.len() as u64, bytes).await?;
        for (row, words) in chunk.chunks_exact_mut(cols).enumerate() {
            words.iter_mut().for_each(|word| *word = u32::from_le(*word));
            each(start + row, words);
        }
    }
    Ok(())
}

/// An `I32` matrix `[rows, cols]`, transposed to `[cols, rows]`.
pub(super) async fn transposed_words(store: &TensorStore, name: &str) -> Result<Vec<u32>> {
    let (rows, cols) = matrix(name, require_type(store, name, DType::I32)?)?;
    let mut transposed = zeroed_words(cols, rows).map_err(|error| in_tensor(name, error))?;
    for_each_words(store, name, |row, words| {
        for (out, &word) in transposed[row..].iter_mut().step_by(rows).zip(words) {
            *out = word;
        }
    })
    .await?;
    Ok(transposed)
}

/// Transposes a matrix `[rows, cols]` to `[cols, rows]`.
pub(super) fn transpose<T: Copy>(values: &[T], rows: usize) -> Vec<T> {
    let cols = values.len() / rows;
    (0..cols).flat_map(|col| values[col..].iter().step_by(cols).copied()).collect()
}

/// Transposes scales `[rows, cols]` to `[cols, rows]`.
pub(super) fn transpose_scales(scales: &Scales, rows: usize) -> Scales {
    match scales {
        Scales::F16(v) => Scales::F16(transpose(v, rows)),
        Scales::BF16(v) => Scales::BF16(transpose(v, rows)),
        Scales::F32(v) => Scales::F32(transpose(v, rows)),
    }
}

/// Scales in their stored type; all must be finite.
pub(super) async fn scales(store: &TensorStore, name: &str) -> Result<Scales> {
    let dtype = require_float(store, name)?.dtype;
    let bytes = store.read(name).await?;
    let scale_type = ScaleType::from_dtype(dtype).expect("a floating-point type");
    let scales = Scales::from_bytes(scale_type, &bytes);
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

/// Words as little-endian bytes.
pub(super) fn word_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
