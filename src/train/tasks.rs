//! Graded tasks: questions with one right answer, harder from level to level, made from a seed.
//!
//! What a question is about decides, by a hash and not by the seed, whether it is for learning or for judging: so no question of the
//! one kind is ever among the other, however often and with whatever seeds both are made. For Sudoku that is the solved grid, so that a
//! grid which was learned is never asked for; for the others the prompt. An answer ends with a line end. No question comes twice.
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
    /// What questions are about.
    pub enum Task {
        /// The digits of a string in order: three at level 1, one more at each level
        Sort = "sort",
        /// A Sudoku of four by four with one solution: two blanks at level 1, one more at each level
        Sudoku = "sudoku",
    }
}

named! {
    /// What questions are for.
    pub enum Part {
        /// To learn from
        Train = "train",
        /// To judge by
        Test = "test",
    }
}

/// How many levels a task has; the first is 1.
pub const LEVELS: usize = 10;

/// One in so many subjects is kept for judging.
const TEST_SHARE: u64 = 5;

/// After so many draws in a row that gave nothing new there is taken to be nothing new.
const MOST_MISSES: usize = 2000;

/// A question and its answer; a line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Question {
    /// What stands before the answer.
    pub prompt: String,
    /// The answer, with the line end that ends it.
    pub answer: String,
    /// How hard it is, from 1.
    pub level: usize,
}

/// What a task draws: a question, and what it is about.
struct Drawn {
    subject: String,
    prompt: String,
    answer: String,
}

/// So many questions of a level, all different, or fewer where there are no more.
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
    // Neighbouring levels have nothing in common so.
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

/// What questions about a subject are for.
fn part_of(subject: &str) -> Part {
    let digest = sha256_hex(subject.as_bytes());
    let number = digest.bytes().take(8).fold(0u64, |number, byte| number << 8 | u64::from(byte));
    if number.is_multiple_of(TEST_SHARE) { Part::Test } else { Part::Train }
}

/// A number below `end`.
fn below(end: usize, random: &mut Pcg64Mcg) -> usize {
    // The remainder favours small numbers by less than 2^-50 here.
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
