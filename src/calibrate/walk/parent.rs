//! Runs the parent of a site, attention or the MLP, with one candidate's weights after the other, and compares what it gives with
//! what it gave before. Floor 7.

use super::blobs::{PARENT, Stream};
use super::{Run, Walk};
use crate::backend::{Backend, Sums};
use crate::error::{Error, Result};
use crate::model::block::Site;
use crate::model::spill::{Carrier, Place};
use crate::task::{self, Control};

/// Tokens on which attention and MLP are run to compare candidates; whole samples, so perhaps some more.
const PARENT_TOKENS: usize = 4096;

impl<'a, B: Backend> Walk<'a, B> {
    /// Whether attention or MLP can be run from the site to its end, and is more than the layer that reads the site.
    pub fn has_parent(site: Site) -> bool {
        matches!(site, Site::Attention | Site::Mlp)
    }

    /// Runs attention or the MLP, whichever the site begins, on the first samples, as the block is now, and keeps the
    /// outputs to measure others by.
    pub async fn keep_parent_outputs(&mut self, control: &dyn Control) -> Result<()> {
        self.scratch.delete(PARENT).await?;
        for run in self.parent_runs() {
            task::checkpoint(control).await?;
            self.run_parent(run, None).await?;
            let (width, place) = (self.config.hidden_size, self.parent_place(run));
            let (carrier, backend, output) = self.parent_output();
            carrier.save(backend, output, run.count, width, place).await?;
        }
        Ok(())
    }

    /// The mean of the squared distance of its outputs to those that were kept, with the input divided by `scales`, `[width]`.
    /// Where it is more than `least`, it may be less than it would be for all samples: nobody wants to know.
    pub async fn parent_loss(&mut self, scales: &[f32], least: f64, control: &dyn Control) -> Result<f64> {
        let width = self.config.hidden_size;
        let runs = self.parent_runs();
        let count = runs.iter().map(|run| run.count * width).sum::<usize>().max(1) as f64;
        let mut reader = Carrier::default();
        let mut loss = 0.0;
        for run in runs {
            task::checkpoint(control).await?;
            self.run_parent(run, Some(scales)).await?;
            let kept = reader.fetch(run.count, width, self.parent_place(run)).await?;
            let (carrier, backend, output) = self.parent_output();
            let output = carrier.rows(backend, output, run.count, width).await?;
            loss += squared_distance(output, kept) / count;
            if loss > least {
                break;
            }
        }
        Ok(loss)
    }

    /// Runs of whole samples, from the first on, until there are tokens enough.
    fn parent_runs(&self) -> Vec<Run> {
        let mut runs = self.runs();
        let mut tokens = 0;
        let enough = self.samples.windows.iter().position(|window| {
            tokens += window.len();
            tokens >= PARENT_TOKENS
        });
        runs.retain(|run| enough.is_none_or(|last| run.sample <= last));
        runs
    }

    fn parent_place(&self, run: Run) -> Place<'a> {
        Place { scratch: self.scratch, blob: PARENT, first: run.row }
    }

    /// Runs attention or the MLP on some tokens, with the input divided by `scales`.
    async fn run_parent(&mut self, run: Run, scales: Option<&[f32]>) -> Result<()> {
        // What rounding does to the outputs is far more.
        self.backend.set_sums(Sums::Coarse);
        let done = self.run_parent_as_set(run, scales).await;
        self.backend.set_sums(Sums::Reordered);
        done
    }

    async fn run_parent_as_set(&mut self, run: Run, scales: Option<&[f32]>) -> Result<()> {
        self.bring_back_divided(run, Stream::Quantized, scales).await?;
        let mlp = self.site == Some(Site::Mlp);
        self.step(if mlp { Site::Down } else { Site::Output }, run.past, Stream::Quantized)?;
        let Self { backend, work, hidden, .. } = self;
        let Some(block) = &self.block else {
            return Err(Error::invalid_argument("expected a block that was entered"));
        };
        if mlp { block.finish(backend, hidden, work) } else { block.attention_out(backend, run.count, work) }
    }

    /// Where its outputs are, and what brings them to the host.
    fn parent_output(&mut self) -> (&mut Carrier, &mut B, &B::Buffer) {
        let output =
            if self.site == Some(Site::Mlp) { &self.hidden.delta } else { self.work.attention_out() };
        (&mut self.carrier, &mut self.backend, output)
    }
}

/// Sum of the squares of the differences.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    /// Sums at a time: each waits for its last addition.
    const SUMS: usize = 16;
    let mut sums = [0.0; SUMS];
    for (a, b) in a.chunks(SUMS).zip(b.chunks(SUMS)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(a - b) * f64::from(a - b);
        }
    }
    sums.iter().sum()
}
