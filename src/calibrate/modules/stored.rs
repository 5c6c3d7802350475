//! Packed matrices, and vectors, that wait in scratch until their turn comes to be written.
//!
//! The slot of a matrix is a line of JSON that says what it is, and its parts as little-endian bytes; that of a vector its
//! values as `f32`. Floor 7.

use crate::error::{Context, Error, Result};
use crate::format::json;
use crate::format::scratch::Scratch;
use crate::quant::{PackedTensor, ScaleType, Scales};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The first line of a slot.
#[derive(Serialize, Deserialize)]
struct Header {
    scheme: String,
    rows: usize,
    cols: usize,
    scale_type: String,
    zero_points: bool,
    column_order: bool,
}

/// The slot of the matrix of a module.
pub(super) fn matrix_slot(module: &str) -> String {
    format!("packed-{module}")
}

/// The slot of the vector of a tensor.
pub(super) fn vector_slot(tensor: &str) -> String {
    format!("vector-{tensor}")
}

/// Keeps `tensor` for `module`.
pub(super) async fn save(scratch: &dyn Scratch, module: &str, tensor: &PackedTensor) -> Result<()> {
    let header = Header {
        scheme: tensor.scheme().to_string(),
        rows: tensor.rows(),
        cols: tensor.cols(),
        scale_type: tensor.scales().scale_type().dtype().name().to_owned(),
        zero_points: tensor.zero_points().is_some(),
        column_order: tensor.column_order().is_some(),
    };
    let mut bytes =
        serde_json::to_vec(&header).map_err(|error| Error::invalid_argument(error.to_string()))?;
    bytes.push(b'\n');
    bytes.extend(tensor.codes().iter().flat_map(|word| word.to_le_bytes()));
    match tensor.scales() {
        Scales::F16(v) => bytes.extend(v.iter().flat_map(|s| s.to_le_bytes())),
        Scales::BF16(v) => bytes.extend(v.iter().flat_map(|s| s.to_le_bytes())),
        Scales::F32(v) => bytes.extend(v.iter().flat_map(|s| s.to_le_bytes())),
    }
    bytes.extend(tensor.zero_points().into_iter().flatten());
    bytes.extend(tensor.column_order().into_iter().flatten().flat_map(|column| column.to_le_bytes()));
    let name = matrix_slot(module);
    scratch.delete(&name).await?;
    scratch.write_at(&name, 0, &bytes).await
}

/// Brings it back.
///
/// # Errors
/// `not_found` where nothing was kept; `invalid_checkpoint` for a slot that [`save`] did not write.
pub(super) async fn load(scratch: &dyn Scratch, module: &str) -> Result<PackedTensor> {
    let name = matrix_slot(module);
    let len = scratch.len(&name).await?.unwrap_or(0);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    scratch.read_at(&name, 0, &mut bytes).await?;
    parse(&bytes).context_with(|| format!("scratch slot `{name}`"))
}

/// Keeps a norm's weight or a bias.
pub(super) async fn save_vector(scratch: &dyn Scratch, tensor: &str, values: &[f32]) -> Result<()> {
    let name = vector_slot(tensor);
    scratch.delete(&name).await?;
    scratch.write_at(&name, 0, bytemuck::cast_slice(values)).await
}

/// Brings it back.
///
/// # Errors
/// `not_found` where nothing was kept.
pub(super) async fn load_vector(scratch: &dyn Scratch, tensor: &str) -> Result<Vec<f32>> {
    let name = vector_slot(tensor);
    let len = scratch.len(&name).await?.unwrap_or(0);
    let mut values = vec![0.0; usize::try_from(len).unwrap_or(0) / size_of::<f32>()];
    scratch.read_at(&name, 0, bytemuck::cast_slice_mut(&mut values)).await?;
    Ok(values)
}

fn parse(bytes: &[u8]) -> Result<PackedTensor> {
    let broken = |what: &str| Error::invalid_checkpoint(format!("expected {what} but the slot is broken"));
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| broken("a line of JSON"))?;
    let (header, mut rest) = (&bytes[..end], &bytes[end + 1..]);
    let header: Header = json::parse(header).map_err(|_| broken("a line of JSON"))?;
    let scheme: crate::quant::Scheme = header.scheme.parse()?;
    let mut take = |len: Option<usize>| {
        let (part, after) =
            len.and_then(|len| rest.split_at_checked(len)).ok_or_else(|| broken("more bytes"))?;
        rest = after;
        Ok::<_, Error>(part)
    };
    let words =
        header.rows.checked_mul(scheme.words_per_row(header.cols)).and_then(|words| words.checked_mul(4));
    let codes = take(words)?.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let count = scheme.granularity().scale_count(header.rows, header.cols);
    let scale_type = [ScaleType::F16, ScaleType::BF16, ScaleType::F32]
        .into_iter()
        .find(|scale_type| scale_type.dtype().name() == header.scale_type)
        .ok_or_else(|| broken("scales of a floating-point type"))?;
    let scales = take(count.checked_mul(scale_type.dtype().size()))?;
    let scales = match scale_type {
        ScaleType::F16 => Scales::F16(scales.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
        ScaleType::BF16 => {
            Scales::BF16(scales.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
        }
        ScaleType::F32 => Scales::F32(scales.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
    };
    let zero_points = if header.zero_points { Some(take(Some(count))?.to_vec()) } else { None };
    let order = if header.column_order { Some(take(header.cols.checked_mul(4))?) } else { None };
    let tensor = PackedTensor::new(scheme, header.rows, header.cols, codes, scales, zero_points)?;
    match order {
        None => Ok(tensor),
        Some(order) => tensor.with_column_order(
            order.as_chunks().0.iter().map(|column| u32::from_le_bytes(*column)).collect(),
        ),
    }
}
