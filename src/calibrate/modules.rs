//! The matrices that calibration has found, which wait in scratch until their turn comes to be written: they are found in the
//! order of the data flow and written in the order of the file.

mod stored;

use super::method::{CalibrationRecord, QuantizedLayer};
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::layout::PackedFormat;
use crate::quant::{QuantizedTensor, WeightError};
use crate::sort;
use std::collections::{BTreeMap, BTreeSet};

/// Matrices, norms and biases of a model that are not as they were.
pub struct CalibratedModules<'a> {
    scratch: &'a dyn Scratch,
    modules: BTreeMap<String, CalibratedModule>,
    vectors: BTreeSet<String>,
}

/// What is known of a matrix that waits.
pub struct CalibratedModule {
    /// How it is packed.
    pub format: PackedFormat,
    /// How its codes were found, where it was calibrated.
    pub record: Option<CalibrationRecord>,
    /// The error of its weights.
    pub error: WeightError,
}

/// What has to be known beside what is in scratch: of each module how its codes were found, and the error of its weights;
/// and the names of norms and biases.
pub type ModuleNotes = (BTreeMap<String, (Option<CalibrationRecord>, WeightError)>, BTreeSet<String>);

impl<'a> CalibratedModules<'a> {
    /// Nothing yet.
    pub fn new(scratch: &'a dyn Scratch) -> Self {
        Self { scratch, modules: BTreeMap::new(), vectors: BTreeSet::new() }
    }

    /// What another run has left in the same scratch.
    ///
    /// # Errors
    /// `not_found`, `invalid_checkpoint` where the scratch does not hold it.
    pub async fn restore(scratch: &'a dyn Scratch, (notes, vectors): ModuleNotes) -> Result<Self> {
        let mut modules = BTreeMap::new();
        for (module, (record, error)) in notes {
            let format = (&stored::load(scratch, &module).await?).into();
            modules.insert(module, CalibratedModule { format, record, error });
        }
        Ok(Self { scratch, modules, vectors })
    }

    /// What [`restore`](Self::restore) wants.
    pub fn notes(&self) -> ModuleNotes {
        let modules = self.modules.iter();
        let notes = modules.map(|(name, of)| (name.clone(), (of.record.clone(), of.error.clone())));
        (sort::map(notes), self.vectors.clone())
    }

    /// Keeps a layer.
    pub async fn keep(&mut self, module: String, layer: &QuantizedLayer) -> Result<()> {
        let QuantizedLayer { tensor, record, error, .. } = layer;
        stored::save(self.scratch, &module, tensor).await?;
        let (format, record, error) = (PackedFormat::from(tensor), record.clone(), error.clone());
        self.modules.insert(module, CalibratedModule { format, record, error });
        Ok(())
    }

    /// Keeps other scales of a matrix that is there.
    pub async fn replace(&self, module: &str, tensor: &QuantizedTensor) -> Result<()> {
        stored::save(self.scratch, module, tensor).await
    }

    /// Keeps a norm or a bias.
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

    /// What is known of a module, where it was quantized.
    pub fn get(&self, module: &str) -> Option<&CalibratedModule> {
        self.modules.get(module)
    }

    /// The matrix.
    pub async fn load(&self, module: &str) -> Result<QuantizedTensor> {
        stored::load(self.scratch, module).await
    }

    /// What became of a norm or a bias; `None` where it is as it was.
    pub async fn vector(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        if !self.vectors.contains(tensor) {
            return Ok(None);
        }
        stored::load_vector(self.scratch, tensor).await.map(Some)
    }
}
