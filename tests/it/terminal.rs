//! Runs the `lowbit` binary as a user does, and prepares folders. Not a test itself.

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The result of a run.
pub struct CommandResult {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl CommandResult {
    /// The one JSON document on standard output.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("expected one JSON document but {error}\n{}", self.stdout))
    }

    /// Asserts success.
    pub fn done(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }
}

/// The command under test, or the one in `LOWBIT_COMMAND`, such as that of the npm package.
fn command() -> OsString {
    std::env::var_os("LOWBIT_COMMAND").unwrap_or_else(|| env!("CARGO_BIN_EXE_lowbit").into())
}

/// Runs `lowbit` with these arguments.
pub fn lowbit<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> CommandResult {
    let output = Command::new(command())
        .args(args)
        // Without it, Mesa's drivers print warnings to standard error.
        .env("XDG_RUNTIME_DIR", std::env::temp_dir())
        .output()
        .unwrap();
    CommandResult {
        // No code means that a signal ended it, which no input may cause.
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The shipped checkpoint.
pub fn tale() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tale-llama")
}

/// A path as an argument.
pub fn arg(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// A short part of the shipped checkpoint's held-out text.
pub fn short_text(folder: &Path) -> String {
    let text = fs::read_to_string(tale().join("heldout.txt")).unwrap();
    let path = folder.join("short.txt");
    fs::write(&path, text.chars().take(2000).collect::<String>()).unwrap();
    arg(path)
}

/// Every file of a folder.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let is_file = entries.filter(|entry| entry.file_type().unwrap().is_file());
    is_file.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// Copies the files of a checkpoint.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

/// A copy of the shipped checkpoint, with only the files that a model needs.
pub fn copy_of_tale(to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tale().join(name), to.join(name)).unwrap();
    }
}

/// Changes a JSON file.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// Splits a safetensors file into header and data.
pub fn split(bytes: &[u8]) -> (Value, Vec<u8>) {
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

/// Joins header and data to a safetensors file.
pub fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let json = serde_json::to_vec(header).unwrap();
    [&(json.len() as u64).to_le_bytes(), json.as_slice(), data].concat()
}

/// Changes header and data of a safetensors file.
pub fn edit_safetensors(path: &Path, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let (mut header, mut data) = split(&fs::read(path).unwrap());
    edit(&mut header, &mut data);
    fs::write(path, join(&header, &data)).unwrap();
}

/// A file `config.json` of a small llama of two layers with a context of 64 tokens. The sizes are those of the hidden states and the
/// MLP, and the numbers of heads and KV heads.
pub fn llama_config(folder: &Path, vocab_size: usize, sizes: [usize; 4]) -> PathBuf {
    let [hidden_size, intermediate_size, heads, kv_heads] = sizes;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": vocab_size,
        "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 16,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
    });
    let path = folder.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    path
}
