"""Every key of config.json set to a second value, and what transformers then computes: tests/fixtures/sweep.json.

usage: make_sweep.py [--check]: --check compares with the file instead of writing it.

For each family there is a base configuration. Each case changes keys of it. The checkpoint has the tensors that
transformers expects for the changed configuration, filled by synthetic.py. `result` is

  "same"              the logits of the base, to the last bit
  {"logits": [...]}   other logits of the last token, at the ids of `ids`
  {"error": "..."}    transformers does not run it

The test `sweep` opens the same checkpoints: its logits are those of transformers, or it refuses the key.
"""

import json
import sys
import tempfile
from pathlib import Path

from judge import logits_of, open_model  # first: it sets how torch is to run

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import make_golden
import synthetic
from cases import LLAMA3, ROPE, SHAPE
from make_keys import differs_from

make_golden.A = 0.36  # a standard deviation of 0.21

FILE = Path(__file__).resolve().parent.parent / "fixtures" / "sweep.json"
TOKENS = 12
IDS = list(range(0, 112, 5))

BASES = {
    "llama": dict(rope_parameters=ROPE),
    "mistral": dict(rope_parameters=ROPE, sliding_window=None, head_dim=16),
    "qwen2": dict(rope_parameters=ROPE),
    "qwen3": dict(rope_parameters=ROPE, head_dim=16),
    "bitnet": dict(rope_parameters=ROPE, hidden_act="relu2", rms_norm_eps=1e-5),
}

YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONGROPE = {**ROPE, "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 8}
WINDOW = {"use_sliding_window": True, "sliding_window": 4}

# The second value of each key, or a change of several keys under a name of its own.
SECOND = {
    # Of the decoder.
    "attention_bias": True,
    "head_dim": 32,
    "hidden_act": "relu2",
    "hidden_act to gelu": {"hidden_act": "gelu"},
    "hidden_act to silu": {"hidden_act": "silu"},
    "hidden_size": 96,
    "intermediate_size": 80,
    "is_causal": False,
    "layer_types": ["sliding_attention", "full_attention"],
    "layer_types with a window": {"layer_types": ["full_attention", "sliding_attention"], **WINDOW},
    "max_position_embeddings": 40,
    "max_window_layers": 1,
    "max_window_layers with a window": {"max_window_layers": 1, "layer_types": None, **WINDOW},
    "mlp_bias": True,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_key_value_heads of none": {"num_key_value_heads": None},
    "original_max_position_embeddings": 16,
    "original_max_position_embeddings with llama3": {"original_max_position_embeddings": 16, "rope_parameters": LLAMA3},
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 0.5,
    "rope_parameters": {"rope_parameters": {**ROPE, "rope_theta": 50.0}},
    "rope_parameters of partial rotation": {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    "rope_parameters of linear": {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}},
    "rope_parameters of llama3": {"rope_parameters": LLAMA3},
    "rope_parameters of dynamic": {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}},
    "rope_parameters of yarn": {"rope_parameters": YARN},
    "rope_parameters of longrope": {
        "rope_parameters": {**LONGROPE, "short_factor": [1.5] * 8, "long_factor": [2.5] * 8}
    },
    "rope_parameters with attention_factor": {"rope_parameters": {**ROPE, "attention_factor": 2.0}},
    "rope_parameters with mscale": {"rope_parameters": {**ROPE, "mscale": 2.0, "truncate": True}},
    "rope_scaling": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": None, "rope_theta": 10000.0},
    "rope_theta": {"rope_theta": 50.0, "rope_parameters": None},
    "rope_theta beside rope_parameters": {"rope_theta": 50.0},
    "sliding_window": 4,
    "sliding_window with its switch": WINDOW,
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "vocab_size": 120,
    # Special tokens.
    "bos_token_id": 7,
    "eos_token_id": [8, 9],
    "pad_token_id": 5,
    "sep_token_id": 6,
    "decoder_start_token_id": 6,
    # Of the base class, and of transformers 4.
    "_name_or_path": "somewhere/else",
    "add_cross_attention": True,
    "architectures": ["ModelForSequenceClassification"],
    "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
    "chunk_size_feed_forward": 4,
    "cross_attention_hidden_size": 32,
    "dtype": "bfloat16",
    "finetuning_task": "x",
    "gradient_checkpointing": True,
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "is_decoder": True,
    "is_encoder_decoder": True,
    "label2id": {"a": 0, "b": 1, "c": 2},
    "num_labels": 3,
    "output_attentions": True,
    "output_hidden_states": True,
    "prefix": "x",
    "problem_type": "regression",
    "pruned_heads": {"0": [1]},
    "return_dict": False,
    "task_specific_params": {"x": {"a": 1}},
    "tf_legacy_loss": True,
    "tie_encoder_decoder": True,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "torch_dtype": "float16",
    "torchscript": True,
    "transformers_version": "4.0.0",
    "use_bfloat16": True,
    "use_cache": False,
    # Training.
    "attention_dropout": 0.5,
    "hidden_dropout": 0.5,
    "initializer_range": 0.5,
    "pretraining_tp": 2,
    # Generation.
    "repetition_penalty": 2.0,
    "temperature": 0.1,
    # Of publishers.
    "is_llama_config": True,
    "max_sequence_length": 8,
    "rope_interleaved": True,
    "unsloth_version": "2025.1",
    # Of other families, and of none.
    "attention_multiplier": 2.0,
    "attn_logit_softcapping": 5.0,
    "embedding_multiplier": 3.0,
    "final_logit_softcapping": 5.0,
    "logits_scaling": 2.0,
    "no_rope_layers": [0, 1],
    "num_experts": 4,
    "num_local_experts": 4,
    "qk_layernorm": True,
    "residual_multiplier": 0.5,
    "weight_bits": 1,
}


