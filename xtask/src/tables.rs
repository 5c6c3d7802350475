//! `cargo xtask tables`: measures README.md's tables about the shipped checkpoint, and writes them there.
//!
//! The measuring itself is `lowbit quantize` and `lowbit perplexity`. Tables about models outside the repository are not made here.

use crate::process::{COMMAND, Outcome, cargo, line_of, program, root, run as execute, step, target_dir};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const CHECKPOINT: &str = "tests/fixtures/tale-llama";

/// The marks around the table in README.md.
const BEGIN: &str = "<!-- 3 and 2 bits, by `cargo xtask tables` -->\n";
const END: &str = "<!-- end -->\n";

/// Bits, group size, and whether there are zero points.
const SCHEMES: [(u32, u32, bool); 6] =
    [(3, 32, false), (3, 32, true), (3, 128, true), (2, 32, false), (2, 32, true), (2, 128, true)];

/// Measures and rewrites README.md.
///
/// # Errors
/// The build or a command failed, or README.md lacks the marks.
pub fn run() -> Outcome {
    step("build", || execute(cargo(&[&["build"], COMMAND.as_slice()].concat())))?;
    let lowbit = target_dir().join("debug").join(if cfg!(windows) { "lowbit.exe" } else { "lowbit" });
    let original = perplexity(&lowbit, &root().join(CHECKPOINT))?;
    let mut table = format!(
        "Perplexity of `{CHECKPOINT}` on its `heldout.txt` (f32 has {original:.3}), quantized to few bits:\n\n\
         | scheme | `rtn` | | `gptq` | |\n|---|---|---|---|---|\n"
    );
    for (bits, group_size, zero_points) in SCHEMES {
        let name = format!("INT{bits} group {group_size}{}", if zero_points { ", zero points" } else { "" });
        let found = step(&name, || {
            let measure = |method| measure(&lowbit, method, bits, group_size, zero_points);
            Ok([measure("rtn")?, measure("gptq")?])
        })?;
        let cells = found.map(|found| format!("{found:.3} | {:+.1} %", 100.0 * (found / original - 1.0)));
        table += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    let path = root().join("README.md");
    let broke = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&path).map_err(broke)?;
    std::fs::write(&path, replaced(&text, (BEGIN, END), &table)?).map_err(broke)?;
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// Replaces the text between two marks with `table`.
///
/// # Errors
/// The marks are missing or in another order.
pub fn replaced(text: &str, (begin, end): (&str, &str), table: &str) -> Result<String, String> {
    let start = text.find(begin).map(|at| at + begin.len());
    let Some((start, end)) = start.and_then(|start| Some((start, start + text[start..].find(end)?))) else {
        return Err(format!(
            "README.md: expected `{}` and `{}` but found no such place",
            begin.trim(),
            end.trim()
        ));
    };
    Ok(format!("{}{table}{}", &text[..start], &text[end..]))
}

/// Quantizes the checkpoint and measures the result.
fn measure(
    lowbit: &Path,
    method: &str,
    bits: u32,
    group_size: u32,
    zero_points: bool,
) -> Result<f64, String> {
    let output = target_dir().join("tables").join(format!("{method}-{bits}-{group_size}-{zero_points}"));
    let mut quantize = program(lowbit, &["quantize", CHECKPOINT, "--method", method]);
    quantize.arg("--output").arg(&output);
    quantize.args(["--bits", &bits.to_string(), "--group-size", &group_size.to_string()]);
    if zero_points {
        quantize.arg("--asym");
    }
    if method == "gptq" {
        quantize.args(["--samples", "128", "--sequence-length", "512", "--calibration"]);
        quantize.arg(PathBuf::from(CHECKPOINT).join("calibration.txt"));
    }
    quantize.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    execute(quantize)?;
    perplexity(lowbit, &output)
}

/// The perplexity of a folder on the held-out text.
///
/// # Errors
/// The command failed.
pub fn perplexity(lowbit: &Path, folder: &Path) -> Result<f64, String> {
    let mut command =
        program(lowbit, &["perplexity", "--device", "cpu", "--context", "512", "--json", "--text"]);
    command.arg(PathBuf::from(CHECKPOINT).join("heldout.txt")).arg(folder);
    let output = command.output().map_err(|error| format!("cannot run `{}`: {error}", line_of(&command)))?;
    let document: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let found = document.as_ref().and_then(|document| document.get("perplexity")?.as_f64());
    found.ok_or_else(|| format!("`{}` gave no perplexity", line_of(&command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        let expected = format!("before\n{BEGIN}new\n{END}after\n");
        assert_eq!(replaced(&text, (BEGIN, END), "new\n").unwrap(), expected);
        assert_eq!(replaced(&expected, (BEGIN, END), "new\n").unwrap(), expected);
        for broken in ["nothing", BEGIN, END, &format!("{END}{BEGIN}")] {
            assert!(replaced(broken, (BEGIN, END), "new\n").is_err(), "{broken}");
        }
    }

    #[test]
    fn the_readme_has_the_place() {
        let text = std::fs::read_to_string(root().join("README.md")).unwrap();
        assert!(replaced(&text, (BEGIN, END), "").is_ok());
    }
}
