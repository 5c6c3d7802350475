//! A training run: steps over a corpus, evaluation on held-out data, saved states, and recovery from non-finite losses.

use super::blocks::BlockReport;
use super::corpus::{Corpus, Position, Sequence};
use super::curriculum::{Curriculum, LevelEvaluation};
use super::optimizer::{Optimizer, Rate};
use super::schedule::Schedule;
use super::state::{Best, RunProgress, StateFolder};
use super::teacher::Teacher;
use super::{LossWeights, Row, TrainedModel, counted};
use crate::backend::Train;
use crate::error::{Error, ErrorCode, Result};
use crate::model::runner::LossSums;
use crate::task::{self, Control, Progress};

/// The settings of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOptions {
    /// The training loss.
    pub loss_weights: LossWeights,
    /// The learning-rate schedule.
    pub schedule: Schedule,
    /// Batches per step, whose gradients are accumulated.
    pub accumulate: usize,
    /// Seed of the order of the corpus.
    pub seed: u64,
    /// Steps between evaluations on the held-out data; 0: only before the first step and at the end.
    pub evaluate_every: u64,
    /// Steps between saved states; positive.
    pub keep_every: u64,
    /// Identifies what else the result depends on: the model, the data.
    pub key: String,
}

/// How often a run goes back before it fails.
const MOST_RETURNS: u32 = 3;

/// Events of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The run resumes from a saved state.
    Resumed {
        /// Completed steps.
        step: u64,
    },
    /// A block was trained alone.
    Block(BlockReport),
    /// A step is complete.
    Step(StepReport),
    /// The held-out data was evaluated.
    Evaluated {
        /// Completed steps.
        step: u64,
        /// Mean loss, in nats per token.
        loss: f64,
        /// Whether it is the best so far.
        is_best: bool,
    },
    /// The current level of the curriculum was evaluated.
    Level(LevelEvaluation),
    /// Loss or gradient were not finite. The run went back to the last saved state, skips the batches up to the failed
    /// one, and halves the learning rate.
    RolledBack {
        /// The step that failed.
        from: u64,
        /// Completed steps after going back.
        to: u64,
        /// The error.
        reason: String,
    },
}

/// A completed step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Mean of the goal's loss over the predictions that count, before the step.
    pub loss: f64,
    /// Mean cross-entropy, if the goal includes it.
    pub cross_entropy: Option<f64>,
    /// Mean divergence from the teacher, if the goal includes it.
    pub divergence: Option<f64>,
    /// The gradient norm before clipping.
    pub gradient: f64,
    /// Learning rate.
    pub rate: f64,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Completed epochs.
    pub epoch: u64,
}

/// The result of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunResult {
    /// Completed steps.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Mean loss on the held-out data before the first step, in nats per token.
    pub first: Option<f64>,
    /// The best step, whose parameters the model now has; `None` without held-out data.
    pub best: Option<Best>,
}

/// A time limit. The result then depends on the speed of the machine.
#[derive(Clone, Copy)]
pub struct TimeLimit<'a> {
    /// Seconds since some fixed moment.
    pub clock: &'a dyn Fn() -> f64,
    /// The time by which the last step must be complete.
    pub end: f64,
}

/// The first steps, timed to estimate how many fit the time limit. If the planned warmup is at least as long, it stays
/// so, and the learning rate does not decay before the estimate is final.
const TIMED_STEPS: u64 = 5;

/// A run with everything that it works on.
pub struct Run<'a, B: Train> {
    /// The model.
    pub model: &'a mut TrainedModel<B>,
    /// The optimizer with its running means.
    pub optimizer: Optimizer<B>,
    /// The model whose predictions are learned.
    pub teacher: Option<&'a mut Teacher<B>>,
    /// The training data.
    pub corpus: &'a mut Corpus,
    /// Held-out data that selects the best parameters; may be empty.
    pub held_out: &'a [Sequence],
    /// The order of levels; `None`: all at once.
    pub curriculum: Option<&'a Curriculum>,
    /// Where states are saved.
    pub state: StateFolder<'a>,
    /// The settings.
    pub options: RunOptions,
    /// The time limit: the number of steps and the learning-rate schedule are fitted to it.
    pub limit: Option<TimeLimit<'a>>,
}

