"""Makes a golden GGUF model with every block type, run by transformers and llama.cpp, and tokenizers, run by llama.cpp.

usage: make_gguf_models.py [--files DIR] [--check]

Blocks of 256 need a width that no small real model has. So this model is synthetic: 256 wide, two layers, and its
matrices together use every type. Its bytes come from the hash of tensor names in synthetic.py, so the Rust test builds
the same file.

Writes tests/fixtures/golden/gguf_models.json:

  model       metadata, tensors, a prompt, f32 logits from transformers with weights decoded by `gguf.quants`, and the
              greedy tokens, on which llama.cpp and transformers agree
  tokenizers  vocabularies as GGUF metadata, texts, and llama.cpp's token ids

LOWBIT_NODE_LLAMA names a folder whose node_modules holds node-llama-cpp (see judge_gguf.mjs). --files keeps the files.
--check compares with the committed file instead of writing it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter, quants
from transformers import LlamaConfig, LlamaForCausalLM

import synthetic

HERE = Path(__file__).resolve().parent
FILE = HERE.parent / "fixtures" / "golden" / "gguf_models.json"
SHAPE = {"blocks": 2, "hidden": 256, "inner": 512, "heads": 8, "kv_heads": 2, "context": 64, "vocab": 320, "eps": 1e-5}
TYPES = {
    "token_embd": ["Q8_0"],
    "output": ["Q6_K"],
    "attn_q": ["Q4_K", "Q4_0"],
    "attn_k": ["Q6_K", "Q4_1"],
    "attn_v": ["Q5_1", "F16"],
    "attn_output": ["Q5_0", "BF16"],
    "ffn_gate": ["Q4_1", "TQ1_0"],
    "ffn_up": ["Q4_K", "TQ2_0"],
    "ffn_down": ["Q6_K", "IQ4_NL"],
}
NEW_TOKENS = 24
POSITIONS = [0, 3, 7]

# For each type: offset and factor of each f16 number in a block. The factors make weights of about a tenth. The
# minimums of Q4_1 and Q5_1 are negative; that of Q4_K is subtracted.
HALVES = {
    "Q8_0": [(0, 2.0**-13)],
    "Q4_0": [(0, -(2.0**-9))],
    "Q4_1": [(0, 2.0**-9), (2, -7.5 * 2.0**-9)],
    "Q5_0": [(0, 2.0**-10)],
    "Q5_1": [(0, 2.0**-10), (2, -15.5 * 2.0**-10)],
    "Q4_K": [(0, 2.0**-14), (2, 7.5 * 2.0**-14)],
    "Q6_K": [(208, 2.0**-17)],
    "TQ1_0": [(52, 2.0**-7)],
    "TQ2_0": [(64, 2.0**-7)],
    "IQ4_NL": [(0, 2.0**-13)],
}


def tensor_list() -> list:
    """[name, type, dimensions] of every tensor, outermost dimension first."""
    s = SHAPE
    kv = s["hidden"] // s["heads"] * s["kv_heads"]
    shapes = {
        "attn_q": (s["hidden"], s["hidden"]),
        "attn_k": (kv, s["hidden"]),
        "attn_v": (kv, s["hidden"]),
        "attn_output": (s["hidden"], s["hidden"]),
        "ffn_gate": (s["inner"], s["hidden"]),
        "ffn_up": (s["inner"], s["hidden"]),
        "ffn_down": (s["hidden"], s["inner"]),
    }
    rows = [[f"{n}.weight", TYPES[n][0], [s["vocab"], s["hidden"]]] for n in ("token_embd", "output")]
    rows.append(["output_norm.weight", "F32", [s["hidden"]]])
    for block in range(s["blocks"]):
        rows += [[f"blk.{block}.{norm}.weight", "F32", [s["hidden"]]] for norm in ("attn_norm", "ffn_norm")]
        rows += [[f"blk.{block}.{n}.weight", TYPES[n][block], list(shape)] for n, shape in shapes.items()]
    return rows


def data(name: str, kind: str, dims: list[int]) -> np.ndarray:
    """The tensor's blocks as bytes, or its values if its type has no blocks."""
    if kind == "F32":
        return synthetic.norm(name, dims)
    if kind == "F16":
        return synthetic.scaled(name, dims, 0.125).astype(np.float16)
    if kind == "BF16":
        return quants.quantize(synthetic.scaled(name, dims, 0.125), Type.BF16)
    elements, size = quants.GGML_QUANT_SIZES[Type[kind]]
    count = dims[0] * dims[1] // elements
    raw = synthetic.stream(name, count * size)
    if kind == "TQ2_0":  # 3 is not a ternary code
        codes = [(raw >> np.uint64(8 * i)) % np.uint64(3) << np.uint64(2 * i) for i in range(4)]
        raw = codes[0] | codes[1] | codes[2] | codes[3]
    blocks = (raw & np.uint64(255)).astype(np.uint8).reshape(count, size)
    # 8 to 15, the same for all f16 numbers of a block
    steps = (synthetic.stream(name + "#scale", count) % np.uint64(8)).astype(np.float32) + 8
    for at, factor in HALVES[kind]:
        blocks[:, at : at + 2] = (steps * np.float32(factor)).astype(np.float16).reshape(-1, 1).view(np.uint8)
    return blocks.reshape(dims[0], -1)


