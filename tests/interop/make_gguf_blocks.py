"""Makes golden blocks of ggml's types and their values with the `gguf` package, which llama.cpp maintains.

usage: make_gguf_blocks.py [--check]

Writes tests/fixtures/golden/gguf_blocks.json:

  decoded    for each type: random blocks, and their f32 values, both as hex
  quantized  for each type that `gguf.quants` can make: rows of f32 values, and their blocks, both as hex

--check compares with the file instead of writing it.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

FILE = Path(__file__).resolve().parent.parent / "fixtures" / "golden" / "gguf_blocks.json"
# New types come last, so that the random numbers of the others do not change.
DECODED = {"Q8_0": 3, "Q4_0": 3, "Q4_1": 3, "Q4_K": 2, "Q6_K": 2, "TQ1_0": 2, "TQ2_0": 2}
DECODED_LATER = {"Q5_0": 3, "Q5_1": 3, "IQ4_NL": 3}
QUANTIZED = ["Q8_0", "Q4_0", "Q4_1", "TQ2_0", "TQ1_0"]
# Offsets of each type's half-precision numbers. Random bits there would sometimes be NaN.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208], "TQ1_0": [52], "TQ2_0": [64]}
HALVES |= {"Q5_0": [0], "Q5_1": [0, 2], "IQ4_NL": [0]}


def hexed(array: np.ndarray) -> str:
    return array.tobytes().hex()


def blocks(rng: np.random.Generator, name: str, count: int) -> np.ndarray:
    _, size = quants.GGML_QUANT_SIZES[Type[name]]
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if name == "TQ2_0":  # 3 is not a ternary code
        for shift in (0, 2, 4, 6):
            raw[:, :64] &= ~np.where((raw[:, :64] >> shift & 3) == 3, 1 << shift, 0).astype(np.uint8)
    for at in HALVES[name]:
        raw[:, at : at + 2] = rng.normal(0, 0.05, (count, 1)).astype(np.float16).view(np.uint8)
    return raw


def rows(rng: np.random.Generator, name: str) -> np.ndarray:
    width = quants.GGML_QUANT_SIZES[Type[name]][0]
    values = rng.normal(0, 0.3, (6, width)).astype(np.float32)
    values[1] = 0
    values[2] = np.abs(values[2])
    values[3] = np.linspace(-1, 1, width)
    # Multiples of a step, for ties and the extreme codes.
    values[4] = np.resize(np.arange(-16, 16) * 0.5, width)
    values[5] = np.resize([1.0, -1.0, 0.5, -0.5, 0.25, 0.0], width)
    return values


def main() -> None:
    rng = np.random.default_rng(20)
    golden = {"decoded": {}, "quantized": {}}

    def decode(types: dict) -> None:
        for name, count in types.items():
            raw = blocks(rng, name, count)
            values = quants.dequantize(raw, Type[name]).astype("<f4")
            assert np.isfinite(values).all()
            golden["decoded"][name] = {"blocks": hexed(raw), "values": hexed(values)}

    decode(DECODED)
    for name in QUANTIZED:
        values = rows(rng, name).astype("<f4")
        golden["quantized"][name] = {"values": hexed(values), "blocks": hexed(quants.quantize(values, Type[name]))}
    decode(DECODED_LATER)
    text = json.dumps(golden, indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        if FILE.read_text() != text:
            sys.exit("not as committed: gguf_blocks.json")
    else:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
