//! Stop conditions of a generation: end-of-sequence ids, a number of tokens, stop strings.
//!
//! A stop string can arrive in pieces. Text that may be its beginning is held back until this is decided, so no part of
//! a stop string is ever emitted. The output does not depend on how the text was cut into pieces: the stop string that
//! is complete first wins; of several that are complete at the same character, the longest.
//!
//! Not here: the context limit. A request beyond it is an error (`context_overflow`), not a stop condition.

use crate::error::{Error, Result};
use crate::options::named;

named! {
    /// Why generation ended, named as in Hugging Face's text-generation interfaces
    pub enum FinishReason {
        /// The model chose an end-of-sequence token
        EndOfSequence = "eos_token",
        /// A stop string was complete
        StopString = "stop_sequence",
        /// The token limit was reached
        MaxTokens = "length",
    }
}

/// When to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOptions {
    /// The most tokens to generate; at least 1.
    pub max_tokens: usize,
    /// Ids that end the sequence; empty to ignore them.
    pub eos_token_ids: Vec<u32>,
    /// Texts that end generation and are not part of it.
    pub stop_strings: Vec<String>,
}

/// The effect of one token on the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopStep {
    /// Text to emit; may be empty.
    pub text: String,
    /// Set when generation ends.
    pub finished: Option<FinishReason>,
}

/// The stop rules of one generation. For each token call [`StopRules::is_end_of_sequence`]. If it is false, call
/// [`StopRules::accept`] with the text that the token added. At the end call [`StopRules::finish`] once.
#[derive(Clone, Debug)]
pub struct StopRules {
    options: StopOptions,
    tokens: usize,
    /// Text held back because it may be the beginning of a stop string.
    held: String,
    /// A stop string was complete; nothing more is emitted.
    stopped: bool,
}

impl StopRules {
    /// Rules at the start of a generation.
    ///
    /// # Errors
    /// `invalid_argument` for an empty stop string or no tokens to generate.
    pub fn new(options: StopOptions) -> Result<Self> {
        if options.max_tokens == 0 {
            return Err(Error::invalid_argument("max_tokens must be at least 1 but is 0"));
        }
        if options.stop_strings.iter().any(String::is_empty) {
            return Err(Error::invalid_argument("a stop string is empty, which would stop before any text"));
        }
        Ok(Self { options, tokens: 0, held: String::new(), stopped: false })
    }

    /// Whether `id` ends the sequence. Its text is not part of the output.
    pub fn is_end_of_sequence(&self, id: u32) -> bool {
        self.options.eos_token_ids.contains(&id)
    }

    /// Tokens accepted so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens until the limit.
    pub fn tokens_left(&self) -> usize {
        self.options.max_tokens.saturating_sub(self.tokens)
    }

    /// Counts a token and takes the text that it added (empty while a character is incomplete).
    pub fn accept(&mut self, piece: &str) -> StopStep {
        self.tokens += 1;
        let mut step = self.take(piece);
        if step.finished.is_none() && self.tokens >= self.options.max_tokens {
            step.finished = Some(FinishReason::MaxTokens);
        }
        step
    }

    /// Ends the generation for `reason`. Takes the last text of the detokenizer and releases the text held back. The
    /// returned reason is [`FinishReason::StopString`] if a stop string was or is now complete, else `reason`.
    pub fn finish(&mut self, last_piece: &str, reason: FinishReason) -> StopStep {
        let mut step = self.take(last_piece);
        if step.finished.is_none() {
            step.text.push_str(&std::mem::take(&mut self.held));
            step.finished = Some(reason);
        }
        step
    }

