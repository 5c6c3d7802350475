//! `lowbit qat`: training that makes up for what quantizing loses, with the original as the teacher.

use super::Outcome;
use super::terminal::Terminal;
use super::train;
use crate::error::{Error, Result};
use crate::request::TrainedAs;

/// Quantize a checkpoint by training: it learns to predict with codes what it predicted without
#[derive(clap::Args)]
// The group of the flattened arguments has the same name.
#[group(skip)]
pub struct QatArgs {
    #[command(flatten)]
    train: train::TrainArgs,
}

pub fn run(args: &QatArgs, terminal: &Terminal) -> Result<Outcome> {
    if args.train.request.0.bits == TrainedAs::None {
        return Err(Error::invalid_argument("expected what to quantize to: --bits ternary, 2, 3, 4 or 8"));
    }
    let mut args = args.train.clone();
    args.teacher.get_or_insert_with(|| args.from.model.clone());
    train::run(&args, terminal)
}
