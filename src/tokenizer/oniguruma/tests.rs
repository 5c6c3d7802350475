//! Matches of translated patterns. Expected values are those of the Python package tokenizers 0.23.3, which uses
//! Oniguruma.

use super::*;
use crate::format::source::MemoryDir;
use crate::task::block_on;
use crate::tokenizer::HuggingFaceTokenizer;
use proptest::prelude::*;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

const TEXT: &str = "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n";

/// Each pattern with the pieces that it splits [`TEXT`] into.
const PIECES: &[(&str, &str)] = &[
    ("^h", "h‖E he\n‖h‖e aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    ("h$", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    ("\\n^", "hE he‖\n‖he aab\r‖\n‖AB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    ("$\\n", "hE he‖\n‖he aab\r‖\n‖AB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab‖\n"),
    ("\\A.", "h‖E he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    ("e\\z", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    ("e\\Z", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    ("e\\n\\Z", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    (
        "\\w+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a²Ⅷ‖ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> ‖_é‖]‖ab‖\n",
    ),
    (
        "[\\w]+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²‖Ⅷ‖ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> ‖_é‖]‖ab‖\n",
    ),
    (
        "\\W+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a²Ⅷ‖ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> ‖_é‖]‖ab‖\n",
    ),
    (
        "\\b\\w",
        "h‖E ‖h‖e\n‖h‖e ‖a‖ab\r\n‖A‖B ‖a‖bc ‖d‖on'‖t‖ ‖I‖'‖L‖L ‖K‖Kſ ‖a‖²Ⅷ \u{200d}‖x‖\u{2028}$+.- <‖日‖本> ‖_‖é]‖a‖b\n",
    ),
    (
        "\\B.",
        "h‖E‖ h‖e‖\nh‖e‖ a‖a‖b‖\r\nA‖B‖ a‖b‖c‖ d‖o‖n‖'t I'L‖L‖ K‖K‖ſ‖ a‖²‖Ⅷ‖ ‖\u{200d}‖x\u{2028}‖$‖+‖.‖-‖ ‖<‖日‖本‖>‖ ‖_‖é‖]a‖b‖\n",
    ),
    (
        "[[:punct:]]",
        "hE he\nhe aab\r\nAB abc don‖'‖t I‖'‖LL KKſ a²Ⅷ \u{200d}x\u{2028}‖$‖+‖.‖-‖ ‖<‖日本‖>‖ ‖_‖é‖]‖ab\n",
    ),
    (
        "\\p{Punct}",
        "hE he\nhe aab\r\nAB abc don‖'‖t I‖'‖LL KKſ a²Ⅷ \u{200d}x\u{2028}$+‖.‖-‖ <日本> ‖_‖é‖]‖ab\n",
    ),
    (
        "[[:alpha:]]+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²‖Ⅷ‖ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> _‖é‖]‖ab‖\n",
    ),
    (
        "[[:graph:]]+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don't‖ ‖I'LL‖ ‖KKſ‖ ‖a²Ⅷ‖ ‖\u{200d}x‖\u{2028}‖$+.-‖ ‖<日本>‖ ‖_é]ab‖\n",
    ),
    (
        "[[:print:]]+",
        "hE he‖\n‖he aab‖\r\n‖AB abc don't I'LL KKſ a²Ⅷ \u{200d}x‖\u{2028}‖$+.- <日本> _é]ab‖\n",
    ),
    (
        "[[:^space:]]+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don't‖ ‖I'LL‖ ‖KKſ‖ ‖a²Ⅷ‖ ‖\u{200d}x‖\u{2028}‖$+.-‖ ‖<日本>‖ ‖_é]ab‖\n",
    ),
    (
        "[[:alnum:]]+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²‖Ⅷ‖ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> _‖é‖]‖ab‖\n",
    ),
    (
        "[[:word:]]+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²‖Ⅷ‖ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> ‖_é‖]‖ab‖\n",
    ),
    ("(?m).+", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    (".+", "hE he‖\n‖he aab\r‖\n‖AB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab‖\n"),
    (
        "\\h+",
        "h‖E‖ h‖e‖\nh‖e‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖d‖on't I'LL KKſ ‖a‖²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖ab‖\n",
    ),
    ("\\R", "hE he‖\n‖he aab‖\r\n‖AB abc don't I'LL KKſ a²Ⅷ \u{200d}x‖\u{2028}‖$+.- <日本> _é]ab‖\n"),
    (
        "\\O",
        "h‖E‖ ‖h‖e‖\n‖h‖e‖ ‖a‖a‖b‖\r‖\n‖A‖B‖ ‖a‖b‖c‖ ‖d‖o‖n‖'‖t‖ ‖I‖'‖L‖L‖ ‖K‖K‖ſ‖ ‖a‖²‖Ⅷ‖ ‖\u{200d}‖x‖\u{2028}‖$‖+‖.‖-‖ ‖<‖日‖本‖>‖ ‖_‖é‖]‖a‖b‖\n",
    ),
    ("\\N+", "hE he‖\n‖he aab\r‖\n‖AB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab‖\n"),
    (
        "x*",
        "h‖E‖ ‖h‖e‖\n‖h‖e‖ ‖a‖a‖b‖\r‖\n‖A‖B‖ ‖a‖b‖c‖ ‖d‖o‖n‖'‖t‖ ‖I‖'‖L‖L‖ ‖K‖K‖ſ‖ ‖a‖²‖Ⅷ‖ ‖\u{200d}‖x‖\u{2028}‖$‖+‖.‖-‖ ‖<‖日‖本‖>‖ ‖_‖é‖]‖a‖b‖\n",
    ),
    (
        "a{2}?",
        "h‖E‖ ‖h‖e‖\n‖h‖e‖ ‖aa‖b‖\r‖\n‖A‖B‖ ‖a‖b‖c‖ ‖d‖o‖n‖'‖t‖ ‖I‖'‖L‖L‖ ‖K‖K‖ſ‖ ‖a‖²‖Ⅷ‖ ‖\u{200d}‖x‖\u{2028}‖$‖+‖.‖-‖ ‖<‖日‖本‖>‖ ‖_‖é‖]‖a‖b‖\n",
    ),
    ("a{1,2}+", "hE he\nhe ‖aa‖b\r\nAB ‖a‖bc don't I'LL KKſ ‖a‖²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖a‖b\n"),
    ("a++", "hE he\nhe ‖aa‖b\r\nAB ‖a‖bc don't I'LL KKſ ‖a‖²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖a‖b\n"),
    ("a{,2}b", "hE he\nhe ‖aab‖\r\nAB ‖ab‖c don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖ab‖\n"),
    ("a(?i)b|c", "hE he\nhe a‖ab‖\r\nAB ‖ab‖c don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖ab‖\n"),
    (
        "(?i:[a-z])+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²Ⅷ \u{200d}‖x‖\u{2028}$+.- <日本> _é]‖ab‖\n",
    ),
    (
        "(?i)\\p{Lu}+",
        "h‖E‖ he\nhe aab\r\n‖AB‖ abc don't ‖I‖'‖LL‖ ‖KK‖ſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n",
    ),
    (
        "(?i)[\\p{Lu}]+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²Ⅷ \u{200d}‖x‖\u{2028}$+.- <日本> _‖é‖]‖ab‖\n",
    ),
    ("(?i)k", "hE he\nhe aab\r\nAB abc don't I'LL ‖K‖K‖ſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    (
        "(?i:'s|'t|'re|'ll)",
        "hE he\nhe aab\r\nAB abc don‖'t‖ I‖'LL‖ KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n",
    ),
    (
        "[a-z&&[^aeiou]]+",
        "h‖E ‖h‖e\n‖h‖e aa‖b‖\r\nAB a‖bc‖ ‖d‖o‖n‖'‖t‖ I'LL KKſ a²Ⅷ \u{200d}‖x‖\u{2028}$+.- <日本> _é]a‖b‖\n",
    ),
    ("[^ab&&bc]+", "hE he\nhe aa‖b‖\r\nAB a‖b‖c don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]a‖b‖\n"),
    ("[+--]", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$‖+‖.‖-‖ <日本> _é]ab\n"),
    (
        "[a-c-e]+",
        "hE h‖e‖\nh‖e‖ ‖aab‖\r\nAB ‖abc‖ don't I'LL KKſ ‖a‖²Ⅷ \u{200d}x\u{2028}$+.‖-‖ <日本> _é]‖ab‖\n",
    ),
    ("[]a]", "hE he\nhe ‖a‖a‖b\r\nAB ‖a‖bc don't I'LL KKſ ‖a‖²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é‖]‖a‖b\n"),
    ("[a~~b]", "hE he\nhe ‖a‖a‖b‖\r\nAB ‖a‖b‖c don't I'LL KKſ ‖a‖²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖a‖b‖\n"),
    ("(?x) a b # c", "hE he\nhe a‖ab‖\r\nAB ‖ab‖c don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖ab‖\n"),
    (
        "(?x)[a b]",
        "hE‖ ‖he\nhe‖ ‖a‖a‖b‖\r\nAB‖ ‖a‖b‖c‖ ‖don't‖ ‖I'LL‖ ‖KKſ‖ ‖a‖²Ⅷ‖ ‖\u{200d}x\u{2028}$+.-‖ ‖<日本>‖ ‖_é]‖a‖b‖\n",
    ),
    ("(?#note)a", "hE he\nhe ‖a‖a‖b\r\nAB ‖a‖bc don't I'LL KKſ ‖a‖²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖a‖b\n"),
    ("\\<|\\>", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- ‖<‖日本‖>‖ _é]ab\n"),
    ("(?'n'a)", "hE he\nhe ‖a‖a‖b\r\nAB ‖a‖bc don't I'LL KKſ ‖a‖²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖a‖b\n"),
    ("(a)\\1", "hE he\nhe ‖aa‖b\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    ("\\q", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    (
        "\\x41|\\u0042|\\x{63}",
        "hE he\nhe aab\r\n‖A‖B‖ ab‖c‖ don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n",
    ),
    (
        "\\p{^L}+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²Ⅷ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> _‖é‖]‖ab‖\n",
    ),
    (
        "\\P{L}+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²Ⅷ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> _‖é‖]‖ab‖\n",
    ),
    ("\\p{Han}+", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <‖日本‖> _é]ab\n"),
    (
        "\\p{Alphabetic}+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r\n‖AB‖ ‖abc‖ ‖don‖'‖t‖ ‖I‖'‖LL‖ ‖KKſ‖ ‖a‖²‖Ⅷ‖ \u{200d}‖x‖\u{2028}$+.- <‖日本‖> _‖é‖]‖ab‖\n",
    ),
    ("(?<=a)b", "hE he\nhe aa‖b‖\r\nAB a‖b‖c don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]a‖b‖\n"),
    ("(?<!a)b", "hE he\nhe aab\r\nAB abc don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]ab\n"),
    ("(?>a+)b", "hE he\nhe ‖aab‖\r\nAB ‖ab‖c don't I'LL KKſ a²Ⅷ \u{200d}x\u{2028}$+.- <日本> _é]‖ab‖\n"),
    (
        "\\s+(?!\\S)|\\s+",
        "hE‖ ‖he‖\n‖he‖ ‖aab‖\r‖\n‖AB‖ ‖abc‖ ‖don't‖ ‖I'LL‖ ‖KKſ‖ ‖a²Ⅷ‖ ‖\u{200d}x‖\u{2028}‖$+.-‖ ‖<日本>‖ ‖_é]ab‖\n",
    ),
    (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "hE‖ he‖\n‖he‖ aab‖\r\n‖AB‖ abc‖ don‖'t‖ I‖'LL‖ KKſ‖ a‖²Ⅷ‖ \u{200d}‖x‖\u{2028}‖$+.-‖ <‖日本‖>‖ _‖é‖]ab‖\n",
    ),
];

fn split(pattern: &str, text: &str) -> Result<Vec<String>, String> {
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    let pattern = SplitPattern::Regex(translate(pattern)?);
    let split = Split::new(pattern, tokenizers::SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| error.to_string())?;
    let mut pieces = PreTokenizedString::from(text);
    split.pre_tokenize(&mut pieces).map_err(|error| error.to_string())?;
    let found = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(found.into_iter().map(|(piece, _, _)| piece.to_owned()).collect())
}

#[test]
fn patterns_mean_what_oniguruma_means() {
    for (pattern, expected) in PIECES {
        let pieces = split(pattern, TEXT).map(|pieces| pieces.join("‖"));
        assert_eq!(pieces.as_deref(), Ok(*expected), "{pattern}");
    }
}

#[test]
fn what_cannot_be_said_is_refused_by_name() {
    for (pattern, named) in [
        (r"\X", r"`\X`"),
        (r"\Ga", r"`\G`"),
        (r"a\Kb", r"`\K`"),
        (r"\cA", r"`\c`"),
        (r"\pL", r"`\p`"),
        (r"\xe9", r"`\xe9`"),
        (r"\p{Script=Greek}", "Script=Greek"),
        (r"(?<n>a)\k<n>", r"`\k`"),
        (r"(?<n>a)(b)\1", "names"),
        (r"\1(a)", r"`\1`"),
        (r"(?~a)", "`(?~`"),
        (r"(?(1)a|b)", "`(?(`"),
        (r"(*FAIL)", "`(*`"),
        (r"(?s).", "option `s`"),
        (r"(?W)a", "option `W`"),
        (r"(?i)ss", "`ss`"),
        (r"(?i:fi)", "`fi`"),
        (r"(?i)ß", "`ß`"),
        (r"(?i:[à-ý])", "`à`"),
        (r"[\w-.]", "range"),
        (r"[a-[bc]]", "range"),
        (r"[z-a]", "`z-a`"),
        (r"[[:foo:]]", "[:foo:]"),
        (r"[a&&]", "nothing in them"),
        (r"[a", "`]`"),
        (r"(a", "`)`"),
        (r"a)", "`)`"),
        (r"*a", "`*`"),
        (r"^*", "cannot be repeated"),
        (r"(a*)*", "match nothing"),
        (r"a{3,1}", "wrong way"),
        (r"a{100001}", "repeats"),
    ] {
        let error = translate(pattern).expect_err(pattern);
        assert!(error.contains(named) && error.contains(pattern), "{pattern}: {error}");
    }
}

#[test]
fn patterns_are_found_wherever_a_file_has_them() {
    let file = |pattern: &str| {
        serde_json::json!({
            "normalizer": {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                {"type": "Split", "pattern": {"String": "^h"}, "behavior": "Isolated", "invert": false},
            ]},
            "decoder": {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""},
            "model": {"vocab": {"Regex": 1, "\"Regex": 2, "Regex\": \"^h": 3}},
        })
    };
    let translated = translate_file(file("^h\"\u{e9}").to_string().into_bytes()).unwrap();
    let expected = file(&translate("^h\"\u{e9}").unwrap());
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&translated).unwrap(), expected);
    let plain = br#"{"Regex": 5, "a": "Regex"}"#.to_vec();
    assert_eq!(translate_file(plain.clone()).unwrap(), plain);
    assert!(translate_file(br#"{"Regex" : "\\X"}"#.to_vec()).unwrap_err().contains(r"`\X`"));
    let dir = MemoryDir::new("m").with("tokenizer.json", file(r"\X").to_string().into_bytes());
    let Err(error) = block_on(HuggingFaceTokenizer::open(&dir, None)) else { panic!("it was taken") };
    assert!(error.to_string().starts_with(r"m: tokenizer.json: the pattern `\X` has `\X`"), "{error}");
}

proptest! {
    /// Any pattern is translated or refused, and a translation either compiles or is refused.
    #[test]
    fn no_pattern_breaks_it(pieces in prop::collection::vec(prop::sample::select(vec![
        "a", "s", " ", "é", "\\\\", "[", "]", "^", "$", "(", ")", "(?", "(?:", "(?i)", "(?i:", "(?x)", "(?<=", "(?<!", "(?=", "(?>", "(?<n>", "<", ">",
        "*", "+", "?", "{", "}", "{2,}", "{,3}", "1", "9", ",", "|", "&&", "-", ":", "[:", ":]", "alpha", "p{", "L", "x", "u00", "b", "w",
        "W", "R", "Z", "#", ".", "\n",
    ]), 0..20)) {
        if let Ok(pieces) = split(&pieces.concat(), "ab\n S\u{e9}") {
            prop_assert_eq!(pieces.concat(), "ab\n S\u{e9}");
        }
    }
}
