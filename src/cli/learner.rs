//! Inputs of `train`, `qat` and `check-gradients`: a checkpoint or a configuration, and texts.

use super::open::{self, TokenizerArgs};
use super::terminal::Terminal;
use crate::artifact::output::side_files;
use crate::artifact::records::SourceRecord;
use crate::digest::sha256_hex;
use crate::error::{Context, Error, Result};
use crate::format::links::followed;
use crate::format::source::{FsDir, MemoryDir};
use crate::model::{Checkpoint, ModelConfig};
use crate::pipeline::assess::{Levels, by_level};
use crate::tokenizer::train::{BpeOptions, train_bpe};
use crate::tokenizer::{HuggingFaceTokenizer, TextCodec, unify_line_ends};
use crate::train::corpus::questions::graded_rows;
use crate::train::corpus::{Corpus, Document, chats, read};
use crate::train::{BatchCapacity, Origin};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments for the initial model and the texts.
#[derive(clap::Args, Clone)]
pub struct LearnerArgs {
    /// A checkpoint, or a config.json (or its folder) for a new model; its tokenizer is next to it or trained on the texts
    pub model: PathBuf,

    /// Training data: plain text; .jsonl with a text, chat `messages`, or a `prompt` and an `answer` in each line (only answers
    /// count); or token ids as .u16 or .u32 (little-endian)
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub data: Vec<PathBuf>,

    /// Key of the text in each line of a .jsonl file
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub field: String,

    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

/// The initial model.
enum LearnerOrigin {
    Checkpoint(Box<Checkpoint>),
    Config(Box<ModelConfig>),
}

/// The model to train, with its files.
pub struct Learner {
    origin: LearnerOrigin,
    /// Its config.json.
    pub config_json: Value,
    /// Side files: tokenizer, template.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// Its tokenizer.
    pub codec: HuggingFaceTokenizer,
    /// Its name in messages.
    pub name: String,
    /// Digest of the initial model.
    pub sha256: String,
}

impl Learner {
    pub fn config(&self) -> &ModelConfig {
        match &self.origin {
            LearnerOrigin::Checkpoint(checkpoint) => checkpoint.config(),
            LearnerOrigin::Config(config) => config,
        }
    }

    /// The origin of the parameters. `seed` is that of random weights.
    pub fn origin(&self, seed: u64) -> Origin<'_> {
        match &self.origin {
            LearnerOrigin::Checkpoint(checkpoint) => Origin::Checkpoint(checkpoint),
            LearnerOrigin::Config(config) => Origin::Random { config, seed },
        }
    }
}

impl LearnerArgs {
    /// Opens the model.
    pub async fn open(&self, terminal: &Terminal) -> Result<Learner> {
        let path = followed(&self.model);
        let is_config = path.is_file() && path.extension().is_some_and(|extension| extension == "json");
        let has_weights = |folder: &Path| {
            ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
                .iter()
                .any(|file| folder.join(file).exists())
        };
        if !is_config && (path.is_file() || has_weights(&path)) {
            let checkpoint = open::checkpoint(&self.model, terminal).await?;
            let codec = open::tokenizer(&checkpoint, &self.tokenizer).await?;
            return Ok(Learner {
                config_json: checkpoint.config_json().clone(),
                files: side_files(checkpoint.dir().as_ref()).await?,
                name: checkpoint.name().to_owned(),
                sha256: SourceRecord::of(&checkpoint).await?.sha256,
                origin: LearnerOrigin::Checkpoint(Box::new(checkpoint)),
                codec,
            });
        }
        let file = if is_config { path.to_path_buf() } else { path.join("config.json") };
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut config_json: Value = serde_json::from_slice(&open::bytes(&file)?)
            .map_err(|error| Error::invalid_checkpoint(format!("{}: {error}", file.display())))?;
        let beside = self.tokenizer.folder().unwrap_or(folder);
        let files = if beside.join("tokenizer.json").exists() {
            side_files(&FsDir::open(beside)?).await?
        } else {
            self.made_tokenizer(&mut config_json, &file, terminal)?
        };
        let config = ModelConfig::from_json(&config_json).context_with(|| file.display().to_string())?;
        let mut dir = MemoryDir::new(beside.display().to_string());
        for (file, bytes) in &files {
            dir.insert(*file, bytes.clone());
        }
        let mut codec = HuggingFaceTokenizer::open(&dir, config.bos_token_id).await?;
        codec.fit(config.vocab_size)?;
        let seen = json!([config_json, files.iter().map(|(_, bytes)| sha256_hex(bytes)).collect::<Vec<_>>()]);
        Ok(Learner {
            origin: LearnerOrigin::Config(Box::new(config)),
            files,
            codec,
            name: file.display().to_string(),
            sha256: sha256_hex(seen.to_string().as_bytes()),
            config_json,
        })
    }

