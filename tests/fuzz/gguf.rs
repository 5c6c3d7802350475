//! A GGUF file: its header is sound or refused, and so are its metadata, its tokenizer and its blocks.

use crate::memory;
use lowbit::internals::format::gguf::{GgufWriter, Header, TensorType, read_header};
use lowbit::internals::format::sink::{MemorySinkDir, SinkDir};
use lowbit::internals::format::source::{MemorySource, SourceDir};
use lowbit::internals::layout::gguf::GgufCheckpoint;
use lowbit::internals::layout::{Layout, ModuleStorage};
use lowbit::internals::task::block_on;
use std::sync::Arc;

const FILE: &str = "model.gguf";

/// Weights of larger matrices are not looked at: they are as many as the file has codes.
const MAX_ELEMENTS: usize = 4096;

pub fn run(input: &[u8]) {
    let source = MemorySource::new(FILE, input.to_vec());
    match block_on(read_header(&source)) {
        Ok(header) => memory::unmeasured(|| write_again(input, &header)),
        Err(error) => return assert!(error.to_string().starts_with(FILE), "{error}"),
    }
    let GgufCheckpoint { files, tokenizer_problem, store, config, .. } =
        match block_on(GgufCheckpoint::open(Arc::new(source), &[])) {
            Ok(opened) => opened,
            Err(error) => return assert!(error.to_string().starts_with(FILE), "{error}"),
        };
    assert_eq!(tokenizer_problem.is_none(), block_on(files.open("tokenizer.json")).unwrap().is_some());
    let layout = Layout::Gguf(config);
    let names: Vec<String> = store.names().map(str::to_owned).collect();
    for module in names.iter().filter_map(|name| name.strip_suffix(".weight")) {
        let Ok(ModuleStorage::Packed { coding, rows, cols, .. }) = layout.module(&store, module) else {
            continue;
        };
        let Ok(packed) = block_on(layout.read_packed(&store, module)) else { continue };
        assert_eq!((packed.coding(), packed.rows(), packed.cols()), (coding, rows, cols));
        if rows.saturating_mul(cols) <= MAX_ELEMENTS {
            let mut weights = vec![0.0; rows * cols];
            packed.decode_rows(0..rows, &mut weights);
            assert!(weights.iter().all(|weight| weight.is_finite()));
        }
    }
}

/// Written again, it is the same file but for the order of its tensors and its alignment.
fn write_again(input: &[u8], header: &Header) {
    let mut metadata = header.metadata.clone();
    metadata.remove("general.alignment");
    let tensors: Vec<(String, TensorType, Vec<u64>)> = header
        .tensors
        .iter()
        .filter(|(_, entry)| !entry.dims.is_empty())
        .map(|(name, entry)| (name.clone(), entry.tensor_type, entry.dims.clone()))
        .collect();
    let dir = MemorySinkDir::new("out");
    block_on(async {
        let mut writer = GgufWriter::begin(dir.create(FILE).await?, &metadata, tensors.clone()).await?;
        for (name, ..) in &tensors {
            let range = &header.tensors[name].range;
            writer.write(name, &input[range.start as usize..range.end as usize]).await?;
        }
        writer.finish().await
    })
    .unwrap();
    let written = dir.to_dir().remove(FILE).unwrap();
    let again = block_on(read_header(&MemorySource::new(FILE, written.clone()))).unwrap();
    // NaN among the metadata equals nothing, so it is compared as text.
    assert_eq!(format!("{:?}", again.metadata), format!("{metadata:?}"));
    assert_eq!(again.tensors.len(), tensors.len());
    for (name, entry) in &again.tensors {
        let range = &header.tensors[name].range;
        let (start, end) = (entry.range.start as usize, entry.range.end as usize);
        assert_eq!(&written[start..end], &input[range.start as usize..range.end as usize], "{name}");
    }
}
