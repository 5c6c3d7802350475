//! `lowbit tasks`: writes graded questions.

use super::Outcome;
use super::options::OptionArgs;
use super::terminal::Terminal;
use crate::error::{Context, Error, Result};
use crate::options::{Named, find};
use crate::request::TasksRequest;
use crate::train::tasks::{Part, Question, Task, questions};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Write graded questions for training and evaluation, one JSON lines file for each level
#[derive(clap::Args)]
pub struct TasksArgs {
    /// The task
    #[arg(value_name = "TASK", value_parser = clap::builder::PossibleValuesParser::new(Task::names()))]
    task: String,

    /// Output folder: train-01.jsonl, test-01.jsonl and so on
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    #[command(flatten)]
    request: OptionArgs<TasksRequest>,
}

#[derive(Serialize)]
struct TasksReport {
    task: &'static str,
    files: Vec<Written>,
}

#[derive(Serialize)]
struct Written {
    file: PathBuf,
    level: usize,
    part: &'static str,
    questions: usize,
}

pub fn run(args: &TasksArgs, terminal: &Terminal) -> Result<Outcome> {
    let task: Task = find(&args.task).map_err(Error::invalid_argument)?;
    let TasksRequest { levels, train, test, seed } = &args.request.0;
    let mut files = Vec::new();
    for &level in levels {
        for (part, count) in [(Part::Train, *train), (Part::Test, *test)] {
            let questions = questions(task, level, part, count, *seed)?;
            if questions.is_empty() {
                continue;
            }
            if questions.len() < count {
                let (found, part) = (questions.len(), part.name());
                terminal.note(format_args!("level {level}: no more than {found} questions to {part} found"));
            }
            let file = args.output.join(format!("{}-{level:02}.jsonl", part.name()));
            write(&file, &questions)?;
            files.push(Written { file, level, part: part.name(), questions: questions.len() });
        }
    }
    let line = |written: &Written| format!("{}: {} questions\n", written.file.display(), written.questions);
    let text: String = files.iter().map(line).collect();
    terminal.result(&TasksReport { task: task.name(), files }, text)?;
    Ok(Outcome::Done)
}

fn write(file: &Path, questions: &[Question]) -> Result<()> {
    let mut lines = String::new();
    for question in questions {
        lines +=
            &serde_json::to_string(question).map_err(|error| Error::invalid_argument(error.to_string()))?;
        lines.push('\n');
    }
    let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::write(file, lines)).context_with(|| file.display().to_string())
}
