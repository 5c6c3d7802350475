//! Quantized matrices and changed norms and biases, kept in scratch until they are written. They are made in the order
//! of the data flow and written in the order of the file.

mod stored;

use super::method::{CalibrationRecord, QuantizedLayer};
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::layout::PackedFormat;
use crate::quant::{QuantizedTensor, WeightError};
use crate::sort;
use std::collections::{BTreeMap, BTreeSet};

/// The matrices, norms and biases of a model that calibration changed.
pub struct CalibratedModules<'a> {
    scratch: &'a dyn Scratch,
    modules: BTreeMap<String, CalibratedModule>,
    vectors: BTreeSet<String>,
}

/// Metadata of a matrix in scratch.
pub struct CalibratedModule {
    /// The packed format.
    pub format: PackedFormat,
    /// The calibration record; `None` without calibration.
    pub record: Option<CalibrationRecord>,
    /// The weight error.
    pub error: WeightError,
}

/// What scratch does not hold: the calibration record and weight error of each module, and the names of norms and
/// biases.
pub type ModuleNotes = (BTreeMap<String, (Option<CalibrationRecord>, WeightError)>, BTreeSet<String>);

impl<'a> CalibratedModules<'a> {
    /// An empty collection.
    pub fn new(scratch: &'a dyn Scratch) -> Self {
        Self { scratch, modules: BTreeMap::new(), vectors: BTreeSet::new() }
    }

    /// Restores the results that an earlier run left in the same scratch.
    ///
    /// # Errors
    /// `not_found` or `invalid_checkpoint` if scratch does not hold a module.
    pub async fn restore(scratch: &'a dyn Scratch, (notes, vectors): ModuleNotes) -> Result<Self> {
        let mut modules = BTreeMap::new();
        for (module, (record, error)) in notes {
            let format = (&stored::load(scratch, &module).await?).into();
            modules.insert(module, CalibratedModule { format, record, error });
        }
        Ok(Self { scratch, modules, vectors })
    }

    /// The notes for [`restore`](Self::restore).
    pub fn notes(&self) -> ModuleNotes {
        let modules = self.modules.iter();
        let notes = modules.map(|(name, of)| (name.clone(), (of.record.clone(), of.error.clone())));
        (sort::map(notes), self.vectors.clone())
    }

    /// Stores a layer.
    pub async fn keep(&mut self, module: String, layer: &QuantizedLayer) -> Result<()> {
        let QuantizedLayer { tensor, record, error, .. } = layer;
        stored::save(self.scratch, &module, tensor).await?;
        let (format, record, error) = (PackedFormat::from(tensor), record.clone(), error.clone());
        self.modules.insert(module, CalibratedModule { format, record, error });
        Ok(())
    }

    /// Replaces the stored matrix of a module by one with other scales.
    pub async fn replace(&self, module: &str, tensor: &QuantizedTensor) -> Result<()> {
        stored::save(self.scratch, module, tensor).await
    }

    /// Stores a norm or a bias.
    pub async fn keep_vector(&mut self, tensor: &str, values: &[f32]) -> Result<()> {
        stored::save_vector(self.scratch, tensor, values).await?;
        self.vectors.insert(tensor.to_owned());
        Ok(())
    }

    /// The slots in scratch.
    pub fn slots(&self) -> Vec<String> {
        let matrices = self.modules.keys().map(|module| stored::matrix_slot(module));
        matrices.chain(self.vectors.iter().map(|tensor| stored::vector_slot(tensor))).collect()
    }

    /// The metadata of a module; `None` if it was not quantized.
    pub fn get(&self, module: &str) -> Option<&CalibratedModule> {
        self.modules.get(module)
    }

    /// Loads the matrix of a module.
    pub async fn load(&self, module: &str) -> Result<QuantizedTensor> {
        stored::load(self.scratch, module).await
    }

    /// The new values of a norm or a bias; `None` if it is unchanged.
    pub async fn vector(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        if !self.vectors.contains(tensor) {
            return Ok(None);
        }
        stored::load_vector(self.scratch, tensor).await.map(Some)
    }
}