    /// Trains a tokenizer on the texts, with the configuration's vocabulary size.
    fn made_tokenizer(
        &self,
        config: &mut Value,
        file: &Path,
        terminal: &Terminal,
    ) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let size =
            config.get("vocab_size").and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        let size = size.ok_or_else(|| {
            Error::invalid_checkpoint(format!("{}: expected a `vocab_size` but found none", file.display()))
        })?;
        let mut texts = Vec::new();
        for path in &self.data {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("u16" | "u32") => {
                    return Err(Error::invalid_argument(format!(
                        "{}: expected texts to make a tokenizer of but found token ids",
                        path.display()
                    )));
                }
                Some("jsonl" | "ndjson") => {
                    let read = read::texts(&open::text(path)?, &self.field);
                    texts.extend(read.context_with(|| path.display().to_string())?);
                }
                _ => texts.push(unify_line_ends(&open::text(path)?).into_owned()),
            }
        }
        let made = train_bpe(&texts, &BpeOptions::new(size))?;
        terminal.note(format_args!("made a tokenizer of {} tokens", made.vocab_size));
        if let Some(object) = config.as_object_mut() {
            object.insert("bos_token_id".into(), json!(made.bos_token_id));
            object.insert("eos_token_id".into(), json!(made.eos_token_id));
        }
        Ok(vec![
            ("tokenizer.json", made.tokenizer_json.into_bytes()),
            ("tokenizer_config.json", made.tokenizer_config.into_bytes()),
        ])
    }

    /// Reads texts.
    pub fn corpus(&self, model: &Learner, capacity: BatchCapacity, paths: &[PathBuf]) -> Result<Corpus> {
        let (stops, codec) = (&model.config().eos_token_ids, &model.codec);
        let mut documents: Vec<Document> = Vec::new();
        for path in paths {
            let read = match path.extension().and_then(|extension| extension.to_str()) {
                Some("u16") => open::bytes(path).and_then(|bytes| Ok(vec![read::token_ids(&bytes, 2)?])),
                Some("u32") => open::bytes(path).and_then(|bytes| Ok(vec![read::token_ids(&bytes, 4)?])),
                Some("jsonl" | "ndjson") => {
                    open::text(path).and_then(|text| chats::chat_rows(&text, &self.field, codec, stops))
                }
                _ => open::text(path).and_then(|text| Ok(vec![read::running_text(&text, codec)?])),
            };
            documents.extend(read.context_with(|| path.display().to_string())?);
        }
        self.corpus_of(model, capacity, documents)
    }

    /// Reads questions by their levels.
    pub fn levels(&self, model: &Learner, paths: &[PathBuf]) -> Result<Levels> {
        let stops = &model.config().eos_token_ids;
        let files = paths.iter().map(|path| {
            let rows = open::text(path).and_then(|text| graded_rows(&text, &model.codec, stops));
            rows.context_with(|| path.display().to_string())
        });
        Ok(by_level(files.collect::<Result<Vec<_>>>()?))
    }

    /// Builds a corpus from documents.
    pub fn corpus_of(
        &self,
        model: &Learner,
        capacity: BatchCapacity,
        documents: Vec<Document>,
    ) -> Result<Corpus> {
        let (config, bos) = (model.config(), model.codec.bos_token_id());
        let eos = config.eos_token_ids.first().copied();
        Corpus::new(documents, bos, eos, capacity.context, config.vocab_size)
    }
}
