//! `lowbit qat`: quantization-aware training with the original as the teacher.

use super::Outcome;
use super::terminal::Terminal;
use super::train;
use crate::error::{Error, Result};
use crate::request::TrainedScheme;

/// Quantize a checkpoint by training: distill the original into a quantized model
#[derive(clap::Args)]
// The flattened arguments' group has the same name.
#[group(skip)]
pub struct QatArgs {
    #[command(flatten)]
    train: train::TrainArgs,
}

pub fn run(args: &QatArgs, terminal: &Terminal) -> Result<Outcome> {
    if args.train.request.0.layers.bits == TrainedScheme::None {
        return Err(Error::invalid_argument("expected what to quantize to: --bits ternary, 2, 3, 4 or 8"));
    }
    let mut args = args.train.clone();
    args.teacher.get_or_insert_with(|| args.from.model.clone());
    train::run(&args, terminal)
}
