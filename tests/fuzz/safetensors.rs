//! A safetensors file: its header is sound or refused, as the format's own library sees it.

use crate::memory;
use lowbit::internals::format::safetensors::{Header, SafetensorsWriter, read_header};
use lowbit::internals::format::sink::{MemorySinkDir, SinkDir};
use lowbit::internals::format::source::MemorySource;
use lowbit::internals::task::block_on;
use lowbit::{Error, ErrorCode};

const FILE: &str = "model.safetensors";

pub fn run(input: &[u8]) {
    let header = block_on(read_header(&MemorySource::new(FILE, input.to_vec())));
    memory::unmeasured(|| {
        agree_with_the_library(input, header.as_ref());
        if let Ok(header) = header {
            write_again(input, &header);
        }
    });
}

fn agree_with_the_library(input: &[u8], ours: Result<&Header, &Error>) {
    match (ours, safetensors::SafeTensors::deserialize(input)) {
        (Ok(header), Ok(theirs)) => {
            assert_eq!(header.tensors.len(), theirs.len());
            for (name, view) in theirs.iter() {
                let range = &header.tensors[name].range;
                assert_eq!(view.data(), &input[range.start as usize..range.end as usize], "{name}");
            }
        }
        (Err(error), Err(_)) => assert!(error.to_string().starts_with(FILE), "{error}"),
        (Err(error), Ok(_)) => {
            // What we refuse beyond the library: names that come twice, and types that no weight has.
            let message = error.to_string();
            assert!(message.contains("twice") || error.code() == ErrorCode::UnsupportedFormat, "{message}");
        }
        (Ok(_), Err(error)) => {
            // The library takes unknown keys apart before it drops them; we skip them unread.
            let unread =
                ["number out of range", "recursion limit", "surrogate", "unexpected end of hex escape"];
            let message = error.to_string();
            assert!(
                unread.iter().any(|reason| message.contains(reason)),
                "the library refuses it: {message}"
            );
        }
    }
}

/// Written again, it is the same checkpoint.
fn write_again(input: &[u8], header: &Header) {
    let dir = MemorySinkDir::new("out");
    let tensors = header.tensors.iter().map(|(name, entry)| (name.clone(), entry.info.clone())).collect();
    block_on(async {
        let mut writer =
            SafetensorsWriter::begin(dir.create(FILE).await?, tensors, header.metadata.clone()).await?;
        for name in writer.order().to_vec() {
            let range = &header.tensors[&name].range;
            writer.write(&name, &input[range.start as usize..range.end as usize]).await?;
        }
        writer.finish().await
    })
    .unwrap();
    let written = dir.to_dir().remove(FILE).unwrap();
    let again = block_on(read_header(&MemorySource::new(FILE, written))).unwrap();
    assert_eq!(again.metadata, header.metadata);
    let infos = |header: &Header| -> Vec<_> {
        header.tensors.iter().map(|(name, entry)| (name.clone(), entry.info.clone())).collect()
    };
    assert_eq!(infos(&again), infos(header));
}

/// Makes the length field say where the JSON ends: at the last closing brace.
pub fn repair(input: &mut [u8]) {
    if let (Some(end), Some(field)) = (input.iter().rposition(|byte| *byte == b'}'), input.first_chunk_mut())
    {
        *field = (end as u64 + 1).saturating_sub(8).to_le_bytes();
    }
}
