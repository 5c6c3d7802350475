//! Reads a checkpoint out of memory, quantizes it into memory, and runs both on threads of their own.
//!
//! `cargo run --release --example in_memory -- MODEL`: a folder, as a program would have it that downloads one.

use lowbit::io::{FsDir, MemoryDir, MemorySinkDir, SourceDir};
use lowbit::{Bits, Checkpoint, GenerateOptions, Granularity, LoadRequest, QuantizeRequest};
use std::sync::Arc;
use std::thread;

fn main() -> lowbit::Result<()> {
    let [folder] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        eprintln!("expected MODEL");
        std::process::exit(2);
    };
    let mut memory = MemoryDir::new("memory");
    for file in FsDir::open(folder)?.list(None).unwrap_or_default() {
        let path = std::path::Path::new(folder).join(&file);
        if path.is_file() {
            memory.insert(file, std::fs::read(path)?);
        }
    }
    let original = Checkpoint::from_dir(Arc::new(memory))?;
    let request = QuantizeRequest::default().bits(Bits::Four).group_size(Granularity::Group(32));
    let int4 = original.quantize_into(&MemorySinkDir::new("int4"), &request)?.checkpoint;
    println!("{} bytes became {}", original.bytes(), int4.bytes());

    // A checkpoint can be shared, and a model goes where it is used.
    let said = [original, int4].map(|checkpoint| {
        thread::spawn(move || {
            let mut model = checkpoint.load(&LoadRequest::default())?;
            model.generate("Once upon a time", &GenerateOptions::default().max_tokens(30))
        })
    });
    for thread in said {
        println!("{}", thread.join().expect("no panic")?.text.trim());
    }
    Ok(())
}
