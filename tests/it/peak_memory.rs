//! Quantizing a checkpoint of 2 GB takes little memory.
//!
//! Only on Linux, where the kernel tells the high-water mark of a child process.
#![cfg(target_os = "linux")]

use crate::support::large::{LARGEST_TENSOR, write_checkpoint};
use lowbit::task::block_on;
use std::process::{Command, Stdio};
use std::time::Duration;

const LAYERS: usize = 60;
const LIMIT: u64 = (64 << 20) + 4 * LARGEST_TENSOR;

#[test]
fn two_gigabytes_are_quantized_in_a_few_tensors_of_memory() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let bytes = block_on(write_checkpoint(&source, LAYERS));
    assert!(bytes > 2_000_000_000, "{bytes}");
    let output = folder.path().join("output");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    command.arg("quantize").arg(&source).arg("-o").arg(&output).args(["--group-size", "32", "--asym"]);
    let peak = peak_of(command);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("note: quantizing {bytes} bytes: {:.1} MiB resident, limit {:.1}", mib(peak), mib(LIMIT));
    assert!(peak <= LIMIT, "{peak} bytes resident, above the limit of {LIMIT}");
}

/// The resident high-water mark of a command, in bytes: what the kernel says of the running process, again and again.
/// (`wait4` would count the memory of this process too, from which the child was forked.)
fn peak_of(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let ended = child.try_wait().unwrap();
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
        // Before it becomes the program it was told to be, the child is a copy of this process.
        if let Some(mark) = mark.filter(|_| text.starts_with("Name:\tlowbit\n")) {
            peak = peak.max(mark.trim().parse::<u64>().unwrap() * 1024);
        }
        if let Some(ended) = ended {
            assert!(ended.success(), "the command failed");
            assert!(peak > 0, "the command ended before it was looked at");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
