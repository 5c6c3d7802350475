//! A run: step after step over a text, judged by another one, kept as it goes, and able to go back.

use super::blocks::BlockReport;
use super::corpus::{Corpus, Position, Sequence};
use super::curriculum::{Curriculum, Mastered};
use super::optimizer::{Optimizer, Rate};
use super::schedule::Schedule;
use super::state::{Best, Notes, StateFolder};
use super::teacher::Teacher;
use super::{Goal, Row, TrainedModel, counted};
use crate::backend::Train;
use crate::error::{Error, ErrorCode, Result};
use crate::model::runner::LossSums;
use crate::task::{self, Control, Progress};

/// How a run goes.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOptions {
    /// What is made smaller.
    pub goal: Goal,
    /// How fast.
    pub schedule: Schedule,
    /// Batches whose gradients are added up for a step.
    pub accumulate: usize,
    /// In what order the text is seen.
    pub seed: u64,
    /// Steps from one look at the held-out text to the next; 0: at the end alone.
    pub evaluate_every: u64,
    /// Steps after which the state is kept; positive.
    pub keep_every: u64,
    /// What the result depends on beside these options: the model, the texts.
    pub key: String,
}

/// Most times that a run goes back before it gives up.
const MOST_RETURNS: u32 = 3;

/// What happens in a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It goes on from a state that was kept.
    Resumed {
        /// Steps that are done.
        step: u64,
    },
    /// A block was trained alone.
    Block(BlockReport),
    /// A step is done.
    Step(StepReport),
    /// The held-out text was looked at.
    Evaluated {
        /// Steps that are done.
        step: u64,
        /// Mean loss, in nats a token.
        loss: f64,
        /// Whether it is the best so far.
        is_best: bool,
    },
    /// The level of a curriculum that is learned was looked at.
    Level(Mastered),
    /// Loss or gradient were no numbers: the run went back to the state that was kept last, goes on behind the batch that it met, and
    /// learns half as fast.
    WentBack {
        /// The step that met it.
        from: u64,
        /// Steps that are done now.
        to: u64,
        /// What was met.
        reason: String,
    },
}

/// A step that is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Mean over the predictions that count, before the step: what the goal makes of both.
    pub loss: f64,
    /// Cross-entropy, where it counts.
    pub cross_entropy: Option<f64>,
    /// Divergence from the teacher, where it counts.
    pub divergence: Option<f64>,
    /// The gradient's length, before it was shortened.
    pub gradient: f64,
    /// Learning rate.
    pub rate: f64,
    /// Tokens that were seen so far.
    pub tokens: u64,
    /// How often the whole text was seen.
    pub epoch: u64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// Steps.
    pub steps: u64,
    /// Tokens.
    pub tokens: u64,
    /// Mean loss of the held-out text before the first step, in nats a token.
    pub first: Option<f64>,
    /// The parameters that the model has now, where a held-out text chose them.
    pub best: Option<Best>,
}

/// Until when a run has time. Its result then depends on how fast the machine is.
#[derive(Clone, Copy)]
pub struct TimeLimit<'a> {
    /// Seconds since some fixed moment.
    pub clock: &'a dyn Fn() -> f64,
    /// When the last step has to be done.
    pub end: f64,
}

/// Steps after which it is known how many there is time for: fewer than a warmup has, so that what they learned does not depend on it.
const TIMED_STEPS: u64 = 5;

/// Everything that a run works on.
pub struct Run<'a, B: Train> {
    /// The model.
    pub model: &'a mut TrainedModel<B>,
    /// What has seen the gradients.
    pub optimizer: Optimizer<B>,
    /// Whose predictions are learned.
    pub teacher: Option<&'a mut Teacher<B>>,
    /// What is learned from.
    pub corpus: &'a mut Corpus,
    /// What the best is chosen by; may be empty.
    pub held_out: &'a [Sequence],
    /// In what order what is learned from is taken up; `None`: all at once.
    pub curriculum: Option<&'a Curriculum>,
    /// Where the state is kept.
    pub state: StateFolder<'a>,
    /// How it goes.
    pub options: RunOptions,
    /// Until when it has time: it then takes as many steps as there is time for, and its learning rate falls within them.
    pub limit: Option<TimeLimit<'a>>,
}

