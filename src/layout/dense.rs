//! Ordinary checkpoints: `{module}.weight`, `[out, in]`, in floating point.

use super::ModuleStorage;
use super::stored::{in_tensor, matrix};
use crate::error::{Error, Result};
use crate::format::quoted;
use crate::format::shard_index::TensorStore;

/// Tensor names that reveal a packed module, to report a config.json without `quantization_config`.
const PACKED_NAMES: [&str; 2] = ["weight_packed", "qweight"];

pub(super) fn module(store: &TensorStore, module: &str) -> Result<ModuleStorage> {
    let tensor = format!("{module}.weight");
    let Some(info) = store.get(&tensor) else {
        for packed in PACKED_NAMES {
            if store.get(&format!("{module}.{packed}")).is_some() {
                return Err(Error::invalid_checkpoint(format!(
                    "expected a plain weight, because config.json has no `quantization_config`, but found {}",
                    quoted(packed)
                )));
            }
        }
        return Err(store.require(&tensor).map_or_else(|error| error, |_| unreachable!("it is not there")));
    };
    if !info.dtype.is_float() {
        return Err(in_tensor(
            &tensor,
            Error::unsupported_format(format!(
                "expected weights of type F32, F16 or BF16 but found {}",
                info.dtype
            )),
        ));
    }
    let (rows, cols) = matrix(&tensor, info)?;
    Ok(ModuleStorage::Dense { dtype: info.dtype, tensor, rows, cols })
}
