//! Graded tasks: generated questions with one right answer, harder from level to level.
//!
//! A hash of a question's subject, not the seed, assigns it to the training or the test part. The parts are therefore
//! disjoint, whatever the seeds and counts. The subject of a Sudoku is the solved grid, so that a learned grid is never
//! tested; that of other tasks is the prompt. An answer ends with a line end. No question occurs twice.
//!
//! Not here: files, and how a question becomes tokens (`corpus::questions`).

mod sort;
mod sudoku;

use crate::digest::sha256_hex;
use crate::error::{Error, Result};
use crate::options::named;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};
use serde::Serialize;
use std::collections::BTreeSet;

named! {
    /// The kind of question.
    pub enum Task {
        /// Sort the digits of a string: three at level 1, one more per level
        Sort = "sort",
        /// A 4x4 Sudoku with one solution: two blanks at level 1, one more per level
        Sudoku = "sudoku",
    }
}

named! {
    /// The part of a task that a question belongs to.
    pub enum Part {
        /// For training
        Train = "train",
        /// For evaluation
        Test = "test",
    }
}

/// Levels of each task; the first is 1.
pub const LEVELS: usize = 10;

/// One in this many subjects is in the test part.
const TEST_SHARE: u64 = 5;

/// Draws without a new question after which the level counts as exhausted.
const MOST_MISSES: usize = 2000;

/// A question and its answer; one line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Question {
    /// The text before the answer.
    pub prompt: String,
    /// The answer, with its final line end.
    pub answer: String,
    /// The level, from 1.
    pub level: usize,
}

/// A drawn question with its subject.
struct Drawn {
    subject: String,
    prompt: String,
    answer: String,
}

/// `count` different questions of a level, or fewer if there are no more.
///
/// # Errors
/// `invalid_argument` for a level that the task does not have.
pub fn questions(task: Task, level: usize, part: Part, count: usize, seed: u64) -> Result<Vec<Question>> {
    if !(1..=LEVELS).contains(&level) {
        return Err(Error::invalid_argument(format!(
            "{}: expected a level from 1 to {LEVELS} but found {level}",
            task.name()
        )));
    }
    let mut seeds = Pcg64Mcg::seed_from_u64(seed);
    // Decorrelates neighbouring levels.
    let mut random =
        Pcg64Mcg::seed_from_u64(seeds.next_u64() ^ Pcg64Mcg::seed_from_u64(level as u64).next_u64());
    let (mut known, mut found, mut misses) = (BTreeSet::new(), Vec::new(), 0);
    while found.len() < count && misses < MOST_MISSES {
        let Drawn { subject, prompt, answer } = match task {
            Task::Sort => sort::draw(level, &mut random),
            Task::Sudoku => sudoku::draw(level, &mut random),
        };
        misses += 1;
        if part_of(&subject) == part && known.insert(prompt.clone()) {
            found.push(Question { prompt, answer, level });
            misses = 0;
        }
    }
    Ok(found)
}

/// The part that a subject belongs to.
fn part_of(subject: &str) -> Part {
    let digest = sha256_hex(subject.as_bytes());
    let number = digest.bytes().take(8).fold(0u64, |number, byte| number << 8 | u64::from(byte));
    if number.is_multiple_of(TEST_SHARE) { Part::Test } else { Part::Train }
}

/// A random number below `end`.
fn below(end: usize, random: &mut Pcg64Mcg) -> usize {
    // The modulo bias is below 2^-50 here.
    (random.next_u64() % end.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Named;

    const ALL: [Part; 2] = [Part::Train, Part::Test];

    #[test]
    fn what_is_learned_is_never_asked() {
        for (task, name, _) in Task::VALUES {
            let mut prompts = ALL.map(|_| BTreeSet::new());
            for (part, prompts) in ALL.into_iter().zip(&mut prompts) {
                for seed in 0..3 {
                    for level in 1..=LEVELS {
                        let found = questions(*task, level, part, 100, seed).unwrap();
                        let known = prompts.len();
                        assert!(found.iter().all(|question| question.level == level));
                        let different: BTreeSet<_> = found.iter().collect();
                        assert_eq!(different.len(), found.len(), "{name}: a question comes twice");
                        assert_eq!(found.len(), 100, "{name} {level}");
                        prompts.extend(found.into_iter().map(|question| question.prompt));
                        assert!(seed > 0 || prompts.len() == known + 100, "levels share questions");
                    }
                }
            }
            assert!(prompts[0].is_disjoint(&prompts[1]), "{name}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_questions_and_another_seed_others() {
        for (task, name, _) in Task::VALUES {
            let made = |seed| questions(*task, 4, Part::Train, 20, seed).unwrap();
            assert_eq!(made(1), made(1), "{name}");
            assert_ne!(made(1), made(2), "{name}");
            assert_eq!(made(1)[..5], questions(*task, 4, Part::Train, 5, 1).unwrap(), "{name}");
        }
    }

    #[test]
    fn there_are_no_more_than_there_are() {
        let all: usize = ALL.map(|part| questions(Task::Sort, 1, part, 5000, 0).unwrap().len()).iter().sum();
        assert!((950..=1000).contains(&all), "{all} of a thousand strings of three digits");
        for level in [0, 11] {
            let error = questions(Task::Sort, level, Part::Test, 1, 0).unwrap_err().to_string();
            assert_eq!(error, format!("sort: expected a level from 1 to 10 but found {level}"));
        }
    }
}
