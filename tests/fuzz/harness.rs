//! Replays a target's corpus, then runs mutations of it.

use crate::{memory, mutate};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use std::fs;
use std::path::{Path, PathBuf};

/// Mutations under plain `cargo test`. The targets here take 0.4 to 1.3 s for them.
const CASES: u32 = 50_000;

/// What a parser may allocate whatever its input is: error messages, a buffer or two.
const BASE_BYTES: usize = 16 << 10;

/// What to run, and what it may do.
pub struct Target {
    /// Parses the input and panics when the result breaks a promise.
    pub run: fn(&[u8]),
    /// Makes lengths and checksums right again after a mutation, which would otherwise be refused at the first
    /// check. Done to every other input.
    pub repair: Option<fn(&mut [u8])>,
    /// Mutations under plain `cargo test`; fewer for a slow target.
    pub cases: u32,
    /// How many bytes a byte of input may make the target allocate, beyond [`BASE_BYTES`].
    pub bytes_per_byte: usize,
}

impl Target {
    /// A target without wishes. The densest JSON is an array of small numbers: two bytes of text make eight of
    /// memory, sixteen while a vector grows.
    pub const fn new(run: fn(&[u8])) -> Self {
        Self { run, repair: None, cases: CASES, bytes_per_byte: 32 }
    }

    fn check(&self, input: &[u8]) -> Result<(), String> {
        let peak = memory::peak_of(|| (self.run)(input));
        let limit = BASE_BYTES + self.bytes_per_byte * input.len();
        if peak > limit {
            return Err(format!(
                "{peak} bytes allocated for an input of {}; the limit is {limit}",
                input.len()
            ));
        }
        Ok(())
    }
}

/// Runs the target on its corpus and on mutations of it.
pub fn fuzz(name: &str, target: &Target) {
    let corpus = read_corpus(name);
    for (file, input) in &corpus {
        println!("replaying {file}");
        target.check(input).unwrap();
    }
    let corpus: Vec<_> = corpus.into_iter().map(|(_, input)| input).collect();

    let mut config = Config { failure_persistence: None, ..Config::default() };
    match std::env::var("FUZZ_CASES") {
        Ok(cases) => config.cases = cases.parse().expect("FUZZ_CASES is a number"),
        Err(_) => (config.cases, config.rng_seed) = (target.cases, RngSeed::Fixed(0x10b17)),
    }
    let input_of = |seed: usize, edits: &[mutate::Edit]| {
        let mut input = mutate::apply(&corpus, seed, edits);
        match target.repair {
            Some(repair) if edits.len() % 2 == 1 => repair(&mut input),
            _ => {}
        }
        input
    };
    let result = TestRunner::new(config).run(&mutate::edits(), |(seed, edits)| {
        target.check(&input_of(seed, &edits)).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Abort(reason)) => panic!("the run was given up: {reason}"),
        Err(TestError::Fail(reason, (seed, edits))) => {
            let input = input_of(seed, &edits);
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
            fs::write(&file, &input).unwrap();
            panic!(
                "{reason}\ninput: \"{}\"\nsaved as {}; move it to tests/fuzz/corpus/{name}/ under a name that says what it is",
                input.escape_ascii(),
                file.display()
            );
        }
    }
}

fn corpus_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// The files of a corpus, sorted by name.
fn read_corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = corpus_root().join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut corpus: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect();
    corpus.sort();
    assert!(!corpus.is_empty(), "{} holds no input", folder.display());
    corpus
}

/// A corpus that no target reads would rot unseen.
pub fn check_corpora(targets: &[&str]) {
    for entry in fs::read_dir(corpus_root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(targets.contains(&name.as_str()), "tests/fuzz/corpus/{name} has no target");
    }
}
