//! Calibration samples: windows of tokens.
//!
//! Documents are concatenated and cut into windows of equal length. Each window starts with the beginning-of-sequence
//! token, if the model has one. Common tools draw samples in this way.

use crate::digest::sha256_hex;
use crate::error::{Context, Error, Result};
use rand_pcg::Pcg32;
use rand_pcg::rand_core::{Rng, SeedableRng};
use serde_json::Value;

/// Fewer tokens give a warning: the statistics of a wide layer are then mostly noise.
const FEW_TOKENS: u64 = 100_000;

/// Options of drawing windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleOptions {
    /// The number of windows.
    pub samples: usize,
    /// Tokens of a window, including the beginning-of-sequence token.
    pub sequence_length: usize,
    /// Seed for drawing windows from the whole text; `None` takes the first windows.
    pub shuffle: Option<u64>,
}

/// Windows of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    /// Tokens of each window, including the beginning-of-sequence token.
    pub windows: Vec<Vec<u32>>,
    /// SHA-256 of all tokens, window by window.
    pub sha256: String,
}

impl Samples {
    /// Cuts `tokens`, the concatenated documents without special tokens. All windows have full length, except when the
    /// text is too short for one.
    ///
    /// # Errors
    /// `invalid_argument` for no samples, for a window without room for two tokens, and for a text without tokens.
    pub fn new(tokens: &[u32], bos_token_id: Option<u32>, options: &SampleOptions) -> Result<Self> {
        if options.samples == 0 {
            return Err(Error::invalid_argument("expected at least one calibration sample but found 0"));
        }
        if options.sequence_length < 2 {
            return Err(Error::invalid_argument(format!(
                "expected calibration samples of at least 2 tokens but found {}",
                options.sequence_length
            )));
        }
        if tokens.is_empty() {
            return Err(Error::invalid_argument("expected calibration texts but found no token in them"));
        }
        let room = Self::room(bos_token_id, options.sequence_length);
        let mut pieces: Vec<&[u32]> = tokens.chunks_exact(room).collect();
        if pieces.is_empty() {
            pieces.push(tokens);
        }
        if let Some(seed) = options.shuffle {
            shuffle(&mut pieces, seed);
        }
        pieces.truncate(options.samples);
        let windows: Vec<Vec<u32>> = pieces
            .into_iter()
            .map(|piece| bos_token_id.into_iter().chain(piece.iter().copied()).collect())
            .collect();
        Ok(Self::of(windows))
    }

    /// Samples from existing windows.
    pub fn of(windows: Vec<Vec<u32>>) -> Self {
        let bytes: Vec<u8> = windows.iter().flatten().flat_map(|id| id.to_le_bytes()).collect();
        Self { windows, sha256: sha256_hex(&bytes) }
    }

    /// The number of windows in a text of `tokens` tokens.
    pub fn available(tokens: usize, bos_token_id: Option<u32>, sequence_length: usize) -> usize {
        let whole = tokens / Self::room(bos_token_id, sequence_length).max(1);
        whole.max(usize::from(tokens > 0))
    }

    /// Tokens of the text in a window.
    fn room(bos_token_id: Option<u32>, sequence_length: usize) -> usize {
        sequence_length.saturating_sub(usize::from(bos_token_id.is_some()))
    }

    /// Tokens in all windows.
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|window| window.len() as u64).sum()
    }

    /// A warning if there are few tokens.
    pub fn warning(&self) -> Option<String> {
        let tokens = self.tokens();
        (tokens < FEW_TOKENS).then(|| {
            format!("calibrated with {tokens} tokens; below {FEW_TOKENS} a wide layer's statistics are noisy")
        })
    }

    /// Refuses token ids outside the vocabulary.
    ///
    /// # Errors
    /// `invalid_argument` naming the id.
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<()> {
        match self.windows.iter().flatten().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => Err(Error::invalid_argument(format!(
                "expected calibration tokens below the vocabulary's {vocab_size} but found {id}"
            ))),
        }
    }
}

/// Fisher-Yates shuffle. The result depends only on the seed.
pub fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut random = Pcg32::seed_from_u64(seed);
    for last in (1..items.len()).rev() {
        // The remainder favours small numbers by less than 2^-32 for any list that fits in memory.
        let pick = random.next_u64() % (last as u64 + 1);
        items.swap(last, pick as usize);
    }
}

