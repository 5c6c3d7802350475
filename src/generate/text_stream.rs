//! Streaming detokenizer: every piece is whole characters, and the pieces together are the decoded text.
//!
//! Tokens are not pieces of text. A byte-level token can be half a character, and many tokenizers keep or drop a
//! leading space depending on the text before it. So new text is a difference, as in Hugging Face's text-generation
//! server: decode a short window of the last tokens with and without the new one.
//!
//! 1. The window holds the tokens of the last piece (context for spaces) and the tokens after it.
//! 2. Decode the window. The text after the emitted part is new, except incomplete characters at its end.
//! 3. When nothing is incomplete, the window moves on by one piece.
//!
//! Departures: 1. Incomplete characters decode to U+FFFD. A character has at most four bytes, so only the last three
//! such marks can still become one. Older marks are emitted, so a model that writes broken bytes does not stall the
//! stream.
//! 2. Tokens without text (special tokens) do not enter the window, and a long window is cut where decoding its two
//! parts gives the same text. So the work for each token stays bounded. 3. A tokenizer can change text that was already
//! emitted: the byte-fallback decoder turns a whole run of byte tokens into marks when one byte is wrong. The emitted
//! text then stays, and the rest is decoded alone.

use crate::error::Result;

/// Turns token ids into text; special tokens give none.
pub trait Detokenize {
    /// The text of `ids`. Bytes that are not UTF-8, including an incomplete character at the end, give U+FFFD.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    fn decode(&self, ids: &[u32]) -> Result<String>;
}

impl<D: Detokenize + ?Sized> Detokenize for &D {
    fn decode(&self, ids: &[u32]) -> Result<String> {
        (**self).decode(ids)
    }
}

/// U+FFFD marks at the end of a text that can still become a character.
const MAX_INCOMPLETE_MARKS: usize = 3;

/// Tokens of the prompt that give the first piece its context.
const CONTEXT_TOKENS: usize = 16;

/// Window length, in tokens, from which on it is cut.
const LONG_WINDOW: usize = 48;

/// Decodes a growing sequence of tokens; see the module's documentation.
#[derive(Clone, Debug)]
pub struct TextStream<D> {
    detokenizer: D,
    window: Vec<u32>,
    /// The emitted part of the window's text, context included.
    shown: String,
    /// Tokens of the window whose text is emitted in full.
    read: usize,
    /// Window length at which the next cut is tried.
    cut_at: usize,
}

impl<D: Detokenize> TextStream<D> {
    /// A stream whose pieces together are the decoded text of all pushed tokens.
    pub fn new(detokenizer: D) -> Self {
        Self { detokenizer, window: Vec::new(), shown: String::new(), read: 0, cut_at: LONG_WINDOW }
    }

    /// A stream that continues `context`: it emits the space between the context and the first token.
    /// [`TextStream::new`] starts as if the new tokens were decoded alone.
    ///
    /// # Errors
    /// Those of the detokenizer.
    pub fn after(detokenizer: D, context: &[u32]) -> Result<Self> {
        let mut stream = Self::new(detokenizer);
        stream.window = context[context.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        stream.shown = stream.detokenizer.decode(&stream.window)?;
        stream.read = stream.window.len();
        Ok(stream)
    }

    /// Adds a token and returns the new text; empty while a character is incomplete.
    ///
    /// # Errors
    /// Those of the detokenizer; the stream is then unchanged.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let piece = self.advance();
        if piece.is_err() {
            self.window.pop();
        }
        piece
    }

