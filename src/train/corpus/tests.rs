//! Contents of epochs, pieces and batches.

use super::*;
use proptest::prelude::*;

const BOS: u32 = 1000;
const EOS: u32 = 1001;
const VOCAB: usize = 1002;

fn corpus(documents: &[Document], bos: bool, eos: bool, context: usize) -> Corpus {
    let (bos, eos) = (bos.then_some(BOS), eos.then_some(EOS));
    Corpus::new(documents.to_vec(), bos, eos, context, VOCAB).unwrap()
}

/// All batches of an epoch.
fn epoch(corpus: &mut Corpus, seed: u64, epoch: u64, budget: usize) -> Vec<Vec<Sequence>> {
    let mut batches = Vec::new();
    let mut at = Position { epoch, index: 0, ..Position::default() };
    while at.epoch == epoch {
        let (batch, next) = corpus.batch(seed, at, budget).unwrap();
        assert!(next.epoch > at.epoch && next.index == 0 || next.index > at.index);
        batches.push(batch);
        at = next;
    }
    batches
}

/// The sequences of an epoch, each with its targets, sorted.
fn sequences(corpus: &mut Corpus, seed: u64) -> Vec<(Vec<u32>, Vec<u32>)> {
    let all = epoch(corpus, seed, 0, 1000).into_iter().flatten();
    let mut all: Vec<_> = all.map(|sequence| (sequence.tokens, sequence.targets)).collect();
    all.sort();
    all
}

fn masked(kind: DocumentKind, tokens: &[u32], counts: &[u8]) -> Document {
    Document { tokens: tokens.to_vec(), counts: counts.iter().map(|&counts| counts > 0).collect(), kind }
}

#[test]
fn rows_stand_between_their_tokens() {
    const NO: u32 = NO_INDEX;
    let row = Document::row(vec![1, 2, 3]);
    let asked = masked(DocumentKind::Row, &[1, 2, 3, 4, 5], &[0, 0, 0, 1, 0]);
    let answered = masked(DocumentKind::Row, &[1, 2, 3], &[0, 0, 1]);
    let complete = Document { kind: DocumentKind::Complete, ..row.clone() };
    let spelled = Document::row(vec![BOS, 1, 2, EOS]);
    type Case<'a> = (&'a Document, (bool, bool), usize, &'a [(&'a [u32], &'a [u32])]);
    let cases: &[Case<'_>] = &[
        (&row, (true, true), 9, &[(&[BOS, 1, 2, 3], &[1, 2, 3, EOS])]),
        (&row, (true, false), 9, &[(&[BOS, 1, 2], &[1, 2, 3])]),
        (&row, (false, true), 9, &[(&[1, 2, 3], &[2, 3, EOS])]),
        (&row, (false, false), 9, &[(&[1, 2], &[2, 3])]),
        // Longer rows are cut; each piece starts with `bos`, or else with the token before.
        (&row, (true, true), 2, &[(&[BOS, 1], &[1, 2]), (&[BOS, 3], &[3, EOS])]),
        (&row, (false, true), 2, &[(&[1, 2], &[2, 3]), (&[3], &[EOS])]),
        (&row, (true, true), 3, &[(&[BOS], &[EOS]), (&[BOS, 1, 2], &[1, 2, 3])]),
        // The added `eos` counts if the last token does; pieces in which nothing counts are left out.
        (&asked, (true, true), 9, &[(&[BOS, 1, 2, 3, 4, 5], &[NO, NO, NO, 4, NO, NO])]),
        (&asked, (true, true), 2, &[(&[BOS, 3], &[NO, 4])]),
        (&answered, (true, true), 9, &[(&[BOS, 1, 2, 3], &[NO, NO, 3, EOS])]),
        (&complete, (true, true), 9, &[(&[1, 2], &[2, 3])]),
        (&complete, (true, true), 1, &[(&[1], &[2]), (&[2], &[3])]),
        // Special tokens are not doubled.
        (&spelled, (true, true), 9, &[(&[BOS, 1, 2], &[1, 2, EOS])]),
        (&spelled, (false, true), 9, &[(&[BOS, 1, 2], &[1, 2, EOS])]),
    ];
    for (document, (bos, eos), context, expected) in cases {
        let mut corpus = corpus(std::slice::from_ref(*document), *bos, *eos, *context);
        let mut expected: Vec<(Vec<u32>, Vec<u32>)> =
            expected.iter().map(|(tokens, targets)| (tokens.to_vec(), targets.to_vec())).collect();
        expected.sort();
        assert_eq!(sequences(&mut corpus, 5), expected, "{document:?} {bos} {eos} {context}");
        let counted =
            expected.iter().flat_map(|(_, targets)| targets).filter(|&&target| target != NO).count();
        assert_eq!(corpus.predictions(), counted as u64);
    }
}

