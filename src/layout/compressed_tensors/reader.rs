//! Reads compressed-tensors modules as [`PackedTensor`]s.

use super::CompressedNames;
use super::config::{Config, Group, Spelling};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::shard_index::TensorStore;
use crate::layout::stored::{
    in_tensor, integers, matrix, reorder, require_shape, require_type, scales, words, zeroed_words,
};
use crate::layout::{ModuleStorage, dense};
use crate::quant::{Granularity, PackedTensor, Scheme, column_order, packing};

/// A packed module with consistent tensors.
struct ModuleTensors {
    group: Group,
    spelling: Spelling,
    rows: usize,
    cols: usize,
}

impl Config {
    pub(in crate::layout) fn module(&self, store: &TensorStore, module: &str) -> Result<ModuleStorage> {
        Ok(match self.find(store, module)? {
            None => dense::module(store, module)?,
            Some(ModuleTensors { group, rows, cols, .. }) => ModuleStorage::Packed {
                coding: group.scheme.into(),
                activations: group.activations,
                rows,
                cols,
            },
        })
    }

    pub(in crate::layout) async fn read_packed(
        &self,
        store: &TensorStore,
        module: &str,
    ) -> Result<PackedTensor> {
        let Some(found) = self.find(store, module)? else {
            return Err(Error::invalid_checkpoint("expected packed weights but found floating point"));
        };
        let names = CompressedNames::new(module);
        let ModuleTensors { group: Group { scheme, .. }, rows, cols, .. } = found;
        let scales = scales(store, &names.scale).await?;
        let zero_points = read_zero_points(store, &names, &found).await?;
        let order = read_column_order(store, &names.g_idx, scheme).await?;
        let (codes_name, codes) = match found.spelling {
            Spelling::Packed => {
                let mut codes = words(store, &names.packed).await?;
                if let Some(order) = &order {
                    reorder(&mut codes, cols, scheme.storage_bits(), order);
                }
                (&names.packed, codes)
            }
            Spelling::Bytes => {
                let bytes = store.read(&names.weight).await?;
                let mut codes = zeroed_words(rows, scheme.words_per_row(cols))?;
                let (mut row_codes, mut stored_codes) = (vec![0u8; cols], vec![0u8; cols]);
                for (row, out) in
                    bytes.chunks_exact(cols).zip(codes.chunks_exact_mut(scheme.words_per_row(cols)))
                {
                    for (code, &byte) in row_codes.iter_mut().zip(row) {
                        *code = unsigned(byte, scheme).map_err(|error| in_tensor(&names.weight, error))?;
                    }
                    if let Some(order) = &order {
                        column_order::gather(&row_codes, order, &mut stored_codes);
                        row_codes.copy_from_slice(&stored_codes);
                    }
                    packing::pack_row(&row_codes, scheme.storage_bits(), out);
                }
                (&names.weight, codes)
            }
        };
        PackedTensor::new(scheme, rows, cols, codes, scales, zero_points)
            .and_then(|tensor| match order {
                None => Ok(tensor),
                Some(order) => tensor.with_column_order(order),
            })
            .map_err(|error| in_tensor(codes_name, error))
    }

