//! Training data, and batches of it.
//!
//! A [`Document`] is tokens with a loss mask. A [`Corpus`] cuts documents into pieces of at most `context` tokens,
//! shuffles them anew in each epoch, and packs pieces into batches. A batch is a function of a seed and a [`Position`]
//! alone, so a resumed run gets the batches that the interrupted one would have got.
//!
//! Each token is predicted from the tokens before it in its piece. Each piece starts with the beginning-of-sequence
//! token, if the model has one, as calibration samples and validation windows do; otherwise with the token before the
//! piece. Inputs are therefore `[bos, t0, .., t(n-2)]` for targets `[t0, .., t(n-1)]`.
//!
//! [`read`] makes documents from files, [`questions`] from questions with answers, and `chats` from conversations. Not
//! here: opening files, and padding of batches.

#[cfg(feature = "tokenizer")]
pub mod chats;
pub mod questions;
pub mod read;

use crate::backend::NO_INDEX;
use crate::calibrate::samples::shuffle;
use crate::error::{Context, Error, Result};
use rand_pcg::Pcg32;
use rand_pcg::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How a document may be cut, and which special tokens are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentKind {
    /// Running text. May be cut anywhere; no end token is added.
    Text,
    /// A document of its own, between beginning-of-sequence and end-of-sequence tokens.
    Row,
    /// A row that contains its special tokens: none are added.
    Complete,
}

/// Tokens to learn from, with a loss mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The loss mask, one flag per token: whether its prediction counts.
    pub counts: Vec<bool>,
    /// How it may be cut.
    pub kind: DocumentKind,
}

impl Document {
    /// Running text in which every token counts.
    pub fn text(tokens: Vec<u32>) -> Self {
        Self { counts: vec![true; tokens.len()], tokens, kind: DocumentKind::Text }
    }

    /// A row in which every token counts.
    pub fn row(tokens: Vec<u32>) -> Self {
        Self { kind: DocumentKind::Row, ..Self::text(tokens) }
    }
}

/// A piece of a document, as the model's input and targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, from one to the corpus's `context`.
    pub tokens: Vec<u32>,
    /// As many: the next token of each, or [`NO_INDEX`] if that prediction does not count.
    pub targets: Vec<u32>,
}

/// A run's position in its corpus. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Completed epochs.
    pub epoch: u64,
    /// Pieces of this epoch that were seen.
    pub index: usize,
    /// The highest level whose documents this epoch contains; 0: all levels.
    #[serde(default)]
    pub level: usize,
}

impl Position {
    /// The beginning of the next epoch, with documents up to `level`.
    pub fn on_level(self, level: usize) -> Self {
        Self { epoch: self.epoch.saturating_add(1), index: 0, level }
    }
}

/// Documents, ready to be cut into pieces.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Rows include their `eos`. No text or row includes a leading `bos`.
    documents: Vec<Document>,
    /// The level of each document; empty without levels.
    levels: Vec<usize>,
    bos: Option<u32>,
    context: usize,
    predictions: u64,
    /// Tokens of the longest piece.
    longest: usize,
    epoch: Option<Epoch>,
}

/// The pieces of an epoch, in the order in which they are seen.
#[derive(Clone, Debug)]
struct Epoch {
    seed: u64,
    epoch: u64,
    level: usize,
    pieces: Vec<Piece>,
}

/// The predictions of `tokens[start..end]` of a document.
#[derive(Clone, Copy, Debug)]
struct Piece {
    document: usize,
    start: usize,
    end: usize,
}

