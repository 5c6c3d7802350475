"""Compares training speed with PyTorch: tokens per second of a 10M-parameter model, in pairs of runs on the same CPUs.

    train_speed.py LOWBIT TEXT [--bits none|ternary] [--pairs N] [--steps N]

LOWBIT is the release binary, TEXT the training text. PyTorch runs in a typical setup: eager mode, its built-in
attention, AdamW over all parameters at once. Ternary training follows BitNet's authors: fake-quantized matrices (one
scale each) and activations (INT8, one scale per token), with a straight-through estimator. A run's speed is the median
of its steps without the first two. The result is the median of the pairs' ratios.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

CONTEXT, BATCH_TOKENS = 256, 1024
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


class Ternary(nn.Linear):
    """BitNet b1.58: the forward pass uses quantized weights and activations; the master weights stay in f32."""

    def forward(self, x):
        scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = x + ((x * scale).round().clamp(-128, 127) / scale - x).detach()
        scale = 1.0 / self.weight.abs().mean().clamp(min=1e-5)
        weight = self.weight + ((self.weight * scale).round().clamp(-1, 1) / scale - self.weight).detach()
        return F.linear(x, weight)


class Block(nn.Module):
    def __init__(self, config, linear):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.heads = config["num_attention_heads"]
        self.q, self.k, self.v, self.o = (linear(hidden, hidden, bias=False) for _ in range(4))
        self.gate, self.up = (linear(hidden, inner, bias=False) for _ in range(2))
        self.down = linear(inner, hidden, bias=False)
        self.before, self.between = (nn.RMSNorm(hidden, eps=config["rms_norm_eps"]) for _ in range(2))

    def forward(self, x, cos, sin):
        rows, tokens, hidden = x.shape
        y = self.before(x)
        q, k, v = (p(y).view(rows, tokens, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(rows, tokens, hidden))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def turn(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Model(nn.Module):
    def __init__(self, config, linear):
        super().__init__()
        hidden = config["hidden_size"]
        self.embed = nn.Embedding(config["vocab_size"], hidden)
        self.blocks = nn.ModuleList(Block(config, linear) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(hidden, eps=config["rms_norm_eps"])
        self.head = nn.Linear(hidden, config["vocab_size"], bias=False)
        size = hidden // config["num_attention_heads"]
        angles = torch.outer(torch.arange(CONTEXT), config["rope_theta"] ** (-torch.arange(0, size, 2) / size))
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def theirs(config, bits, steps):
    torch.manual_seed(0)
    model = Model(config, nn.Linear if bits == "none" else Ternary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.randint(config["vocab_size"], (steps, BATCH_TOKENS // CONTEXT, CONTEXT + 1))
    times = []
    for batch in ids:
        begun = time.perf_counter()
        logits = model(batch[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begun)
    return BATCH_TOKENS / statistics.median(times[2:])


def ours(lowbit, folder, text, bits, steps):
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    shutil.rmtree(folder / "trained", ignore_errors=True)
    command = [lowbit, "train", folder / "model", "--data", text, "-o", folder / "trained", "--json"]
    command += ["--dtype", "f32"] if bits == "none" else ["--bits", bits]
    command += ["--steps", str(steps), "--context", str(CONTEXT)]
    command += ["--batch-tokens", str(BATCH_TOKENS), "--metrics", metrics, "--keep-every", "1000000"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    ends = [line["seconds"] for line in lines if line.get("event") == "step"]
    times = [after - before for before, after in zip(ends, ends[1:])]
    return BATCH_TOKENS / statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lowbit")
    parser.add_argument("text")
    parser.add_argument("--bits", choices=["none", "ternary"], default="none")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "model").mkdir()
        (folder / "model/config.json").write_text(json.dumps(CONFIG))
        for _ in range(args.pairs):
            first = ours(args.lowbit, folder, args.text, args.bits, args.steps)
            # With a short text, the vocabulary may be smaller than requested.
            config = json.loads((folder / "trained/config.json").read_text())
            second = theirs(config, args.bits, args.steps)
            ratios.append(first / second)
            print(f"lowbit {first:.0f}, PyTorch {second:.0f} tokens per second: {ratios[-1]:.3f}", flush=True)
    assert all(map(math.isfinite, ratios))
    print(f"{args.bits}: median of {args.pairs} ratios {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
