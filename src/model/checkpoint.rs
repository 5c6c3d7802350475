//! An open checkpoint, a folder or a GGUF file: its configuration, its tensors, and the layout of its weights.
//!
//! Opening reads `config.json` and the headers of the weight files. It reads weights only to compare a tied table that
//! is stored twice.

mod folder_kind;
mod generation;
mod unread;

use super::config::{ModelConfig, keys};
use super::names::{self, Linear};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::quoted;
use crate::format::shard_index::TensorStore;
use crate::format::small_file::read_json;
use crate::format::source::{ByteSource, SourceDir};
use crate::layout::gguf::GgufCheckpoint;
use crate::layout::{Layout, ModuleStorage, OpenOptions, SIDE_CONFIGS, wants_side_config};
use serde_json::Value;
use std::sync::Arc;

/// The key of `config.json` that identifies folders written by this crate. Its value names the file that is written
/// last: `{"version": "0.1.0", "written_last": "quantization_config.json"}`.
pub const PRODUCER_KEY: &str = "lowbit";

/// The key inside [`PRODUCER_KEY`]'s object that names the unknown keys that were ignored. They are ignored again when the
/// folder is opened.
pub const IGNORED_KEYS: &str = "ignored_keys";

/// An open checkpoint.
pub struct Checkpoint {
    dir: Arc<dyn SourceDir>,
    config_json: Value,
    config: ModelConfig,
    store: TensorStore,
    layout: Layout,
    tokenizer_problem: Option<Error>,
    warnings: Vec<String>,
    allow_unknown: Vec<String>,
    ignored_keys: Vec<String>,
}

impl Checkpoint {
    /// Opens a folder, and checks that it is complete and consistent.
    ///
    /// # Errors
    /// `not_found` for a missing file, `unfinished_output` for a folder whose writer stopped early, `unsupported_model`
    /// and `unsupported_format` for what this crate does not support or know, `invalid_checkpoint` for contradictory contents.
    pub async fn open(dir: Arc<dyn SourceDir>) -> Result<Self> {
        Self::open_with(dir, &OpenOptions::default()).await
    }