def spm_vocabulary() -> dict:
    """A SentencePiece vocabulary: <unk>, <s>, </s>, all bytes, words and letters with scores by rank."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    kinds = [2, 3, 3] + [6] * 256
    words = ["\u2581t", "he", "\u2581the", "\u2581a", "in", "re", "er", "\u2581s", "nd", "ing", "\u2581and", "aa", "aaa"]
    words += ["\u2581\u2581", "\u2581\u2581\u2581", "th", "the", "\u2581thing", "hing", "\u2581thin"]
    letters = list("\u2581abcdefghijklmnopqrstuvwxyzTA.,'é")
    tokens += words + letters
    tokens += [f"[{i}]" for i in range(SHAPE["vocab"] - len(tokens) - 1)] + ["<extra>"]
    ordinary = len(tokens) - 259
    kinds += [1] * (ordinary - 1) + [4]
    scores = [0.0] * 259 + [-float(i) for i in range(ordinary)]
    return {"model": "llama", "tokens": tokens, "kinds": kinds, "scores": scores, "bos": 1, "eos": 2, "unknown": 0}


def byte_vocabulary(pre: str) -> dict:
    """A byte-level BPE vocabulary. Its merges are not trained: they build the prefixes of some common words."""
    shown = [c for c in range(33, 127)] + [c for c in range(161, 173)] + [c for c in range(174, 256)]
    letters = [chr(c) for c in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    space, newline = "\u0120", "\u010a"
    merges, tokens = [], list(letters)
    words = [space + "the", space + "and", "ing", "'s", "'S", "123", "1234", space + "1", "don't", space + space + space]
    words += [newline + newline, "Hello", "the", "\u00c3\u00a9", space + "hello", "!!", "...", space + "="]
    for word in words:
        left = word[0]
        for letter in word[1:]:
            if left + letter not in tokens:
                merges.append(f"{left} {letter}")
                tokens.append(left + letter)
            left += letter
    tokens += ["<|end|>", "<extra>"]
    kinds = [1] * (len(tokens) - 2) + [3, 4]
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "kinds": kinds, "merges": merges, "eos": len(tokens) - 2}


TEXTS = [
    "the thing and then",
    " the  thing",
    "   spaces   and\n\nlines\n \n",
    "aaaaa aaaa",
    "Tin é ü 模 <s> </s>",
    "don't DON'T it's IT'S 'tis",
    "1234567 12 1,234.5 x=1==2",
    "Hello, hello!! ... (the) <extra>the",
    "a\tb \t c\r\n d",
    "",
]
PRES = ["gpt-2", "llama-bpe", "qwen2", "smollm", "default"]


def add_vocabulary(writer: GGUFWriter, vocabulary: dict) -> None:
    writer.add_tokenizer_model(vocabulary["model"])
    if "pre" in vocabulary:
        writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["kinds"])
    if "scores" in vocabulary:
        writer.add_token_scores(vocabulary["scores"])
    if "merges" in vocabulary:
        writer.add_token_merges(vocabulary["merges"])
    for key, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("unknown", writer.add_unk_token_id)):
        if key in vocabulary:
            add(vocabulary[key])


def write(path: Path, tensors: list, vocabulary: dict) -> None:
    s = SHAPE
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(s["blocks"])
    writer.add_context_length(s["context"])
    writer.add_embedding_length(s["hidden"])
    writer.add_feed_forward_length(s["inner"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_rms_eps(s["eps"])
    add_vocabulary(writer, vocabulary)
    for name, kind, dims in tensors:
        values = data(name, kind, dims)
        writer.add_tensor(name, values, raw_dtype=None if kind in ("F32", "F16") else Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def open_in_transformers(path: Path) -> LlamaForCausalLM:
    """A model with the file's weights, decoded by `gguf.quants`, with q and k in Hugging Face's row order."""
    s = SHAPE
    names = {
        "token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    state = {}
    for tensor in GGUFReader(path).tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).reshape([int(d) for d in reversed(tensor.shape)])
        parts = tensor.name.split(".")
        for module, heads in (("attn_q", s["heads"]), ("attn_k", s["kv_heads"])):
            if module in parts:
                rows, width = values.shape
                values = values.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
        name = f"model.layers.{parts[1]}.{names[parts[2]]}" if parts[0] == "blk" else names[parts[0]]
        state[name + ".weight"] = torch.from_numpy(values.astype(np.float32).copy())
    config = LlamaConfig(
        hidden_size=s["hidden"], intermediate_size=s["inner"], num_hidden_layers=s["blocks"],
        num_attention_heads=s["heads"], num_key_value_heads=s["kv_heads"], vocab_size=s["vocab"],
        max_position_embeddings=s["context"], rms_norm_eps=s["eps"], tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    missing = model.load_state_dict(state, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    return model


@torch.no_grad()
def greedy(model: LlamaForCausalLM, prompt: list[int]) -> tuple[list[int], float]:
    """The greedy tokens, and the smallest gap between the largest and the second logit."""
    ids, margin = list(prompt), float("inf")
    for _ in range(NEW_TOKENS):
        logits = model(torch.tensor([ids])).logits[0, -1]
        best = torch.topk(logits, 2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], margin


def llama_cpp(jobs: list[dict]) -> list:
    folder = os.environ["LOWBIT_NODE_LLAMA"]
    answer = subprocess.run(
        ["node", str(HERE / "judge_gguf.mjs"), folder], input=json.dumps(jobs), capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        sys.exit(answer.stderr)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = args.files or Path(folder)
        folder.mkdir(exist_ok=True)
        path = folder / "every-type.gguf"
        tensors, spm = tensor_list(), spm_vocabulary()
        write(path, tensors, spm)
        model = open_in_transformers(path)
        # llama.cpp rounds activations to 8 bits, so use the prompt with the largest gap between logits.
        prompts = [[1] + [3 + t for t in synthetic.integers(f"prompt {salt}", 7, 300)] for salt in range(60)]
        new, margin, prompt = max(((*greedy(model, prompt), prompt) for prompt in prompts), key=lambda found: found[1])
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0]
        jobs = [{"file": str(path), "greedy": prompt, "count": NEW_TOKENS}]
        vocabularies = [spm] + [byte_vocabulary(pre) for pre in PRES]
        for index, vocabulary in enumerate(vocabularies):
            file = folder / f"tokenizer-{index}.gguf"
            write(file, [], vocabulary)
            jobs.append({"file": str(file), "texts": TEXTS})
        answers = llama_cpp(jobs)
        print("margin", margin, "transformers", new, "llama.cpp", answers[0])
        assert answers[0] == new, "llama.cpp and transformers generate different tokens"
        golden = {
            "model": {
                "shape": SHAPE, "tensors": tensors, "vocabulary": spm, "halves": HALVES, "prompt": prompt,
                "margin": margin, "greedy": new, "positions": POSITIONS,
                "logits": [[float(f"{v:.6g}") for v in logits[p].tolist()] for p in POSITIONS],
            },
            "texts": TEXTS,
            "tokenizers": [{"vocabulary": v, "ids": ids} for v, ids in zip(vocabularies, answers[1:], strict=True)],
        }  # fmt: skip
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n"
    if args.check:
        if FILE.read_text() != text:
            sys.exit("not as committed: gguf_models.json")
    else:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
