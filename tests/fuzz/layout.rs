//! Packed weights: a line of JSON, which is the `quantization_config`, and behind it a safetensors file.

use crate::safetensors;
use lowbit::internals::format::shard_index::TensorStore;
use lowbit::internals::format::source::MemoryDir;
use lowbit::internals::layout::{Layout, ModuleStorage, OpenOptions};
use lowbit::internals::task::block_on;

/// Decoded weights of larger matrices are not looked at: they are as many as the file has codes.
const MAX_ELEMENTS: usize = 4096;

/// Where the safetensors file begins.
fn split(input: &[u8]) -> usize {
    input.iter().position(|byte| *byte == b'\n').map_or(input.len(), |end| end + 1)
}

pub fn run(input: &[u8]) {
    let (line, file) = input.split_at(split(input));
    let Ok(config) = serde_json::from_slice(line) else { return };
    let dir = MemoryDir::new("checkpoint").with("model.safetensors", file.to_vec());
    let Ok(store) = block_on(TensorStore::open(&dir)) else { return };
    let Ok(layout) = block_on(Layout::open(Some(&config), &store, &OpenOptions::default())) else { return };
    for module in ["model.layers.0.mlp.up_proj", "lm_head"] {
        let Ok(storage) = layout.module(&store, module) else { continue };
        let ModuleStorage::Packed { coding, rows, cols, .. } = storage else { continue };
        let Ok(packed) = block_on(layout.read_packed(&store, module)) else { continue };
        assert_eq!((packed.coding(), packed.rows(), packed.cols()), (coding, rows, cols));
        if rows.saturating_mul(cols) <= MAX_ELEMENTS {
            let mut weights = vec![0.0; rows * cols];
            packed.decode_rows(0..rows, &mut weights);
            assert!(weights.iter().all(|weight| !weight.is_nan()));
        }
    }
}

/// As for a safetensors file, behind the line.
pub fn repair(input: &mut [u8]) {
    let start = split(input);
    safetensors::repair(&mut input[start..]);
}
