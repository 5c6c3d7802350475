//! Cuts a text into the windows that are scored.
//!
//! The protocol is the usual one. The text is tokenized whole, without special tokens. Windows do not overlap unless a
//! stride is given. The beginning-of-sequence token precedes each window and is not scored.

use crate::digest::sha256_hex;
use crate::error::{Error, Result};
use crate::tokenizer::{TextCodec, unify_line_ends};
use std::ops::Range;

/// A tokenized text.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// As given.
    pub name: String,
    /// SHA-256 of the text.
    pub sha256: String,
    /// Without special tokens.
    pub tokens: Vec<u32>,
    /// Precedes every window. Without such a token, the first token of each window is not scored.
    pub bos_token_id: Option<u32>,
}

impl Dataset {
    /// Tokenizes `text`. Line ends of any system are read as `\n`, as other tools read text files.
    ///
    /// # Errors
    /// `invalid_argument` for a text without a token to score.
    pub fn new(name: impl Into<String>, text: &str, codec: &dyn TextCodec) -> Result<Self> {
        let name = name.into();
        let tokens = codec.encode(&unify_line_ends(text)).map_err(|error| error.context(name.clone()))?;
        let bos_token_id = codec.bos_token_id();
        if tokens.len() + usize::from(bos_token_id.is_some()) < 2 {
            return Err(Error::invalid_argument(format!(
                "{name}: expected a text but found no token to score"
            )));
        }
        Ok(Self { name, sha256: sha256_hex(text.as_bytes()), tokens, bos_token_id })
    }

    /// The windows of the text.
    ///
    /// # Errors
    /// `invalid_argument` for a context or a stride that leaves nothing to score.
    pub fn windows(&self, options: &WindowOptions) -> Result<Vec<Window>> {
        let bos = usize::from(self.bos_token_id.is_some());
        if options.context < 2 {
            return Err(Error::invalid_argument(format!(
                "expected a context of at least 2 tokens but found {}",
                options.context
            )));
        }
        let room = options.context - bos;
        // Without a token before it, a window's first token cannot be predicted.
        let unscored = 1 - bos;
        let stride = options.stride.unwrap_or(room);
        if stride == 0 || stride > room - unscored && options.stride.is_some() {
            return Err(Error::invalid_argument(format!(
                "expected a stride between 1 and {} but found {stride}",
                room - unscored
            )));
        }
        let mut windows = Vec::new();
        let mut scored_until = 0;
        for start in (0..self.tokens.len()).step_by(stride) {
            let end = self.tokens.len().min(start + room);
            let scored = (start + unscored).max(scored_until)..end;
            if !scored.is_empty() {
                windows.push(Window { start, scored });
            }
            scored_until = end;
            if end == self.tokens.len() {
                break;
            }
        }
        Ok(windows)
    }

    /// The model's input for `window`: the `bos`, if any, then the window's text without its last token.
    pub fn inputs(&self, window: &Window) -> Vec<u32> {
        let text = &self.tokens[window.start..window.scored.end - 1];
        self.bos_token_id.into_iter().chain(text.iter().copied()).collect()
    }

    /// The token after input `index` of `window`, if it is scored in this window.
    pub fn target(&self, window: &Window, index: usize) -> Option<u32> {
        let position = window.start + index + 1 - usize::from(self.bos_token_id.is_some());
        window.scored.contains(&position).then(|| self.tokens[position])
    }
}

/// How a text is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowOptions {
    /// Tokens of a window, the `bos` included.
    pub context: usize,
    /// Tokens from the start of one window to the next; `None`: windows do not overlap. A token is scored at most once,
    /// in the first window that can predict it.
    pub stride: Option<usize>,
}

/// One window: the text from `start` on, of which the tokens in `scored` are scored (indices into the text).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first text token in the window.
    pub start: usize,
    /// The scored text tokens.
    pub scored: Range<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(len: u32, bos: Option<u32>) -> Dataset {
        Dataset { name: "t".into(), sha256: String::new(), tokens: (0..len).collect(), bos_token_id: bos }
    }

    fn cut(len: u32, bos: Option<u32>, context: usize, stride: Option<usize>) -> Vec<(usize, Range<usize>)> {
        let windows = dataset(len, bos).windows(&WindowOptions { context, stride }).unwrap();
        windows.into_iter().map(|window| (window.start, window.scored)).collect()
    }

    #[test]
    fn windows_cover_the_text_as_the_protocol_says() {
        assert_eq!(cut(7, Some(99), 4, None), [(0, 0..3), (3, 3..6), (6, 6..7)]);
        // Without a `bos`, the first token of each window is not scored.
        assert_eq!(cut(7, None, 4, None), [(0, 1..4), (4, 5..7)]);
        assert_eq!(cut(7, Some(99), 5, Some(2)), [(0, 0..4), (2, 4..6), (4, 6..7)]);
    }

    #[test]
    fn every_token_is_scored_once_whatever_the_stride() {
        for (len, context) in [(1, 2), (10, 4), (33, 8), (8, 8), (9, 8)] {
            for stride in (1..context).map(Some).chain([None]) {
                let mut next = 0;
                for (start, scored) in cut(len, Some(0), context, stride) {
                    assert_eq!(scored.start, next);
                    assert!(scored.end - start < context);
                    next = scored.end;
                }
                assert_eq!(next, len as usize, "context {context}, stride {stride:?}");
            }
        }
    }

    #[test]
    fn inputs_and_targets_line_up() {
        for bos in [Some(99), None] {
            let data = dataset(9, bos);
            let windows = data.windows(&WindowOptions { context: 4, stride: Some(2) }).unwrap();
            let mut scored = Vec::new();
            for window in &windows {
                for (index, input) in data.inputs(window).into_iter().enumerate() {
                    if let Some(target) = data.target(window, index) {
                        assert!(input == 99 && target == 0 || target == input + 1);
                        scored.push(target);
                    }
                }
            }
            assert_eq!(scored, (u32::from(bos.is_none())..9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn contexts_and_strides_that_score_nothing_are_refused() {
        let data = dataset(9, Some(99));
        for (context, stride) in [(0, None), (1, None), (4, Some(0)), (4, Some(4))] {
            assert!(data.windows(&WindowOptions { context, stride }).is_err(), "{context} {stride:?}");
        }
    }
}