impl Corpus {
    /// Documents for a model with a context of `context` tokens and ids below `vocab_size`. Each piece of a text or a
    /// row starts with `bos`, which is not doubled. A row that does not end with `eos` gets one, which counts if the
    /// row's last token does.
    ///
    /// # Errors
    /// `invalid_argument` for no documents and for a context of 0. With the document's number, from 1: also for a
    /// document without a prediction or with none that counts, and for an id outside the vocabulary.
    pub fn new(
        documents: Vec<Document>,
        bos: Option<u32>,
        eos: Option<u32>,
        context: usize,
        vocab_size: usize,
    ) -> Result<Self> {
        if documents.is_empty() {
            return Err(Error::invalid_argument("expected documents to learn from but found none"));
        }
        if context == 0 {
            return Err(Error::invalid_argument("expected a context of at least 1 token but found 0"));
        }
        for (name, id) in [("beginning", bos), ("end", eos)] {
            check_ids(id.as_slice(), vocab_size)
                .context_with(|| format!("the token for the {name} of a sequence"))?;
        }
        let mut corpus = Self {
            documents: Vec::new(),
            levels: Vec::new(),
            bos,
            context,
            predictions: 0,
            longest: 0,
            epoch: None,
        };
        for (index, document) in documents.into_iter().enumerate() {
            let document = corpus
                .prepare(document, eos, vocab_size)
                .context_with(|| format!("document {}", index + 1))?;
            corpus.documents.push(document);
        }
        Ok(corpus)
    }

    /// The same corpus, with the level of each document, from 1 on.
    ///
    /// # Errors
    /// `invalid_argument` if there are not as many levels as documents.
    pub fn graded(self, levels: Vec<usize>) -> Result<Self> {
        if levels.len() != self.documents.len() {
            return Err(Error::invalid_argument(format!(
                "expected the levels of {} documents but found {}",
                self.documents.len(),
                levels.len()
            )));
        }
        Ok(Self { levels, epoch: None, ..self })
    }

