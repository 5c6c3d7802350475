//! Output of a running command: results, notes, errors, progress; also its interrupts.

use crate::error::{Error, ErrorCode, Result};
use crate::layout::OpenOptions;
use crate::task::{BoxFuture, Control, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::cell::RefCell;
use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the user or the system asked the process to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on an interrupt ends the work at its next step, and unfinished output is removed. A second interrupt ends
/// the process at once, with `code`.
#[cfg(not(target_arch = "wasm32"))]
pub fn listen_for_interrupts(code: i32) {
    let interrupted = move || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(code);
        }
    };
    // Without a handler an interrupt ends the process at once, and the next run removes its unfinished output.
    let _ = ctrlc::set_handler(interrupted);
}

/// A WebAssembly module gets no signals: an interrupt ends the process around it.
#[cfg(target_arch = "wasm32")]
pub fn listen_for_interrupts(_: i32) {}

/// Standard output and standard error of one command.
pub struct Terminal {
    json: bool,
    open_options: OpenOptions,
    bar: ProgressBar,
    phase: RefCell<String>,
}

impl Terminal {
    /// `json`: standard output is one JSON document. `open_options` apply to every opened checkpoint.
    pub fn new(json: bool, open_options: OpenOptions) -> Self {
        // Draws nothing if standard error is not a terminal.
        let bar = ProgressBar::new(0);
        let style = "{msg:12} {wide_bar} {pos}/{len}  {eta}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { json, open_options, bar, phase: RefCell::new(String::new()) }
    }

    /// How checkpoints are opened.
    pub fn open_options(&self) -> &OpenOptions {
        &self.open_options
    }

    /// Whether standard output is one JSON document.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result: `document` with `--json`, `text` otherwise.
    pub fn result(&self, document: &impl Serialize, text: impl Display) -> Result<()> {
        if self.json {
            let json = serde_json::to_string_pretty(document)
                .map_err(|error| Error::new(ErrorCode::Io, error.to_string()))?;
            self.print(&format!("{json}\n"))
        } else {
            self.print(&text.to_string())
        }
    }

    /// Prints a piece of the result.
    pub fn print(&self, text: &str) -> Result<()> {
        self.clear();
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // The reader has closed the pipe, as in `lowbit generate ... | head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            other => Ok(other?),
        }
    }

    /// Prints a note to standard error.
    pub fn note(&self, text: impl Display) {
        self.clear();
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Notes the fallback to the CPU and its reason.
    pub fn note_cpu(&self, error: &Error) {
        // A missing GPU is not worth a note; an unusable one is.
        if error.code() != ErrorCode::NoDevice {
            self.note(format_args!("note: running on the CPU, because the GPU cannot be used: {error}"));
        }
    }

    /// Sets the text before the progress bar, until the next phase.
    #[cfg(feature = "train")]
    pub fn set_message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Prints an error; with `--json` also as a document.
    pub fn error(&self, error: &Error) {
        self.clear();
        self.error_document(error);
        // A closed standard error is no reason to panic.
        let _ = writeln!(std::io::stderr(), "error: {error}");
    }

    /// With `--json`, prints an error as a document.
    pub fn error_document(&self, error: &Error) {
        if self.json {
            let document =
                serde_json::json!({"error": {"code": error.code().as_str(), "message": error.to_string()}});
            let _ = writeln!(std::io::stdout(), "{document:#}");
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
        self.phase.borrow_mut().clear();
    }
}

impl Control for Terminal {
    fn progress(&self, progress: &Progress<'_>) {
        let mut phase = self.phase.borrow_mut();
        if *phase != progress.phase {
            phase.clear();
            phase.push_str(progress.phase);
            self.bar.reset();
            self.bar.set_message(phase.clone());
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }

    fn cancelled(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }

    fn yield_now(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
