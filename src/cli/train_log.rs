//! Progress of `train` and `qat`, on the terminal and in a file.

use super::terminal::Terminal;
use crate::error::{Context, Error, Result};
use crate::train::blocks::BlockReport;
use crate::train::curriculum::LevelEvaluation;
use crate::train::run::Event;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// The log of a run.
pub(super) struct Log<'a> {
    terminal: &'a Terminal,
    start: Instant,
    /// The file, and whether it is CSV.
    file: Option<(File, bool)>,
    state: RefCell<LogState>,
}

struct LogState {
    /// Time of the last step, and tokens until then.
    last: Option<(f64, u64)>,
    speed: f64,
    failed: Option<std::io::Error>,
}

/// The columns of a CSV file, in order.
const COLUMNS: [&str; 14] = [
    "event",
    "step",
    "seconds",
    "loss",
    "cross_entropy",
    "divergence",
    "gradient",
    "learning_rate",
    "tokens",
    "epoch",
    "tokens_per_second",
    "block",
    "level",
    "accuracy",
];

impl<'a> Log<'a> {
    pub(super) fn open(path: Option<&Path>, terminal: &'a Terminal) -> Result<Self> {
        let mut file = None;
        if let Some(path) = path {
            let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
            let opened = OpenOptions::new().create(true).append(true).open(path);
            let mut opened = opened.context_with(|| path.display().to_string())?;
            if is_csv && opened.metadata().is_ok_and(|metadata| metadata.len() == 0) {
                writeln!(opened, "{}", COLUMNS.join(",")).context_with(|| path.display().to_string())?;
            }
            file = Some((opened, is_csv));
        }
        let state = RefCell::new(LogState { last: None, speed: 0.0, failed: None });
        Ok(Self { terminal, start: Instant::now(), file, state })
    }

    pub(super) fn take(&self, event: &Event) {
        let seconds = self.start.elapsed().as_secs_f64();
        let mut line = Map::new();
        let name = match event {
            Event::Resumed { step } => {
                self.terminal.note(format_args!("going on after step {step}"));
                line.insert("step".into(), json!(step));
                "resumed"
            }
            Event::Block(BlockReport { layer, losses }) => {
                let how = match losses {
                    Some((first, last)) => format!("loss {first:.3e} at first, {last:.3e} at last"),
                    None => "as it was kept".to_owned(),
                };
                self.terminal.note(format_args!("block {layer}: {how}"));
                line.insert("block".into(), json!(layer));
                line.insert("loss".into(), json!(losses.map(|(_, last)| last)));
                "block"
            }
            Event::Step(report) => {
                let mut state = self.state.borrow_mut();
                if let Some((then, tokens)) = state.last {
                    let now = (report.tokens.saturating_sub(tokens)) as f64 / (seconds - then).max(1e-9);
                    state.speed = if state.speed == 0.0 { now } else { 0.9 * state.speed + 0.1 * now };
                }
                state.last = Some((seconds, report.tokens));
                let speed = state.speed;
                self.terminal.set_message(format!("loss {:.4}, {speed:.0} tokens/s", report.loss));
                let values = [
                    ("step", json!(report.step)),
                    ("loss", json!(report.loss)),
                    ("cross_entropy", json!(report.cross_entropy)),
                    ("divergence", json!(report.divergence)),
                    ("gradient", json!(report.gradient)),
                    ("learning_rate", json!(report.rate)),
                    ("tokens", json!(report.tokens)),
                    ("epoch", json!(report.epoch)),
                    ("tokens_per_second", json!(speed)),
                ];
                line.extend(values.map(|(name, value)| (name.to_owned(), value)));
                "step"
            }
            Event::Evaluated { step, loss, is_best } => {
                let best = if *is_best { ", the best so far" } else { "" };
                let perplexity = loss.exp();
                self.terminal.note(format_args!("step {step}: held-out perplexity {perplexity:.4}{best}"));
                line.extend([("step".to_owned(), json!(step)), ("loss".to_owned(), json!(loss))]);
                "held_out"
            }
            Event::Level(LevelEvaluation { level, accuracy, next }) => {
                let next_is = match next {
                    Some(next) => format!("; level {next} comes"),
                    None => String::new(),
                };
                let percent = 100.0 * accuracy.share;
                self.terminal.note(format_args!("level {level}: {percent:.1}% right{next_is}"));
                line.extend([
                    ("level".to_owned(), json!(level)),
                    ("accuracy".to_owned(), json!(accuracy.share)),
                    ("next".to_owned(), json!(next)),
                ]);
                "level"
            }
            Event::RolledBack { from, to, reason } => {
                self.terminal.note(format_args!(
                    "warning: step {from}: {reason}; going on from step {to} with half of the learning rate"
                ));
                line.insert("step".into(), json!(to));
                "rolled_back"
            }
        };
        line.insert("event".into(), json!(name));
        line.insert("seconds".into(), json!(seconds));
        self.write(line);
    }

    fn write(&self, line: Map<String, Value>) {
        let Some((file, is_csv)) = &self.file else { return };
        let text = if *is_csv {
            let cell = |name: &&str| match line.get(*name) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(value) => value.to_string(),
            };
            COLUMNS.iter().map(cell).collect::<Vec<_>>().join(",")
        } else {
            Value::Object(line).to_string()
        };
        let mut file = file;
        if let Err(error) = writeln!(file, "{text}") {
            self.state.borrow_mut().failed.get_or_insert(error);
        }
    }

    /// An error of writing.
    pub(super) fn close(self) -> Result<()> {
        match self.state.into_inner().failed {
            Some(error) => Err(Error::from(error).context("the metrics")),
            None => Ok(()),
        }
    }
}