    /// Ends the text and returns the rest, with U+FFFD for an incomplete character. Resets the stream.
    ///
    /// # Errors
    /// Those of the detokenizer.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.detokenizer.decode(&self.window)?;
        let piece = match text.strip_prefix(self.shown.as_str()) {
            Some(rest) => rest.to_owned(),
            None => self.detokenizer.decode(&self.window[self.read..])?,
        };
        self.window.clear();
        self.shown.clear();
        self.read = 0;
        self.cut_at = LONG_WINDOW;
        Ok(piece)
    }

    fn advance(&mut self) -> Result<String> {
        let mut text = self.detokenizer.decode(&self.window)?;
        if text == self.shown && self.last_is_silent()? {
            self.window.pop();
            return Ok(String::new());
        }
        if !text.starts_with(self.shown.as_str()) {
            text = self.detokenizer.decode(&self.window[self.read..])?;
            self.window.drain(..self.read);
            self.shown.clear();
            self.read = 0;
        }
        let certain = text.len() - incomplete_end(&text);
        if certain <= self.shown.len() {
            self.cut_long_window(&text)?;
            return Ok(String::new());
        }
        let piece = text[self.shown.len()..certain].to_owned();
        if certain == text.len() {
            let tail = self.detokenizer.decode(&self.window[self.read..])?;
            self.window.drain(..self.read);
            self.shown = tail;
            self.read = self.window.len();
            self.cut_at = LONG_WINDOW;
        } else {
            self.shown = text[..certain].to_owned();
            self.cut_long_window(&text)?;
        }
        Ok(piece)
    }

    /// Whether the last token has no text at all, not even twice in a row. (A single space at the start of a text can
    /// be dropped, two are not.)
    fn last_is_silent(&self) -> Result<bool> {
        match self.window.last() {
            Some(&id) => Ok(self.detokenizer.decode(&[id, id])?.is_empty()),
            None => Ok(true),
        }
    }

    /// Drops emitted tokens from a window that grew long without a clean end, as a run of broken bytes does.
    fn cut_long_window(&mut self, text: &str) -> Result<()> {
        if self.window.len() < self.cut_at {
            return Ok(());
        }
        // The last tokens may still become a character, so the cut is before them.
        for keep in MAX_INCOMPLETE_MARKS + 1..=2 * MAX_INCOMPLETE_MARKS {
            let at = self.window.len() - keep;
            let (head, tail) =
                (self.detokenizer.decode(&self.window[..at])?, self.detokenizer.decode(&self.window[at..])?);
            let same = text.strip_prefix(head.as_str()) == Some(tail.as_str());
            if same && !tail.is_empty() && head.len() <= self.shown.len() {
                self.shown.drain(..head.len());
                self.window.drain(..at);
                self.read = self.read.saturating_sub(at);
                self.cut_at = LONG_WINDOW;
                return Ok(());
            }
        }
        // No place found: try again when the window has doubled, so that the search stays cheap.
        self.cut_at = 2 * self.window.len();
        Ok(())
    }
}