    /// All checks of a module that need only headers and `weight_shape`; `None` for floating point.
    fn find(&self, store: &TensorStore, module: &str) -> Result<Option<ModuleTensors>> {
        let names = CompressedNames::new(module);
        let (packed, plain) = (store.get(&names.packed), store.get(&names.weight));
        let spelling = match (packed, plain) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid_checkpoint(
                    "expected one of `weight` and `weight_packed` but found both",
                ));
            }
            (Some(_), None) => Some(Spelling::Packed),
            (None, Some(info)) if info.dtype == DType::I8 => Some(Spelling::Bytes),
            _ => None,
        };
        let group = self.group_of(module);
        let (spelling, group) = match (spelling, group) {
            (None, None) => return Ok(None),
            // `dense` reports a module without any weight.
            (None, Some(_)) if plain.is_none() => return Ok(None),
            (Some(spelling), Some(group)) => (spelling, group),
            (Some(_), None) => {
                return Err(Error::invalid_checkpoint(
                    "the weights are packed but `quantization_config` has no group for them, or ignores them",
                ));
            }
            (None, Some(_)) => {
                return Err(Error::invalid_checkpoint(
                    "expected packed weights, as `quantization_config` says, but found floating point",
                ));
            }
        };
        if group.spelling.is_some_and(|expected| expected != spelling) {
            return Err(Error::invalid_checkpoint(format!(
                "expected the format `{}`, as `quantization_config` says, but found {}",
                if spelling == Spelling::Packed { "int-quantized" } else { "pack-quantized" },
                if spelling == Spelling::Packed { "`weight_packed`" } else { "8-bit integers in `weight`" },
            )));
        }
        let (rows, cols) = match spelling {
            Spelling::Packed => self.packed_shape(store, &names, group.scheme)?,
            Spelling::Bytes => matrix(&names.weight, store.require(&names.weight)?)?,
        };
        let found = ModuleTensors { group, spelling, rows, cols };
        check_scales(store, &names, &found)?;
        if store.get(&names.g_idx).is_some() {
            let info = require_type(store, &names.g_idx, DType::I32)?;
            require_shape(&names.g_idx, info, &[&[found.cols as u64]])?;
        }
        Ok(Some(found))
    }

    /// Rows and columns from `weight_shape`, which must agree with the shape of `weight_packed`.
    fn packed_shape(
        &self,
        store: &TensorStore,
        names: &CompressedNames,
        scheme: Scheme,
    ) -> Result<(usize, usize)> {
        let (packed_rows, words) = matrix(&names.packed, require_type(store, &names.packed, DType::I32)?)?;
        store.require(&names.shape)?;
        let bits = scheme.storage_bits();
        let dims = self.shape_of(&names.shape);
        if let Some([rows, cols]) = dims
            && let Ok(rows) = usize::try_from(rows)
            && let Ok(cols) = usize::try_from(cols)
            && rows == packed_rows
            && cols > 0
            // Keeps the number of bits per row representable.
            && cols / 32 <= words
            && packing::words(cols, bits) == words
        {
            return Ok((rows, cols));
        }
        let error = Error::invalid_checkpoint(format!(
            "the shape {:?} at {bits} bits disagrees with `weight_packed`, which is [{packed_rows}, {words}]",
            dims.unwrap_or_default()
        ));
        Err(in_tensor(&names.shape, error))
    }

    /// Reads all stored shapes, 16 bytes per packed module, so that shapes are later known without waiting.
    pub(in crate::layout) async fn read_shapes(&mut self, store: &TensorStore) -> Result<()> {
        let names: Vec<_> =
            store.names().filter(|name| name.ends_with(".weight_shape")).map(str::to_owned).collect();
        for name in names {
            let info = store.require(&name)?;
            require_shape(&name, info, &[&[2]])?;
            let dtype = info.dtype;
            if !matches!(dtype, DType::I64 | DType::I32) {
                let error =
                    Error::invalid_checkpoint(format!("expected values of type I64 but found {dtype}"));
                return Err(in_tensor(&name, error));
            }
            let bytes = store.read(&name).await?;
            let (first, second) = bytes.split_at(bytes.len() / 2);
            let value = |bytes: &[u8]| match (<[u8; 8]>::try_from(bytes), <[u8; 4]>::try_from(bytes)) {
                (Ok(long), _) => i64::from_le_bytes(long),
                (_, Ok(short)) => i64::from(i32::from_le_bytes(short)),
                _ => -1,
            };
            self.set_shape(name, [value(first), value(second)]);
        }
        Ok(())
    }
}

/// The column order that makes groups contiguous; `None` if they already are.
async fn read_column_order(store: &TensorStore, name: &str, scheme: Scheme) -> Result<Option<Vec<u32>>> {
    if store.get(name).is_none() {
        return Ok(None);
    }
    let g_idx = integers(store, name).await?;
    // Without groups, the tensor is absent or filled with -1.
    let Granularity::Group(group_size) = scheme.granularity() else { return Ok(None) };
    if g_idx.iter().all(|&group| group == -1) {
        return Ok(None);
    }
    column_order::order_of_groups(&g_idx, group_size).map(Some).map_err(|error| in_tensor(name, error))
}

