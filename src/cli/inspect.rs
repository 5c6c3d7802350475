//! `lowbit inspect`: what a checkpoint is, without loading it. Floor 9.

use super::terminal::Terminal;
use super::{Outcome, open};
use crate::error::Result;
use crate::layout::ModuleStorage;
use crate::model::Checkpoint;
use crate::model::names::Linear;
use crate::task::block_on;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Show what a checkpoint is: architecture, sizes, number formats
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint: a folder, or a GGUF file
    checkpoint: PathBuf,
}

#[derive(Serialize)]
struct Inspection {
    path: String,
    architecture: &'static str,
    parameters: u64,
    bytes: u64,
    files: Vec<String>,
    tensors: usize,
    layout: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
    /// How many linear modules of the blocks have each number format.
    linear_formats: BTreeMap<String, usize>,
    /// What a user should know about how the checkpoint was understood.
    warnings: Vec<String>,
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let inspection = block_on(async { inspect(&open::checkpoint(&args.checkpoint, terminal).await?) })?;
    terminal.result(&inspection, &inspection)?;
    Ok(Outcome::Done)
}

fn inspect(checkpoint: &Checkpoint) -> Result<Inspection> {
    let config = checkpoint.config();
    let mut linear_formats = BTreeMap::new();
    for layer in 0..config.num_hidden_layers {
        for linear in Linear::ALL {
            let format = match checkpoint.module(&linear.module(layer))? {
                ModuleStorage::Dense { dtype, .. } => dtype.to_string(),
                ModuleStorage::Packed { scheme, .. } => scheme.to_string(),
            };
            *linear_formats.entry(format).or_insert(0) += 1;
        }
    }
    Ok(Inspection {
        path: checkpoint.name().to_owned(),
        architecture: config.architecture.name(),
        parameters: config.parameter_count(),
        bytes: checkpoint.bytes(),
        files: checkpoint.store().files().iter().map(|file| file.name.clone()).collect(),
        tensors: checkpoint.store().names().count(),
        layout: checkpoint.layout().name(),
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
        linear_formats,
        warnings: checkpoint.warnings().to_vec(),
    })
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path)?;
        writeln!(f, "  architecture  {} ({} layout)", self.architecture, self.layout)?;
        writeln!(f, "  parameters    {}", self.parameters)?;
        writeln!(
            f,
            "  weights       {} bytes in {} tensors, {}",
            self.bytes,
            self.tensors,
            self.files.join(", ")
        )?;
        writeln!(
            f,
            "  blocks        {} of hidden size {}, inner size {}",
            self.num_hidden_layers, self.hidden_size, self.intermediate_size
        )?;
        writeln!(
            f,
            "  attention     {} heads of {}, {} for keys and values",
            self.num_attention_heads, self.head_dim, self.num_key_value_heads
        )?;
        let head = if self.tie_word_embeddings { "tied head" } else { "a head of its own" };
        writeln!(f, "  vocabulary    {} tokens, {head}", self.vocab_size)?;
        writeln!(f, "  context       {} tokens", self.max_position_embeddings)?;
        for (format, count) in &self.linear_formats {
            writeln!(f, "  linear        {count} modules in {format}")?;
        }
        Ok(())
    }
}
