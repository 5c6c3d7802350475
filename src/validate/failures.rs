//! Finds generated text that is plainly broken: loops, degenerate text, non-finite logits, no output.
//!
//! Each detector looks for damage that a reader sees at once, and has a threshold with a reason. Style, truth and
//! grammar are not judged: plausible but wrong words are measured by perplexity. Small models loop by themselves, so
//! only a failure that the original does not show on the same prompt counts in the verdict.

use crate::generate::FinishReason;
use crate::options::named;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

named! {
    /// A kind of failure in a generated text
    #[derive(PartialOrd, Ord)]
    pub enum FailureKind {
        /// The text ends in a repeating cycle of tokens
        RepetitionLoop = "repetition_loop",
        /// Little variety, or mostly characters that are not text
        DegenerateText = "degenerate_text",
        /// The model's logits contain NaN or infinity
        NonFiniteLogits = "non_finite_logits",
        /// Only white space was generated
        EmptyOutput = "empty_output",
    }
}

/// A failure found in one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// One sentence with the figures.
    pub detail: String,
}

/// A failure of the quantized model on one prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptFailure {
    /// The prompt's text.
    pub prompt: String,
    /// The kind of failure.
    pub kind: FailureKind,
    /// One sentence with the figures.
    pub detail: String,
    /// Whether the original fails in the same way on this prompt; then quantization is not the cause.
    pub original_also: bool,
    /// The generated text, without the prompt. Of a very long text only the end, after an ellipsis. Empty in reports of
    /// versions that did not record it.
    #[serde(default)]
    pub text: String,
}

/// Characters of a text in a report: many times the usual 64 tokens, and at most about a page if the token limit is
/// high.
const MAX_TEXT_CHARS: usize = 2000;

/// The quantized model's failures in `text`, generated after `prompt`, compared with the original's.
pub fn compare(prompt: &str, text: &str, original: &[Failure], quantized: &[Failure]) -> Vec<PromptFailure> {
    let with_prompt = |failure: &Failure| PromptFailure {
        prompt: prompt.to_owned(),
        kind: failure.kind,
        detail: failure.detail.clone(),
        original_also: original.iter().any(|other| other.kind == failure.kind),
        text: bounded(text),
    };
    quantized.iter().map(with_prompt).collect()
}

/// The text, or an ellipsis and its last [`MAX_TEXT_CHARS`] characters: loops and broken logits show at the end.
fn bounded(text: &str) -> String {
    match text.char_indices().rev().nth(MAX_TEXT_CHARS - 1) {
        Some((start, _)) if start > 0 => format!("…{}", &text[start..]),
        _ => text.to_owned(),
    }
}

/// A generated text, without its prompt.
#[derive(Clone, Copy, Debug)]
pub struct Generated<'a> {
    /// Generated ids, without the end-of-sequence token.
    pub token_ids: &'a [u32],
    /// Their text.
    pub text: &'a str,
    /// Why generation ended; `None` after an error, such as a NaN.
    pub finish_reason: Option<FinishReason>,
    /// Whether a logit was NaN or plus infinity at any step.
    pub non_finite_logits: bool,
}

/// Repeats above which a truncated text is in a loop: the third round has begun, and only the token limit ended it. Two
/// repeats are a refrain ("And miles to go before I sleep").
const CUT_OFF_REPEATS: f64 = 2.0;
/// Shorter loops may be laughter, a drum roll or a row of table cells.
const CUT_OFF_LOOP_TOKENS: usize = 16;
/// The loop's share of a truncated text. Small models fall into loops late: a real one takes 30% of 64 tokens.
const CUT_OFF_LOOP_SHARE: f64 = 0.25;

/// A text that ended by itself left its loop, so the loop must be long and most of the text to count.
const ENDED_REPEATS: f64 = 4.0;
/// See [`ENDED_REPEATS`]: a chorus of "let it be" sung four times is 16 tokens.
const ENDED_LOOP_TOKENS: usize = 32;
/// See [`ENDED_REPEATS`].
const ENDED_LOOP_SHARE: f64 = 0.5;

/// Tokens at the end over which variety is measured.
const VARIETY_WINDOW: usize = 64;
/// Fewer tokens say nothing about variety.
const VARIETY_MIN_TOKENS: usize = 32;
/// Shannon entropy of the tokens in the window. 2 bits is the variety of four equally frequent tokens. Greedy texts of
/// a model with 260,000 parameters have at least 4.9 bits, digits of a number 3.3.
const MIN_ENTROPY_BITS: f64 = 2.0;

