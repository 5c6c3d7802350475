//! Edits of an input: bytes as any format has them, and numbers and words as JSON has them.

use proptest::collection::vec;
use proptest::prelude::*;

/// One edit. Positions are taken modulo the length, so that every edit fits every input.
#[derive(Clone, Debug)]
pub enum Edit {
    Flip {
        at: usize,
        bit: u32,
    },
    Overwrite {
        at: usize,
        bytes: Vec<u8>,
    },
    Insert {
        at: usize,
        bytes: Vec<u8>,
    },
    Delete {
        at: usize,
        len: usize,
    },
    /// Copies a piece of the input to another place of it.
    Duplicate {
        at: usize,
        len: usize,
        to: usize,
    },
    /// Replaces the first decimal number from `at` on.
    Number {
        at: usize,
        number: &'static str,
    },
    Truncate {
        len: usize,
    },
    /// Goes on with another input of the corpus.
    Splice {
        at: usize,
        other: usize,
        from: usize,
    },
}

/// Where sizes and offsets break: around powers of two, at the ends of types.
const NUMBERS: [&str; 19] = [
    "0",
    "1",
    "2",
    "3",
    "7",
    "8",
    "-1",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "100000001",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1.5",
    "1e999",
];

/// What JSON is made of, and the keys of the formats.
const WORDS: [&str; 26] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "{}",
    "[]",
    "\"\"",
    " ",
    "0",
    "-",
    "[[[[[[[[",
    "{\"\":{\"\":{\"\":",
    "\"__metadata__\":{},",
    "\"dtype\":\"F32\",",
    "\"shape\":[],",
    "../",
    "\u{0}",
    "\u{feff}",
];

/// Lengths of binary formats: small ones, and what overflows a sum or an index.
const LENGTHS: [u64; 9] = [0, 1, 8, 127, 1 << 31, 1 << 32, u64::MAX >> 1, u64::MAX - 7, u64::MAX];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 1..9),
        prop::sample::select(&WORDS[..]).prop_map(|word| word.as_bytes().to_vec()),
        prop::sample::select(&LENGTHS[..]).prop_map(|length| length.to_le_bytes().to_vec()),
        prop::sample::select(&LENGTHS[..]).prop_map(|length| (length as u32).to_le_bytes().to_vec()),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = || any::<u16>().prop_map(usize::from);
    let len = || prop_oneof![4 => 1..9usize, 1 => 1..200usize];
    prop_oneof![
        1 => (at(), 0..8u32).prop_map(|(at, bit)| Edit::Flip { at, bit }),
        1 => (at(), bytes()).prop_map(|(at, bytes)| Edit::Overwrite { at, bytes }),
        2 => (at(), bytes()).prop_map(|(at, bytes)| Edit::Insert { at, bytes }),
        1 => (at(), len()).prop_map(|(at, len)| Edit::Delete { at, len }),
        1 => (at(), len(), at()).prop_map(|(at, len, to)| Edit::Duplicate { at, len, to }),
        3 => (at(), prop::sample::select(&NUMBERS[..])).prop_map(|(at, number)| Edit::Number { at, number }),
        1 => at().prop_map(|len| Edit::Truncate { len }),
        1 => (at(), at(), at()).prop_map(|(at, other, from)| Edit::Splice { at, other, from }),
    ]
}

/// Which input of the corpus to begin with, and what to do to it; shrinks to few edits.
pub fn edits() -> impl Strategy<Value = (usize, Vec<Edit>)> {
    (any::<u16>().prop_map(usize::from), prop_oneof![3 => vec(edit(), 1..4), 1 => vec(edit(), 4..20)])
}

/// The mutated input.
pub fn apply(corpus: &[Vec<u8>], seed: usize, edits: &[Edit]) -> Vec<u8> {
    let mut input = corpus[seed % corpus.len()].clone();
    for edit in edits {
        let len = input.len();
        // A position inside the input, or its end.
        let place = |at: usize| at % (len + 1);
        match edit {
            Edit::Flip { at, bit } => {
                if let Some(byte) = input.get_mut(place(*at)) {
                    *byte ^= 1 << bit;
                }
            }
            Edit::Overwrite { at, bytes } => {
                let at = place(*at);
                let end = (at + bytes.len()).min(len);
                input[at..end].copy_from_slice(&bytes[..end - at]);
            }
            Edit::Insert { at, bytes } => {
                let at = place(*at);
                input.splice(at..at, bytes.iter().copied());
            }
            Edit::Delete { at, len: count } => {
                let at = place(*at);
                input.drain(at..(at + count).min(len));
            }
            Edit::Duplicate { at, len: count, to } => {
                let at = place(*at);
                let piece = input[at..(at + count).min(len)].to_vec();
                let to = place(*to);
                input.splice(to..to, piece);
            }
            Edit::Number { at, number } => {
                let digit = |index: &usize| input[*index].is_ascii_digit();
                let at = place(*at);
                if let Some(start) = (at..len).find(digit) {
                    let end = (start..len).find(|index| !digit(index)).unwrap_or(len);
                    input.splice(start..end, number.bytes());
                }
            }
            Edit::Truncate { len: to } => input.truncate(place(*to)),
            Edit::Splice { at, other, from } => {
                let other = &corpus[other % corpus.len()];
                input.truncate(place(*at));
                input.extend_from_slice(&other[from % (other.len() + 1)..]);
            }
        }
    }
    input
}
