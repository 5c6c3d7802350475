//! `lowbit inspect`: describes a checkpoint without loading it.

use super::terminal::Terminal;
use super::{Outcome, open};
use crate::error::{Error, Result};
use crate::model::{Inspection, ReadingNotes};
use crate::task::block_on;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Describe a checkpoint: architecture, sizes, number formats
#[derive(clap::Args)]
pub struct InspectArgs {
    /// A checkpoint: a folder, or a GGUF file
    checkpoint: PathBuf,

    /// List everything that is ignored, assumed or defaulted in reading it
    #[arg(long)]
    strict: bool,
}

#[derive(Serialize)]
struct InspectReport {
    #[serde(flatten)]
    inspection: Inspection,
    #[serde(flatten)]
    notes: Option<ReadingNotes>,
}

pub fn run(args: &InspectArgs, terminal: &Terminal) -> Result<Outcome> {
    let report = block_on(async {
        let checkpoint = open::checkpoint(&args.checkpoint, terminal).await?;
        let notes = match args.strict {
            true => Some(ReadingNotes::new(&checkpoint).await?),
            false => None,
        };
        Ok::<_, Error>(InspectReport { inspection: Inspection::new(&checkpoint)?, notes })
    })?;
    let mut text = Words(&report.inspection).to_string();
    if let Some(ReadingNotes { ignored, assumed, defaulted }) = &report.notes {
        for (title, notes) in [("ignored", ignored), ("assumed", assumed), ("defaulted", defaulted)] {
            let lines: String = notes.iter().map(|note| format!("    {note}\n")).collect();
            text += &format!("  {title}\n{}", if lines.is_empty() { "    nothing\n" } else { &lines });
        }
    }
    terminal.result(&report, text)?;
    Ok(Outcome::Done)
}

/// Formats the inspection for people.
struct Words<'a>(&'a Inspection);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0.path)?;
        writeln!(f, "  architecture  {} ({} layout)", self.0.architecture, self.0.layout)?;
        writeln!(f, "  parameters    {}", self.0.parameters)?;
        writeln!(
            f,
            "  weights       {} bytes in {} tensors, {}",
            self.0.bytes,
            self.0.tensors,
            self.0.files.join(", ")
        )?;
        writeln!(
            f,
            "  blocks        {} of hidden size {}, inner size {}",
            self.0.num_hidden_layers, self.0.hidden_size, self.0.intermediate_size
        )?;
        writeln!(
            f,
            "  attention     {} heads of {}, {} for keys and values",
            self.0.num_attention_heads, self.0.head_dim, self.0.num_key_value_heads
        )?;
        let head = if self.0.tie_word_embeddings { "tied head" } else { "a head of its own" };
        writeln!(f, "  vocabulary    {} tokens, {head}", self.0.vocab_size)?;
        writeln!(f, "  context       {} tokens", self.0.max_position_embeddings)?;
        for (format, count) in &self.0.linear_formats {
            writeln!(f, "  linear        {count} modules in {format}")?;
        }
        Ok(())
    }
}