    /// As [`Checkpoint::open`], with options for what the files do not specify.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub async fn open_with(dir: Arc<dyn SourceDir>, options: &OpenOptions) -> Result<Self> {
        let place = dir.name().to_owned();
        Self::open_folder(dir, options).await.map_err(|error| error.within(&place))
    }

    async fn open_folder(dir: Arc<dyn SourceDir>, options: &OpenOptions) -> Result<Self> {
        let Some(config_json) = read_json(dir.as_ref(), "config.json").await? else {
            return Err(folder_kind::without_config(dir.as_ref()).await);
        };
        refuse_unfinished(dir.as_ref(), &config_json).await?;
        let allowed = allowed_keys(&config_json, options);
        let options = &OpenOptions { allow_unknown: allowed, ..options.clone() };
        let allowed = &options.allow_unknown;
        let read = |ignored_keys: &mut Vec<String>| {
            ignored_keys.extend(keys::check(&config_json, allowed)?);
            ModelConfig::from_known(&config_json)
        };
        let mut ignored_keys = Vec::new();
        let mut config = read(&mut ignored_keys).context_with(|| "config.json")?;
        folder_kind::refuse_adapter(dir.as_ref()).await?;
        let generation = generation::read(dir.as_ref(), allowed).await?;
        if let Some(generation) = &generation {
            ignored_keys.extend(generation.ignored_keys.iter().cloned());
            generation.set_tokens(&mut config);
        }
        let store = match TensorStore::open(dir.as_ref()).await {
            Ok(store) => with_prefix(store)?,
            Err(error) => return Err(folder_kind::without_weights(dir.as_ref(), error).await),
        };
        let (file, quantization) = find_quantization_config(dir.as_ref(), &config_json, &store).await?;
        let layout = Layout::open(quantization.as_ref(), &store, options).await.context_with(|| file)?;
        let mut warnings = layout.warnings().to_vec();
        warnings.extend(folder_kind::unread_templates(dir.as_ref()));
        warnings.extend(generation::unapplied_settings(generation.as_ref(), &config_json));
        if let Some(quantization) = &quantization {
            ignored_keys.extend(allowed.iter().filter(|key| quantization.get(*key).is_some()).cloned());
        }
        if !allowed.is_empty()
            && let Some(tokenizer) = read_json(dir.as_ref(), "tokenizer_config.json").await?
        {
            ignored_keys.extend(allowed.iter().filter(|key| tokenizer.get(*key).is_some()).cloned());
        }
        let (tokenizer_problem, allow_unknown) = (None, allowed.clone());
        Self {
            dir,
            config_json,
            config,
            store,
            layout,
            tokenizer_problem,
            warnings,
            allow_unknown,
            ignored_keys,
        }
        .checked()
        .await
    }

    /// Opens a GGUF file as a folder: [`dir`](Self::dir) then contains the files that are derived from its metadata.
    ///
    /// # Errors
    /// As [`GgufCheckpoint::open`], and as [`open`](Self::open) for features that the decoder does not support.
    pub async fn open_gguf(source: Arc<dyn ByteSource>) -> Result<Self> {
        Self::open_gguf_with(source, &OpenOptions::default()).await
    }

    /// As [`Checkpoint::open_gguf`], with options for what the file does not specify.
    ///
    /// # Errors
    /// As [`Checkpoint::open_gguf`].
    pub async fn open_gguf_with(source: Arc<dyn ByteSource>, options: &OpenOptions) -> Result<Self> {
        let place = source.name().to_owned();
        let file = GgufCheckpoint::open(source, &options.allow_unknown).await?;
        let GgufCheckpoint { config_json, files, tokenizer_problem, store, config, warnings, ignored_keys } =
            file;
        let config_of_model = ModelConfig::from_json(&config_json).context_with(|| &place)?;
        Self {
            dir: Arc::new(files),
            config_json,
            config: config_of_model,
            store,
            layout: Layout::Gguf(config),
            tokenizer_problem,
            warnings,
            allow_unknown: options.allow_unknown.clone(),
            ignored_keys,
        }
        .checked()
        .await
        .context_with(|| place)
    }

    async fn checked(mut self) -> Result<Self> {
        self.warnings.extend(self.ignored_keys.iter().map(|key| {
            format!(
                "the unknown key {} is ignored, as allowed: it may change what the model computes",
                quoted(key)
            )
        }));
        self.resolve_tables().await?;
        self.check_shapes()?;
        self.warn_of_unread_tensors();
        Ok(self)
    }

    fn warn_of_unread_tensors(&mut self) {
        let unread = self.unread_tensors();
        if let Some(first) = unread.first() {
            let others = match unread.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            self.warnings.push(format!("the decoder does not read {}{others}", quoted(first)));
        }
    }

    /// Determines whether embedding and head are tied. If config.json ties them, the stored one serves as both. A
    /// stored head that differs from the embedding is used nevertheless, as in transformers 5.
    async fn resolve_tables(&mut self) -> Result<()> {
        let stored = |module: &str| self.layout.is_stored(&self.store, module);
        match (self.config.tie_word_embeddings, stored(names::EMBEDDING), stored(names::HEAD)) {
            (false, true, true) | (true, true, false) | (true, false, true) => {}
            (true, true, true) => {
                if !self.tables_are_equal().await? {
                    self.config.tie_word_embeddings = false;
                    self.config_json["tie_word_embeddings"] = Value::Bool(false);
                    self.warnings.push(format!(
                        "config.json ties the head to the embedding, but the stored `{}.weight` differs and is used",
                        names::HEAD
                    ));
                }
            }
            (_, false, false) | (false, false, true) => return Err(self.no_embedding()),
            (false, true, false) => return Err(self.no_head()),
        }
        Ok(())
    }

    /// Compares both tables up to the first difference. Few checkpoints store a tied table twice.
    async fn tables_are_equal(&self) -> Result<bool> {
        let dense = |module: &str| match self.layout.module(&self.store, module) {
            Ok(ModuleStorage::Dense { tensor, .. }) => Some(tensor),
            _ => None,
        };
        match (dense(names::EMBEDDING), dense(names::HEAD)) {
            (Some(embedding), Some(head)) => self.store.same_bytes(&embedding, &head).await,
            _ => Ok(false),
        }
    }

    fn no_embedding(&self) -> Error {
        let expected = format!("{}.weight", names::EMBEDDING);
        let other = self.store.names().find(|name| name.ends_with("embed_tokens.weight"));
        let found = other.map_or_else(
            || {
                self.store
                    .names()
                    .next()
                    .map_or("no tensors".to_owned(), |name| format!("tensors as {}", quoted(name)))
            },
            |other| format!("{}, a model inside another one", quoted(other)),
        );
        Error::invalid_checkpoint(format!("expected `{expected}` but found {found}"))
    }

    /// The error for a missing head. transformers would initialize one at random.
    fn no_head(&self) -> Error {
        let heads = ["score.", "classifier.", "qa_outputs.", "reward_head.", "v_head."];
        let other = self.store.names().find(|name| heads.iter().any(|head| name.starts_with(head)));
        let instead = other.map_or_else(String::new, |other| format!(" (it has {})", quoted(other)));
        Error::unsupported_model(format!(
            "the model has no language model head: there is no `{}.weight`{instead}, and config.json does not tie it to \
             the embedding (tie_word_embeddings)",
            names::HEAD
        ))
    }

    /// Checks that every linear module exists with the configured shape, before anything is allocated for it.
    fn check_shapes(&self) -> Result<()> {
        let config = &self.config;
        for layer in 0..config.num_hidden_layers {
            for linear in Linear::ALL {
                self.check_module(&linear.module(layer), linear.shape(config))?;
            }
        }
        let table = (config.vocab_size, config.hidden_size);
        self.check_module(self.embedding_module(), table)?;
        if !config.tie_word_embeddings {
            self.check_module(names::HEAD, table)?;
        }
        Ok(())
    }

    fn check_module(&self, module: &str, (rows, cols): (usize, usize)) -> Result<()> {
        let found = self.module(module)?.shape();
        if found != (rows, cols) {
            return Err(Error::invalid_checkpoint(format!(
                "module `{module}`: expected a {rows} x {cols} matrix from config.json but found {} x {}",
                found.0, found.1
            )));
        }
        Ok(())
    }

    /// The checkpoint's name in messages.
    pub fn name(&self) -> &str {
        self.dir.name()
    }

    /// The folder, for access to the files beside the weights.
    pub fn dir(&self) -> &Arc<dyn SourceDir> {
        &self.dir
    }

    /// Why [`dir`](Self::dir) has no tokenizer, if the checkpoint contains one that cannot be used.
    pub fn tokenizer_problem(&self) -> Option<&Error> {
        self.tokenizer_problem.as_ref()
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// `config.json` as in the folder, except that `tie_word_embeddings` is `false` if the stored head differs from the
    /// embedding. A copy of the model then keeps its head.
    pub fn config_json(&self) -> &Value {
        &self.config_json
    }

    /// The named tensors.
    pub fn store(&self) -> &TensorStore {
        &self.store
    }

    /// The layout of the weights.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// generation_config.json, if there is one.
    ///
    /// # Errors
    /// Errors of reading.
    pub(super) async fn generation_config(&self) -> Result<Option<Value>> {
        let generation = generation::read(self.dir.as_ref(), &self.allow_unknown).await?;
        Ok(generation.map(|generation| generation.json))
    }

    /// Unknown keys that the caller allows, for files that are opened later.
    pub fn allow_unknown(&self) -> &[String] {
        &self.allow_unknown
    }

    /// Unknown keys of the configuration files that were ignored because the caller allows them.
    pub fn ignored_keys(&self) -> &[String] {
        &self.ignored_keys
    }

    /// Warnings about how the checkpoint was interpreted.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether any weight is quantized.
    pub fn is_quantized(&self) -> bool {
        self.layout.is_packed()
    }

    /// The module that holds the embedding table: the head if only the head is stored.
    pub fn embedding_module(&self) -> &'static str {
        if self.layout.is_stored(&self.store, names::EMBEDDING) { names::EMBEDDING } else { names::HEAD }
    }

    /// Every linear module: those of the blocks in the order of the data flow, then the embedding and, if it is
    /// separate, the head.
    pub fn linear_modules(&self) -> Vec<String> {
        let blocks = (0..self.config.num_hidden_layers)
            .flat_map(|layer| Linear::ALL.map(|linear| linear.module(layer)));
        let tables = if self.config.tie_word_embeddings {
            vec![self.embedding_module().to_owned()]
        } else {
            vec![names::EMBEDDING.to_owned(), names::HEAD.to_owned()]
        };
        blocks.chain(tables).collect()
    }

    /// The quantized ones among [`linear_modules`](Self::linear_modules).
    ///
    /// # Errors
    /// As [`module`](Self::module).
    pub fn packed_modules(&self) -> Result<Vec<String>> {
        let mut packed = Vec::new();
        for module in self.linear_modules() {
            if self.module(&module)?.is_packed() {
                packed.push(module);
            }
        }
        Ok(packed)
    }

    /// How module `name` is stored.
    pub fn module(&self, name: &str) -> Result<ModuleStorage> {
        self.layout.module(&self.store, name)
    }

    /// How the master weight of module `name` is stored: the floating-point weight from which its codes, if any, are
    /// computed.
    pub fn master(&self, name: &str) -> Result<ModuleStorage> {
        self.layout.master(&self.store, name)
    }

    /// Bytes of all stored tensors.
    pub fn bytes(&self) -> u64 {
        self.store.total_bytes()
    }
}

