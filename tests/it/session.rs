//! Chat sessions reuse the KV cache, and generate the same text as without it.

use crate::support::{fixture, load, on_disk, tokenizer};
use lowbit::internals::backend::cpu::CpuBackend;
use lowbit::internals::generate::{GenerateOptions, Generation, Session};
use lowbit::internals::model::CausalLm;
use lowbit::internals::task::{Silent, block_on};
use lowbit::internals::tokenizer::{HuggingFaceTokenizer, TextCodec};

/// The new tokens, the number of reused prompt tokens, and the session.
fn resumed(
    model: &mut CausalLm<CpuBackend>,
    codec: &HuggingFaceTokenizer,
    prompt: &[u32],
    session: Option<Session<CpuBackend>>,
) -> (Vec<u32>, usize, Session<CpuBackend>) {
    let options = GenerateOptions::default().max_tokens(24);
    let mut generation =
        block_on(Generation::resume(model, codec, prompt, &options, &Silent, session)).unwrap();
    while block_on(generation.next(&Silent)).unwrap().is_some() {}
    (generation.token_ids().to_vec(), generation.reused(), generation.into_session())
}

#[test]
fn turns_go_on_where_the_last_one_ended() {
    let dir = on_disk(fixture("tale-llama"));
    let codec = tokenizer(dir.as_ref());
    let mut model = load(dir);
    let words = |text: &str| codec.encode(text).unwrap();
    let first = codec.encode_prompt("Once upon a time").unwrap();
    let (said, _, _) = resumed(&mut model, &codec, &first, None);
    let whole = [first.clone(), said.clone()].concat();

    let cases = [
        // The last generated token has not run through the model.
        ("the next turn", [whole.clone(), words(" The cat was glad.")].concat(), Some(whole.len() - 1)),
        ("the same prompt again", first.clone(), Some(first.len() - 1)),
        ("a turn that was changed", [first.clone(), words(" there was a king")].concat(), None),
        ("another chat", codec.encode_prompt("Two dogs ran").unwrap(), None),
        (
            "more than the room that was left",
            [whole.clone(), words(&" and then".repeat(60))].concat(),
            Some(0),
        ),
    ];
    for (name, prompt, expected) in cases {
        let (_, reused, session) = resumed(&mut model, &codec, &first, None);
        assert_eq!(reused, 0);
        let (anew, _, _) = resumed(&mut model, &codec, &prompt, None);
        let (again, reused, _) = resumed(&mut model, &codec, &prompt, Some(session));
        assert_eq!(again, anew, "{name}");
        let same = whole.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
        assert_eq!(reused, expected.unwrap_or(same), "{name}");
    }
}