#[test]
fn texts_are_cut_elsewhere_in_each_epoch_unless_they_fit() {
    let text = Document::text((0..40).collect());
    let mut long = corpus(std::slice::from_ref(&text), true, true, 8);
    assert_eq!((long.tokens(), long.predictions()), (40, 40));
    let mut starts = std::collections::BTreeSet::new();
    for epoch in 0..100 {
        let (batch, _) = long.batch(7, Position { epoch, index: 0, ..Position::default() }, 1000).unwrap();
        let first = batch.iter().find(|sequence| sequence.targets[0] == 0).unwrap();
        starts.insert(first.tokens.len());
        assert!(batch.len() <= 6, "one piece more than if nothing shifted");
    }
    assert_eq!(starts, (1..=8).collect());
    let mut short = corpus(&[text], true, true, 40);
    for epoch in 0..20 {
        let (batch, next) = short.batch(7, Position { epoch, index: 0, ..Position::default() }, 40).unwrap();
        assert_eq!((batch.len(), next), (1, Position { epoch: epoch + 1, index: 0, ..Position::default() }));
    }
}

#[test]
fn the_order_depends_on_seed_and_epoch() {
    let rows: Vec<Document> = (0..50).map(|id| Document::row(vec![id])).collect();
    let mut corpus = corpus(&rows, true, false, 4);
    let mut order = |seed, at| -> Vec<u32> {
        let batches = epoch(&mut corpus, seed, at, 16);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [16, 16, 16, 2]);
        batches.iter().flatten().map(|sequence| sequence.targets[0]).collect()
    };
    let orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)];
    for (index, order) in orders.iter().enumerate() {
        assert!(!orders[..index].contains(order));
        let mut all = order.clone();
        all.sort();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
    // The same on every platform.
    assert_eq!(orders[3][..8], [47, 36, 24, 43, 38, 20, 10, 46]);
}

#[test]
fn what_cannot_be_learned_from_is_refused() {
    let good = Document::row(vec![1, 2]);
    let new = |second: Document, bos, eos, context| {
        Corpus::new(vec![good.clone(), second], bos, eos, context, VOCAB)
    };
    let uneven = Document { counts: vec![true], ..good.clone() };
    for (result, expected) in [
        (Corpus::new(vec![], None, None, 4, VOCAB), "expected documents to learn from but found none"),
        (new(good.clone(), None, None, 0), "expected a context of at least 1 token but found 0"),
        (
            new(good.clone(), Some(1002), None, 4),
            "the token for the beginning of a sequence: expected ids below",
        ),
        (
            new(good.clone(), None, Some(NO_INDEX), 4),
            "the token for the end of a sequence: expected ids below",
        ),
        (
            new(Document::row(vec![1, 1002]), None, None, 4),
            "document 2: expected ids below 1002 but found 1002",
        ),
        (
            new(uneven, None, None, 4),
            "document 2: expected a loss mask of 2 entries, one per token, but found 1",
        ),
        (new(Document::row(vec![]), Some(BOS), Some(EOS), 4), "document 2: expected a token to predict"),
        (new(Document::text(vec![BOS]), Some(BOS), None, 4), "document 2: expected a token to predict"),
        (new(Document::text(vec![1]), None, Some(EOS), 4), "document 2: expected a token to predict"),
        (
            new(masked(DocumentKind::Row, &[1, 2], &[1, 0]), None, Some(EOS), 4),
            "document 2: expected a token whose prediction counts but all are masked",
        ),
    ] {
        let error = result.map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }

    let mut corpus = corpus(&[Document::text((0..9).collect()), good.clone()], true, false, 4);
    let error = corpus.batch(0, Position::default(), 3).unwrap_err().to_string();
    assert_eq!(error, "expected batches of at least 4 tokens, the longest piece's, but found 3");
    for index in [5, usize::MAX] {
        let error = corpus
            .batch(0, Position { epoch: u64::MAX, index, ..Position::default() }, 4)
            .unwrap_err()
            .to_string();
        assert!(error.contains("in epoch 18446744073709551615 but found"), "{error}");
    }
    assert!(corpus.batch(0, Position { epoch: u64::MAX, index: 0, ..Position::default() }, 4).is_ok());
}

#[test]
fn a_position_is_kept_in_a_file() {
    let at = Position { epoch: 3, index: 17, level: 2 };
    let text = serde_json::to_string(&at).unwrap();
    assert_eq!(text, "{\"epoch\":3,\"index\":17,\"level\":2}");
    assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), at);
    // Saved states from before there were levels.
    let before = serde_json::from_str::<Position>("{\"epoch\":3,\"index\":17}").unwrap();
    assert_eq!(before, Position { level: 0, ..at });
}

