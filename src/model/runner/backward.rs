//! The loss of a batch and the way back through the head. Floor 5.

use super::{EmbeddingAndHead, Runner};
use crate::backend::{Backend, BackwardStep, Columns, Element, Norm, Train};
use crate::error::Result;
use crate::model::block::Trained;

/// What stands after the blocks, as it is trained.
pub struct HeadParameters<'a, B: Train> {
    /// `[vocab_size, hidden_size]`; the embedding's where that is the head.
    pub head: &'a mut Trained<B>,
    /// `[hidden_size]`
    pub norm: &'a mut Trained<B>,
}

impl<B: Train> Runner<B> {
    /// The losses of the tokens at hand, which are behind the last block, and the derivatives of their sum, each counting `share`,
    /// by what the block gave, `[count, hidden_size]`; those by head and norm are added. `targets` are ids,
    /// [`NO_INDEX`](crate::backend::NO_INDEX) for a token whose prediction does not count.
    ///
    /// # Errors
    /// What goes wrong on the device.
    pub async fn loss_backward(
        &mut self,
        ends: &EmbeddingAndHead<B>,
        targets: &[u32],
        share: f32,
        parameters: HeadParameters<'_, B>,
    ) -> Result<(Vec<f32>, B::Buffer)> {
        let (count, width, vocabulary) = (self.hidden.count, self.config.hidden_size, self.config.vocab_size);
        let mut logits = self.backend.buffer(Element::F32, count * vocabulary)?;
        self.head(ends, &mut logits)?;
        let Self { backend, hidden, work, config, .. } = self;
        let mut ids = backend.buffer(Element::U32, count)?;
        backend.write_u32(&mut ids, targets)?;
        let mut dlogits = backend.buffer(Element::F32, count * vocabulary)?;
        let mut losses = backend.buffer(Element::F32, count)?;
        backend.backward(BackwardStep::CrossEntropy {
            logits: &logits,
            targets: &ids,
            count,
            vocabulary,
            share,
            dlogits: &mut dlogits,
            losses: &mut losses,
        })?;
        let HeadParameters { head, norm } = parameters;
        let mut normed = backend.buffer(Element::F32, count * width)?;
        backend.backward(BackwardStep::Linear {
            x: &work.normed,
            dy: &dlogits,
            columns: Columns { first: 0, len: vocabulary, stride: vocabulary },
            count,
            cols: width,
            weight: &head.value,
            dx: &mut normed,
            dweight: &mut head.gradient,
            dbias: None,
        })?;
        let mut d = backend.buffer(Element::F32, count * width)?;
        backend.backward(BackwardStep::RmsNorm {
            x: &hidden.residual,
            dy: &normed,
            count,
            norm: Norm { weight: &norm.value, width, epsilon: config.rms_norm_eps },
            dx: &mut d,
            dweight: &mut norm.gradient,
        })?;
        let mut found = vec![0.0; count];
        backend.read(&losses, 0, &mut found).await?;
        Ok((found, d))
    }

    /// Adds the derivatives by the embeddings of `tokens`, `d`, to those of the table.
    ///
    /// # Errors
    /// What goes wrong on the device.
    pub fn embed_backward(&mut self, tokens: &[u32], d: &B::Buffer, table: &mut Trained<B>) -> Result<()> {
        let (backend, width) = (&mut self.backend, self.config.hidden_size);
        let mut ids = backend.buffer(Element::U32, tokens.len())?;
        backend.write_u32(&mut ids, tokens)?;
        backend.backward(BackwardStep::Embed {
            tokens: &ids,
            dx: d,
            count: tokens.len(),
            rows: self.config.vocab_size,
            width,
            dtable: &mut table.gradient,
        })
    }
}
