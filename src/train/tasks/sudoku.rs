//! Sudoku of 4x4: each row, column and quarter has the digits from 1 to 4, and the given digits leave one solution. A
//! grid is written row by row, with blanks as dots.

use super::{Drawn, below};
use rand_pcg::Pcg64Mcg;

/// Cells row by row; 0 is a blank.
type Grid = [u8; CELLS];
const CELLS: usize = 16;
/// Blanks at level 0.
const BLANKS: usize = 1;

/// A grid with `level + 1` blanks.
pub(super) fn draw(level: usize, random: &mut Pcg64Mcg) -> Drawn {
    let mut grid = [0; CELLS];
    fill(&mut grid, random);
    // Up to here a third of all choices of blanks leaves one solution; with eleven blanks it is about one in a hundred.
    loop {
        let given = blanked(&grid, BLANKS + level, random);
        if solutions(&mut given.clone(), 2) == 1 {
            let subject = written(&grid);
            return Drawn { prompt: written(&given) + "=", answer: format!("{subject}\n"), subject };
        }
    }
}

/// Whether a digit may be placed in a cell.
fn fits(grid: &Grid, cell: usize, digit: u8) -> bool {
    let quarter = |cell: usize| (cell / 8, cell % 4 / 2);
    (0..CELLS).all(|other| {
        let is_seen = other / 4 == cell / 4 || other % 4 == cell % 4 || quarter(other) == quarter(cell);
        !is_seen || grid[other] != digit
    })
}

/// Fills the blanks with random digits by backtracking; `false` if nothing fits.
fn fill(grid: &mut Grid, random: &mut Pcg64Mcg) -> bool {
    let Some(cell) = grid.iter().position(|&digit| digit == 0) else { return true };
    let first = below(24, random);
    // The permutation with that number.
    let (mut rest, mut number) = (vec![1, 2, 3, 4], first);
    while !rest.is_empty() {
        let digit = rest.remove(number % rest.len());
        number /= rest.len() + 1;
        if fits(grid, cell, digit) {
            grid[cell] = digit;
            if fill(grid, random) {
                return true;
            }
            grid[cell] = 0;
        }
    }
    false
}

/// The number of solutions, up to `most`.
fn solutions(grid: &mut Grid, most: usize) -> usize {
    let Some(cell) = grid.iter().position(|&digit| digit == 0) else { return 1 };
    let mut found = 0;
    for digit in 1..=4 {
        if found < most && fits(grid, cell, digit) {
            grid[cell] = digit;
            found += solutions(grid, most - found);
            grid[cell] = 0;
        }
    }
    found
}

/// The grid with `blanks` random blanks.
fn blanked(grid: &Grid, blanks: usize, random: &mut Pcg64Mcg) -> Grid {
    let mut given = *grid;
    let mut cells: Vec<usize> = (0..CELLS).collect();
    for _ in 0..blanks.min(CELLS) {
        given[cells.swap_remove(below(cells.len(), random))] = 0;
    }
    given
}

fn written(grid: &Grid) -> String {
    grid.iter().map(|&digit| if digit == 0 { '.' } else { char::from(b'0' + digit) }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{LEVELS, Part, Task, questions};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn grids_have_one_solution_which_is_the_answer() {
        let mut grids = BTreeSet::new();
        for level in 1..=LEVELS {
            for part in [Part::Train, Part::Test] {
                for question in questions(Task::Sudoku, level, part, 100, 0).unwrap() {
                    let read = |text: &str| -> Grid {
                        let cells: Vec<u8> =
                            text.bytes().map(|byte| if byte == b'.' { 0 } else { byte - b'0' }).collect();
                        cells.try_into().unwrap()
                    };
                    let mut given = read(question.prompt.strip_suffix('=').unwrap());
                    let grid = read(question.answer.strip_suffix('\n').unwrap());
                    assert_eq!(given.iter().filter(|&&digit| digit == 0).count(), level + 1);
                    assert!(given.iter().zip(&grid).all(|(&given, &digit)| given == 0 || given == digit));
                    assert_eq!(solutions(&mut given, 9), 1, "{question:?}");
                    let mut without = grid;
                    for cell in 0..CELLS {
                        let digit = std::mem::take(&mut without[cell]);
                        assert!((1..=4).contains(&digit) && fits(&without, cell, digit), "{question:?}");
                        without[cell] = digit;
                    }
                    grids.insert(grid);
                }
            }
        }
        // There are 288 grids.
        assert_eq!(solutions(&mut [0; CELLS], 1000), 288);
        assert!(grids.len() > 250, "{}", grids.len());
    }
}
