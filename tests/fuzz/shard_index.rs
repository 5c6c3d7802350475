//! A checkpoint folder: the input is `model.safetensors.index.json`, beside two sound shards.

use lowbit::ErrorCode;
use lowbit::internals::format::shard_index::{INDEX_FILE, TensorStore};
use lowbit::internals::format::source::MemoryDir;
use lowbit::internals::task::block_on;

/// A file with one tensor `name` of four bytes, for which `alias` is another name.
fn shard(name: &str, alias: &str) -> Vec<u8> {
    let json = format!(
        r#"{{"__metadata__":{{"{alias}":"{name}"}},"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#
    );
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &[1, 2, 3, 4]].concat()
}

pub fn run(input: &[u8]) {
    let dir = MemoryDir::new("checkpoint")
        .with("1.safetensors", shard("a", "tied"))
        .with("2.safetensors", shard("b", "c"))
        .with(INDEX_FILE, input.to_vec());
    let store = match block_on(TensorStore::open(&dir)) {
        Ok(store) => store,
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::InvalidCheckpoint, "{error}");
            return;
        }
    };
    let names: Vec<_> = store.names().map(str::to_owned).collect();
    assert_eq!(store.total_bytes(), 4 * names.len() as u64);
    for name in &names {
        assert!(name == "a" || name == "b", "{name}");
        assert_eq!(block_on(store.read(name)).unwrap(), [1, 2, 3, 4]);
    }
    assert_eq!(store.resolve("tied").is_some(), names.iter().any(|name| name == "a"));
}
