//! An output folder, from the first file to the last.
//!
//! `config.json` is written first and names the file that is written last. Opening a folder without that last file is
//! an error (see [`crate::model::Checkpoint::open`]). An earlier output of this crate is replaced: its files are
//! removed before the first new one is written. A checkpoint that another tool wrote is never overwritten.

use super::records::{DEQUANTIZATION_RECORD, PARAMETERS_FILE, QUANTIZATION_RECORD, TRAINING_RECORD};
use crate::error::{Error, ErrorCode, Result};
use crate::format::sink::{ByteSink, SinkDir, write_whole};
use crate::format::small_file::{read_file, read_json};
use crate::format::source::SourceDir;
use crate::model::checkpoint::{IGNORED_KEYS, PRODUCER_KEY};
use serde::Serialize;
use serde_json::{Value, json};

/// Side files of a checkpoint, copied unchanged.
const SIDE_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
];

/// Files that mark a folder as a checkpoint.
const CHECKPOINT_FILES: [&str; 5] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "tokenizer.json",
];

/// Files that this crate writes beside config.json and the [`SIDE_FILES`], removed in this order. The records come
/// first: without them the folder counts as unfinished. The validation report is removed too, because it describes the
/// removed weights.
const OWN_FILES: [&str; 6] = [
    QUANTIZATION_RECORD,
    DEQUANTIZATION_RECORD,
    TRAINING_RECORD,
    "model.safetensors",
    PARAMETERS_FILE,
    "validation_report.json",
];

/// A folder that is being written.
pub struct OutputFolder<'a> {
    sinks: &'a dyn SinkDir,
    written_last: &'static str,
}

impl<'a> OutputFolder<'a> {
    /// Starts a folder that is complete once `written_last` is in it. Files of an earlier output and leftovers of
    /// killed runs are removed; other files stay.
    ///
    /// # Errors
    /// `invalid_argument` when the folder holds a checkpoint that this crate did not write.
    pub async fn begin(sinks: &'a dyn SinkDir, written_last: &'static str) -> Result<Self> {
        refuse_foreign(sinks.existing().as_ref()).await?;
        sinks.remove_unfinished().await?;
        // config.json stays until it is replaced: it marks the folder as ours and unfinished if the run is killed from
        // here on.
        for file in OWN_FILES.iter().chain(&SIDE_FILES) {
            sinks.remove(file).await?;
        }
        Ok(Self { sinks, written_last })
    }

    /// Writes `config.json`: the source's without its quantization, with `changes`, with `quantization_config` if
    /// given, and with the mark that tells [`crate::model::Checkpoint`] whether the folder is complete and which unknown
    /// keys of the source were ignored.
    pub async fn write_config(
        &self,
        source: &Value,
        changes: &[(&str, Value)],
        quantization_config: Option<Value>,
        ignored_keys: &[String],
    ) -> Result<()> {
        let mut config = source.clone();
        let Some(object) = config.as_object_mut() else {
            return Err(Error::invalid_checkpoint("config.json: expected an object"));
        };
        object.shift_remove("quantization_config");
        for (key, value) in changes {
            object.insert((*key).to_owned(), value.clone());
        }
        if let Some(quantization) = quantization_config {
            object.insert("quantization_config".to_owned(), quantization);
        }
        let mut mark = json!({"version": env!("CARGO_PKG_VERSION"), "written_last": self.written_last});
        if !ignored_keys.is_empty() {
            mark[IGNORED_KEYS] = json!(ignored_keys);
        }
        object.insert(PRODUCER_KEY.to_owned(), mark);
        self.write_json("config.json", &config).await
    }

    /// Copies the side files: tokenizer, template and generation settings.
    pub async fn copy_side_files(&self, source: &dyn SourceDir) -> Result<()> {
        for (file, bytes) in side_files(source).await? {
            self.write(file, &bytes).await?;
        }
        Ok(())
    }

    /// Starts a file of the folder.
    pub async fn create(&self, file: &str) -> Result<Box<dyn ByteSink>> {
        debug_assert_known(file);
        self.sinks.create(file).await
    }

    /// Writes a whole file.
    pub async fn write(&self, file: &str, bytes: &[u8]) -> Result<()> {
        debug_assert_known(file);
        write_whole(self.sinks, file, bytes).await
    }

    /// Writes a JSON file, indented, with a final newline.
    pub async fn write_json(&self, file: &str, value: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| Error::new(ErrorCode::Io, format!("{file}: {error}")))?;
        bytes.push(b'\n');
        self.write(file, &bytes).await
    }

    /// Writes the last file, after all others are flushed. From here on the folder is complete.
    pub async fn finish(self, record: &impl Serialize) -> Result<()> {
        self.sinks.flush().await?;
        self.write_json(self.written_last, record).await?;
        self.sinks.flush().await
    }
}

/// The side files of a folder (tokenizer, template, generation settings), by name.
///
/// # Errors
/// Errors of reading.
pub async fn side_files(source: &dyn SourceDir) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut files = Vec::new();
    for file in SIDE_FILES {
        files.extend(read_file(source, file).await?.map(|bytes| (file, bytes)));
    }
    Ok(files)
}

/// A file that is in no list would survive when the folder is overwritten.
fn debug_assert_known(file: &str) {
    let known = file == "config.json" || OWN_FILES.contains(&file) || SIDE_FILES.contains(&file);
    debug_assert!(known, "`{file}` belongs in OWN_FILES");
}

/// Refuses a folder that holds a checkpoint of another tool.
///
/// # Errors
/// `invalid_argument`.
pub async fn refuse_foreign(existing: &dyn SourceDir) -> Result<()> {
    // A broken config.json is foreign too: this crate never leaves one.
    let config = read_json(existing, "config.json").await.unwrap_or(Some(Value::Null));
    if config.as_ref().is_some_and(|config| config.get(PRODUCER_KEY).is_some()) {
        return Ok(());
    }
    for file in CHECKPOINT_FILES {
        if existing.open(file).await?.is_some() {
            return Err(Error::invalid_argument(format!(
                "the output folder holds a checkpoint that lowbit did not write ({file}); choose another folder"
            ))
            .context(existing.name()));
        }
    }
    Ok(())
}
