//! Tensors of a checkpoint that nothing reads.

use super::Checkpoint;
use crate::model::names::{self, BlockNorm};
use std::collections::BTreeSet;

/// The tensors of a linear module or table, in any layout.
const PARTS: [&str; 11] = [
    "weight",
    "bias",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
];

/// Ends of tensors that transformers computes instead of reading, so that old checkpoints have them for nothing.
const HARMLESS: [&str; 2] = ["rotary_emb.inv_freq", "rotary_emb.original_inv_freq"];

impl Checkpoint {
    /// The stored tensors that the decoder does not read, sorted. A stored head beside a tied embedding is not among
    /// them, because the two are compared.
    pub fn unread_tensors(&self) -> Vec<String> {
        let config = self.config();
        let mut linear: BTreeSet<String> = self.linear_modules().into_iter().collect();
        linear.extend([names::EMBEDDING.to_owned(), names::HEAD.to_owned()]);
        let mut norms = BTreeSet::from([names::FINAL_NORM.to_owned()]);
        for layer in 0..config.num_hidden_layers {
            let of_block = BlockNorm::ALL.into_iter().filter(|norm| norm.is_in(config));
            norms.extend(of_block.map(|norm| norm.module(layer)));
        }
        let is_read = |tensor: &str| match tensor.rsplit_once('.') {
            Some((module, "weight")) if norms.contains(module) => true,
            Some((module, part)) => linear.contains(module) && PARTS.contains(&part),
            None => false,
        };
        let is_harmless = |tensor: &str| HARMLESS.iter().any(|end| tensor.ends_with(end));
        let unread = self.store().names().filter(|tensor| !is_read(tensor) && !is_harmless(tensor));
        unread.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
    }
}
