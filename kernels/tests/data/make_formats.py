#!/usr/bin/env python3
"""Vectors for tests/formats.rs from the two reference implementations of the GGUF block formats.

Made with gguf 0.19.0 and numpy 2.4.6 (Python 3.11), and with the ggml-base shared library of llama.cpp as vendored by
the crate llama-cpp-sys-2 0.1.161 (ggml 0.26.0), built by its own CMake with -DBUILD_SHARED_LIBS=ON:

    make_formats.py LIBGGML_BASE      writes decode.txt, encode.txt and halves.txt beside itself

Nothing here is an input file: both sides draw blocks and weights from the integer generator below, so every value is
the same on every machine. `Draw`, `blocks_of` and `weights_of` have twins of the same names in tests/formats.rs.
"""

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import BF16, dequantize

# name -> places of the f16 numbers in a block
FORMATS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}
BLOCKS = 192  # per format in decode.txt
WEIGHTS = 64 * 256  # per distribution in encode.txt

u64 = np.uint64


def word(stream, i):
    """The i-th 64-bit number of a stream: splitmix64's finaliser over a counter."""
    with np.errstate(over="ignore"):
        z = ((u64(stream) << u64(32)) + np.asarray(i, dtype=u64) + u64(1)) * u64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> u64(30))) * u64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> u64(27))) * u64(0x94D049BB133111EB)
        return z ^ (z >> u64(31))


def bell(stream, i):
    """Nearly normal integers in -262140..=262140, sigma 53510: the sum of eight 16-bit numbers."""
    i = np.asarray(i, dtype=u64)
    total = np.full(i.shape, -262140, dtype=np.int64)
    for k in range(2):
        w = word(stream, u64(2) * i + u64(k))
        for shift in (0, 16, 32, 48):
            total += ((w >> u64(shift)) & u64(0xFFFF)).astype(np.int64)
    return total


def scaled(integers, exponent):
    """Integers to f32 (rounded to nearest even), times an exact power of two."""
    return np.ldexp(integers.astype(np.float32), exponent)


def trailing_zeros(w):
    """Of the word, at most 16."""
    w = w | u64(1 << 16)
    return np.log2((w & (~w + u64(1))).astype(np.float64)).astype(np.int64)


