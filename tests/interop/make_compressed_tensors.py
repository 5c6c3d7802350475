"""Makes golden tensors of the `pack-quantized` format with compressed-tensors.

usage: make_compressed_tensors.py [--out FILE] [--check]

Each case quantizes a small matrix, scaled(name, shape, 0.25) of synthetic.py, with the library's own rule for scales
and zero points (minimum and maximum of each group), and records the tensors as a checkpoint would have them.
"""

import argparse
import json
import sys
from pathlib import Path

import compressed_tensors
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

import synthetic

A = 0.25
FILE = Path(__file__).resolve().parent.parent / "fixtures" / "golden" / "compressed_tensors.json"


def case(bits: int, symmetric: bool, group: int | None) -> dict:
    """One matrix. At most bit widths, 10 rows and 84 columns do not fill whole words; 96 columns are three groups."""
    shape = [12, 96] if group else [10, 84]
    name = f"w{bits}-{'sym' if symmetric else 'asym'}-{f'g{group}' if group else 'channel'}"
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy="group" if group else "channel", group_size=group
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = torch.from_numpy(synthetic.scaled(name, shape, A))
    zeroed = [1, 32, 64] if symmetric and group else None  # row, first column, last column + 1: a group of zeros
    if zeroed:
        weight[1, 32:64] = 0
    grouped = weight.unflatten(-1, (-1, group or shape[1]))
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    packed = compressor.compress(state, scheme)
    restored = compressor.decompress(packed, scheme)["weight"]
    result = {"name": name, "bits": bits, "symmetric": symmetric, "group_size": group, "shape": shape}
    if zeroed:
        result["zeroed"] = zeroed
    result["weight_scale"] = scale.tolist()  # f32, shortest decimals that read back exactly
    if not symmetric:
        result["zero_point"] = zero.tolist()
        result["weight_zero_point"] = packed["weight_zero_point"].tolist()
    result["weight_packed"] = packed["weight_packed"].tolist()
    result["dequantized_tail"] = restored[-1, -8:].tolist()  # the last 8 values of the last row
    assert packed["weight_shape"].tolist() == shape
    return result


def shortest(value):
    """The shortest decimal of an f32, instead of its longer f64 form."""
    if isinstance(value, list):
        return [shortest(v) for v in value]
    return float(str(synthetic.np.float32(value))) if isinstance(value, float) else value


def compact(value) -> str:
    return json.dumps(shortest(value), separators=(",", ":"))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, default=FILE)
    ap.add_argument("--check", action="store_true")
    args = ap.parse_args()
    cases = [case(b, s, g) for b in (2, 3, 4, 8) for s in (True, False) for g in (32, None)]
    head = {"made_with": {"compressed-tensors": compressed_tensors.__version__}, "a": A}
    rows = [",\n   ".join(f"{json.dumps(k)}: {compact(v)}" for k, v in c.items()) for c in cases]
    text = "{\n" + "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in head.items())
    text += ' "cases": [\n  {' + "},\n  {".join(rows) + "}\n ]\n}\n"
    json.loads(text)
    if not args.check:
        args.out.write_text(text)
    elif json.loads(args.out.read_text())["cases"] != json.loads(text)["cases"]:
        sys.exit("not as committed: compressed_tensors.json")


if __name__ == "__main__":
    main()
