//! Runs of tokens of several sequences, cut into chunks that are processed together.

use super::{CausalLm, KvCache};
use crate::backend::Backend;
use crate::error::{Error, ErrorCode, Result};

/// New tokens of one sequence of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The index of the sequence.
    pub sequence: usize,
    /// The tokens that continue the sequence in the cache.
    pub tokens: &'a [u32],
}

impl<'a> Run<'a> {
    /// A run of a cache's only sequence.
    pub fn only(tokens: &'a [u32]) -> Self {
        Self { sequence: 0, tokens }
    }
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// The index of the run.
    pub(super) run: usize,
    /// The index of the sequence.
    pub(super) sequence: usize,
    /// The index of the first token in the run.
    pub(super) first: usize,
    pub(super) tokens: &'a [u32],
}

impl<'a> Piece<'a> {
    /// Splits each run: all but its last `last` tokens, and these last tokens.
    pub(super) fn split(runs: &[Run<'a>], last: usize) -> (Vec<Self>, Vec<Self>) {
        let pieces = runs.iter().enumerate().map(|(run, &Run { sequence, tokens })| {
            let at = tokens.len().saturating_sub(last);
            Self { run, sequence, first: 0, tokens }.split_at(at)
        });
        pieces.unzip()
    }

    fn split_at(self, at: usize) -> (Self, Self) {
        let (front, rest) = self.tokens.split_at(at);
        (Self { tokens: front, ..self }, Self { first: self.first + at, tokens: rest, ..self })
    }
}

/// Cuts pieces into chunks of `most` tokens; the last chunk may be shorter. Tokens of a sequence stay in order.
pub(super) fn chunks(pieces: Vec<Piece<'_>>, most: usize) -> Vec<Vec<Piece<'_>>> {
    let mut chunks: Vec<Vec<Piece<'_>>> = Vec::new();
    let mut room = 0;
    for mut piece in pieces {
        while !piece.tokens.is_empty() {
            if room == 0 {
                chunks.push(Vec::new());
                room = most;
            }
            let (now, later) = piece.split_at(piece.tokens.len().min(room));
            room -= now.tokens.len();
            chunks.last_mut().expect("there is room in one").push(now);
            piece = later;
        }
    }
    chunks
}

impl<B: Backend> CausalLm<B> {
    /// Refuses tokens outside the vocabulary, and runs that do not fit in the cache.
    pub(super) fn check_runs(&self, runs: &[Run<'_>], cache: &KvCache<B>) -> Result<()> {
        for (index, Run { sequence, tokens }) in runs.iter().enumerate() {
            if *sequence >= cache.sequences() {
                return Err(Error::invalid_argument(format!(
                    "expected sequences below the cache's {} but found {sequence}",
                    cache.sequences()
                )));
            }
            if runs[..index].iter().any(|other| other.sequence == *sequence) {
                return Err(Error::invalid_argument(format!(
                    "expected one run of each sequence but found two of sequence {sequence}"
                )));
            }
            check_room(cache, *sequence, tokens.len())?;
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.runner.config.vocab_size)
            {
                return Err(Error::invalid_argument(format!(
                    "expected token ids below the vocabulary's {} but found {token}",
                    self.runner.config.vocab_size
                )));
            }
        }
        Ok(())
    }
}

/// Refuses more tokens of a sequence than the cache has room for.
pub(super) fn check_room<B: Backend>(cache: &KvCache<B>, sequence: usize, tokens: usize) -> Result<()> {
    let needed = cache.len(sequence) + tokens;
    if needed > cache.capacity() {
        return Err(Error::new(
            ErrorCode::ContextOverflow,
            format!("expected at most {} positions in the cache but {needed} are needed", cache.capacity()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_full_and_have_every_token_once() {
        let tokens: Vec<u32> = (0..30).collect();
        let runs = [(2, 0..7), (0, 7..7), (1, 7..8), (5, 8..30)]
            .map(|(sequence, range)| Run { sequence, tokens: &tokens[range] });
        let piece = |run, sequence, first, range: std::ops::Range<usize>| Piece {
            run,
            sequence,
            first,
            tokens: &tokens[range],
        };
        let (rest, last) = Piece::split(&runs, 1);
        assert_eq!(
            chunks(rest, 10),
            [
                vec![piece(0, 2, 0, 0..6), piece(3, 5, 0, 8..12)],
                vec![piece(3, 5, 4, 12..22)],
                vec![piece(3, 5, 14, 22..29)],
            ]
        );
        assert_eq!(
            chunks(last, 10),
            [vec![piece(0, 2, 6, 6..7), piece(2, 1, 0, 7..8), piece(3, 5, 21, 29..30)]]
        );
        let (rest, last) = Piece::split(&runs, usize::MAX);
        assert_eq!((chunks(rest, 3).len(), chunks(last, 3).len()), (0, 10));
    }
}