def weights_of(name, n):
    """`n` weights of a distribution."""
    i = np.arange(n, dtype=u64)
    stream = 1000 + DISTRIBUTIONS.index(name)
    normal, other = bell(stream, i), word(stream + 100, i)
    if name == "normal":
        return scaled(normal, -20)
    if name == "uniform":
        return scaled((other & u64(0xFFFF)).astype(np.int64) - 32768, -19)
    if name == "heavy":  # tails like |x|^-3
        return scaled(normal << (trailing_zeros(other) // 2), -20)
    if name == "outliers":  # one weight in 256 is 32 times too large
        return scaled(np.where(other % u64(256) == 0, normal * 32, normal), -20)
    if name == "sparse":  # nine in ten are zero, one in a thousand large
        kept = np.where(other % u64(10) == 0, normal, 0)
        return scaled(np.where(other % u64(1000) == 0, normal * 64, kept), -20)
    if name == "mixed":  # every 32 weights have their own size
        size = (word(stream + 100, i // u64(32)) % u64(6)).astype(np.int64)
        return scaled(normal << size, -23)
    if name == "positive":
        return scaled((other & u64(0xFFFF)).astype(np.int64) + 8192, -20)
    if name == "ternary":  # -c, 0 or c, with one c per 256 weights
        c = (word(stream + 100, u64(1 << 20) + i // u64(256)) % u64(1000)).astype(np.int64) + 1
        return scaled(((other % u64(3)).astype(np.int64) - 1) * c, -12)
    if name == "constant":
        return scaled(bell(stream, i // u64(256)), -20)
    if name == "zero":
        return np.zeros(n, np.float32)
    if name == "tiny":  # 4e-32: below every f16 scale
        return scaled(normal, -120)
    if name == "small":  # 8e-7: the scales are f16 subnormals
        return scaled(normal, -36)
    if name == "large":  # 1e4
        return scaled(normal, -2)
    raise ValueError(name)


DISTRIBUTIONS = ["normal", "uniform", "heavy", "outliers", "sparse", "mixed", "positive", "ternary", "constant",
                 "zero", "tiny", "small", "large"]

# zero, subnormal, smallest normal, ordinary and largest, of both signs
SPECIAL = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]


def blocks_of(name, size, n):
    """Random blocks with finite f16 numbers; the first 144 pair the special ones."""
    stream = list(FORMATS).index(name)
    at = np.arange(n * size, dtype=u64)
    out = (word(stream, at) >> u64(40)).astype(np.uint8).reshape(n, size)
    for block in range(n):
        for field, place in enumerate(FORMATS[name]):
            h = int(word(stream + 100, 2 * block + field)) & 0xFFFF
            if h & 0x7C00 == 0x7C00:
                h ^= 0x4000
            if block < len(SPECIAL) ** 2:
                h = SPECIAL[block // len(SPECIAL) ** field % len(SPECIAL)]
            out[block, place] = h & 0xFF
            out[block, place + 1] = h >> 8
    return out


def fnv(rows):
    """FNV-1a, 64 bits, of each row of bytes."""
    h = np.full(rows.shape[0], 0xCBF29CE484222325, dtype=u64)
    with np.errstate(over="ignore"):
        for column in rows.T:
            h = (h ^ column.astype(u64)) * u64(0x100000001B3)
    return h


class Traits(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("len", ctypes.c_int64), ("interleave", ctypes.c_int64),
                ("size", ctypes.c_size_t), ("quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p),
                ("from_float", ctypes.c_void_p)]


class Library:
    """ggml-base through its C interface."""

    def __init__(self, path):
        self.so = ctypes.CDLL(path)
        self.so.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
        self.so.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.so.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                                                ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]

    def encode(self, kind, x):
        """Without an importance matrix, as `llama-quantize` does by default."""
        length, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros((x.size // length, size), np.uint8)
        self.so.ggml_quantize_chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, 1, x.size, None)
        return out

    def decode(self, kind, blocks):
        length, _ = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros(blocks.shape[0] * length, np.float32)
        to_float = self.so.ggml_get_type_traits(int(kind)).contents.to_float
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(to_float)(
            blocks.ctypes.data, out.ctypes.data, out.size)
        return out


def write_decode(library, to):
    """`FORMAT hash…`: for each block the hash of its f32 values' little-endian bytes."""
    lines = []
    for name in FORMATS:
        kind = gguf.GGMLQuantizationType[name]
        length, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = blocks_of(name, size, BLOCKS)
        values = dequantize(blocks, kind).reshape(BLOCKS, length)
        assert np.isfinite(values).all()
        # the two references agree to the bit, signs of zeros included
        assert (values.view(np.uint32).ravel() == library.decode(kind, blocks).view(np.uint32)).all(), name
        hashes = fnv(values.view(np.uint8).reshape(BLOCKS, -1))
        lines.append(" ".join([name] + [f"{h:x}" for h in hashes]))
    to.write_text("\n".join(lines) + "\n")


def write_encode(library, to):
    """`FORMAT DISTRIBUTION e1 e2`: of the reference encoder, the sums of (w - v)^2 and of w^2 (w - v)^2."""
    lines = []
    for name in FORMATS:
        kind = gguf.GGMLQuantizationType[name]
        for distribution in DISTRIBUTIONS:
            x = weights_of(distribution, WEIGHTS)
            w = x.astype(np.float64)
            error = (w - dequantize(library.encode(kind, x), kind).ravel().astype(np.float64)) ** 2
            lines.append(f"{name} {distribution} {error.sum():.17e} {(w * w * error).sum():.17e}")
    to.write_text("\n".join(lines) + "\n")


def write_halves(to):
    """Hashes of conversions by numpy (F16) and gguf (BF16), 4096 at a time; see `halves` in tests/formats.rs.

    f16-to-f32: the bits of all 65536 patterns, a NaN as 0x7fc00000 (its payload is the platform's business).
    f32-to-f16 and f32-to-bf16: for every finite magnitude h in order, the value of h and its midpoint with the next one,
    each one unit in the last place lower, itself, and one higher; then 65536 random patterns. A NaN result as 0x7e00
    and as its own bits.
    """
    lines = []

    def put(name, values):
        rows = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 4096 * values.dtype.itemsize)
        lines.append(" ".join([name] + [f"{h:x}" for h in fnv(rows)]))

    every = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    wide = every.view(np.float16).astype(np.float32)
    put("f16-to-f32", np.where(np.isnan(wide), np.uint32(0x7FC00000), wide.view(np.uint32)))
    random = (word(900, np.arange(65536)) >> u64(32)).astype(np.uint32)

    def around(below):  # below: f32 values of consecutive 16-bit magnitudes, as f64
        middle = (below[:-1] + below[1:]) / 2
        points = np.stack([below[:-1], middle], axis=1).ravel().astype(np.float32).view(np.uint32)
        return (points[:, None] + np.array([0, 1, 2], np.uint32)[None, :] - np.uint32(1)).ravel()

    finite = wide[:0x7C00].astype(np.float64)
    with np.errstate(over="ignore"):
        inputs = np.concatenate([around(finite)[1:], random])  # without the pattern below zero
        inputs = np.concatenate([inputs, inputs | np.uint32(0x80000000)])
        inputs = inputs[: len(inputs) // 4096 * 4096]
        narrow = inputs.view(np.float32).astype(np.float16)
    put("f32-to-f16", np.where(np.isnan(narrow), np.uint16(0x7E00), narrow.view(np.uint16)))
    finite = (np.arange(0x7F80, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    inputs = np.concatenate([around(finite)[1:], random])
    inputs = np.concatenate([inputs, inputs | np.uint32(0x80000000)])
    inputs = inputs[: len(inputs) // 4096 * 4096]
    put("f32-to-bf16", BF16.quantize_blocks(inputs.view(np.float32)).view(np.uint16))
    to.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    beside = Path(__file__).parent
    ggml = Library(sys.argv[1])
    write_decode(ggml, beside / "decode.txt")
    write_encode(ggml, beside / "encode.txt")
    write_halves(beside / "halves.txt")
