"""Makes golden logits of tiny models with transformers.

usage: make_golden.py [--out DIR] [--checkpoints DIR] [--check] [CASE ...]

For each case: build the architecture of a config, fill it with the weights of synthetic.py, save it as a checkpoint,
open that checkpoint like a user, and record the f32 logits of a short token sequence.

  DIR/<case>/config.json      as written by transformers
  DIR/<case>/config_v4.json   some cases: the same model in the format of transformers 4, written by hand
  DIR/<case>/config_*.json    some cases: the same model in another spelling, from `spellings`
  DIR/<case>/golden.json      tokens, logits, and the list of the checkpoint's tensors

All configs of a case must give the same logits. --checkpoints also keeps the checkpoints, with their golden.json.
--check compares with DIR instead of writing.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from judge import logits_of, open_model  # first, because it sets environment variables for torch

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import bitnet

import synthetic
from cases import CASES, DROP, SHAPE

A = 0.3125  # weights are u * A; at width 64, logits and attention scores are then of order one
TOKENS = 24
TOKENS_INT8 = 8  # fewer with INT8 activations, so that fewer values can be near a rounding tie
SALTS = 1500  # token sequences tried with INT8 activations; the one with the largest margin is kept
TORCH_DTYPE = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "golden"


def fill(name: str, dtype: str, shape: list[int], how) -> torch.Tensor:
    """One tensor of a checkpoint, from its entry in `tensors`."""
    if how == "ternary":
        return torch.from_numpy(synthetic.pack_ternary(synthetic.ternary(name, (shape[0] * 4, shape[1]))))
    if how == "norm":
        values = synthetic.norm(name, shape)
    elif how == "matrix":
        values = synthetic.scaled(name, shape, A)
    else:
        values = np.full(shape, how, dtype=np.float32)
    return torch.from_numpy(values).to(TORCH_DTYPE[dtype])


def weight_scale(name: str, linear_class: str) -> float:
    """The stored scale of a packed matrix: exact in bf16, different for each matrix; effectively 0.12 to 0.25."""
    step = synthetic.integers(name, 1, 16)[0]
    return 4 + step / 8 if linear_class == "bitlinear" else 0.125 + step / 128


def tensor_list(model, case: dict) -> list:
    """[name, dtype, shape, how] for each tensor of the checkpoint, sorted by name.

    `how` is "matrix" (also for biases), "norm", "ternary", or the value of a weight_scale."""
    dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[case.get("dtype", torch.float32)]
    with tempfile.TemporaryDirectory() as plain:
        model.save_pretrained(plain)  # transformers decides which tensors a checkpoint has (tied ones only once)
        with safe_open(f"{plain}/model.safetensors", "pt") as f:
            shapes = {name: f.get_slice(name).get_shape() for name in f.keys()}
    rows = []
    for name, shape in shapes.items():
        packed = case.get("packed") and name.endswith("_proj.weight")
        if packed:
            scale_name = name + "_scale"
            rows.append([name, "U8", [shape[0] // 4, shape[1]], "ternary"])
            rows.append([scale_name, dtype, [1], weight_scale(scale_name, case["packed"])])
        else:
            rows.append([name, dtype, shape, "norm" if "norm" in name else "matrix"])
    return sorted(rows)


def write_checkpoint(folder: Path, config, tensors: list, case: dict):
    """Writes config.json and model.safetensors."""
    config.save_pretrained(folder)
    if "quantization_config" in case:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        values["quantization_config"] = case["quantization_config"]
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    save_file({t[0]: fill(*t) for t in tensors}, folder / "model.safetensors", {"format": "pt"})


class RoundingMargin:
    """The smallest distance of any activation from a tie of its INT8 rounding, in steps.

    Two correct programs differ in the last bits of a float. Far from every tie, they still round alike."""

    def __init__(self, model):
        self.least = 0.5
        for module in model.modules():
            if isinstance(module, (bitnet.BitLinear, bitnet.AutoBitLinear)):
                module.register_forward_pre_hook(self.observe)

    def observe(self, _module, inputs):
        x = inputs[0]
        steps = x * (127 / x.abs().amax(-1, keepdim=True))
        self.least = min(self.least, float(((steps - steps.floor()) - 0.5).abs().min()))


def steadiest_tokens(model, case_name: str, count: int, vocab: int) -> tuple[list[int], dict]:
    """Of many token sequences, the one with the largest margins, and its margins."""
    int8 = any(isinstance(m, (bitnet.BitLinear, bitnet.AutoBitLinear)) for m in model.modules())
    margin = RoundingMargin(model)
    best = (-1.0, [], {})
    for salt in range(SALTS if int8 else 20):
        tokens = synthetic.integers(f"{case_name}.tokens.{salt}", count, vocab)
        margin.least = 0.5
        top = logits_of(model, tokens).topk(2, -1).values
        found = {"argmax": round(float((top[:, 0] - top[:, 1]).min()), 6)}
        if int8:
            found["int8_rounding"] = round(margin.least, 6)
        # An argmax gap of 0.01 is enough. With INT8, the rounding margin is the critical one.
        score = found["int8_rounding"] if int8 and found["argmax"] > 0.01 else (not int8) * found["argmax"]
        if score > best[0]:
            best = (score, tokens, found)
    return best[1], best[2]


def seven_digits(row: torch.Tensor) -> list[float]:
    return [float(f"{x:.7g}") for x in row.tolist()]


def run(name: str, case: dict, checkpoints: Path | None) -> dict[str, str]:
    """The files of one case, by file name."""
    config = AutoConfig.for_model(**{**SHAPE, **case["config"]})
    plain = AutoModelForCausalLM.from_config(config)
    tensors = tensor_list(plain, case)
    config.architectures = [type(plain).__name__]
    config.dtype = case.get("dtype", torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (checkpoints or Path(scratch)) / name
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(folder, config, tensors, case)
        files = {"config.json": (folder / "config.json").read_text()}
        model = open_model(folder)
        int8 = "quantization_config" in case
        tokens, margins = steadiest_tokens(model, name, TOKENS_INT8 if int8 else TOKENS, config.vocab_size)
        logits = logits_of(model, tokens)
        # The feature that the case tests must change the logits by far more than any tolerance.
        for feature, change in case.get("without", {}).items():
            (folder / "config.json").write_text(json.dumps({**json.loads(files["config.json"]), **change}))
            effect = float((logits_of(open_model(folder, strict=False), tokens) - logits).abs().max())
            assert effect > 0.1, f"{name}: {feature} changes the logits by only {effect}"
        spellings = {"v4": case["config_v4"]} if "config_v4" in case else {}
        for spelling, changes in case.get("spellings", {}).items():
            spelled = {**json.loads(files["config.json"]), **changes}
            spellings[spelling] = {key: value for key, value in spelled.items() if value is not DROP}
        for spelling, spelled in spellings.items():
            files[f"config_{spelling}.json"] = json.dumps(spelled, indent=2) + "\n"
            (folder / "config.json").write_text(files[f"config_{spelling}.json"])
            same = torch.equal(logits_of(open_model(folder), tokens), logits)
            assert same, f"{name}: config_{spelling}.json gives other logits"
        (folder / "config.json").write_text(files["config.json"])
        positions = sorted({0, 1, len(tokens) // 2, len(tokens) - 1})
        golden = {
            "case": name,
            "made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
            "a": A,
            "tokens": tokens,
            "margins": margins,
            "argmax": logits.argmax(-1).tolist(),
            "positions": positions,
            "logits": [seven_digits(logits[p]) for p in positions],
            "tensors": tensors,
        }
        entries = {k: lines(v) if k in ("logits", "tensors") else json.dumps(v) for k, v in golden.items()}
        files["golden.json"] = "{\n" + ",\n".join(f' "{k}": {v}' for k, v in entries.items()) + "\n}\n"
        if checkpoints:
            (folder / "golden.json").write_text(files["golden.json"])
    spread = float(logits.std())
    print(f"{name:24} spread {spread:.2f}  margins {margins}  {sum(map(len, files.values()))} bytes", file=sys.stderr)
    return files


def lines(rows: list) -> str:
    return "[\n  " + ",\n  ".join(json.dumps(r) for r in rows) + "\n ]"


def differs(old: str, new: str) -> bool:
    """Whether two golden.json differ by more than builds of torch may differ."""
    old, new = json.loads(old), json.loads(new)
    if any(old[k] != new[k] for k in ("case", "a", "tokens", "argmax", "positions", "tensors")):
        return True
    return not np.allclose(old["logits"], new["logits"], rtol=0, atol=1e-4)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("cases", nargs="*", metavar="CASE")
    ap.add_argument("--out", type=Path, default=FOLDER)
    ap.add_argument("--checkpoints", type=Path)
    ap.add_argument("--check", action="store_true")
    args = ap.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = []
    for name in args.cases or CASES:
        files = run(name, CASES[name], args.checkpoints)
        folder = args.out / name
        if args.check:
            if differs((folder / "golden.json").read_text(), files["golden.json"]):
                failed.append(name)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text)
    if failed:
        sys.exit(f"not as committed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
