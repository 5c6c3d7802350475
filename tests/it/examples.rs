//! The programs in `examples/` work, using public items only.

use crate::support::fixture;
use std::path::PathBuf;
use std::process::Command;

/// Runs an example. `None` if it was not built, as when cargo builds only these tests.
fn run(name: &str, arguments: &[&str]) -> Option<String> {
    let target = PathBuf::from(env!("CARGO_BIN_EXE_lowbit"));
    let program =
        target.with_file_name("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    if !program.exists() {
        println!("skipped: the example {name} was not built; `cargo test` builds it");
        return None;
    }
    let done = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&done.stderr));
    Some(text)
}

#[test]
fn a_checkpoint_is_quantized_and_judged() {
    let folder = fixture("tale-llama");
    let out = tempfile::tempdir().unwrap();
    let place = out.path().join("int4");
    let unseen = out.path().join("unseen.txt");
    let text: String =
        std::fs::read_to_string(folder.join("heldout.txt")).unwrap().chars().take(6000).collect();
    std::fs::write(&unseen, text).unwrap();
    let [model, place, calibration, unseen] = [folder.clone(), place, folder.join("calibration.txt"), unseen]
        .map(|path| path.display().to_string());
    let Some(said) = run("quantize", &[&model, &place, &calibration, &unseen]) else { return };
    assert!(said.contains("bits a weight") && said.contains("accepted"), "{said}");
}

#[test]
fn a_text_is_continued() {
    let model = fixture("tale-llama").display().to_string();
    let Some(said) = run("generate", &[&model, "Once upon a time"]) else { return };
    assert!(said.starts_with("Once upon a time") && said.len() > 60, "{said}");
}

#[test]
fn checkpoints_are_memory_and_models_are_on_threads() {
    let model = fixture("tale-llama").display().to_string();
    let Some(said) = run("in_memory", &[&model]) else { return };
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines.len() == 3 && lines[0].contains("became") && lines.iter().all(|line| line.len() > 20),
        "{said}"
    );
}

#[test]
fn examples_use_what_others_can_use() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("internals"), "{} looks inside", path.display());
    }
}
