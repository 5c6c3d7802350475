//! Output targets: a folder with config.json, tokenizer and weights, or one GGUF file.

use super::gguf::{self, FileTokenizer};
use super::{OutputPlan, Tensor};
use crate::artifact::output::{OutputFolder, refuse_foreign};
use crate::error::{Error, Result};
use crate::format::safetensors::SafetensorsWriter;
use crate::format::sink::{ByteSink, SinkDir};
use crate::layout::TargetLayout;
use crate::layout::gguf::GgufOutput;
use crate::model::Checkpoint;
use crate::sort;
use serde::Serialize;

/// The target of an output.
pub(in crate::pipeline) struct OutputPlace<'a> {
    /// The folder.
    pub target: &'a dyn SinkDir,
    /// The name of a GGUF file.
    pub file: Option<&'a str>,
}

impl OutputPlace<'_> {
    /// Refuses to overwrite another tool's checkpoint. A file does not tell who wrote it, so no file is overwritten.
    ///
    /// # Errors
    /// `invalid_argument`.
    pub async fn refuse_foreign(&self, layout: TargetLayout) -> Result<()> {
        let existing = self.target.existing();
        if layout != TargetLayout::Gguf {
            return refuse_foreign(existing.as_ref()).await;
        }
        let file = self.file.unwrap_or(gguf::FILE);
        if existing.open(file).await?.is_none() {
            return Ok(());
        }
        let refused = Error::invalid_argument("the file already exists; choose another name").context(file);
        Err(refused.context(existing.name()))
    }
}

/// An output in progress.
pub(in crate::pipeline) struct Output<'a> {
    target: &'a dyn SinkDir,
    /// `None` for a file.
    folder: Option<OutputFolder<'a>>,
    /// `None` after all tensors are written.
    writer: Option<Writer>,
    /// The tokenizer of a GGUF file.
    pub tokenizer: FileTokenizer,
}

enum Writer {
    Safetensors(SafetensorsWriter),
    Gguf(GgufOutput),
}

impl<'a> Output<'a> {
    /// Writes everything before the tensors.
    pub(super) async fn begin(
        plan: &OutputPlan,
        checkpoint: &Checkpoint,
        place: &OutputPlace<'a>,
    ) -> Result<Self> {
        if plan.layout == Some(TargetLayout::Gguf) {
            let file = place.file.unwrap_or(gguf::FILE);
            let sink = place.target.create(file).await?;
            let (output, tokenizer) = gguf::begin(plan, checkpoint, sink).await?;
            let (target, writer) = (place.target, Some(Writer::Gguf(output)));
            return Ok(Self { target, folder: None, writer, tokenizer });
        }
        let folder = OutputFolder::begin(place.target, plan.written_last).await?;
        let config = plan.quantization_config.clone();
        folder
            .write_config(checkpoint.config_json(), &plan.changes, config, checkpoint.ignored_keys())
            .await?;
        folder.copy_side_files(checkpoint.dir().as_ref()).await?;
        let sink = folder.create("model.safetensors").await?;
        let infos = plan.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.info.clone())).collect();
        let metadata = sort::map([("format".to_owned(), "pt".to_owned())]);
        let writer = Writer::Safetensors(SafetensorsWriter::begin(sink, infos, metadata).await?);
        let (target, tokenizer) = (place.target, FileTokenizer::default());
        Ok(Self { target, folder: Some(folder), writer: Some(writer), tokenizer })
    }

    /// The tensors' names in writing order.
    pub(super) fn order(&self, plan: &OutputPlan) -> Vec<String> {
        match &self.writer {
            Some(Writer::Safetensors(writer)) => writer.order().to_vec(),
            _ => plan.tensors.iter().map(|Tensor { name, .. }| name.clone()).collect(),
        }
    }

    /// Appends to the current tensor.
    pub(super) async fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match &mut self.writer {
            Some(Writer::Safetensors(writer)) => writer.write(name, bytes).await,
            Some(Writer::Gguf(output)) => output.write(name, bytes).await,
            None => Err(Error::invalid_argument("all tensors are written").context(name)),
        }
    }

    /// Completes the folder's weight file. A GGUF file appears with [`finish`](Self::finish), because the work in
    /// between can fail or be cancelled.
    pub(super) async fn end_tensors(&mut self) -> Result<()> {
        match self.writer.take() {
            Some(Writer::Safetensors(writer)) => writer.finish().await,
            other => {
                self.writer = other;
                Ok(())
            }
        }
    }

    /// Starts another file of the folder.
    pub(in crate::pipeline) async fn create(&self, file: &str) -> Result<Option<Box<dyn ByteSink>>> {
        match &self.folder {
            Some(folder) => folder.create(file).await.map(Some),
            None => Ok(None),
        }
    }

    /// Completes the output: writes the last file of a folder, or makes a GGUF file appear.
    pub(in crate::pipeline) async fn finish(self, record: &impl Serialize) -> Result<()> {
        if let Some(Writer::Gguf(output)) = self.writer {
            output.finish().await?;
            return self.target.flush().await;
        }
        match self.folder {
            Some(folder) => folder.finish(record).await,
            None => Ok(()),
        }
    }
}