/// A run of one character that is this long and fills [`MAX_RUN_SHARE`] of the text is no ruler or heading.
const MAX_RUN_CHARS: usize = 32;
/// See [`MAX_RUN_CHARS`].
const MAX_RUN_SHARE: f64 = 0.5;

/// Up to this many replacement marks and control characters can be one character that the token limit truncated.
const MAX_CUT_MARKS: usize = 3;
/// Replacement marks, control and private-use characters as a fraction of all.
const MAX_NON_TEXT_SHARE: f64 = 0.1;

/// Characters other than white space needed to judge the fraction of letters and digits.
const SYMBOLS_MIN_CHARS: usize = 32;
/// Letters and digits as a fraction of characters other than white space. Dense code has 65%, a table drawn with lines
/// 40%, a matrix in brackets 35%.
const MIN_LETTER_SHARE: f64 = 0.2;

/// All failures of one text, at most one of each kind.
pub fn detect(generated: &Generated<'_>) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut found = |kind, detail: Option<String>| {
        failures.extend(detail.map(|detail| Failure { kind, detail }));
    };
    if generated.non_finite_logits {
        let after = generated.token_ids.len();
        found(
            FailureKind::NonFiniteLogits,
            Some(format!("the model gave a logit that is NaN or infinite after {after} tokens or earlier")),
        );
    }
    if generated.text.trim().is_empty() {
        // If a NaN stopped generation at once, the empty text is its consequence.
        if !generated.non_finite_logits {
            let tokens = generated.token_ids.len();
            found(FailureKind::EmptyOutput, Some(format!("{tokens} generated tokens gave no visible text")));
        }
        return failures;
    }
    let in_loop = repetition_loop(generated);
    // A short cycle also has little variety: one symptom, one finding.
    let degenerate = non_text(generated.text)
        .or_else(|| character_run(generated.text))
        .or_else(|| symbols(generated.text))
        .or_else(|| if in_loop.is_none() { little_variety(generated.token_ids) } else { None });
    found(FailureKind::RepetitionLoop, in_loop);
    found(FailureKind::DegenerateText, degenerate);
    failures
}

fn repetition_loop(generated: &Generated<'_>) -> Option<String> {
    let total = generated.token_ids.len();
    let ended =
        matches!(generated.finish_reason, Some(FinishReason::EndOfSequence | FinishReason::StopString));
    let (min_repeats, min_tokens, min_share) = if ended {
        (ENDED_REPEATS, ENDED_LOOP_TOKENS, ENDED_LOOP_SHARE)
    } else {
        (CUT_OFF_REPEATS, CUT_OFF_LOOP_TOKENS, CUT_OFF_LOOP_SHARE)
    };
    let (period, length) = periodic_tail(generated.token_ids, |period, length| {
        // A complete text may end exactly after the last round; in a truncated text the next round must have begun.
        let repeats = length as f64 / period as f64;
        let enough = if ended { repeats >= min_repeats } else { repeats > min_repeats };
        enough && length >= min_tokens && length as f64 >= min_share * total as f64
    })?;
    Some(format!("the last {length} of {total} tokens repeat a cycle of {period} tokens"))
}

/// The shortest cycle `(period, length of the tail that repeats it)` that satisfies `is_loop`.
fn periodic_tail(ids: &[u32], is_loop: impl Fn(usize, usize) -> bool) -> Option<(usize, usize)> {
    let total = ids.len();
    (1..=total / 2).find_map(|period| {
        let matching = (period..total).rev().take_while(|&i| ids[i] == ids[i - period]).count();
        let length = period + matching;
        is_loop(period, length).then_some((period, length))
    })
}

fn little_variety(ids: &[u32]) -> Option<String> {
    if ids.len() < VARIETY_MIN_TOKENS {
        return None;
    }
    let window = &ids[ids.len().saturating_sub(VARIETY_WINDOW)..];
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for &id in window {
        *counts.entry(id).or_default() += 1;
    }
    let total = window.len() as f64;
    let entropy: f64 = counts.values().map(|&n| -(n as f64 / total) * libm::log2(n as f64 / total)).sum();
    (entropy < MIN_ENTROPY_BITS).then(|| {
        format!(
            "the last {} tokens have {} different ones and {entropy:.2} bits of entropy",
            window.len(),
            counts.len()
        )
    })
}

