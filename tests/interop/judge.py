"""Opens a checkpoint folder in transformers, as an independent check of what lowbit reads and writes.

usage: judge.py logits FOLDER IDS [--positions 0,5,-1]       IDS: a JSON file with a list of token ids, or - for stdin
       judge.py perplexity FOLDER TEXT [--context 512] [--tokens N] [--tokenizer FOLDER]
       judge.py batch                                        one job per line of stdin, one answer per line of stdout

A job of `batch`: {"folder": ..., "ids": [...], "positions": [...]} or {"folder": ..., "text": FILE, "context": ...,
"tokens": ..., "tokenizer": ...}. The folder may be plain, compressed-tensors, GPTQ, AWQ or BitNet. Arithmetic is f32.

Answers: {"folder", "opened", "positions", "logits": one row per position, "argmax": of every position}
      or {"folder", "opened", "perplexity", "tokens", "context"}
      or {"folder", "error"}, and exit status 1 at the end.
Tensors that are missing, unexpected or of another shape are an error; transformers only warns about most of them.
"opened" is "as is", or why transformers refused a compressed-tensors folder, which was then decompressed first.
"""

import argparse
import contextlib
import json
import math
import os
import sys
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # runs the BitNet layers uncompiled, without a C++ compiler
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


@contextlib.contextmanager
def quiet_stdout():
    """Redirects the libraries' output to stderr: GPTQModel prints a banner to stdout, which is for answers."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import is_match, match_targets
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PACKED = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


def open_model(folder, strict=True):
    """Opens a checkpoint in f32. `strict` rejects tensors that are missing, unexpected or of another shape."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
        if wrong and strict:
            raise ValueError(f"the tensors do not fit the model: {wrong}")
        model.judged = "as is"
    except Exception as refusal:  # any error of transformers
        quantization = AutoConfig.from_pretrained(folder).to_dict().get("quantization_config") or {}
        if quantization.get("quant_method") != "compressed-tensors":
            raise
        model = open_decompressed(Path(folder))
        model.judged = f"decompressed first, because of {type(refusal).__name__}: {refusal}"
    # An autobitlinear checkpoint keeps the file's dtypes despite `dtype`, and the model's own `float` method refuses.
    torch.nn.Module.float(model)
    return model.eval()


def open_decompressed(folder: Path):
    """Opens a pack-quantized folder that transformers refuses: compressed-tensors decompresses it module by module.

    With compressed-tensors 0.18 to 0.20, transformers 5.23 refuses packed zero points (it expects their unpacked shape)
    and quantized embeddings."""
    config = AutoConfig.from_pretrained(folder)
    quantization = QuantizationConfig.model_validate(config.quantization_config)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    # the first matching target decides: exact names, then regexes, then class names
    schemes = {target: scheme for scheme in quantization.config_groups.values() for target in scheme.targets}
    for name, module in model.named_modules():
        parts = {k: tensors.pop(f"{name}.{k}") for k in PACKED if f"{name}.{k}" in tensors}
        if is_match(name, module, schemes, quantization.ignore or ()) != bool(parts):
            raise ValueError(f"{name} is {'packed' if parts else 'not packed'}, but the config says otherwise")
        if parts:
            scheme = schemes[match_targets(name, module, schemes)[0]]
            rows, columns = parts["weight_shape"].tolist()
            groups = columns // scheme.weights.group_size if scheme.weights.strategy == "group" else 1
            expected = {"weight_packed": [rows, math.ceil(columns * scheme.weights.num_bits / 32)]}
            expected["weight_scale"] = [rows, groups]
            found = {k: list(parts[k].shape) for k in expected}
            if found != expected:
                raise ValueError(f"{name}: expected {expected} but found {found}")
            parts["weight_scale"] = parts["weight_scale"].float()
            compressor = BaseCompressor.get_value_from_registry(scheme.format or quantization.format)
            tensors[f"{name}.weight"] = compressor.decompress(parts, scheme)["weight"]
    left = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if left.unexpected_keys or set(left.missing_keys) - tied:
        raise ValueError(f"the tensors do not fit the model: {left}")
    return model


def logits_of(model, ids: list[int]) -> torch.Tensor:
    """[len(ids), vocabulary], f32."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def perplexity(model, tokenizer, text: str, context: int, limit: int | None) -> tuple[float, int]:
    """Perplexity and token count, from windows of context - 1 tokens without overlap, each after BOS."""
    ids = tokenizer(text, add_special_tokens=False).input_ids[:limit]
    loss = 0.0
    for start in range(0, len(ids), context - 1):
        window = ids[start : start + context - 1]
        logits = logits_of(model, [tokenizer.bos_token_id] + window)[:-1]
        loss += torch.nn.functional.cross_entropy(logits, torch.tensor(window), reduction="sum").item()
    return math.exp(loss / len(ids)), len(ids)


def answer(job: dict) -> dict:
    """Answers one job of `batch`."""
    folder = job["folder"]
    model = open_model(folder)
    if "ids" in job:
        rows = logits_of(model, job["ids"])
        positions = job.get("positions") or list(range(len(job["ids"])))
        return {
            "folder": folder,
            "opened": model.judged,
            "positions": [p % len(job["ids"]) for p in positions],
            "logits": [rows[p].tolist() for p in positions],
            "argmax": rows.argmax(-1).tolist(),
        }
    tokenizer = AutoTokenizer.from_pretrained(job.get("tokenizer") or folder)
    with open(job["text"], encoding="utf-8") as f:
        text = f.read()
    context = job.get("context") or 512
    value, tokens = perplexity(model, tokenizer, text, context, job.get("tokens"))
    return {"folder": folder, "opened": model.judged, "perplexity": value, "tokens": tokens, "context": context}


def jobs(args):
    """The jobs from the command line or stdin."""
    if args.command == "batch":
        yield from (json.loads(line) for line in sys.stdin if line.strip())
    elif args.command == "logits":
        with sys.stdin if args.ids == "-" else open(args.ids) as f:
            yield {"folder": args.folder, "ids": json.load(f), "positions": args.positions}
    else:
        yield {k: v for k, v in vars(args).items() if k != "command"}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ap.add_subparsers(dest="command", required=True)
    logits = commands.add_parser("logits")
    logits.add_argument("folder")
    logits.add_argument("ids")
    logits.add_argument("--positions", type=lambda s: [int(p) for p in s.split(",")])
    ppl = commands.add_parser("perplexity")
    ppl.add_argument("folder")
    ppl.add_argument("text")
    ppl.add_argument("--context", type=int)
    ppl.add_argument("--tokens", type=int)
    ppl.add_argument("--tokenizer")
    commands.add_parser("batch")
    args = ap.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = False
    for job in jobs(args):
        try:
            with quiet_stdout():
                result = answer(job)
        except Exception as e:  # any error of transformers is a valid answer
            result = {"folder": job["folder"], "error": f"{type(e).__name__}: {e}"}
            failed = True
        print(json.dumps(result), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