    /// All sequences of an epoch, in batches of at most `tokens`.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn sequences(mut self, tokens: usize) -> Result<Vec<Sequence>> {
        let (mut position, mut all) = (Position::default(), Vec::new());
        while position.epoch == 0 {
            let (batch, next) = self.batch(0, position, tokens)?;
            all.extend(batch);
            position = next;
        }
        Ok(all)
    }

    /// Levels with documents, easiest first.
    pub fn levels(&self) -> BTreeSet<usize> {
        self.levels.iter().copied().collect()
    }

    /// Checks a document, adds its counts to the totals, and appends the `eos` of a row.
    fn prepare(&mut self, mut document: Document, eos: Option<u32>, vocab_size: usize) -> Result<Document> {
        let Document { tokens, counts, kind } = &mut document;
        if tokens.len() != counts.len() {
            return Err(Error::invalid_argument(format!(
                "expected a loss mask of {} entries, one per token, but found {}",
                tokens.len(),
                counts.len()
            )));
        }
        check_ids(tokens, vocab_size)?;
        if *kind != DocumentKind::Complete && self.bos.is_some() && tokens.first() == self.bos.as_ref() {
            tokens.remove(0);
            counts.remove(0);
        }
        if *kind == DocumentKind::Row
            && let (Some(eos), Some(&last), Some(&counted)) = (eos, tokens.last(), counts.last())
            && last != eos
        {
            tokens.push(eos);
            counts.push(counted);
        }
        let first = self.first(*kind).min(tokens.len());
        let predicted = tokens.len() - first;
        if predicted == 0 {
            return Err(Error::invalid_argument("expected a token to predict but found none"));
        }
        let counted = counts[first..].iter().filter(|&&counts| counts).count();
        if counted == 0 {
            return Err(Error::invalid_argument(
                "expected a token whose prediction counts but all are masked",
            ));
        }
        self.predictions += counted as u64;
        self.longest = self.longest.max(predicted.min(self.context));
        Ok(document)
    }

    /// The special token before every piece of a document.
    fn front(&self, kind: DocumentKind) -> Option<u32> {
        self.bos.filter(|_| kind != DocumentKind::Complete)
    }

    /// The first token that is predicted: without a special token before it, a document's own first token is not.
    fn first(&self, kind: DocumentKind) -> usize {
        usize::from(self.front(kind).is_none())
    }

    /// Predictions of an epoch that count.
    pub fn predictions(&self) -> u64 {
        self.predictions
    }

    /// Tokens of all documents, `eos` of rows included, `bos` of pieces not.
    pub fn tokens(&self) -> u64 {
        self.documents.iter().map(|document| document.tokens.len() as u64).sum()
    }

    /// The batch at a position, and the position of the next one. Pieces are packed in order until the next would
    /// exceed `tokens_per_batch`. They do not attend to each other. The last batch of an epoch may be short.
    ///
    /// The cost is that of the batch; a new seed, epoch or level costs a pass over the corpus.
    ///
    /// # Errors
    /// `invalid_argument` for batches smaller than the longest piece, and for a position outside the corpus.
    pub fn batch(
        &mut self,
        seed: u64,
        at: Position,
        tokens_per_batch: usize,
    ) -> Result<(Vec<Sequence>, Position)> {
        if tokens_per_batch < self.longest {
            return Err(Error::invalid_argument(format!(
                "expected batches of at least {} tokens, the longest piece's, but found {tokens_per_batch}",
                self.longest
            )));
        }
        let is_at_hand = |held: &Epoch| (held.seed, held.epoch, held.level) == (seed, at.epoch, at.level);
        let epoch = match self.epoch.take().filter(is_at_hand) {
            Some(epoch) => epoch,
            None => self.draw(seed, at.epoch, at.level),
        };
        let pieces = epoch.pieces.get(at.index..).unwrap_or(&[]);
        let (mut batch, mut tokens) = (Vec::new(), 0);
        for piece in pieces {
            tokens += piece.end - piece.start;
            if tokens > tokens_per_batch {
                break;
            }
            batch.push(self.sequence(piece));
        }
        let (seen, all) = (at.index.saturating_add(batch.len()), epoch.pieces.len());
        self.epoch = Some(epoch);
        if batch.is_empty() {
            return Err(Error::invalid_argument(format!(
                "expected a position below {all} in epoch {} but found {}: the corpus has changed",
                at.epoch, at.index
            )));
        }
        let next = match seen == all {
            true => at.on_level(at.level),
            false => Position { index: seen, ..at },
        };
        Ok((batch, next))
    }

    /// Cuts every document and shuffles the pieces. The first piece of a text has a random length in each epoch, so
    /// that cuts fall on different tokens. A document that fits in one piece is never cut.
    fn draw(&self, seed: u64, epoch: u64, level: usize) -> Epoch {
        // Decorrelates neighbouring seeds and epochs.
        let key = seed ^ Pcg32::seed_from_u64(epoch).next_u64();
        let mut random = Pcg32::seed_from_u64(key);
        let order = random.next_u64();
        let mut pieces = Vec::new();
        for (index, document) in self.documents.iter().enumerate() {
            if level > 0 && self.levels.get(index).is_some_and(|&of_document| of_document > level) {
                continue;
            }
            let (mut start, len) = (self.first(document.kind), document.tokens.len());
            let mut left = self.context;
            if document.kind == DocumentKind::Text && len - start > self.context {
                left = 1 + (random.next_u64() % self.context as u64) as usize;
            }
            while start < len {
                let end = len.min(start.saturating_add(left));
                if document.counts[start..end].contains(&true) {
                    pieces.push(Piece { document: index, start, end });
                }
                (start, left) = (end, self.context);
            }
        }
        shuffle(&mut pieces, order);
        Epoch { seed, epoch, level, pieces }
    }

    fn sequence(&self, &Piece { document, start, end }: &Piece) -> Sequence {
        let Document { tokens, counts, kind } = &self.documents[document];
        // `first` skips a first token that has nothing before it.
        let front = self.front(*kind).unwrap_or_else(|| tokens[start - 1]);
        let targets = tokens[start..end].iter().zip(&counts[start..end]);
        Sequence {
            tokens: [&[front], &tokens[start..end - 1]].concat(),
            targets: targets.map(|(&token, &counts)| if counts { token } else { NO_INDEX }).collect(),
        }
    }
}

fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    let is_outside = |id: &&u32| **id as usize >= vocab_size || **id == NO_INDEX;
    match ids.iter().find(is_outside) {
        None => Ok(()),
        Some(id) => Err(Error::invalid_argument(format!("expected ids below {vocab_size} but found {id}"))),
    }
}

#[cfg(test)]
mod tests;
