"""Synthetic weights that depend only on a tensor's name. Python and Rust compute the same values.

All golden models use them, so no weight files are committed: the Rust test builds the same checkpoint from the
`tensors` list in a case's golden.json.

    seed = FNV-1a 64 of the UTF-8 name
    x_i  = finalizer of splitmix64 over seed + (i + 1) * 0x9E3779B97F4A7C15        (mod 2^64, i = flat row-major index)
    u_i  = (x_i >> 40) * 2^-23 - 1, in [-1, 1) and exact in f32
    t_i  = x_i mod 3 - 1, in {-1, 0, 1}
"""

import numpy as np


def fnv1a(name: str) -> int:
    """64-bit FNV-1a of the UTF-8 bytes."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def stream(name: str, n: int) -> np.ndarray:
    """The first n 64-bit values for a name."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(name: str, shape) -> np.ndarray:
    """f32 in [-1, 1), each a multiple of 2^-23."""
    top = (stream(name, int(np.prod(shape))) >> np.uint64(40)).astype(np.float32)
    return (top * np.float32(2.0**-23) - np.float32(1)).reshape(shape)


def scaled(name: str, shape, a: float) -> np.ndarray:
    """Matrices and biases: u * a, rounded once to f32."""
    return uniform(name, shape) * np.float32(a)


def norm(name: str, shape) -> np.ndarray:
    """Norm weights: 1 + u / 4, rounded once to f32."""
    return np.float32(1) + uniform(name, shape) * np.float32(0.25)


def ternary(name: str, shape) -> np.ndarray:
    """int8 codes in {-1, 0, 1}."""
    return ((stream(name, int(np.prod(shape))) % np.uint64(3)).astype(np.int8) - np.int8(1)).reshape(shape)


def integers(name: str, n: int, below: int) -> list[int]:
    """n integers in 0..below, for token ids and quantized codes."""
    return [int(x) for x in stream(name, n) % np.uint64(below)]


def pack_ternary(codes: np.ndarray) -> np.ndarray:
    """BitNet bytes: bits 2i and 2i + 1 of every byte hold code + 1 from quarter i of the rows."""
    quarters = (codes + 1).astype(np.uint8).reshape(4, codes.shape[0] // 4, codes.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
