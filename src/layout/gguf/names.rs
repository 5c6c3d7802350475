//! Translates tensor names between GGUF and Hugging Face.

/// Modules outside the blocks.
const ENDS: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output", "lm_head"), ("output_norm", "model.norm")];

/// Modules of a block: the names after `blk.N.` and after `model.layers.N.`.
const BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The divisors of RoPE frequencies in Llama 3.1 files. They belong to no module.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Whether the `llama` architecture interleaves this tensor's rows.
pub(super) fn is_interleaved(tensor: &str) -> bool {
    [".self_attn.q_proj.", ".self_attn.k_proj."].iter().any(|module| tensor.contains(module))
}

/// `model.layers.0.mlp.up_proj.weight` for `blk.0.ffn_up.weight`.
pub(super) fn to_hugging_face(tensor: &str) -> Option<String> {
    let (module, part) = split(tensor)?;
    let renamed = match module.strip_prefix("blk.") {
        None => find(&ENDS, |pair| pair.0, module)?.1.to_owned(),
        Some(rest) => {
            let (layer, module) = rest.split_once('.')?;
            let layer: u32 = canonical(layer)?;
            format!("model.layers.{layer}.{}", find(&BLOCK, |pair| pair.0, module)?.1)
        }
    };
    Some(format!("{renamed}.{part}"))
}

/// `(12, "ffn_up.weight")` for `blk.12.ffn_up.weight`, and no number for tensors outside the blocks; `None` for RoPE's
/// factors.
pub(super) fn layer(tensor: &str) -> Option<(Option<u32>, &str)> {
    match tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, module)) => Some((canonical(layer), module)),
        None => (tensor != ROPE_FREQS).then_some((None, tensor)),
    }
}

/// The inverse of [`to_hugging_face`].
pub(super) fn to_gguf(tensor: &str) -> Option<String> {
    let (module, part) = split(tensor)?;
    let renamed = match module.strip_prefix("model.layers.") {
        None => find(&ENDS, |pair| pair.1, module)?.0.to_owned(),
        Some(rest) => {
            let (layer, module) = rest.split_once('.')?;
            let layer: u32 = canonical(layer)?;
            format!("blk.{layer}.{}", find(&BLOCK, |pair| pair.1, module)?.0)
        }
    };
    Some(format!("{renamed}.{part}"))
}

fn split(tensor: &str) -> Option<(&str, &str)> {
    tensor.rsplit_once('.').filter(|(_, part)| matches!(*part, "weight" | "bias"))
}

fn find(
    table: &'static [(&'static str, &'static str)],
    key: fn(&(&'static str, &'static str)) -> &'static str,
    name: &str,
) -> Option<&'static (&'static str, &'static str)> {
    table.iter().find(|pair| key(pair) == name)
}

/// A number in canonical form only: `01` would be a second name of the same block.
fn canonical(number: &str) -> Option<u32> {
    number.parse().ok().filter(|parsed: &u32| parsed.to_string() == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (gguf, hugging_face) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            ("blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
            ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
        ] {
            assert_eq!(to_hugging_face(gguf).as_deref(), Some(hugging_face));
            assert_eq!(to_gguf(hugging_face).as_deref(), Some(gguf));
        }
        for unknown in
            ["blk.00.attn_q.weight", "blk.x.attn_q.weight", "blk.0.ffn_gate_exps.weight", "output", ""]
        {
            assert_eq!(to_hugging_face(unknown), None, "{unknown}");
        }
        assert!(is_interleaved("model.layers.1.self_attn.k_proj.bias"));
        assert!(!is_interleaved("model.layers.1.self_attn.q_norm.weight"));
    }
}
