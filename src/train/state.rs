//! The saved state of a run: parameters, the optimizer's running means, and the position in the corpus. A run resumes
//! from it bit-identically.
//!
//! A state is one safetensors file that appears when it is complete. Not here: the run itself (`run`).

use super::TrainedModel;
use super::corpus::Position;
use super::optimizer::{Optimizer, Trainable};
use crate::backend::{Backend, Master, Train};
use crate::dtype::{DType, decode_f32, encode_f32};
use crate::error::{Context, Error, Result};
use crate::format::json;
use crate::format::safetensors::{SafetensorsWriter, TensorInfo};
use crate::format::shard_index::TensorStore;
use crate::format::sink::{ByteSink, SinkDir};
use crate::model::trained::Stored;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The state of a run.
const STATE: &str = "training_state.safetensors";
/// The best parameters so far.
const BEST: &str = "training_best.safetensors";
/// Prefix of the files of blocks that were trained alone.
const BLOCK: &str = "training_block_";
/// The key of [`RunProgress`] in a file's metadata.
const NOTES: &str = "lowbit.training";

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Completed steps.
    pub step: u64,
    /// Mean loss on the held-out data, in nats per token.
    pub loss: f64,
}

/// The progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunProgress {
    /// Identifies the run: everything that its result depends on. A state with another key is refused.
    pub key: String,
    /// Completed steps.
    pub step: u64,
    /// The position of the next batch.
    pub position: Position,
    /// Tokens seen.
    pub tokens: u64,
    /// How often the run went back; each time halves the learning rate.
    pub returns: u32,
    /// Completed steps at the last evaluation.
    pub evaluation: Option<u64>,
    /// Mean loss on the held-out data before the first step.
    pub first: Option<f64>,
    /// The best so far.
    pub best: Option<Best>,
    /// Steps of the optimizer.
    pub updates: u64,
}

impl RunProgress {
    fn to_text(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::invalid_argument(error.to_string()))
    }
}

/// A folder for the states of one run.
#[derive(Clone, Copy)]
pub struct StateFolder<'a>(pub &'a dyn SinkDir);

/// Values of a tensor to be written.
struct Values<'m> {
    name: String,
    dtype: DType,
    values: std::borrow::Cow<'m, [f32]>,
}

