//! Sorting the digits of a string.

use super::{Drawn, below};
use rand_pcg::Pcg64Mcg;

/// Digits of a string at level 0.
const DIGITS: usize = 2;

/// A string of `level + 2` digits.
pub(super) fn draw(level: usize, random: &mut Pcg64Mcg) -> Drawn {
    let mut digits: Vec<char> =
        (0..DIGITS + level).map(|_| char::from(b'0' + below(10, random) as u8)).collect();
    let subject: String = digits.iter().collect();
    digits.sort_unstable();
    Drawn { prompt: format!("{subject}="), answer: digits.iter().collect::<String>() + "\n", subject }
}

#[cfg(test)]
mod tests {
    use super::super::{Part, Task, questions};

    #[test]
    fn answers_are_the_digits_in_order() {
        for level in 1..=10 {
            for question in questions(Task::Sort, level, Part::Test, 50, 0).unwrap() {
                let digits = question.prompt.strip_suffix('=').unwrap();
                assert_eq!(digits.len(), level + 2);
                let answer = question.answer.strip_suffix('\n').unwrap();
                assert!(answer.as_bytes().is_sorted(), "{question:?}");
                let count = |text: &str, digit| text.chars().filter(|&other| other == digit).count();
                assert!(
                    ('0'..='9').all(|digit| count(digits, digit) == count(answer, digit)),
                    "{question:?}"
                );
            }
        }
    }
}
