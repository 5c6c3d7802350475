//! The weight difference of two written checkpoints of one model.

use lowbit::internals::layout::ModuleStorage;
use lowbit::internals::model::Checkpoint;
use lowbit::internals::model::names::{self, Linear};
use lowbit::internals::model::weights::DenseRows;
use lowbit::internals::task::block_on;

/// The dequantized weights of a module.
fn weights(checkpoint: &Checkpoint, module: &str) -> Vec<f32> {
    let mut all = Vec::new();
    match checkpoint.module(module).unwrap() {
        ModuleStorage::Packed { rows, cols, .. } => {
            let packed = block_on(checkpoint.layout().read_packed(checkpoint.store(), module)).unwrap();
            all.resize(rows * cols, 0.0);
            packed.decode_rows(0..rows, &mut all);
        }
        ModuleStorage::Dense { .. } => {
            let mut rows = DenseRows::new(checkpoint, module).unwrap();
            while let Some((_, values)) = block_on(rows.next()).unwrap() {
                all.extend_from_slice(values);
            }
        }
    }
    all
}

/// The largest `|w - w'|` of all linear modules of the blocks, embedding and head.
pub fn largest_difference(a: &Checkpoint, b: &Checkpoint) -> f32 {
    let blocks =
        (0..a.config().num_hidden_layers).flat_map(|layer| Linear::ALL.map(|linear| linear.module(layer)));
    let head = (!a.config().tie_word_embeddings).then(|| names::HEAD.to_owned());
    let modules = blocks.chain([a.embedding_module().to_owned()]).chain(head);
    let of_module = |module: String| {
        let (ours, theirs) = (weights(a, &module), weights(b, &module));
        ours.iter().zip(&theirs).fold(0f32, |most, (a, b)| most.max((a - b).abs()))
    };
    modules.map(of_module).fold(0.0, f32::max)
}