impl StateFolder<'_> {
    /// Saves the state of a run.
    ///
    /// # Errors
    /// Errors of writing.
    pub async fn keep<B: Train>(
        &self,
        model: &mut TrainedModel<B>,
        optimizer: &mut Optimizer<B>,
        progress: &RunProgress,
    ) -> Result<()> {
        let mut infos = parameter_infos(model);
        let (_, moments) = optimizer.moments();
        for (index, moment) in moments.iter().enumerate() {
            for what in ["mean", "square"] {
                infos.push((format!("{what}.{index}"), TensorInfo::new(DType::F32, [moment.len as u64])));
            }
        }
        let mut writer = self.begin(STATE, infos, progress).await?;
        for name in writer.order().to_vec() {
            let moment =
                name.split_once('.').and_then(|(what, index)| Some((what, index.parse::<usize>().ok()?)));
            match moment {
                Some((what @ ("mean" | "square"), index)) => {
                    let (_, moments) = optimizer.moments();
                    let moment = &moments[index];
                    let buffer = if what == "mean" { &moment.mean } else { &moment.square };
                    let mut values = vec![0.0; moment.len];
                    model.parts().0.read(buffer, 0, &mut values).await?;
                    put(&mut writer, Values { name, dtype: DType::F32, values: values.into() }).await?;
                }
                _ => put_parameter(&mut writer, model, name).await?,
            }
        }
        writer.finish().await?;
        self.0.flush().await
    }

    /// Saves the parameters alone, as the best so far.
    ///
    /// # Errors
    /// Errors of writing.
    pub async fn keep_best<B: Train>(
        &self,
        model: &mut TrainedModel<B>,
        progress: &RunProgress,
    ) -> Result<()> {
        let mut writer = self.begin(BEST, parameter_infos(model), progress).await?;
        for name in writer.order().to_vec() {
            put_parameter(&mut writer, model, name).await?;
        }
        writer.finish().await?;
        self.0.flush().await
    }

    /// Restores the state of the run with this key; `None` if none was saved.
    ///
    /// # Errors
    /// `invalid_argument` for the state of another run; `invalid_checkpoint` for a file that is not a state.
    pub async fn restore<B: Train>(
        &self,
        model: &mut TrainedModel<B>,
        optimizer: &mut Optimizer<B>,
        key: &str,
    ) -> Result<Option<RunProgress>> {
        let Some((store, progress)) = self.open(STATE, key).await? else { return Ok(None) };
        read_parameters(&store, model).await?;
        let (updates, moments) = optimizer.moments();
        *updates = progress.updates;
        for (index, moment) in moments.iter_mut().enumerate() {
            let mut values = vec![0.0; moment.len];
            for (what, buffer) in [("mean", &mut moment.mean), ("square", &mut moment.square)] {
                read(&store, &format!("{what}.{index}"), &mut values).await?;
                model.parts().0.write_f32(buffer, &values)?;
            }
        }
        Ok(Some(progress))
    }

    /// Loads the best parameters that were saved.
    ///
    /// # Errors
    /// As [`StateFolder::restore`]; `not_found` if there are none.
    pub async fn take_best<B: Train>(&self, model: &mut TrainedModel<B>, key: &str) -> Result<()> {
        match self.open(BEST, key).await? {
            Some((store, _)) => read_parameters(&store, model).await,
            None => {
                Err(Error::new(crate::error::ErrorCode::NotFound, format!("{BEST}: the file is missing")))
            }
        }
    }

    /// Whether the folder has a saved state.
    ///
    /// # Errors
    /// Errors of the folder.
    pub async fn has_begun(&self) -> Result<bool> {
        Ok(self.0.existing().open(STATE).await?.is_some())
    }

    /// The file of a block that was trained alone.
    pub fn block_file(layer: usize) -> String {
        format!("{BLOCK}{layer}.safetensors")
    }

    /// Saves a trained block.
    ///
    /// # Errors
    /// Errors of writing.
    pub async fn keep_block<B: Train>(
        &self,
        block: &mut impl Trainable<B>,
        layer: usize,
        key: &str,
    ) -> Result<()> {
        let progress = RunProgress { key: key.to_owned(), ..RunProgress::default() };
        let metadata = BTreeMap::from([(NOTES.to_owned(), progress.to_text()?)]);
        let scales = explicit_scales(block).await?;
        let infos = scales
            .iter()
            .map(|(name, scales)| (name.clone(), TensorInfo::new(DType::F32, [scales.len() as u64])));
        let sink = self.0.create(&scales_file(layer)).await?;
        let mut writer = SafetensorsWriter::begin(sink, infos.collect(), metadata.clone()).await?;
        for name in writer.order().to_vec() {
            writer.write(&name, &encoded(&scales[&name])?).await?;
        }
        writer.finish().await?;
        // The block's file comes last: if it is there, so are the scales.
        write_tensors(block, self.0.create(&Self::block_file(layer)).await?, metadata).await?;
        self.0.flush().await
    }

    /// The saved scales of a block, by tensor name.
    ///
    /// # Errors
    /// As [`StateFolder::restore`].
    pub async fn block_scales(&self, layer: usize, key: &str) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut all = BTreeMap::new();
        if let Some((store, _)) = self.open(&scales_file(layer), key).await? {
            for name in store.names() {
                let count = store.require(name)?.shape.element_count().unwrap_or(0);
                let mut values = vec![0.0; usize::try_from(count).unwrap_or(usize::MAX)];
                read(&store, name, &mut values).await?;
                all.insert(name.to_owned(), values);
            }
        }
        Ok(all)
    }

    /// Loads a saved block; `false` if none was saved.
    ///
    /// # Errors
    /// As [`StateFolder::restore`].
    pub async fn restore_block<B: Train>(
        &self,
        block: &mut impl Trainable<B>,
        layer: usize,
        key: &str,
    ) -> Result<bool> {
        match self.open(&Self::block_file(layer), key).await? {
            Some((store, _)) => {
                let mut scales = self.block_scales(layer, key).await?;
                let (backend, parameters) = block.trained();
                for parameter in parameters {
                    let mut values = vec![0.0; parameter.len()];
                    read(&store, &parameter.tensor, &mut values).await?;
                    parameter.set(backend, &values)?;
                    if let (Some(held), Some(scales)) =
                        (&mut parameter.scales, scales.remove(&parameter.tensor))
                    {
                        backend.write_f32(&mut held.master, &scales)?;
                    }
                }
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Removes the saved blocks.
    ///
    /// # Errors
    /// Errors of the folder.
    pub async fn clear_blocks(&self, layers: usize) -> Result<()> {
        for layer in 0..layers {
            self.0.remove(&Self::block_file(layer)).await?;
            self.0.remove(&scales_file(layer)).await?;
        }
        Ok(())
    }

    /// Removes the saved state and the best parameters.
    ///
    /// # Errors
    /// Errors of the folder.
    pub async fn clear(&self) -> Result<()> {
        // Without the state, the best parameters are useless.
        self.0.remove(STATE).await?;
        self.0.remove(BEST).await
    }

    async fn begin(
        &self,
        file: &'static str,
        infos: Vec<(String, TensorInfo)>,
        progress: &RunProgress,
    ) -> Result<SafetensorsWriter> {
        let metadata = BTreeMap::from([(NOTES.to_owned(), progress.to_text()?)]);
        SafetensorsWriter::begin(self.0.create(file).await?, infos, metadata).await
    }

    async fn open(&self, file: &str, key: &str) -> Result<Option<(TensorStore, RunProgress)>> {
        let source = self.0.existing();
        if source.open(file).await?.is_none() {
            return Ok(None);
        }
        let store = TensorStore::open_file(source.as_ref(), file).await?;
        let place = || format!("{}/{file}", source.name());
        let text = store.metadata().get(NOTES).ok_or_else(|| {
            Error::invalid_checkpoint("expected the state of a training run but found other tensors")
                .context(place())
        })?;
        let value = serde_json::from_str(text)
            .map_err(|error| Error::invalid_checkpoint(error.to_string()))
            .context_with(place)?;
        let progress: RunProgress = json::read(&value)
            .map_err(|error| Error::invalid_checkpoint(error.to_string()))
            .context_with(place)?;
        if progress.key != key {
            return Err(Error::invalid_argument(
                "expected the state of this very run but found that of another model, text or options; choose another folder",
            )
            .context(place()));
        }
        Ok(Some((store, progress)))
    }
}

fn parameter_infos<B: Train>(model: &mut TrainedModel<B>) -> Vec<(String, TensorInfo)> {
    let mut infos = Vec::new();
    for parameter in model.parts().1.all() {
        let dtype = match parameter.master {
            Master::Single(_) => DType::F32,
            Master::Half(_) => DType::BF16,
        };
        infos.push((parameter.tensor.clone(), TensorInfo::new(dtype, [parameter.len() as u64])));
        if let Some(scales) = &parameter.scales {
            let len = scales.grid.scales() as u64;
            infos.push((format!("{}_scale", parameter.tensor), TensorInfo::new(DType::F32, [len])));
        }
    }
    infos
}

async fn put_parameter<B: Train>(
    writer: &mut SafetensorsWriter,
    model: &mut TrainedModel<B>,
    name: String,
) -> Result<()> {
    let (backend, parameters) = model.parts();
    let missing = || Error::invalid_argument(format!("expected a parameter `{name}`"));
    let of_scale = name.strip_suffix("_scale");
    let parameter = parameters.all().find(|parameter| parameter.tensor == of_scale.unwrap_or(&name));
    let parameter = parameter.ok_or_else(missing)?;
    let values = match (of_scale, &parameter.scales) {
        (None, _) => {
            let dtype = if matches!(parameter.master, Master::Half(_)) { DType::BF16 } else { DType::F32 };
            Values { name: name.clone(), dtype, values: parameter.values(backend).await? }
        }
        (Some(_), Some(scales)) => {
            let mut values = vec![0.0; scales.grid.scales()];
            backend.read(&scales.master, 0, &mut values).await?;
            Values { name: name.clone(), dtype: DType::F32, values: values.into() }
        }
        (Some(_), None) => return Err(missing()),
    };
    put(writer, values).await
}

async fn put(writer: &mut SafetensorsWriter, values: Values<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    // Exact: masters of half precision are BF16 already.
    encode_f32(values.dtype, &values.values, &mut bytes)?;
    writer.write(&values.name, &bytes).await
}

/// Writes parameters as tensors: floating-point ones in their stored type, masters of codes in `F32`.
///
/// # Errors
/// `non_finite` naming a tensor that training made NaN or infinite; errors of writing.
pub async fn write_tensors<B: Train>(
    of: &mut impl Trainable<B>,
    sink: Box<dyn ByteSink>,
    metadata: BTreeMap<String, String>,
) -> Result<()> {
    let (backend, parameters) = of.trained();
    let mut infos = Vec::new();
    for parameter in &parameters {
        let dtype = match parameter.stored {
            Stored::Float(dtype) => dtype,
            Stored::Packed { .. } => DType::F32,
        };
        let (rows, cols) = (parameter.rows as u64, parameter.cols as u64);
        let info = match parameter.is_matrix {
            true => TensorInfo::new(dtype, [rows, cols]),
            false => TensorInfo::new(dtype, [cols]),
        };
        infos.push((parameter.tensor.clone(), info));
    }
    let mut writer = SafetensorsWriter::begin(sink, infos, metadata).await?;
    for name in writer.order().to_vec() {
        let parameter = parameters.iter().find(|parameter| parameter.tensor == name);
        let parameter = parameter.ok_or_else(|| Error::invalid_argument(format!("no parameter `{name}`")))?;
        let bytes = match parameter.stored {
            Stored::Float(_) => parameter.floats(backend).await?.1,
            Stored::Packed { .. } => encoded(&parameter.values(backend).await?)?,
        };
        writer.write(&name, &bytes).await?;
    }
    writer.finish().await
}

/// The held scales, by tensor name.
///
/// # Errors
/// Errors of the device.
pub async fn explicit_scales<B: Train>(of: &mut impl Trainable<B>) -> Result<BTreeMap<String, Vec<f32>>> {
    let (backend, parameters) = of.trained();
    let mut all = BTreeMap::new();
    for parameter in parameters {
        if let Some(held) = &parameter.scales {
            let mut values = vec![0.0; held.grid.scales()];
            backend.read(&held.master, 0, &mut values).await?;
            all.insert(parameter.tensor.clone(), values);
        }
    }
    Ok(all)
}

fn scales_file(layer: usize) -> String {
    format!("{BLOCK}scales_{layer}.safetensors")
}

fn encoded(values: &[f32]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    encode_f32(DType::F32, values, &mut bytes)?;
    Ok(bytes)
}

async fn read_parameters<B: Train>(store: &TensorStore, of: &mut impl Trainable<B>) -> Result<()> {
    let (backend, parameters) = of.trained();
    for parameter in parameters {
        let mut values = vec![0.0; parameter.len()];
        read(store, &parameter.tensor, &mut values).await?;
        parameter.set(backend, &values)?;
        if let Some(scales) = &mut parameter.scales {
            let mut values = vec![0.0; scales.grid.scales()];
            read(store, &format!("{}_scale", parameter.tensor), &mut values).await?;
            backend.write_f32(&mut scales.master, &values)?;
        }
    }
    Ok(())
}

async fn read(store: &TensorStore, name: &str, out: &mut [f32]) -> Result<()> {
    let info = store.require(name)?;
    if info.shape.element_count() != Some(out.len() as u64) {
        return Err(Error::invalid_checkpoint(format!(
            "tensor `{name}`: expected {} elements but found {}",
            out.len(),
            info.shape
        )));
    }
    let (dtype, bytes) = (info.dtype, store.read(name).await?);
    decode_f32(dtype, &bytes, out).context_with(|| format!("tensor `{name}`"))
}