    fn take(&mut self, piece: &str) -> StopStep {
        if self.stopped {
            return StopStep { text: String::new(), finished: Some(FinishReason::StopString) };
        }
        self.held.push_str(piece);
        if let Some(start) = self.first_stop() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            self.stopped = true;
            return StopStep { text, finished: Some(FinishReason::StopString) };
        }
        let certain = self.held.len() - self.possible_beginning();
        let rest = self.held.split_off(certain);
        StopStep { text: std::mem::replace(&mut self.held, rest), finished: None }
    }

    /// The start of the stop string that is complete first.
    fn first_stop(&self) -> Option<usize> {
        let stops = self.options.stop_strings.iter();
        let found = stops.filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        found.min().map(|(_, start)| start)
    }

    /// Bytes at the end of the held text that may be the beginning of a stop string.
    fn possible_beginning(&self) -> usize {
        let longest = self.options.stop_strings.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        (from..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| self.options.stop_strings.iter().any(|stop| stop.starts_with(&self.held[start..])))
            .map_or(0, |start| self.held.len() - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(stops: &[&str], max_tokens: usize) -> StopRules {
        let stop_strings = stops.iter().map(|s| (*s).to_owned()).collect();
        StopRules::new(StopOptions { max_tokens, eos_token_ids: vec![2, 7], stop_strings }).unwrap()
    }

    /// The emitted texts (one for each piece, one for the end), and why generation ended.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, FinishReason) {
        let mut rules = rules(stops, usize::MAX);
        let mut texts = Vec::new();
        for piece in pieces {
            let step = rules.accept(piece);
            texts.push(step.text);
            if let Some(reason) = step.finished {
                let end = rules.finish("ignored", FinishReason::MaxTokens);
                assert_eq!((end.text.as_str(), end.finished), ("", Some(reason)), "stopped stays stopped");
                return (texts, reason);
            }
        }
        let step = rules.finish("", FinishReason::EndOfSequence);
        texts.push(step.text);
        (texts, step.finished.unwrap())
    }

    #[test]
    fn stop_strings_are_held_back_and_never_emitted() {
        use FinishReason::{EndOfSequence, StopString};
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], FinishReason);
        let cases: [Case; 11] = [
            (&[], &["a", "b"], &["a", "b", ""], EndOfSequence),
            (&["END"], &["one END two"], &["one "], StopString),
            (&["END"], &["one E", "N", "D two"], &["one ", "", ""], StopString),
            (&["END"], &["one E", "N", "E"], &["one ", "", "EN", "E"], EndOfSequence),
            (&["aab"], &["aaa", "ab"], &["a", "a"], StopString),
            (&["\n\n", "User:"], &["hi\n", "there User", ":"], &["hi", "\nthere ", ""], StopString),
            // The one that is complete first wins, even if another began earlier.
            (&["abcd", "bc"], &["abcd"], &["a"], StopString),
            // Of those complete at the same character, the longest wins.
            (&["c", "abc"], &["xabc"], &["x"], StopString),
            (&["世界"], &["hello 世", "間"], &["hello ", "世間", ""], EndOfSequence),
            (&["世界"], &["hello 世", "界"], &["hello ", ""], StopString),
            (&["x"], &["", "x"], &["", ""], StopString),
        ];
        for (stops, pieces, texts, reason) in cases {
            let (found, why) = run(stops, pieces);
            assert_eq!((found.iter().map(String::as_str).collect::<Vec<_>>(), why), (texts.to_vec(), reason));
        }
    }

    #[test]
    fn tokens_and_end_of_sequence() {
        let mut counted = rules(&["stop"], 2);
        assert!(counted.is_end_of_sequence(2) && counted.is_end_of_sequence(7));
        assert!(!counted.is_end_of_sequence(3));
        assert_eq!(counted.accept("a st").finished, None);
        let step = counted.accept("o");
        assert_eq!((step.text.as_str(), step.finished), ("", Some(FinishReason::MaxTokens)));
        // The detokenizer's last text can still complete the stop string.
        let complete = counted.clone().finish("p", FinishReason::MaxTokens);
        assert_eq!((complete.text.as_str(), complete.finished), ("", Some(FinishReason::StopString)));
        let released = counted.finish("", FinishReason::MaxTokens);
        assert_eq!((released.text.as_str(), released.finished), ("sto", Some(FinishReason::MaxTokens)));
        assert_eq!(counted.tokens(), 2);
    }

    #[test]
    fn senseless_options_are_errors() {
        let options = StopOptions {
            max_tokens: 1,
            eos_token_ids: vec![],
            stop_strings: vec!["a".into(), String::new()],
        };
        assert!(StopRules::new(options.clone()).unwrap_err().message().contains("stop string"));
        let options = StopOptions { max_tokens: 0, stop_strings: vec![], ..options };
        assert!(StopRules::new(options).unwrap_err().message().contains("max_tokens"));
    }

    #[test]
    fn reasons_have_stable_names() {
        let names = [FinishReason::EndOfSequence, FinishReason::StopString, FinishReason::MaxTokens]
            .map(FinishReason::name);
        assert_eq!(names, ["eos_token", "stop_sequence", "length"]);
    }

    /// Tries every end in turn.
    fn naive(stops: &[String], text: &str) -> (String, bool) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let complete = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(longest) = complete.map(String::len).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,4}", 0..12),
        ) {
            let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let piece_refs: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (texts, reason) = run(&stop_refs, &piece_refs);
            let (expected, stopped) = naive(&stops, &pieces.concat());
            prop_assert_eq!(texts.concat(), expected);
            prop_assert_eq!(reason == FinishReason::StopString, stopped);
        }
    }
}