impl<B: Train> Run<'_, B> {
    /// Runs to the end, from where a run of the same kind was stopped; the result is the same to the last bit. The model then has
    /// the best parameters, or the last ones without a held-out text.
    ///
    /// # Errors
    /// `non_finite` when losses are no numbers again and again; `cancelled`, with the state kept; what goes wrong on the device and in the
    /// folder.
    pub async fn run(mut self, tell: &dyn Fn(Event), control: &dyn Control) -> Result<Ended> {
        let key = self.options.key.clone();
        let mut notes = Notes { key: key.clone(), ..Notes::default() };
        if let Some(kept) = self.state.restore(self.model, &mut self.optimizer, &key).await? {
            self.model.bring().await?;
            tell(Event::Resumed { step: kept.step });
            notes = kept;
        }
        if let (Some(curriculum), 0) = (self.curriculum, notes.position.level) {
            notes.position.level = curriculum.first();
        }
        let begun = self.limit.map(|limit| (limit.clock)());
        let planned = self.options.schedule;
        while notes.step < self.options.schedule.steps {
            if let (Some(TimeLimit { clock, end }), Some(begun)) = (self.limit, begun) {
                let (now, step, schedule) = (clock(), notes.step, &mut self.options.schedule);
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
            if self.is_time_to_look(notes.step) {
                self.look(&mut notes, tell).await?;
            }
            if notes.step.is_multiple_of(self.options.keep_every) {
                self.keep(&mut notes).await?;
            }
            if let Err(cancelled) = task::checkpoint(control).await {
                self.keep(&mut notes).await?;
                return Err(cancelled);
            }
            control.progress(&Progress { phase: "train", done: notes.step, total: steps, item: "" });
            let before = notes.position;
            match self.step(&mut notes).await {
                Ok(report) => tell(Event::Step(report)),
                Err(error) if error.code() == ErrorCode::NonFinite => {
                    self.go_back(&mut notes, before, error, tell).await?;
                }
                Err(error) => return Err(error),
            }
        }
        self.look(&mut notes, tell).await?;
        if let Some(best) = notes.best.filter(|best| best.step != notes.step) {
            self.state.take_best(self.model, &key).await?;
            self.model.bring().await?;
            notes.best = Some(best);
        }
        Ok(Ended { steps: notes.step, tokens: notes.tokens, first: notes.first, best: notes.best })
    }

    fn is_time_to_look(&self, step: u64) -> bool {
        let every = self.options.evaluate_every;
        step == 0 || every > 0 && step.is_multiple_of(every)
    }

    async fn keep(&mut self, notes: &mut Notes) -> Result<()> {
        notes.updates = self.optimizer.steps();
        self.state.keep(self.model, &mut self.optimizer, notes).await
    }

    /// Judges the model by the held-out text, and keeps it where it is the best so far.
    async fn look(&mut self, notes: &mut Notes, tell: &dyn Fn(Event)) -> Result<()> {
        let step = notes.step;
        // A run that goes on has looked already.
        if self.held_out.is_empty() || notes.looked == Some(step) {
            return Ok(());
        }
        let loss = held_out_loss(self.model, self.held_out).await?;
        let is_best = loss.is_finite() && notes.best.is_none_or(|best| loss < best.loss);
        notes.looked = Some(step);
        if step == 0 {
            notes.first = Some(loss);
        }
        if is_best {
            notes.best = Some(Best { step, loss });
            self.state.keep_best(self.model, notes).await?;
        }
        tell(Event::Evaluated { step, loss, is_best });
        while let Some(curriculum) = self.curriculum {
            let looked = curriculum.look(self.model, notes.position.level).await?;
            tell(Event::Level(looked));
            let Some(next) = looked.next else { break };
            notes.position = notes.position.on_level(next);
        }
        Ok(())
    }

    /// One step, after which what was learned runs.
    async fn step(&mut self, notes: &mut Notes) -> Result<StepReport> {
        let Self { model, optimizer, teacher, corpus, options, .. } = self;
        let RunOptions { goal, schedule, accumulate, seed, .. } = options;
        let mut position = notes.position;
        let mut batches = Vec::with_capacity(*accumulate);
        for _ in 0..*accumulate {
            let (batch, next) = corpus.batch(*seed, position, model.room().tokens)?;
            position = next;
            batches.push(batch);
        }
        // Behind it even where this fails.
        notes.position = position;
        let count: usize = batches.iter().map(|batch| counted(&rows(batch))).sum();
        let share = 1.0 / count as f64;
        model.zero_gradients()?;
        let mut sums = LossSums::default();
        for batch in &batches {
            let part = model.backward(&rows(batch), *goal, teacher.as_deref_mut(), share as f32).await?;
            let add = |sum: Option<f64>, part: Option<f64>| part.map(|part| part + sum.unwrap_or(0.0));
            sums.cross_entropy = add(sums.cross_entropy, part.cross_entropy);
            sums.divergence = add(sums.divergence, part.divergence);
        }
        let loss = goal.loss(sums) * share;
        if !loss.is_finite() {
            return Err(Error::new(ErrorCode::NonFinite, format!("expected a loss but found {loss}")));
        }
        let Rate { rate, decay } = schedule.at(notes.step);
        let rate = rate / f64::from(1u32 << notes.returns.min(30));
        let gradient = optimizer.step(&mut **model, Rate { rate, decay }).await?;
        model.bring().await?;
        notes.step += 1;
        notes.tokens += batches.iter().flatten().map(|row| row.tokens.len() as u64).sum::<u64>();
        Ok(StepReport {
            step: notes.step,
            loss,
            cross_entropy: sums.cross_entropy.map(|sum| sum * share),
            divergence: sums.divergence.map(|sum| sum * share),
            gradient,
            rate,
            tokens: notes.tokens,
            epoch: notes.position.epoch,
        })
    }

    /// Takes up the last state that was kept, and leaves the batches up to the one that went wrong out.
    async fn go_back(
        &mut self,
        notes: &mut Notes,
        before: Position,
        error: Error,
        tell: &dyn Fn(Event),
    ) -> Result<()> {
        let (from, behind, returns) = (notes.step, notes.position, notes.returns + 1);
        let given_up = |why: &str| Err(error.clone().context(format!("step {}, {why}", from + 1)));
        if returns > MOST_RETURNS {
            return given_up(&format!("after going back {MOST_RETURNS} times"));
        }
        if behind == before {
            return given_up("whose batch has no end");
        }
        match self.state.restore(self.model, &mut self.optimizer, &notes.key).await? {
            // The best that was kept since then is still there.
            Some(kept) => {
                *notes = Notes { position: behind, returns, best: notes.best.or(kept.best), ..kept }
            }
            None => return given_up("before anything was kept"),
        }
        self.model.bring().await?;
        // So that a run which is stopped goes back to here as well.
        self.keep(notes).await?;
        tell(Event::WentBack { from: from + 1, to: notes.step, reason: error.to_string() });
        Ok(())
    }
}

/// Sequences as a model is given them.
pub fn rows(batch: &[Sequence]) -> Vec<Row<'_>> {
    batch.iter().map(|sequence| Row { tokens: &sequence.tokens, targets: &sequence.targets }).collect()
}

/// As many sequences at a time as a model has room for; one that is too long comes alone, and is refused by name there.
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

/// Mean cross-entropy of sequences, in nats a token.
///
/// # Errors
/// As [`TrainedModel::losses`]'s.
pub async fn held_out_loss<B: Train>(model: &mut TrainedModel<B>, sequences: &[Sequence]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for batch in batches(sequences, model.room().tokens) {
        let rows = rows(batch);
        sum += model.losses(&rows, Goal::TEXT, None).await?.cross_entropy.unwrap_or(f64::NAN);
        count += counted(&rows);
    }
    Ok(sum / count as f64)
}