impl<B: Train> Run<'_, B> {
    /// Runs to the end, resuming from a saved state with the same key. The result is bit-identical to that of an
    /// uninterrupted run. Afterwards the model has the best parameters, or the last ones without held-out data.
    ///
    /// # Errors
    /// `non_finite` when losses stay non-finite after 3 returns; `cancelled`, with the state saved; errors of the
    /// device and the folder.
    pub async fn run(mut self, tell: &dyn Fn(Event), control: &dyn Control) -> Result<RunResult> {
        let key = self.options.key.clone();
        let mut progress = RunProgress { key: key.clone(), ..RunProgress::default() };
        if let Some(kept) = self.state.restore(self.model, &mut self.optimizer, &key).await? {
            self.model.refresh_weights().await?;
            tell(Event::Resumed { step: kept.step });
            progress = kept;
        }
        if let (Some(curriculum), 0) = (self.curriculum, progress.position.level) {
            progress.position.level = curriculum.first();
        }
        let begun = self.limit.map(|limit| (limit.clock)());
        let planned = self.options.schedule;
        while progress.step < self.options.schedule.steps {
            if let (Some(TimeLimit { clock, end }), Some(begun)) = (self.limit, begun) {
                let (now, step, schedule) = (clock(), progress.step, &mut self.options.schedule);
                if (1..=TIMED_STEPS).contains(&step) {
                    let left = (end - now).max(0.0) / ((now - begun) / step as f64).max(1e-9);
                    schedule.steps = planned.steps.min(step.saturating_add(left as u64));
                    schedule.warmup = planned.warmup.min((schedule.steps / 20).max(TIMED_STEPS));
                } else if now >= end && step > 0 {
                    schedule.steps = step;
                }
                if step >= schedule.steps {
                    break;
                }
            }
            let steps = self.options.schedule.steps;
            if self.is_evaluation_due(progress.step) {
                self.evaluate(&mut progress, tell).await?;
            }
            if progress.step.is_multiple_of(self.options.keep_every) {
                self.keep(&mut progress).await?;
            }
            if let Err(cancelled) = task::yield_point(control).await {
                self.keep(&mut progress).await?;
                return Err(cancelled);
            }
            control.progress(&Progress { phase: "train", done: progress.step, total: steps, item: "" });
            let before = progress.position;
            match self.step(&mut progress).await {
                Ok(report) => tell(Event::Step(report)),
                Err(error) if error.code() == ErrorCode::NonFinite => {
                    self.roll_back(&mut progress, before, error, tell).await?;
                }
                Err(error) => return Err(error),
            }
        }
        self.evaluate(&mut progress, tell).await?;
        if let Some(best) = progress.best.filter(|best| best.step != progress.step) {
            self.state.take_best(self.model, &key).await?;
            self.model.refresh_weights().await?;
            progress.best = Some(best);
        }
        Ok(RunResult {
            steps: progress.step,
            tokens: progress.tokens,
            first: progress.first,
            best: progress.best,
        })
    }

    fn is_evaluation_due(&self, step: u64) -> bool {
        let every = self.options.evaluate_every;
        step == 0 || every > 0 && step.is_multiple_of(every)
    }

    async fn keep(&mut self, progress: &mut RunProgress) -> Result<()> {
        progress.updates = self.optimizer.steps();
        self.state.keep(self.model, &mut self.optimizer, progress).await
    }

    /// Evaluates the model on the held-out data, saves it if it is the best so far, and advances the curriculum.
    async fn evaluate(&mut self, progress: &mut RunProgress, tell: &dyn Fn(Event)) -> Result<()> {
        let step = progress.step;
        // A resumed run may have evaluated this step already.
        if self.held_out.is_empty() || progress.evaluation == Some(step) {
            return Ok(());
        }
        let loss = held_out_loss(self.model, self.held_out).await?;
        let is_best = loss.is_finite() && progress.best.is_none_or(|best| loss < best.loss);
        progress.evaluation = Some(step);
        if step == 0 {
            progress.first = Some(loss);
        }
        if is_best {
            progress.best = Some(Best { step, loss });
            self.state.keep_best(self.model, progress).await?;
        }
        tell(Event::Evaluated { step, loss, is_best });
        while let Some(curriculum) = self.curriculum {
            let evaluation = curriculum.evaluate(self.model, progress.position.level).await?;
            tell(Event::Level(evaluation));
            let Some(next) = evaluation.next else { break };
            progress.position = progress.position.on_level(next);
        }
        Ok(())
    }

    /// One step, after which the running weights are updated.
    async fn step(&mut self, progress: &mut RunProgress) -> Result<StepReport> {
        let Self { model, optimizer, teacher, corpus, options, .. } = self;
        let RunOptions { loss_weights, schedule, accumulate, seed, .. } = options;
        let mut position = progress.position;
        let mut batches = Vec::with_capacity(*accumulate);
        for _ in 0..*accumulate {
            let (batch, next) = corpus.batch(*seed, position, model.capacity().tokens)?;
            position = next;
            batches.push(batch);
        }
        // The position advances even if the step fails.
        progress.position = position;
        let count: usize = batches.iter().map(|batch| counted(&rows(batch))).sum();
        let share = 1.0 / count as f64;
        model.zero_gradients()?;
        let mut sums = LossSums::default();
        for batch in &batches {
            let part =
                model.backward(&rows(batch), *loss_weights, teacher.as_deref_mut(), share as f32).await?;
            let add = |sum: Option<f64>, part: Option<f64>| part.map(|part| part + sum.unwrap_or(0.0));
            sums.cross_entropy = add(sums.cross_entropy, part.cross_entropy);
            sums.divergence = add(sums.divergence, part.divergence);
        }
        let loss = loss_weights.loss(sums) * share;
        if !loss.is_finite() {
            return Err(Error::new(ErrorCode::NonFinite, format!("expected a finite loss but found {loss}")));
        }
        let Rate { rate, decay } = schedule.at(progress.step);
        let rate = rate / f64::from(1u32 << progress.returns.min(30));
        let gradient = optimizer.step(&mut **model, Rate { rate, decay }).await?;
        model.refresh_weights().await?;
        progress.step += 1;
        progress.tokens += batches.iter().flatten().map(|row| row.tokens.len() as u64).sum::<u64>();
        Ok(StepReport {
            step: progress.step,
            loss,
            cross_entropy: sums.cross_entropy.map(|sum| sum * share),
            divergence: sums.divergence.map(|sum| sum * share),
            gradient,
            rate,
            tokens: progress.tokens,
            epoch: progress.position.epoch,
        })
    }

    /// Restores the last saved state, and skips the batches up to the failed one.
    async fn roll_back(
        &mut self,
        progress: &mut RunProgress,
        before: Position,
        error: Error,
        tell: &dyn Fn(Event),
    ) -> Result<()> {
        let (from, behind, returns) = (progress.step, progress.position, progress.returns + 1);
        let given_up = |why: &str| Err(error.clone().context(format!("step {}, {why}", from + 1)));
        if returns > MOST_RETURNS {
            return given_up(&format!("after going back {MOST_RETURNS} times"));
        }
        if behind == before {
            return given_up("whose batch cannot be skipped");
        }
        match self.state.restore(self.model, &mut self.optimizer, &progress.key).await? {
            // A best that was saved after that state is still there.
            Some(kept) => {
                *progress =
                    RunProgress { position: behind, returns, best: progress.best.or(kept.best), ..kept }
            }
            None => return given_up("before any state was saved"),
        }
        self.model.refresh_weights().await?;
        // An interrupted run then resumes from here too.
        self.keep(progress).await?;
        tell(Event::RolledBack { from: from + 1, to: progress.step, reason: error.to_string() });
        Ok(())
    }
}

/// Sequences as rows of a batch.
pub fn rows(batch: &[Sequence]) -> Vec<Row<'_>> {
    batch.iter().map(|sequence| Row { tokens: &sequence.tokens, targets: &sequence.targets }).collect()
}

/// Splits sequences into batches of at most `tokens` tokens. A longer sequence is a batch alone, which the model
/// refuses.
pub fn batches(sequences: &[Sequence], tokens: usize) -> impl Iterator<Item = &[Sequence]> {
    let mut rest = sequences;
    std::iter::from_fn(move || {
        let mut taken = 0;
        let fits = rest.iter().take_while(|row| {
            taken += row.tokens.len();
            taken <= tokens
        });
        let (batch, others) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Mean cross-entropy of sequences, in nats per token.
///
/// # Errors
/// As [`TrainedModel::losses`].
pub async fn held_out_loss<B: Train>(model: &mut TrainedModel<B>, sequences: &[Sequence]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for batch in batches(sequences, model.capacity().tokens) {
        let rows = rows(batch);
        sum += model.losses(&rows, LossWeights::TEXT, None).await?.cross_entropy.unwrap_or(f64::NAN);
        count += counted(&rows);
    }
    Ok(sum / count as f64)
}
