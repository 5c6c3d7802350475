"""Makes golden packed words of the GPTQ and AWQ layouts with GPTQModel.

usage: make_gptq.py [--out FILE] [--check]

Each case is a small matrix on the grid of known scales and zero points, so packing gives known codes: the files record
the layout, not a quantization method. Asymmetric zero points include 0, for which version 1 of GPTQ borrows from the
neighbouring field.
"""

import argparse
import json
import sys
from pathlib import Path

from judge import quiet_stdout  # first: it keeps the output of the imports below off stdout

import torch

with quiet_stdout():
    import gptqmodel
    from gptqmodel.nn_modules.qlinear.gemm_awq import AwqGEMMLinear
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

import synthetic

INPUTS, OUTPUTS = 64, 32
FILE = Path(__file__).resolve().parent.parent / "fixtures" / "golden" / "gptq.json"


def grid(name: str, bits: int, symmetric: bool, groups: int):
    """Scales, zero points `[groups, outputs]` and codes `[inputs, outputs]`."""
    scales = torch.tensor(synthetic.integers(f"{name}.scales", groups * OUTPUTS, 64), dtype=torch.float32)
    scales = ((scales + 1) / 512).reshape(groups, OUTPUTS)  # exact in f16
    zeros = torch.full((groups, OUTPUTS), 1 << (bits - 1))
    if not symmetric:
        zeros = torch.tensor(synthetic.integers(f"{name}.zeros", groups * OUTPUTS, 1 << bits)).reshape(groups, OUTPUTS)
        zeros[0, 0] = 0
    codes = torch.tensor(synthetic.integers(f"{name}.codes", INPUTS * OUTPUTS, 1 << bits)).reshape(INPUTS, OUTPUTS)
    return scales, zeros, codes


def matrix(scales, zeros, codes, g_idx):
    """The weights `[outputs, inputs]` as a linear layer."""
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = ((codes - zeros[g_idx]) * scales[g_idx]).T.contiguous()
    return linear


def words(tensor) -> dict:
    return {"shape": list(tensor.shape), "words": tensor.to(torch.int32).flatten().tolist()}


def gptq(bits: int, symmetric: bool, group_size: int, act_order: bool) -> dict:
    size = INPUTS if group_size == -1 else group_size
    name = f"gptq-int{bits}-{'channel' if group_size == -1 else f'g{size}'}-{'sym' if symmetric else 'asym'}"
    name += "-act-order" if act_order else ""
    g_idx = torch.arange(INPUTS) // size
    if act_order:
        g_idx = g_idx[torch.tensor([(i * 27 + 5) % INPUTS for i in range(INPUTS)])]
    scales, zeros, codes = grid(name, bits, symmetric, INPUTS // size)
    linear = matrix(scales, zeros, codes, g_idx)
    module = TorchLinear(
        bits=bits, group_size=group_size, sym=symmetric, desc_act=act_order, in_features=INPUTS, out_features=OUTPUTS,
        bias=False, pack_dtype=torch.int32, register_buffers=True,
    )
    module.pack_block(linear, scales.T.contiguous(), zeros.T.contiguous(), g_idx.to(torch.int32))
    result = {
        "name": name, "bits": bits, "symmetric": symmetric, "group_size": group_size,
        "qweight": words(module.qweight), "g_idx": words(module.g_idx), "scales": module.scales.float().flatten().tolist(),
        "qzeros_v2": words(module.qzeros),
    }
    module.post_init()
    module.scales = module.scales.float()
    dequantized = module.dequantize_weight().float()  # [inputs, outputs]
    assert torch.equal(dequantized.T, linear.weight), name
    convert_gptq_v2_to_v1_format_module(module, quantize_config=QuantizeConfig(bits=bits, group_size=group_size))
    result["qzeros_v1"] = words(module.qzeros)
    result["weights_of_last_output"] = dequantized[:, -1].tolist()
    return result


def awq(symmetric: bool, group_size: int) -> dict:
    name = f"awq-g{group_size}-{'sym' if symmetric else 'asym'}"
    g_idx = torch.arange(INPUTS) // group_size
    scales, zeros, codes = grid(name, 4, symmetric, INPUTS // group_size)
    linear = matrix(scales, zeros, codes, g_idx)
    module = AwqTorchLinear(
        bits=4, group_size=group_size, sym=symmetric, desc_act=False, in_features=INPUTS, out_features=OUTPUTS, bias=False,
        register_buffers=True,
    )
    AwqGEMMLinear.pack(module, linear, scales.T.contiguous(), zeros.T.contiguous())  # an AwqGEMMLinear requires a GPU
    dequantized = dequantize_gemm(
        qweight=module.qweight, qzeros=module.qzeros, scales=module.scales.float(), bits=4, group_size=group_size
    ).float()
    assert torch.equal(dequantized.T, linear.weight), name
    return {
        "name": name, "bits": 4, "symmetric": symmetric, "group_size": group_size,
        "qweight": words(module.qweight), "qzeros": words(module.qzeros),
        "scales": module.scales.float().flatten().tolist(), "weights_of_last_output": dequantized[:, -1].tolist(),
    }


def compact(value) -> str:
    return json.dumps(value, separators=(",", ":"))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, default=FILE)
    ap.add_argument("--check", action="store_true")
    args = ap.parse_args()
    with quiet_stdout():
        rows = [gptq(bits, symmetric, 32, False) for bits in (2, 3, 4, 8) for symmetric in (True, False)]
        rows += [gptq(4, False, -1, False), gptq(4, True, 16, True), gptq(3, False, 32, True)]
        awq_rows = [awq(True, 32), awq(False, 16)]
    text = '{\n "gptqmodel": ' + json.dumps(gptqmodel.__version__) + ",\n"
    text += ' "gptq": [\n  ' + ",\n  ".join(map(compact, rows)) + "\n ],\n"
    text += ' "awq": [\n  ' + ",\n  ".join(map(compact, awq_rows)) + "\n ]\n}\n"
    if not args.check:
        args.out.write_text(text)
        return
    committed, made = json.loads(args.out.read_text()), json.loads(text)
    if any(committed[kind] != made[kind] for kind in ("gptq", "awq")):
        sys.exit("not as committed: gptq.json")


if __name__ == "__main__":
    main()