def changes_of(name: str, value) -> dict:
    """The changed keys of a case: a name with a space, or a key inside its own value, stands for several."""
    if isinstance(value, dict) and (" " in name or name in value):
        return value
    return {name: value}


def changed(base: dict, changes: dict) -> dict:
    config = {**base, **changes}
    return {key: value for key, value in config.items() if not (key in ("rope_parameters", "layer_types") and value is None)}


def run(config: dict, tokens: list[int]):
    """The tensors that transformers expects, and the logits of the last token; or its error."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(config))
        try:
            # Attention weights are returned only by the plain implementation.
            if config.get("output_attentions"):
                config = {**config, "attn_implementation": "eager"}
                (folder / "config.json").write_text(json.dumps(config))
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
            tensors = make_golden.tensor_list(model, {})
            save_file({t[0]: make_golden.fill(*t) for t in tensors}, folder / "model.safetensors", {"format": "pt"})
            with torch.no_grad():
                output = open_model(folder)(torch.tensor([tokens]))
        except Exception as refusal:  # whatever transformers throws
            return None, f"{type(refusal).__name__}: {refusal}".split("\n")[0][:120]
        # A tuple where the configuration asks for one.
        logits = output.logits if hasattr(output, "logits") else output[0]
        return tensors, logits[0, -1].float()


def family(model_type: str, own: dict) -> dict:
    config = AutoConfig.for_model(model_type, **{**SHAPE, **own})
    config.architectures = [type(AutoModelForCausalLM.from_config(config)).__name__]
    base = json.loads(config.to_json_string(use_diff=False))
    base = {key: value for key, value in base.items() if value is not None}
    tokens = synthetic.integers(f"sweep.{model_type}", TOKENS, config.vocab_size)
    tensors, logits = run(base, tokens)
    cases = []
    for name, value in SECOND.items():
        changes = changes_of(name, value)
        if base.get(name) == value:
            continue
        theirs, found = run(changed(base, changes), tokens)
        case = {"name": name, "changes": changes}
        if theirs is None:
            case["result"] = {"error": found}
        elif found.shape == logits.shape and torch.equal(found, logits):
            case["result"] = "same"
        else:
            case["result"] = {"logits": make_golden.seven_digits(found[IDS])}
        if theirs not in (None, tensors):
            case["tensors"] = theirs
        cases.append(case)
        print(f"{model_type:8} {name:40} {str(case['result'])[:60]}", file=sys.stderr)
    return {
        "config": base,
        "tokens": tokens,
        "tensors": tensors,
        "logits": make_golden.seven_digits(logits[IDS]),
        "cases": cases,
    }


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    families = {name: family(name, own) for name, own in BASES.items()}
    found = {"transformers": transformers.__version__, "a": make_golden.A, "ids": IDS, "families": families}
    entries = [f'  "{name}": {entry(of_family)}' for name, of_family in families.items()]
    head = json.dumps({key: value for key, value in found.items() if key != "families"})[:-1]
    text = head + ', "families": {\n' + ",\n".join(entries) + "\n}}\n"
    if "--check" in sys.argv:
        sys.exit(differs_from(FILE, text, close=1e-4))
    FILE.write_text(text)


def entry(of_family: dict) -> str:
    """A family with a line for each case."""
    head = json.dumps({key: value for key, value in of_family.items() if key != "cases"})[:-1]
    return head + ', "cases": [\n' + ",\n".join("    " + json.dumps(case) for case in of_family["cases"]) + "\n  ]}"


if __name__ == "__main__":
    main()
