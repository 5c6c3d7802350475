//! Reads GPTQ modules as [`PackedTensor`]s.

use super::GptqNames;
use super::config::{Config, Settings};
use super::zeros::{decode_all, not_symmetric, version_of_symmetric};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::shard_index::TensorStore;
use crate::layout::stored::{
    in_tensor, matrix, read_order, reorder, require_float, require_shape, require_type, scales,
    transpose_scales, transposed_words, words,
};
use crate::layout::{ModuleStorage, dense};
use crate::quant::{Activations, PackedTensor, Scheme, packing};

/// A packed module with consistent tensors.
struct ModuleTensors {
    settings: Settings,
    rows: usize,
    cols: usize,
}

impl ModuleTensors {
    fn scheme(&self) -> Scheme {
        let Settings { bits, granularity, symmetric } = self.settings;
        Scheme::Integer { bits, granularity, symmetric }
    }
}

impl Config {
    pub(in crate::layout) fn module(&self, store: &TensorStore, module: &str) -> Result<ModuleStorage> {
        Ok(match self.find(store, module)? {
            None => dense::module(store, module)?,
            Some(found) => ModuleStorage::Packed {
                coding: found.scheme().into(),
                activations: Activations::F32,
                rows: found.rows,
                cols: found.cols,
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
        let names = GptqNames::new(module);
        let ModuleTensors { settings: Settings { bits, granularity, symmetric }, rows, cols } = found;
        let order = match store.get(&names.g_idx) {
            None => None,
            Some(_) => Some(read_order(store, &names.g_idx, granularity.group_size(cols)).await?),
        };
        let stored_scales = scales(store, &names.scales).await?;
        let zero_words = words(store, &names.qzeros).await?;
        let words_per_group = packing::words(rows, bits.get());
        let version = version_of_symmetric(&zero_words, words_per_group, rows, bits);
        let zero_points = if symmetric {
            if version.is_none() {
                return Err(in_tensor(&names.qzeros, not_symmetric(bits)));
            }
            None
        } else if version.is_some() {
            // All zero points are the midpoint, which reveals the version more reliably than a label.
            Some(vec![bits.midpoint() as u8; rows * granularity.groups_per_row(cols)])
        } else {
            Some(decode_all(zero_words, words_per_group, rows, bits, self.zeros))
        };
        let mut codes = transposed_words(store, &names.qweight).await?;
        if let Some(order) = &order {
            reorder(&mut codes, cols, bits.get(), order);
        }
        let scales = transpose_scales(&stored_scales, granularity.groups_per_row(cols));
        PackedTensor::new(found.scheme(), rows, cols, codes, scales, zero_points)
            .and_then(|tensor| match order {
                None => Ok(tensor),
                Some(order) => tensor.with_column_order(order),
            })
            .map_err(|error| in_tensor(&names.qweight, error))
    }

    /// All checks of a module that need only headers; `None` for floating point.
    fn find(&self, store: &TensorStore, module: &str) -> Result<Option<ModuleTensors>> {
        let names = GptqNames::new(module);
        if store.get(&names.qweight).is_none() {
            return Ok(None);
        }
        if store.get(&names.weight).is_some() {
            return Err(Error::invalid_checkpoint("expected one of `weight` and `qweight` but found both"));
        }
        let Some(settings) = self.settings_of(module)? else {
            return Err(Error::invalid_checkpoint(
                "the weights are packed but `dynamic` leaves them in floating point",
            ));
        };
        let bits = settings.bits.get() as usize;
        let info = require_type(store, &names.qweight, DType::I32)?;
        let (words_down, rows) = matrix(&names.qweight, info)?;
        let cols =
            words_down.checked_mul(32).filter(|total| total.is_multiple_of(bits)).map(|total| total / bits);
        let Some(cols) = cols else {
            let error = Error::invalid_checkpoint(format!(
                "expected whole inputs of {bits} bits but found {words_down} words for each output"
            ));
            return Err(in_tensor(&names.qweight, error));
        };
        let found = ModuleTensors { settings, rows, cols };
        let groups = settings.granularity.groups_per_row(cols) as u64;
        require_shape(&names.scales, require_float(store, &names.scales)?, &[&[groups, rows as u64]])?;
        let words = packing::words(rows, settings.bits.get()) as u64;
        require_shape(&names.qzeros, require_type(store, &names.qzeros, DType::I32)?, &[&[groups, words]])?;
        if store.get(&names.g_idx).is_some() {
            let info = require_type(store, &names.g_idx, DType::I32)?;
            require_shape(&names.g_idx, info, &[&[cols as u64]])?;
        }
        Ok(Some(found))
    }
}
