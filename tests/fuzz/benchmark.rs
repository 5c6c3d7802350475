//! A benchmark file: every item can be scored, or the line is named.

use lowbit::ErrorCode;
use lowbit::internals::validate::benchmark::parse_jsonl;

pub fn run(input: &[u8]) {
    match parse_jsonl(input) {
        Ok(items) => {
            assert!(!items.is_empty());
            for item in items {
                assert!(item.choices.len() >= 2 && item.answer < item.choices.len());
                for index in 0..item.choices.len() {
                    assert!(!item.continuation(index).trim().is_empty());
                }
            }
        }
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
            assert!(error.to_string().contains("line ") || lines.count() <= 1, "{error}");
        }
    }
}