/// Documents whose tokens are all different, so that a target identifies its position. At least one token of each
/// counts.
fn documents() -> impl Strategy<Value = Vec<Document>> {
    let kind = prop::sample::select(vec![DocumentKind::Text, DocumentKind::Row, DocumentKind::Complete]);
    let counts = prop::collection::vec(prop::bool::weighted(0.6), 2..30);
    prop::collection::vec((kind, counts), 1..12).prop_map(|drawn| {
        let mut next = 0;
        let mut document = |(kind, mut counts): (_, Vec<bool>)| {
            *counts.last_mut().unwrap() = true;
            let tokens = (next..next + counts.len() as u32).collect();
            next += counts.len() as u32;
            Document { tokens, counts, kind }
        };
        drawn.into_iter().map(&mut document).collect()
    })
}

proptest! {
    #[test]
    fn every_prediction_that_counts_comes_once(
        documents in documents(),
        (bos, eos) in any::<(bool, bool)>(),
        context in 1usize..12,
        more in 0usize..20,
        (seed, at) in (any::<u64>(), 0u64..4),
    ) {
        let mut corpus = corpus(&documents, bos, eos, context);
        let budget = context + more;
        let batches = epoch(&mut corpus, seed, at, budget);
        let mut found: Vec<u32> = Vec::new();
        for batch in &batches {
            prop_assert!(!batch.is_empty());
            prop_assert!(batch.iter().map(|sequence| sequence.tokens.len()).sum::<usize>() <= budget);
            for Sequence { tokens, targets } in batch {
                prop_assert!(tokens.len() <= context && tokens.len() == targets.len());
                prop_assert!(targets.iter().any(|&target| target != NO_INDEX));
                for (index, &target) in targets.iter().enumerate() {
                    // A target is the next input ...
                    if target != NO_INDEX && index + 1 < tokens.len() {
                        prop_assert_eq!(target, tokens[index + 1]);
                    }
                    // ... and follows its predecessor in the document, or the `bos` before the piece.
                    if target != NO_INDEX && target != EOS {
                        prop_assert!(tokens[index] + 1 == target || bos && index == 0 && tokens[0] == BOS);
                    }
                }
                found.extend(targets.iter().filter(|&&target| target != NO_INDEX));
            }
        }
        let mut expected: Vec<u32> = Vec::new();
        for Document { tokens, counts, kind } in &documents {
            let first = usize::from(!bos || *kind == DocumentKind::Complete);
            let counted = tokens.iter().zip(counts).skip(first).filter(|(_, counts)| **counts);
            expected.extend(counted.map(|(token, _)| *token));
            expected.extend((eos && *kind == DocumentKind::Row).then_some(EOS));
        }
        prop_assert_eq!(corpus.predictions(), expected.len() as u64);
        found.sort();
        expected.sort();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_batch_is_a_function_of_seed_and_position(
        documents in documents(),
        context in 1usize..12,
        seed in any::<u64>(),
        steps in 1usize..40,
    ) {
        let budget = 2 * context;
        let mut running = corpus(&documents, true, true, context);
        let mut at = Position::default();
        for _ in 0..steps {
            at = running.batch(seed, at, budget).unwrap().1;
        }
        let mut fresh = corpus(&documents, true, true, context);
        let expected = running.batch(seed, at, budget).unwrap();
        prop_assert_eq!(fresh.batch(seed, at, budget).unwrap(), expected.clone());
        // Earlier calls do not matter.
        fresh.batch(seed ^ 1, Position::default(), budget).unwrap();
        prop_assert_eq!(fresh.batch(seed, at, budget).unwrap(), expected);
    }
}

#[test]
fn a_level_takes_in_those_before_it() {
    let documents = (0..6).map(|id| Document::row(vec![id, id])).collect();
    let corpus = Corpus::new(documents, Some(9), None, 4, 10).unwrap();
    assert_eq!(
        corpus.clone().graded(vec![1]).unwrap_err().to_string(),
        "expected the levels of 6 documents but found 1"
    );
    let mut corpus = corpus.graded(vec![1, 2, 2, 5, 1, 5]).unwrap();
    assert_eq!(corpus.levels().into_iter().collect::<Vec<_>>(), [1, 2, 5]);
    let mut at = Position::default();
    for (level, expected) in
        [(0, &[0, 1, 2, 3, 4, 5][..]), (1, &[0, 4]), (2, &[0, 1, 2, 4]), (5, &[0, 1, 2, 3, 4, 5])]
    {
        at = at.on_level(level);
        let (batch, next) = corpus.batch(3, at, 1000).unwrap();
        let mut seen: Vec<u32> = batch.iter().map(|piece| piece.targets[0]).collect();
        seen.sort_unstable();
        assert_eq!((&seen[..], next), (expected, at.on_level(level)));
    }
}
