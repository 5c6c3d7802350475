//! Chooses a scheme for each module, with little error within a byte budget.
//!
//! This is the multiple-choice knapsack problem. Its relaxation is solved by following the lower hull of each module's
//! (bytes, error) points in the order of error saved for each byte (Sinha and Zoltners, *The Multiple-Choice Knapsack
//! Problem*, 1979). The remaining budget is filled by single changes, best first. The result is within the budget, and
//! its error is not above that of any uniform scheme within it.

use crate::sort;

/// Cost and error of a candidate scheme.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SchemeCost {
    /// Its size.
    pub bytes: u64,
    /// Its error, at least 0.
    pub error: f64,
}

/// The chosen index for each module. The error is the least possible size, which exceeds the budget.
///
/// # Panics
/// When a module has no choice.
pub fn solve(modules: &[Vec<SchemeCost>], budget: u64) -> Result<Vec<usize>, u64> {
    // Start with the smallest; among equals the one with the least error, then the first.
    let smallest = |choices: &Vec<SchemeCost>| {
        let order = |&a: &usize, &b: &usize| {
            let (a, b) = (choices[a], choices[b]);
            a.bytes.cmp(&b.bytes).then(a.error.total_cmp(&b.error))
        };
        (0..choices.len()).min_by(order).expect("a module has a choice")
    };
    let mut chosen: Vec<usize> = modules.iter().map(smallest).collect();
    let bytes =
        |chosen: &[usize]| modules.iter().zip(chosen).map(|(choices, &c)| choices[c].bytes).sum::<u64>();
    let error =
        |chosen: &[usize]| modules.iter().zip(chosen).map(|(choices, &c)| choices[c].error).sum::<f64>();
    let mut used = bytes(&chosen);
    if used > budget {
        return Err(used);
    }
    // Follow the hulls while steps fit.
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (module, choices) in modules.iter().enumerate() {
        let mut from = chosen[module];
        while let Some((rate, to)) = steepest(choices, from) {
            steps.push((rate, module, to));
            from = to;
        }
    }
    // Hulls are convex, so sorting keeps the steps of one module in order.
    sort::sort_by(&mut steps, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut stopped = vec![false; modules.len()];
    for (_, module, to) in steps {
        let more = modules[module][to].bytes - modules[module][chosen[module]].bytes;
        if stopped[module] || used + more > budget {
            stopped[module] = true;
            continue;
        }
        used += more;
        chosen[module] = to;
    }
    // Fill the rest with single changes, best first.
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (module, choices) in modules.iter().enumerate() {
            let now = choices[chosen[module]];
            for (to, choice) in choices.iter().enumerate() {
                let fits = choice.bytes <= now.bytes || used + (choice.bytes - now.bytes) <= budget;
                let saved = now.error - choice.error;
                if fits && saved > 0.0 && best.is_none_or(|(most, ..)| saved > most) {
                    best = Some((saved, module, to));
                }
            }
        }
        let Some((_, module, to)) = best else { break };
        used = used + modules[module][to].bytes - modules[module][chosen[module]].bytes;
        chosen[module] = to;
    }
    // A uniform scheme may be better, because hulls omit points above them.
    let kinds = modules.iter().map(Vec::len).min().unwrap_or(0);
    for kind in 0..kinds {
        let all = vec![kind; modules.len()];
        if bytes(&all) <= budget && error(&all) < error(&chosen) {
            chosen = all;
        }
    }
    Ok(chosen)
}

/// The choice that saves most error for each additional byte, relative to `from`, and the saving.
fn steepest(choices: &[SchemeCost], from: usize) -> Option<(f64, usize)> {
    let now = choices[from];
    let rate = |choice: &SchemeCost| (now.error - choice.error) / (choice.bytes - now.bytes) as f64;
    let steeper = |best: Option<(f64, usize)>, (index, choice): (usize, &SchemeCost)| {
        let rate = if choice.bytes > now.bytes { rate(choice) } else { 0.0 };
        // Among equals the largest, so that slopes strictly decrease.
        let better = rate > 0.0
            && best.is_none_or(|(most, at)| rate > most || rate == most && choice.bytes > choices[at].bytes);
        if better { Some((rate, index)) } else { best }
    };
    choices.iter().enumerate().fold(None, steeper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choices(points: &[(u64, f64)]) -> Vec<SchemeCost> {
        points.iter().map(|&(bytes, error)| SchemeCost { bytes, error }).collect()
    }

    fn total(modules: &[Vec<SchemeCost>], chosen: &[usize]) -> (u64, f64) {
        let picked = modules.iter().zip(chosen).map(|(choices, &choice)| choices[choice]);
        picked.fold((0, 0.0), |(bytes, error), choice| (bytes + choice.bytes, error + choice.error))
    }

    /// The least error of all combinations that fit.
    fn best(modules: &[Vec<SchemeCost>], budget: u64) -> Option<f64> {
        let mut combinations = vec![Vec::new()];
        for choices in modules {
            combinations = combinations
                .into_iter()
                .flat_map(|start| {
                    (0..choices.len()).map(move |choice| [start.clone(), vec![choice]].concat())
                })
                .collect();
        }
        let fitting =
            combinations.iter().map(|chosen| total(modules, chosen)).filter(|found| found.0 <= budget);
        fitting.map(|found| found.1).min_by(f64::total_cmp)
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let modules = [
            choices(&[(2, 9.0), (4, 1.0), (8, 0.0)]),
            choices(&[(2, 3.0), (4, 2.0), (8, 0.0)]),
            choices(&[(20, 5.0), (40, 0.5), (80, 0.0)]),
        ];
        for (budget, expected) in [
            (23, Err(24)),
            (24, Ok(vec![0, 0, 0])),
            (26, Ok(vec![1, 0, 0])),
            (29, Ok(vec![1, 1, 0])),
            (32, Ok(vec![1, 2, 0])),
            (1000, Ok(vec![2, 2, 2])),
        ] {
            assert_eq!(solve(&modules, budget), expected, "{budget}");
        }
        assert_eq!(solve(&[], 0), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn the_budget_is_kept_and_little_is_lost(
            modules in prop::collection::vec(
                prop::collection::vec((1u64..40, 0u32..100), 1..4).prop_map(|points| {
                    points.iter().map(|&(bytes, error)| SchemeCost { bytes, error: f64::from(error) }).collect::<Vec<_>>()
                }),
                1..5,
            ),
            budget in 0u64..120,
        ) {
            let least: u64 = modules.iter().map(|m| m.iter().map(|c| c.bytes).min().unwrap()).sum();
            match (solve(&modules, budget), best(&modules, budget)) {
                (Err(needed), None) => prop_assert_eq!(needed, least),
                (Ok(chosen), Some(least_error)) => {
                    let (bytes, error) = total(&modules, &chosen);
                    prop_assert!(bytes <= budget);
                    // The relaxation differs by at most one step of one module.
                    let largest = modules.iter().flatten().map(|choice| choice.error).fold(0.0, f64::max);
                    prop_assert!(error <= least_error + largest, "{} against {}", error, least_error);
                    for kind in 0..modules.iter().map(Vec::len).min().unwrap() {
                        let all = total(&modules, &vec![kind; modules.len()]);
                        prop_assert!(all.0 > budget || error <= all.1);
                    }
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
