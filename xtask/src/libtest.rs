//! Parses the output of `cargo test -- --show-output`: totals, skipped tests, and notes of passing tests.
//!
//! libtest cannot skip at run time, and hides what a passing test prints. `--show-output` prints it after each
//! binary's results. This module hides those blocks again, except for two kinds of lines:
//!
//! - `skipped: REASON`: the test counts as skipped, not as passed;
//! - `note: TEXT`: a remark of a passing test.

use std::collections::BTreeSet;
use std::fmt;

/// Sums over all result lines.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Tests that passed and printed no `skipped:` line.
    pub passed: u64,
    /// Tests that failed, and test binaries that died without a result.
    pub failed: u64,
    /// Tests that printed a `skipped:` line, and ignored ones.
    pub skipped: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The parser's state.
#[derive(Debug, Default)]
pub struct Reading {
    tally: Tally,
    remarks: Vec<Remark>,
    /// Whether any test binary started.
    began: bool,
    /// Binaries that started and have no result yet.
    unfinished: u64,
    /// Inside the output of passing tests.
    quiet: bool,
    /// The passing test whose output follows.
    test: String,
    /// Tests of this binary that skipped. Its result line, which follows, counts them as passed.
    skips: BTreeSet<String>,
}

/// A `skipped:` or `note:` line, and the test that printed it.
#[derive(Clone, Debug, PartialEq)]
pub struct Remark {
    /// The test's path in its binary.
    pub test: String,
    /// The whole line.
    pub line: String,
}

impl Reading {
    /// Takes one line and returns whether to display it.
    pub fn take(&mut self, line: &str) -> bool {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let skips = std::mem::take(&mut self.skips).len() as u64;
            self.tally.passed += count(counts, "passed").saturating_sub(skips);
            self.tally.failed += count(counts, "failed");
            self.tally.skipped += count(counts, "ignored") + skips;
            self.unfinished = self.unfinished.saturating_sub(1);
            self.quiet = false;
        } else if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.began = true;
            self.unfinished += 1;
        } else if line == "successes:" {
            self.quiet = true;
        } else if line == "failures:" {
            self.quiet = false;
        } else if self.quiet {
            self.take_output(line);
        }
        !self.quiet
    }

    fn take_output(&mut self, line: &str) {
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.test = test.to_owned();
            return;
        }
        let skip = line.starts_with("skipped: ");
        if skip {
            self.skips.insert(self.test.clone());
        }
        if skip || line.starts_with("note: ") {
            self.remarks.push(Remark { test: self.test.clone(), line: line.to_owned() });
        }
    }

    /// The totals and remarks. `None` when no test binary started, as after a compiler error.
    pub fn finish(mut self, success: bool) -> Option<(Tally, Vec<Remark>)> {
        self.tally.failed += self.unfinished;
        if !success && self.tally.failed == 0 {
            // A program without libtest's result line, such as a fuzz target, or a test that ended its process.
            self.tally.failed = 1;
        }
        (success || self.began).then_some((self.tally, self.remarks))
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; ...`.
fn count(counts: &str, word: &str) -> u64 {
    let parts = counts.split([';', '.']).map(str::trim);
    let mut numbers = parts.filter_map(|part| part.strip_suffix(word)?.trim().parse().ok());
    numbers.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
running 3 tests
test a ... ok
test b ... ok
test c ... ignored, needs Python

successes:

---- a stdout ----
skipped: no model here
skipped: no text either
an ordinary line

---- b stdout ----
note: src/x.rs has 460 lines

successes:
    a
    b

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

running 2 tests
test d ... FAILED
test e ... ok

successes:

successes:
    e

failures:

---- d stdout ----
skipped: this one failed all the same

failures:
    d

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    fn read(text: &str) -> (Reading, String) {
        let mut reading = Reading::default();
        let shown =
            text.lines().filter(|line| reading.take(line)).fold(String::new(), |all, line| all + line + "\n");
        (reading, shown)
    }

    #[test]
    fn counts_a_test_that_skips_once_and_not_as_passed() {
        let (tally, remarks) = read(RUN).0.finish(false).unwrap();
        assert_eq!(tally, Tally { passed: 2, failed: 1, skipped: 2 });
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 2 skipped");
        let remarks: Vec<_> = remarks.iter().map(|r| (r.test.as_str(), r.line.as_str())).collect();
        let expected = [
            ("a", "skipped: no model here"),
            ("a", "skipped: no text either"),
            ("b", "note: src/x.rs has 460 lines"),
        ];
        assert_eq!(remarks, expected);
    }

    #[test]
    fn hides_the_output_of_passing_tests_and_shows_that_of_failing_ones() {
        let shown = read(RUN).1;
        assert!(!shown.contains("an ordinary line"), "{shown}");
        assert!(shown.contains("---- d stdout ----\nskipped: this one failed"), "{shown}");
        assert!(shown.contains("test a ... ok") && shown.contains("test result: ok. 2 passed"), "{shown}");
    }

    #[test]
    fn a_failure_is_never_summed_to_none() {
        let cases = [
            ("a binary that died", "running 5 tests\ntest a ... ok\n", false, Some(1)),
            (
                "a program that is not libtest's",
                "running 0 tests\n\ntest result: ok. 0 passed; 0 failed;\n",
                false,
                Some(1),
            ),
            ("an error of the compiler", "", false, None),
            ("a workspace without tests", "", true, Some(0)),
        ];
        for (name, text, success, failed) in cases {
            assert_eq!(read(text).0.finish(success).map(|(tally, _)| tally.failed), failed, "{name}");
        }
    }
}