/// Checks that scales have the shape `[rows, groups]` or `[1]`, or an equivalent one.
fn check_scales(store: &TensorStore, names: &CompressedNames, found: &ModuleTensors) -> Result<()> {
    let info = store.require(&names.scale)?;
    let rows = found.rows as u64;
    match found.group.scheme.granularity() {
        Granularity::Tensor => require_shape(&names.scale, info, &[&[1], &[], &[1, 1]]),
        Granularity::Channel => require_shape(&names.scale, info, &[&[rows, 1], &[rows]]),
        granularity @ Granularity::Group(_) => {
            let groups = granularity.groups_per_row(found.cols) as u64;
            require_shape(&names.scale, info, &[&[rows, groups]])
        }
    }
}

/// The unsigned zero points, `[rows, groups]` or `[1]`; `None` for symmetric schemes.
async fn read_zero_points(
    store: &TensorStore,
    names: &CompressedNames,
    found: &ModuleTensors,
) -> Result<Option<Vec<u8>>> {
    let name = &names.zero_point;
    let scheme = found.group.scheme;
    let info = match (store.get(name), scheme.constant_zero_point()) {
        (Some(info), _) => info,
        (None, Some(_)) => return Ok(None),
        (None, None) => {
            return Err(store.require(name).err().unwrap_or_else(|| unreachable!("it is not there")));
        }
    };
    let count = scheme.granularity().scale_count(found.rows, found.cols);
    let groups = scheme.granularity().groups_per_row(found.cols);
    let bits = scheme.storage_bits();
    let unpacked: [u64; 2] = [(count / groups) as u64, groups as u64];
    let zero_points = if info.dtype == DType::I32 && scheme.granularity() != Granularity::Tensor {
        let column_words = packing::words(found.rows, bits);
        require_shape(name, info, &[&[column_words as u64, groups as u64]])?;
        unpack_columns(&words(store, name).await?, found.rows, groups, bits)
    } else {
        require_type(store, name, DType::I8)?;
        // A dimension of 1 may be omitted.
        require_shape(name, info, &[&unpacked, &[count as u64]])?;
        let bytes = store.read(name).await?;
        let unsigned = |&byte| unsigned(byte, scheme);
        bytes.iter().map(unsigned).collect::<Result<_>>().map_err(|error| in_tensor(name, error))?
    };
    match scheme.constant_zero_point() {
        None => Ok(Some(zero_points)),
        // Old files store zero points of 0 for symmetric weights.
        Some(constant) => match zero_points.iter().find(|&&zero| u32::from(zero) != constant) {
            None => Ok(None),
            Some(zero) => Err(in_tensor(
                name,
                Error::invalid_checkpoint(format!(
                    "expected no zero points for symmetric weights but found {}",
                    i64::from(*zero) - i64::from(constant)
                )),
            )),
        },
    }
}

/// Converts a signed code or zero point in one byte to an unsigned one.
fn unsigned(byte: u8, scheme: Scheme) -> Result<u8> {
    let midpoint = 1i32 << (scheme.storage_bits() - 1);
    let value = i32::from(byte as i8) + midpoint;
    u8::try_from(value).ok().filter(|&value| u32::from(value) <= scheme.max_code()).ok_or_else(|| {
        Error::invalid_checkpoint(format!(
            "expected values from {} to {} but found {}",
            -midpoint,
            midpoint - 1,
            byte as i8
        ))
    })
}

/// Unpacks zero points `[rows, groups]` from bit streams down the columns of `[words, groups]`.
fn unpack_columns(packed: &[u32], rows: usize, groups: usize, bits: u32) -> Vec<u8> {
    let mut out = vec![0u8; rows * groups];
    let mut stream = vec![0u32; packing::words(rows, bits)];
    let mut column = vec![0u8; rows];
    for group in 0..groups {
        for (word, packed) in stream.iter_mut().zip(packed[group..].iter().step_by(groups)) {
            *word = *packed;
        }
        packing::unpack_row(&stream, bits, &mut column);
        for (out, &zero) in out[group..].iter_mut().step_by(groups).zip(&column) {
            *out = zero;
        }
    }
    out
}