/// Adds the prefix `model.` to tensor names that lack it. A decoder that is saved without a head, as in embedding
/// models, has no prefix.
fn with_prefix(store: TensorStore) -> Result<TensorStore> {
    const PREFIX: &str = "model.";
    let of_decoder =
        |name: &str| ["embed_tokens.", "layers.", "norm."].iter().any(|part| name.starts_with(part));
    if !store.names().any(of_decoder) {
        return Ok(store);
    }
    store.renamed(|name| if of_decoder(name) { format!("{PREFIX}{name}") } else { name.to_owned() })
}

/// The quantization config of a checkpoint, and the file that contains it.
async fn find_quantization_config(
    dir: &dyn SourceDir,
    config: &Value,
    store: &TensorStore,
) -> Result<(&'static str, Option<Value>)> {
    if config.get("quantization").is_some_and(Value::is_object) {
        return Err(Error::unsupported_format(
            "the weights are quantized by MLX (`quantization` in config.json), whose layout is not supported",
        ));
    }
    let inside = config.get("quantization_config").filter(|value| !value.is_null());
    if inside.is_none() && wants_side_config(store) {
        for file in SIDE_CONFIGS {
            if let Some(json) = read_json(dir, file).await? {
                return Ok((file, Some(json)));
            }
        }
    }
    Ok(("config.json", inside.cloned()))
}

async fn refuse_unfinished(dir: &dyn SourceDir, config: &Value) -> Result<()> {
    let Some(last) = config.get(PRODUCER_KEY).and_then(|producer| producer.get("written_last")?.as_str())
    else {
        return Ok(());
    };
    if dir.open(last).await?.is_none() {
        return Err(Error::new(
            ErrorCode::UnfinishedOutput,
            format!(
                "expected `{last}`, which is written last, but found none: the writer did not finish, or another tool saved \
                 the folder again (in that case, remove the key `{PRODUCER_KEY}` from config.json)"
            ),
        ));
    }
    Ok(())
}

/// The caller's unknown keys to ignore, and those under which an earlier command wrote the folder.
fn allowed_keys(config: &Value, options: &OpenOptions) -> Vec<String> {
    let of_writer = config.get(PRODUCER_KEY).and_then(|producer| producer.get(IGNORED_KEYS)?.as_array());
    let of_writer = of_writer.into_iter().flatten().filter_map(|key| key.as_str().map(str::to_owned));
    options.allow_unknown.iter().cloned().chain(of_writer).collect()
}