/// Parses each line of a JSON-lines file and maps it with `read`. Empty lines are skipped.
///
/// # Errors
/// `invalid_argument` for a line that is not JSON, and errors of `read`, both with the line number.
pub fn json_rows<T>(text: &str, read: impl Fn(&Value) -> Result<T>) -> Result<Vec<T>> {
    let line = |(index, line): (usize, &str)| {
        serde_json::from_slice(line.as_bytes())
            .map_err(|error| Error::invalid_argument(error.to_string()))
            .and_then(|value| read(&value))
            .context_with(|| format!("line {}", index + 1))
    };
    text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()).map(line).collect()
}

/// The texts of a JSON-lines file: the string under `field` of each line.
///
/// # Errors
/// `invalid_argument` with the number of a line that is not a JSON object or has no such string.
pub fn json_lines(text: &str, field: &str) -> Result<Vec<String>> {
    json_rows(text, |line| match line.get(field).and_then(Value::as_str) {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::invalid_argument(format!("expected a text under `{field}` but found none"))),
    })
}

/// Token ids of a binary file: little-endian, `size` bytes each (2 or 4).
///
/// # Errors
/// `invalid_argument` for a length that is not a multiple of the size.
pub fn binary_ids(bytes: &[u8], size: usize) -> Result<Vec<u32>> {
    if !bytes.len().is_multiple_of(size) {
        return Err(Error::invalid_argument(format!(
            "expected token ids of {size} bytes but found a file of {} bytes",
            bytes.len()
        )));
    }
    let id = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |id, &byte| id << 8 | u32::from(byte));
    Ok(bytes.chunks_exact(size).map(id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(len: u32, bos: Option<u32>, samples: usize, sequence_length: usize) -> Vec<Vec<u32>> {
        let tokens: Vec<u32> = (0..len).collect();
        let options = SampleOptions { samples, sequence_length, shuffle: None };
        Samples::new(&tokens, bos, &options).unwrap().windows
    }

    #[test]
    fn windows_are_whole_and_begin_as_the_model_expects() {
        assert_eq!(cut(10, Some(99), 5, 4), [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]);
        assert_eq!(cut(10, Some(99), 2, 4), [[99, 0, 1, 2], [99, 3, 4, 5]]);
        assert_eq!(cut(10, None, 5, 4), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(cut(2, Some(99), 5, 4), [[99, 0, 1]], "a short text makes one short window");
        for (len, bos) in [(10, Some(99)), (10, None), (2, Some(99)), (9, Some(99)), (1, None)] {
            assert_eq!(Samples::available(len as usize, bos, 4), cut(len, bos, 99, 4).len(), "{len} {bos:?}");
        }
        assert_eq!(Samples::available(0, None, 4), 0);
    }

    #[test]
    fn shuffling_draws_every_window_once_and_depends_on_the_seed() {
        let tokens: Vec<u32> = (0..400).collect();
        let draw = |seed| {
            let options = SampleOptions { samples: 100, sequence_length: 4, shuffle: Some(seed) };
            Samples::new(&tokens, None, &options).unwrap()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1).sha256, draw(2).sha256);
        let mut all: Vec<u32> = draw(3).windows.concat();
        assert_ne!(all, tokens);
        all.sort();
        assert_eq!(all, tokens);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        for (len, samples, sequence_length) in [(0, 1, 8), (9, 0, 8), (9, 1, 1), (9, 1, 0)] {
            let tokens: Vec<u32> = (0..len).collect();
            let options = SampleOptions { samples, sequence_length, shuffle: None };
            assert!(Samples::new(&tokens, Some(1), &options).is_err(), "{len} {samples} {sequence_length}");
        }
        let samples = Samples { windows: vec![vec![1, 7]], sha256: String::new() };
        assert!(samples.check_vocabulary(8).is_ok());
        assert!(samples.check_vocabulary(7).is_err());
    }

    #[test]
    fn texts_and_ids_are_read_from_files() {
        assert_eq!(json_lines("{\"text\":\"a\"}\n\n{\"text\":\"b\",\"n\":1}\n", "text").unwrap(), ["a", "b"]);
        let error = json_lines("{\"text\":\"a\"}\n{\"other\":1}", "text").unwrap_err();
        assert_eq!(error.to_string(), "line 2: expected a text under `text` but found none");
        assert!(json_lines("nothing", "text").unwrap_err().to_string().starts_with("line 1: "));
        assert_eq!(binary_ids(&[1, 0, 2, 1], 2).unwrap(), [1, 258]);
        assert_eq!(binary_ids(&[1, 0, 2, 1], 4).unwrap(), [0x0102_0001]);
        assert!(binary_ids(&[1, 0, 2], 2).is_err());
    }
}