fn non_text(text: &str) -> Option<String> {
    let total = text.chars().count();
    let broken = text.chars().filter(|&c| is_non_text(c)).count();
    (broken > MAX_CUT_MARKS && broken as f64 > MAX_NON_TEXT_SHARE * total as f64).then(|| {
        format!("{broken} of {total} characters are replacement marks, control or private characters")
    })
}

fn is_non_text(c: char) -> bool {
    let private = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}');
    c == char::REPLACEMENT_CHARACTER || private || (c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

fn character_run(text: &str) -> Option<String> {
    let (mut longest, mut run, mut last, mut total) = ((0, ' '), 0, None, 0);
    for c in text.chars() {
        run = if last == Some(c) { run + 1 } else { 1 };
        last = Some(c);
        total += 1;
        if run > longest.0 {
            longest = (run, c);
        }
    }
    let (length, c) = longest;
    (length >= MAX_RUN_CHARS && length as f64 >= MAX_RUN_SHARE * f64::from(total))
        .then(|| format!("{length} of {total} characters are a run of {c:?}"))
}

fn symbols(text: &str) -> Option<String> {
    let visible = text.chars().filter(|c| !c.is_whitespace()).count();
    let letters = text.chars().filter(|c| c.is_alphanumeric()).count();
    (visible >= SYMBOLS_MIN_CHARS && (letters as f64) < MIN_LETTER_SHARE * visible as f64)
        .then(|| format!("only {letters} of {visible} visible characters are letters or digits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use FailureKind::*;
    use FinishReason::{EndOfSequence, MaxTokens};

    /// Words, runs of white space and other single characters: coarse, but it repeats where the text does.
    fn tokens(text: &str) -> Vec<u32> {
        let mut ids = BTreeMap::new();
        let mut tokens = Vec::new();
        let mut push = |token: &str| {
            if !token.is_empty() {
                let next = ids.len() as u32;
                tokens.push(*ids.entry(token.to_owned()).or_insert(next));
            }
        };
        let mut word = String::new();
        for c in text.chars() {
            let ascii_word = c.is_ascii_alphanumeric();
            if !(ascii_word || c == ' ') || (c == ' ' && !word.trim().is_empty()) {
                push(&std::mem::take(&mut word));
            }
            if ascii_word || c == ' ' {
                word.push(c);
            } else {
                push(&c.to_string());
            }
        }
        push(&word);
        tokens
    }

    fn kinds(text: &str, finish_reason: FinishReason) -> Vec<FailureKind> {
        // Drops a trailing space: no tokenizer ends a text with half a token.
        let token_ids = tokens(text.trim_end());
        let generated = Generated {
            token_ids: &token_ids,
            text,
            finish_reason: Some(finish_reason),
            non_finite_logits: false,
        };
        detect(&generated).into_iter().map(|failure| failure.kind).collect()
    }

    #[test]
    fn good_texts_are_not_flagged() {
        let cases = [
            "The kettle was still warm when Anna came in from the garden with mud on both sleeves.",
            "To mend a tyre you need a patch, glue, sandpaper and ten minutes. First find the hole. Then clean it, \
             rub it, glue it and wait.",
            "- apples\n- pears\n- plums\n- a bag of flour\n- two lemons\n- soap\n",
            "Buy milk, bread, milk for the neighbour, bread for the ducks, and milk again.",
            // A refrain returns, with verses between.
            "The tide goes out, the tide comes in,\nand I am waiting still.\nThe boats are grey, the ropes are thin,\n\
             and I am waiting still.\nThe gulls complain, the lamps begin,\nand I am waiting still.",
            // A repeated last line is a stylistic choice.
            "The lamp is low, the road is deep,\nI have a promise yet to keep,\nand far to go, and far to go,\n\
             and far to go before I sleep,\nand far to go before I sleep.",
            "\"Ha ha ha ha!\" said the clown. \"Ha ha ha ha ha!\" said the children.",
            "The clown bowed low and everybody laughed: ha ha ha ha ha ha",
            "for i in 0..rows {\n    for j in 0..cols {\n        out[i * cols + j] = a[i * cols + j] + b[j];\n    }\n}\n",
            "| name | size |\n|------|------|\n| one  |    1 |\n| two  |    2 |\n| six  |    6 |\n",
            "# Results\n----------------------------------------\nThe second run was faster than the first one, as expected.",
            "3.14159265358979323846264338327950288419716939937510",
            "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24",
            "[[1, 0, 0], [0, 1, 0], [0, 0, 1]]",
            "春天来了,花园里的花都开了。小女孩和她的爷爷一起坐在长椅上,看着孩子们放风筝。",
            "Привет! Сегодня в городе тихо, идёт снег, и на площади никого нет.",
            "안녕하세요. 오늘은 날씨가 맑아서 강가를 오래 걸었습니다.",
            "Great news 😀😀😀 we won 🎉🎉🎉",
            "Yes.",
            "42",
            // The token limit truncated an emoji into replacement marks.
            "See you tomorrow \u{fffd}\u{fffd}\u{fffd}",
            "He wanted the red ball. He wanted the blue ball. He wanted the green ball. He wanted to go home.",
        ];
        for text in cases {
            assert_eq!(kinds(text, MaxTokens), [], "{text}");
            assert_eq!(kinds(text, EndOfSequence), [], "{text}");
        }
    }

    #[test]
    fn broken_texts_are_flagged() {
        let story = "Mira walked to the old mill by the river and looked for her lost kite in the grass. ";
        let line = "She had not found the kite yet. ";
        let marks = "\u{fffd}".repeat(12);
        let dashes = "-".repeat(200);
        let cases: [(String, &[FailureKind]); 15] = [
            // The third round has begun at the token limit.
            (format!("{story}{line}{line}She had"), &[RepetitionLoop]),
            (line.repeat(6), &[RepetitionLoop]),
            ("the ".repeat(40), &[RepetitionLoop]),
            (format!("{story}{}", "and then and then ".repeat(8)), &[RepetitionLoop]),
            ("0, ".repeat(30), &[RepetitionLoop]),
            (
                "a b b a a b a b b a b a a b b a a a b a b b b a a b a a b b a b b a a b b a".into(),
                &[DegenerateText],
            ),
            (marks.clone(), &[DegenerateText]),
            (format!("The sky {marks} is"), &[DegenerateText]),
            ("\u{1}\u{2}\u{3}x\u{4}\u{5}\u{6}".into(), &[DegenerateText]),
            ("\u{e000}\u{e001}\u{e002}\u{e003}\u{e004} the".into(), &[DegenerateText]),
            (format!("Well {dashes}"), &[RepetitionLoop, DegenerateText]),
            ("){;,=(]}.+ ;)([{,:=} ]{(;.) ,=)(;}{ ].:;,=({)".into(), &[DegenerateText]),
            (format!("ok{}.", "\n".repeat(90)), &[DegenerateText]),
            (String::new(), &[EmptyOutput]),
            (" \n\t ".into(), &[EmptyOutput]),
        ];
        for (text, expected) in cases {
            assert_eq!(kinds(&text, MaxTokens), expected, "{text}");
        }
    }

    #[test]
    fn texts_that_ended_by_themselves_need_more_to_be_loops() {
        let line = "She had not found the kite yet. ";
        for (repeats, expected) in
            [(2, vec![]), (3, vec![]), (5, vec![RepetitionLoop]), (9, vec![RepetitionLoop])]
        {
            assert_eq!(kinds(&line.repeat(repeats), EndOfSequence), expected, "{repeats} times");
        }
    }

    #[test]
    fn the_edges_of_a_loop() {
        let check = |ids: &[u32], reason| {
            repetition_loop(&Generated {
                token_ids: ids,
                text: "x",
                finish_reason: reason,
                non_finite_logits: false,
            })
        };
        let cycle =
            |period: u32, length: usize| (0..length as u32).map(|i| 100 + i % period).collect::<Vec<_>>();
        let after =
            |prefix: usize, tail: Vec<u32>| (1000..1000 + prefix as u32).chain(tail).collect::<Vec<_>>();
        let cases: [(&str, Vec<u32>, bool); 8] = [
            ("two rounds of nine", cycle(9, 18), false),
            ("and one token of the third", cycle(9, 19), true),
            ("fifteen times the same", cycle(1, 15), false),
            ("sixteen times the same", cycle(1, 16), true),
            ("a quarter of the text", after(57, cycle(9, 19)), true),
            ("less than a quarter", after(58, cycle(9, 19)), false),
            ("no tokens", vec![], false),
            ("a loop that was left again", [cycle(3, 30), after(1, vec![])].concat(), false),
        ];
        for (name, ids, expected) in cases {
            assert_eq!(check(&ids, Some(MaxTokens)).is_some(), expected, "{name}");
            assert_eq!(check(&ids, None).is_some(), expected, "{name}, stopped by an error");
        }
        assert_eq!(
            check(&after(45, cycle(9, 19)), Some(MaxTokens)).unwrap(),
            "the last 19 of 64 tokens repeat a cycle of 9 tokens"
        );
        assert!(check(&cycle(8, 32), Some(EndOfSequence)).is_some());
        assert!(check(&cycle(8, 31), Some(EndOfSequence)).is_none());
        assert!(check(&after(33, cycle(8, 32)), Some(EndOfSequence)).is_none());
    }

    #[test]
    fn non_finite_logits_are_their_own_failure() {
        let run = |text, token_ids: &[u32]| {
            let generated = Generated { token_ids, text, finish_reason: None, non_finite_logits: true };
            detect(&generated).into_iter().map(|failure| failure.kind).collect::<Vec<_>>()
        };
        assert_eq!(run("", &[]), [NonFiniteLogits], "an empty text is the consequence, not a second failure");
        assert_eq!(run("The kettle was", &[1, 2, 3]), [NonFiniteLogits]);
        assert_eq!(run("the the", &[1; 40]), [NonFiniteLogits, RepetitionLoop]);
    }

    #[test]
    fn only_the_same_kind_on_the_same_prompt_excuses() {
        let failure = |kind| Failure { kind, detail: "d".into() };
        let both = [failure(RepetitionLoop), failure(DegenerateText)];
        let found = compare("p", "t", &[failure(RepetitionLoop)], &both);
        let excused: Vec<_> =
            found.iter().map(|f| (f.prompt.as_str(), f.text.as_str(), f.kind, f.original_also)).collect();
        assert_eq!(excused, [("p", "t", RepetitionLoop, true), ("p", "t", DegenerateText, false)]);
    }

    #[test]
    fn a_report_keeps_the_end_of_a_long_text() {
        let kept = |text: &str| {
            let failure = Failure { kind: DegenerateText, detail: "d".into() };
            compare("p", text, &[], &[failure]).remove(0).text
        };
        let long = "é".repeat(MAX_TEXT_CHARS);
        let cases = [
            (String::new(), String::new()),
            ("the the".into(), "the the".into()),
            (long.clone(), long.clone()),
            (format!("ab{long}"), format!("…{long}")),
            (format!("{long}ab"), format!("…{}ab", "é".repeat(MAX_TEXT_CHARS - 2))),
        ];
        for (text, expected) in cases {
            assert_eq!(kept(&text), expected);
        }
    }

    #[test]
    fn reports_without_the_text_are_read() {
        let json = r#"{"prompt":"p","kind":"empty_output","detail":"d","original_also":false}"#;
        let failure: PromptFailure = serde_json::from_str(json).unwrap();
        assert_eq!((failure.kind, failure.text.as_str()), (EmptyOutput, ""));
    }

    #[test]
    fn kinds_have_stable_names() {
        let names = [RepetitionLoop, DegenerateText, NonFiniteLogits, EmptyOutput].map(FailureKind::name);
        assert_eq!(names, ["repetition_loop", "degenerate_text", "non_finite_logits", "empty_output"]);
        assert_eq!(serde_json::to_value(NonFiniteLogits).unwrap(), NonFiniteLogits.name());
    }

    /// Greedy texts of two small models: one of eight is in a loop, the one that a reader would pick.
    #[test]
    fn greedy_texts_of_real_models() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/expected/greedy.json");
        let Ok(text) = std::fs::read_to_string(path) else {
            println!("skipped: no shared expectations beside the repository");
            return;
        };
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut flagged = Vec::new();
        for row in expected["rows"].as_array().unwrap() {
            let token_ids: Vec<u32> =
                row["new_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let failures = detect(&Generated {
                token_ids: &token_ids,
                text: row["text"].as_str().unwrap(),
                finish_reason: Some(MaxTokens),
                non_finite_logits: false,
            });
            flagged.extend(failures.into_iter().map(|failure| (row["model"].as_str().unwrap(), failure)));
        }
        let detail = "the last 19 of 64 tokens repeat a cycle of 9 tokens".to_owned();
        assert_eq!(flagged, [("story-llama-0.66M", Failure { kind: RepetitionLoop, detail })]);
    }
}
