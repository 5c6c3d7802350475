//! The decoder's logits equal those of transformers, for tiny models of every architecture and option
//! (`tests/interop/README.md`).

use crate::support::synthetic::{self, Tensor};
use crate::support::{distances, fixture, load, logits, max_distance};
use lowbit::internals::validate::metrics::argmax;
use serde::Deserialize;
use std::fs;
use std::sync::Arc;

/// Largest distance of a logit from the golden one; measured at most 7.0e-6, from the order of summation.
const TOLERANCE: f32 = 1e-4;

/// The output of `tests/interop/make_golden.py`.
#[derive(Deserialize)]
pub(crate) struct Golden {
    /// Matrices are uniform in [-a, a).
    pub(crate) a: f32,
    pub(crate) tokens: Vec<u32>,
    /// The most likely token after each token.
    argmax: Vec<usize>,
    /// Positions of the rows of `logits`.
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
    pub(crate) tensors: Vec<Tensor>,
}

/// Each case with its name and config.json. All configurations of a case are equivalent.
pub(crate) fn cases() -> Vec<(String, Golden, Vec<u8>)> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(fixture("golden")).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(golden) = fs::read(folder.join("golden.json")) else { continue };
        let files =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        for file in files.filter(|file| file.starts_with("config")) {
            let config = fs::read(folder.join(&file)).unwrap();
            let name = format!("{}/{file}", folder.file_name().unwrap().to_str().unwrap());
            cases.push((name, serde_json::from_slice(&golden).unwrap(), config));
        }
    }
    cases.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    cases
}

#[test]
fn logits_are_those_of_transformers() {
    let mut compared = 0;
    let mut wrong = Vec::new();
    for (name, golden, config) in cases() {
        let dir = Arc::new(synthetic::checkpoint(&name, &config, &golden.tensors, golden.a));
        let mut model = load(dir);
        let at_once = logits(&mut model, &golden.tokens, golden.tokens.len());
        let one_by_one = logits(&mut model, &golden.tokens, 1);
        let in_pieces = logits(&mut model, &golden.tokens, 5);

        let largest = |rows: &[Vec<f32>]| {
            let rows = golden.positions.iter().map(|&position| &rows[position]);
            rows.zip(&golden.logits).flat_map(|(ours, theirs)| distances(ours, theirs)).fold(0.0, f32::max)
        };
        let apart = max_distance(&at_once, &one_by_one).max(max_distance(&at_once, &in_pieces));
        let best: Vec<usize> = at_once.iter().map(|row| argmax(row).unwrap()).collect();
        println!(
            "{name}: {:.1e} from transformers ({:.1e} token by token), {apart:.1e} between ways to run",
            largest(&at_once),
            largest(&one_by_one)
        );
        if largest(&at_once) >= TOLERANCE || largest(&one_by_one) >= TOLERANCE || best != golden.argmax {
            wrong.push(name);
        }
        compared += 1;
    }
    assert!(wrong.is_empty(), "not as transformers: {wrong:?}");
    assert_eq!(compared, 25);
}
