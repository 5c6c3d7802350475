//! Command-line options of calibration texts and samples.

use super::open::{self, TokenizerArgs};
use super::terminal::Terminal;
use crate::calibrate::Samples;
use crate::calibrate::samples::{binary_ids, json_lines};
use crate::error::{Context, Result};
use crate::format::scratch::TempScratch;
use crate::model::Checkpoint;
use crate::request::{CalibrationRequest, TextsOptions};
use crate::tokenizer::{TextCodec, unify_line_ends};
use std::path::{Path, PathBuf};

/// Files of calibration texts.
#[derive(clap::Args)]
pub struct CalibrationFiles {
    /// Calibration texts: plain text, .jsonl with a text in each line, or token ids as .u16 or .u32 (little-endian)
    #[arg(long, value_name = "FILE", num_args = 1..)]
    calibration: Vec<PathBuf>,

    /// Field of the text in each line of a .jsonl file
    #[arg(long, value_name = "NAME", default_value = "text")]
    calibration_field: String,

    /// Draw samples from all over the texts; the same as --seed 0
    #[arg(long)]
    shuffle: bool,

    /// Keep hidden states in a subfolder of this folder while calibrating [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// A calibration document: text still to be tokenized, or token ids.
enum CalibrationReport {
    Text(String),
    Ids(Vec<u32>),
}

impl CalibrationFiles {
    /// Whether any text was given.
    pub fn is_given(&self) -> bool {
        !self.calibration.is_empty()
    }

    /// Scratch space for hidden states and finished matrices.
    pub fn scratch(&self) -> Result<TempScratch> {
        match &self.scratch {
            Some(folder) => TempScratch::new_in(folder),
            None => TempScratch::new(),
        }
    }

    /// `options` with the seed that `--shuffle` sets.
    pub fn cut(&self, options: &TextsOptions) -> TextsOptions {
        TextsOptions { seed: options.seed.or(self.shuffle.then_some(0)), ..options.clone() }
    }

    /// Reads and tokenizes the texts. Returns their concatenated tokens, and the BOS token of each sample.
    pub async fn tokens(
        &self,
        checkpoint: &Checkpoint,
        tokenizer: &TokenizerArgs,
    ) -> Result<(Vec<u32>, Option<u32>)> {
        let mut documents = Vec::new();
        for path in &self.calibration {
            documents.extend(self.documents(path).context_with(|| path.display().to_string())?);
        }
        let mut bos = checkpoint.config().bos_token_id;
        let mut codec = None;
        if documents.iter().any(|document| matches!(document, CalibrationReport::Text(_))) {
            let opened = open::tokenizer(checkpoint, tokenizer).await?;
            bos = opened.bos_token_id();
            codec = Some(opened);
        }
        let mut tokens = Vec::new();
        for document in documents {
            match (document, &codec) {
                (CalibrationReport::Text(text), Some(codec)) => {
                    tokens.extend(codec.encode(&unify_line_ends(&text))?)
                }
                (CalibrationReport::Ids(ids), _) => tokens.extend(ids),
                (CalibrationReport::Text(_), None) => unreachable!("a text has opened the tokenizer"),
            }
        }
        Ok((tokens, bos))
    }

    /// Reads and tokenizes the texts, and cuts samples from them.
    pub async fn samples(
        &self,
        checkpoint: &Checkpoint,
        request: &CalibrationRequest,
        tokenizer: &TokenizerArgs,
        terminal: &Terminal,
    ) -> Result<Samples> {
        let (tokens, bos) = self.tokens(checkpoint, tokenizer).await?;
        let samples = CalibrationRequest { texts: self.cut(&request.texts), ..request.clone() }.samples_of(
            &tokens,
            bos,
            checkpoint.config(),
        )?;
        let (windows, seen) = (samples.windows.len(), samples.tokens());
        terminal.note(format!("calibrating with {windows} samples, {seen} tokens in all"));
        if let Some(warning) = samples.warning() {
            terminal.note(format_args!("warning: {warning}"));
        }
        Ok(samples)
    }

    fn documents(&self, path: &Path) -> Result<Vec<CalibrationReport>> {
        let ids = |size| Ok(vec![CalibrationReport::Ids(binary_ids(&open::bytes(path)?, size)?)]);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("u16") => ids(2),
            Some("u32") => ids(4),
            Some("jsonl" | "ndjson") => Ok(json_lines(&open::text(path)?, &self.calibration_field)?
                .into_iter()
                .map(CalibrationReport::Text)
                .collect()),
            _ => Ok(vec![CalibrationReport::Text(open::text(path)?)]),
        }
    }
}