/// Bytes at the end of `text` that may still change: up to three U+FFFD.
fn incomplete_end(text: &str) -> usize {
    let marks =
        text.chars().rev().take(MAX_INCOMPLETE_MARKS).take_while(|&c| c == char::REPLACEMENT_CHARACTER);
    marks.count() * char::REPLACEMENT_CHARACTER.len_utf8()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use proptest::prelude::*;
    use std::cell::Cell;

    /// A byte-level vocabulary as GPT-2's: ids below 256 are that byte, 256 is special, the rest are longer tokens.
    #[derive(Default)]
    struct ByteLevel {
        decoded: Cell<usize>,
    }

    const LONG_TOKENS: [&[u8]; 5] = [b" the", b"\xe4\xb8", b"\x96\xe7\x95", "é".as_bytes(), b"\x9f\x98\x80!"];

    impl Detokenize for ByteLevel {
        fn decode(&self, ids: &[u32]) -> Result<String> {
            self.decoded.set(self.decoded.get() + ids.len());
            let mut bytes = Vec::new();
            for &id in ids {
                match id {
                    0..256 => bytes.push(id as u8),
                    256 => {}
                    _ => bytes.extend_from_slice(
                        LONG_TOKENS
                            .get(id as usize - 257)
                            .ok_or_else(|| Error::invalid_argument("no such id"))?,
                    ),
                }
            }
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }

    /// A vocabulary as Llama 2's, with `▁` for a space and byte fallback. The first space of a text is dropped. A run
    /// of bytes that is not UTF-8 becomes one mark for each byte. Ids below 256 are bytes, 256 is special.
    struct Metaspace;

    const WORDS: [&str; 8] = ["▁", "▁the", "▁bird", "s", ",", "▁▁", "世", "."];

    impl Detokenize for Metaspace {
        fn decode(&self, ids: &[u32]) -> Result<String> {
            let mut text = String::new();
            let mut run: Vec<u8> = Vec::new();
            let end_run = |run: &mut Vec<u8>, text: &mut String| {
                match std::str::from_utf8(run) {
                    Ok(whole) => text.push_str(whole),
                    Err(_) => text.extend(run.iter().map(|_| char::REPLACEMENT_CHARACTER)),
                }
                run.clear();
            };
            for &id in ids.iter().filter(|&&id| id != 256) {
                if id < 256 {
                    run.push(id as u8);
                } else {
                    end_run(&mut run, &mut text);
                    text.push_str(&WORDS[id as usize - 257].replace('▁', " "));
                }
            }
            end_run(&mut run, &mut text);
            Ok(text.strip_prefix(' ').map_or(text.clone(), str::to_owned))
        }
    }

    fn pieces<D: Detokenize>(mut stream: TextStream<D>, ids: &[u32]) -> Vec<String> {
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    #[test]
    fn half_characters_are_held_back() {
        let cases: [(&[u32], &[&str]); 7] = [
            (&[104, 105], &["h", "i", ""]),
            (&[0xc3, 0xa9, 33], &["", "é", "!", ""]),
            (&[258, 259, 0x8c], &["", "世", "界", ""]),
            // An incomplete character at the end shows only when the stream ends.
            (&[97, 0xe4, 0xb8], &["a", "", "", "\u{fffd}"]),
            // A broken byte is emitted once the next byte is no continuation.
            (&[0xff, 97], &["", "\u{fffd}a", ""]),
            (&[256, 97, 256, 256, 98, 256], &["", "a", "", "", "b", "", ""]),
            (&[0xf0, 261], &["", "😀!", ""]),
        ];
        for (ids, expected) in cases {
            assert_eq!(pieces(TextStream::new(ByteLevel::default()), ids), expected, "{ids:?}");
        }
    }

    #[test]
    fn spaces_depend_on_what_stands_before() {
        let (the, bird, s) = (258, 259, 260);
        let ids = [the, bird, s, 256, bird];
        assert_eq!(pieces(TextStream::new(Metaspace), &ids), ["the", " bird", "s", "", " bird", ""]);
        let after = TextStream::after(Metaspace, &[256, the]).unwrap();
        assert_eq!(pieces(after, &[bird, s]), [" bird", "s", ""]);
        let after_special = TextStream::after(Metaspace, &[256]).unwrap();
        assert_eq!(pieces(after_special, &[bird]), ["bird", ""]);
        // A single space at the start is emitted with the next token.
        assert_eq!(pieces(TextStream::new(Metaspace), &[257, the]), ["", " the", ""]);
    }

    #[test]
    fn what_was_shown_stays_when_a_byte_run_turns_out_broken() {
        let euro: Vec<u32> = "€".bytes().map(u32::from).collect();
        let ids = [euro.as_slice(), &[0xff, 261]].concat();
        assert_eq!(Metaspace.decode(&ids).unwrap(), "\u{fffd}\u{fffd}\u{fffd}\u{fffd},");
        assert_eq!(pieces(TextStream::new(Metaspace), &ids).concat(), "€\u{fffd},");
    }

    #[test]
    fn an_error_leaves_the_stream_where_it_was() {
        let mut stream = TextStream::new(ByteLevel::default());
        assert_eq!(stream.push(0xc3).unwrap(), "");
        assert!(stream.push(9999).is_err());
        assert_eq!(stream.push(0xa9).unwrap(), "é");
    }

    #[test]
    fn work_for_each_token_is_bounded() {
        // Words, broken bytes, and an endless run of special tokens.
        for ids in
            [vec![97; 2000], vec![0xff; 2000], vec![0xe4; 2000], vec![256; 2000], [258, 256].repeat(1000)]
        {
            let mut stream = TextStream::new(ByteLevel::default());
            for &id in &ids {
                stream.push(id).unwrap();
            }
            let average = stream.detokenizer.decoded.get() / ids.len();
            assert!(average <= 2 * LONG_WINDOW, "{average} tokens decoded for each of {}...", ids[0]);
        }
    }

    /// The byte tokens of a character outside the vocabulary: not ASCII, and not U+FFFD itself.
    fn byte_fallback_char() -> impl Strategy<Value = Vec<u32>> {
        proptest::char::ranges(std::borrow::Cow::Borrowed(&[
            '\u{80}'..='\u{d7ff}',
            '\u{e000}'..='\u{10ffff}',
        ]))
        .prop_filter("the mark itself", |&c| c != char::REPLACEMENT_CHARACTER)
        .prop_map(|c| c.to_string().bytes().map(u32::from).collect())
    }

    proptest! {
        #[test]
        fn byte_level_pieces_are_the_whole_text(ids in prop::collection::vec(0u32..262, 0..200)) {
            let tokenizer = ByteLevel::default();
            let pieces = pieces(TextStream::new(&tokenizer), &ids);
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids).unwrap());
        }

        #[test]
        fn byte_level_text_never_shows_a_mark(text in "[^\u{fffd}]{0,40}") {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            let pieces = pieces(TextStream::new(ByteLevel::default()), &ids);
            for piece in &pieces {
                prop_assert!(piece.chars().count() <= 1, "each piece is one character");
            }
            prop_assert_eq!(pieces.concat(), text);
        }

        #[test]
        fn metaspace_pieces_are_the_whole_text(
            parts in prop::collection::vec(prop_oneof![
                (256u32..265).prop_map(|id| vec![id]),
                byte_fallback_char(),
            ], 0..60),
            context in prop::collection::vec(257u32..265, 0..5),
        ) {
            let ids = parts.concat();
            let alone = pieces(TextStream::new(Metaspace), &ids).concat();
            prop_assert_eq!(alone, Metaspace.decode(&ids).unwrap());
            let after = pieces(TextStream::after(Metaspace, &context).unwrap(), &ids).concat();
            let together = Metaspace.decode(&context).unwrap() + &after;
            prop_assert_eq!(together, Metaspace.decode(&[context, ids].concat()).unwrap());
        }
    }
}
