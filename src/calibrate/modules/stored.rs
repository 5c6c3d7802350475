//! The scratch slots of packed matrices and vectors that are not yet written.
//!
//! The slot of a matrix holds a JSON line with its header, then its sections as little-endian bytes. The slot of a
//! vector holds its values as `f32`.

use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::json;
use crate::format::scratch::Scratch;
use crate::quant::{Coding, QuantizedTensor, Section};
use serde::{Deserialize, Serialize};

/// The first line of a slot.
#[derive(Serialize, Deserialize)]
struct Header {
    coding: String,
    rows: usize,
    cols: usize,
    /// Name, type and number of bytes of each section, in order.
    sections: Vec<(String, String, usize)>,
}

/// The slot name of a module's matrix.
pub(super) fn matrix_slot(module: &str) -> String {
    format!("packed-{module}")
}

/// The slot name of a vector.
pub(super) fn vector_slot(tensor: &str) -> String {
    format!("vector-{tensor}")
}

/// Stores the matrix of `module`.
pub(super) async fn save(scratch: &dyn Scratch, module: &str, tensor: &QuantizedTensor) -> Result<()> {
    let sections = tensor.sections();
    let header = Header {
        coding: tensor.coding().to_string(),
        rows: tensor.rows(),
        cols: tensor.cols(),
        sections: sections
            .iter()
            .map(|of| (of.name.clone(), of.dtype.name().to_owned(), of.bytes.len()))
            .collect(),
    };
    let mut bytes =
        serde_json::to_vec(&header).map_err(|error| Error::invalid_argument(error.to_string()))?;
    bytes.push(b'\n');
    for section in sections {
        bytes.extend(section.bytes);
    }
    let name = matrix_slot(module);
    scratch.delete(&name).await?;
    scratch.write_at(&name, 0, &bytes).await
}

/// Loads the matrix of `module`.
///
/// # Errors
/// `not_found` if nothing was stored; `invalid_checkpoint` for a slot that [`save`] did not write.
pub(super) async fn load(scratch: &dyn Scratch, module: &str) -> Result<QuantizedTensor> {
    let name = matrix_slot(module);
    let len = scratch.len(&name).await?.unwrap_or(0);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    scratch.read_at(&name, 0, &mut bytes).await?;
    parse(&bytes).context_with(|| format!("scratch slot `{name}`"))
}

/// Stores a norm's weight or a bias.
pub(super) async fn save_vector(scratch: &dyn Scratch, tensor: &str, values: &[f32]) -> Result<()> {
    let name = vector_slot(tensor);
    scratch.delete(&name).await?;
    scratch.write_at(&name, 0, bytemuck::cast_slice(values)).await
}

/// Loads a norm's weight or a bias.
///
/// # Errors
/// `not_found` if nothing was stored.
pub(super) async fn load_vector(scratch: &dyn Scratch, tensor: &str) -> Result<Vec<f32>> {
    let name = vector_slot(tensor);
    let len = scratch.len(&name).await?.unwrap_or(0);
    let mut values = vec![0.0; usize::try_from(len).unwrap_or(0) / size_of::<f32>()];
    scratch.read_at(&name, 0, bytemuck::cast_slice_mut(&mut values)).await?;
    Ok(values)
}

fn parse(bytes: &[u8]) -> Result<QuantizedTensor> {
    let broken = |what: &str| Error::invalid_checkpoint(format!("expected {what} but the slot is broken"));
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(|| broken("a line of JSON"))?;
    let (header, mut rest) = (&bytes[..end], &bytes[end + 1..]);
    let header: Header = json::parse(header).map_err(|_| broken("a line of JSON"))?;
    let mut sections = Vec::new();
    for (name, dtype, len) in header.sections {
        let (section, after) = rest.split_at_checked(len).ok_or_else(|| broken("more bytes"))?;
        rest = after;
        let dtype = DType::from_name(&dtype).ok_or_else(|| broken("a known type"))?;
        sections.push(Section { name, dtype, bytes: section.to_vec() });
    }
    header.coding.parse::<Coding>()?.join(header.rows, header.cols, &sections)
}
