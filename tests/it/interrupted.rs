//! Interrupted work leaves nothing that looks complete, and nothing permanent.
#![cfg(unix)]

use crate::support::large::write_checkpoint;
use crate::terminal::{arg, files, lowbit, tale};
use lowbit::internals::task::block_on;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Tensors of 32 MiB: seconds of work.
const LAYERS: usize = 4;
/// The signal is sent when weights are being written. After this time the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn weights_being_written(folder: &Path) -> bool {
    folder.is_dir() && files(folder).keys().any(|file| file.starts_with(".model.safetensors."))
}

/// Starts quantizing, and sends a signal when weights are being written.
fn interrupt(source: &Path, output: &Path, signal: &str) -> ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    command.arg("quantize").arg(source).arg("-o").arg(output).args(["--bits", "4"]);
    let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let step = Duration::from_millis(2);
    let mut waited = Duration::ZERO;
    while !weights_being_written(output) {
        assert!(waited < PATIENCE && child.try_wait().unwrap().is_none(), "no weights were written");
        std::thread::sleep(step);
        waited += step;
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    child.wait().unwrap()
}

#[test]
fn an_interrupted_run_clears_away_and_a_killed_one_is_cleared_away() {
    let scratch = tempfile::tempdir().unwrap();
    let source = scratch.path().join("source");
    block_on(write_checkpoint(&source, LAYERS));
    for signal in ["-INT", "-TERM", "-KILL"] {
        let output = scratch.path().join(signal);
        let ended = interrupt(&source, &output, signal);
        let killed = signal == "-KILL";
        assert_eq!(ended.code(), (!killed).then_some(130), "{signal}: {ended}");
        let left: Vec<String> = files(&output).into_keys().collect();
        assert!(!left.contains(&"model.safetensors".to_owned()), "{signal}: {left:?}");
        assert_eq!(weights_being_written(&output), killed, "{signal}: {left:?}");
        let opened = lowbit(["inspect", &arg(&output), "--json"]);
        assert_eq!(opened.json()["error"]["code"], "unfinished_output", "{signal}");
        // Another run completes the folder.
        lowbit(["quantize", &arg(tale()), "-o", &arg(&output), "--bits", "8"]).done();
        assert!(!weights_being_written(&output), "{signal}");
        lowbit(["inspect", &arg(&output)]).done();
    }
}

/// The entries of a folder, subfolders included.
fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_a_killed_run_left_on_the_way_to_a_gguf_file_goes_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (source, output) = (folder.path().join("source"), folder.path().join("output"));
    block_on(write_checkpoint(&source, LAYERS));
    // Files that another process is writing there are kept.
    std::fs::create_dir_all(output.join(".other.gguf.1.lowbit.tmp")).unwrap();
    let args = |source: &Path| {
        let file = output.join("small.gguf");
        ["quantize", &arg(source), "-o", &arg(file), "--format", "gguf"].map(str::to_owned)
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    let mut child = command.args(args(&source)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let step = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    while entries(&output).len() < 2 {
        assert!(waited < PATIENCE && child.try_wait().unwrap().is_none(), "nothing was begun");
        std::thread::sleep(step);
        waited += step;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(entries(&output).len(), 2, "{:?}", entries(&output));

    lowbit(args(&tale())).done();
    let mut left = entries(&output);
    left.sort();
    assert_eq!(left, [".other.gguf.1.lowbit.tmp", "small.gguf"]);
}

/// Starts calibrating with `--resume`, and kills the process during block `block`.
fn kill_in_block(args: &[String], state: &Path, block: usize) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    let mut child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let sign = state.join(format!("packed-model.layers.{block}.self_attn.q_proj"));
    let step = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    while !sign.exists() {
        assert!(waited < PATIENCE && child.try_wait().unwrap().is_none(), "block {block} was not reached");
        std::thread::sleep(step);
        waited += step;
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_calibration_goes_on_and_comes_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let calibration = arg(tale().join("calibration.txt"));
    for (method, samples) in [("gptq", "40"), ("awq", "4")] {
        let (whole, resumed, state) = (
            path(&format!("{method}-whole")),
            path(&format!("{method}-resumed")),
            path(&format!("{method}-state")),
        );
        let args = |output: &Path, more: &[&str]| -> Vec<String> {
            let output = arg(output);
            let args = [
                "quantize",
                &arg(tale()),
                "-o",
                &output,
                "--method",
                method,
                "--bits",
                "3",
                "--group-size",
                "32",
                "--calibration",
                &calibration,
                "--samples",
                samples,
            ];
            args.iter().chain(more).map(|&arg| arg.to_owned()).collect()
        };
        lowbit(args(&whole, &[])).done();

        let keep = ["--resume", &arg(&state)];
        for block in [1, 2] {
            kill_in_block(&args(&resumed, &keep), &state, block);
            assert!(!resumed.join("model.safetensors").exists());
        }
        // The state belongs to exactly this run.
        let other = lowbit(args(&resumed, &[&keep[..], &["--strict"]].concat()));
        assert!(other.code == 2 && other.stderr.contains("of another run"), "{}", other.stderr);

        let ran = lowbit(args(&resumed, &keep)).done();
        assert!(ran.stderr.contains("resuming: 2 of 3 blocks are done"), "{method}: {}", ran.stderr);
        assert_eq!(files(&resumed), files(&whole), "{method}");
        assert!(!state.exists(), "the state goes when the work is done");
    }
    // A folder with other files is kept.
    let (output, other) = (path("out"), path("other"));
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("mine"), "x").unwrap();
    let ran = lowbit([
        "quantize",
        &arg(tale()),
        "-o",
        &arg(&output),
        "--method",
        "gptq",
        "--calibration",
        &calibration,
        "--resume",
        &arg(&other),
    ]);
    assert!(ran.code == 2 && ran.stderr.contains("found other files"), "{}", ran.stderr);
    assert_eq!(files(&other).len(), 1);
}
