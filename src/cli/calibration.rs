//! The options by which calibration samples are given. Floor 9.

use super::open::{self, ModelArgs};
use super::terminal::Terminal;
use crate::calibrate::samples::{FEW_TOKENS, binary_ids, json_lines};
use crate::calibrate::{SampleOptions, Samples};
use crate::error::{Context, Error, Result};
use crate::format::scratch::TempScratch;
use crate::model::Checkpoint;
use crate::tokenizer::{TextCodec, unify_line_ends};
use std::path::{Path, PathBuf};

/// The longest samples that are taken without being asked for.
const DEFAULT_SEQUENCE_LENGTH: usize = 2048;

/// Which texts a method learns from, and how much of them.
#[derive(clap::Args)]
pub struct CalibrationArgs {
    #[command(flatten)]
    texts: CalibrationTexts,

    /// Calibration samples
    #[arg(long, value_name = "N", default_value_t = 128)]
    samples: usize,
}

/// Which texts a method learns from.
#[derive(clap::Args)]
pub struct CalibrationTexts {
    /// Texts to learn from: plain text, .jsonl with a text in each line, or token ids as .u16 or .u32 (little-endian)
    #[arg(long, value_name = "FILE", num_args = 1..)]
    calibration: Vec<PathBuf>,

    /// Where the text is in each line of a .jsonl file
    #[arg(long, value_name = "NAME", default_value = "text")]
    calibration_field: String,

    /// Tokens of a sample, the one in front included [default: what the model was made for, at most 2048]
    #[arg(long, value_name = "N")]
    sequence_length: Option<usize>,

    /// Draw samples from everywhere in the texts instead of from their start
    #[arg(long)]
    shuffle: bool,

    /// What the drawing depends on
    #[arg(long, value_name = "N", default_value_t = 0, requires = "shuffle")]
    seed: u64,

    /// Keep hidden states in a folder of this one while calibrating [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// Documents that are text are tokenized; others are ids already.
enum Document {
    Text(String),
    Ids(Vec<u32>),
}

/// The tokens of all texts, end to end, and how they are cut.
pub struct Tokens {
    pub tokens: Vec<u32>,
    pub bos_token_id: Option<u32>,
    /// For one sample.
    pub cut: SampleOptions,
}

impl CalibrationArgs {
    /// Whether any text was given.
    pub fn is_given(&self) -> bool {
        self.texts.is_given()
    }

    /// Where hidden states and finished matrices wait.
    pub fn scratch(&self) -> Result<TempScratch> {
        self.texts.scratch()
    }

    /// Reads, tokenizes and cuts the texts.
    pub async fn samples(
        &self,
        checkpoint: &Checkpoint,
        tokenizer: Option<&Path>,
        terminal: &Terminal,
    ) -> Result<Samples> {
        if !self.is_given() {
            return Err(Error::invalid_argument("expected texts to calibrate with; give --calibration FILE"));
        }
        let Tokens { tokens, bos_token_id, cut } = self.texts.tokens(checkpoint, tokenizer).await?;
        let samples = Samples::new(&tokens, bos_token_id, &SampleOptions { samples: self.samples, ..cut })?;
        samples.check_vocabulary(checkpoint.config().vocab_size)?;
        let (windows, seen) = (samples.windows.len(), samples.tokens());
        terminal.note(format!("calibrating with {windows} samples, {seen} tokens in all"));
        if seen < FEW_TOKENS {
            terminal.note(format!(
                "warning: fewer than {FEW_TOKENS} calibration tokens; a wide layer's statistics are noisy then"
            ));
        }
        Ok(samples)
    }
}

impl CalibrationTexts {
    /// Whether any text was given.
    pub fn is_given(&self) -> bool {
        !self.calibration.is_empty()
    }

    /// Where hidden states and finished matrices wait.
    pub fn scratch(&self) -> Result<TempScratch> {
        match &self.scratch {
            Some(folder) => TempScratch::new_in(folder),
            None => TempScratch::new(),
        }
    }

    /// Reads and tokenizes the texts.
    pub async fn tokens(&self, checkpoint: &Checkpoint, tokenizer: Option<&Path>) -> Result<Tokens> {
        let mut documents = Vec::new();
        for path in &self.calibration {
            documents.extend(self.documents(path).context_with(|| path.display().to_string())?);
        }
        let config = checkpoint.config();
        let mut bos = config.bos_token_id;
        let mut codec = None;
        if documents.iter().any(|document| matches!(document, Document::Text(_))) {
            let args = ModelArgs { tokenizer: tokenizer.map(Path::to_owned), ..ModelArgs::default() };
            let opened = open::tokenizer(checkpoint, &args).await?;
            bos = opened.bos_token_id();
            codec = Some(opened);
        }
        let mut tokens = Vec::new();
        for document in documents {
            match (document, &codec) {
                (Document::Text(text), Some(codec)) => tokens.extend(codec.encode(&unify_line_ends(&text))?),
                (Document::Ids(ids), _) => tokens.extend(ids),
                (Document::Text(_), None) => unreachable!("a text has opened the tokenizer"),
            }
        }
        let longest = DEFAULT_SEQUENCE_LENGTH.min(config.max_position_embeddings);
        let cut = SampleOptions {
            samples: 1,
            sequence_length: self.sequence_length.unwrap_or(longest),
            shuffle: self.shuffle.then_some(self.seed),
        };
        Ok(Tokens { tokens, bos_token_id: bos, cut })
    }

    fn documents(&self, path: &Path) -> Result<Vec<Document>> {
        let ids = |size| Ok(vec![Document::Ids(binary_ids(&open::bytes(path)?, size)?)]);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("u16") => ids(2),
            Some("u32") => ids(4),
            Some("jsonl" | "ndjson") => Ok(json_lines(&open::text(path)?, &self.calibration_field)?
                .into_iter()
                .map(Document::Text)
                .collect()),
            _ => Ok(vec![Document::Text(open::text(path)?)]),
        }
    }
}
