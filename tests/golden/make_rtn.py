#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write rtn.safetensors: what round-to-nearest quantization must give, to the bit.

The rule, for one group of consecutive weights w of one row and b bits (all arithmetic IEEE, one rounding per operation,
ties to even):

    lo = min(0, min w)      hi = max(0, max w)                          f32, exact
    s  = f16((hi - lo) / (2^b - 1))                                     subtract and divide in f32, then round to f16
    z  = clamp(rint(-lo / s), 0, 2^b - 1)                               divide in f32, s widened from f16
    q  = clamp(rint(w / s) + z, 0, 2^b - 1)                             divide in f32
    Q  = s * (q - z)                                                    f32 (exact: 11 bits times 9 bits)

hi = lo (a group of zeros) gives s = 1, z = 0, q = 0. An s that after rounding is infinite or below 2^-14 (f16's smallest
normal number) is an error naming the row; the vectors named error.* are such rows.

Groups of g weights start at column 0; the last one is shorter where g doesn't divide d; g = 0 means the whole row.
Packed codes are an LSB-first bit stream (code j is bits j*b .. j*b+b-1, bit 0 being byte 0's lowest), each row padded
with zero bits to a multiple of 4 bytes.

Written in numpy from that rule alone. Tensors (names: test files look them up by these):
    w              F32 [rows, d]          the weights, shared by all cases
    bB.gG.codes    U8  [rows, d]          one code a byte
    bB.gG.packed   U8  [rows, row_bytes]
    bB.gG.scales   F16 [rows, n_groups]
    bB.gG.zeros    U8  [rows, n_groups]
    bB.gG.dequant  F32 [rows, d]
    error.w        F32 [n, d]             every row alone must be refused at b = 4, g = 0
    edge.w         F32 [n, d]             rows just inside the range; edge.* are their results at b = 4, g = 0

usage: make_rtn.py [OUT]        (default: rtn.safetensors beside this script; needs numpy)
"""
import json
import os
import struct
import sys

import numpy as np

D = 152  # 128 + 24, 4 * 32 + 24, 8 * 19: two sizes that leave a tail and one odd size that doesn't
CASES = [(b, g) for b in (2, 3, 4, 8) for g in (128, 32, 0)] + [(4, 19)]
F32, F16 = np.float32, np.float16
DTYPES = {np.dtype("float32"): "F32", np.dtype("float16"): "F16", np.dtype("uint8"): "U8"}


def quantize_group(w, bits):
    """One group -> codes, scale (f16), zero, dequantized; None where the scale leaves f16's normal range."""
    top = F32(2**bits - 1)
    lo, hi = min(F32(0), w.min()), max(F32(0), w.max())
    if lo == hi:
        return np.zeros(len(w), np.uint8), F16(1), np.uint8(0), np.zeros(len(w), F32)
    with np.errstate(over="ignore"):
        s16 = F16(F32(hi - lo) / top)
    if not np.isfinite(s16) or s16 < F16(2.0**-14):
        return None
    s = F32(s16)
    z = np.clip(np.rint(-lo / s), F32(0), top)
    q = np.clip(np.rint(w / s) + z, F32(0), top)
    dequant = s * (q - z)
    assert q.dtype == dequant.dtype == F32
    return q.astype(np.uint8), s16, np.uint8(z), dequant


def quantize(w, bits, group):
    rows, d = w.shape
    step = group or d
    starts = range(0, d, step)
    out = {"codes": np.zeros((rows, d), np.uint8), "dequant": np.zeros((rows, d), F32),
           "scales": np.zeros((rows, len(starts)), F16), "zeros": np.zeros((rows, len(starts)), np.uint8)}
    for r in range(rows):
        for k, c in enumerate(starts):
            result = quantize_group(w[r, c:c + step], bits)
            if result is None:
                raise ValueError("row %d group %d: scale outside f16" % (r, k))
            out["codes"][r, c:c + step], out["scales"][r, k], out["zeros"][r, k], out["dequant"][r, c:c + step] = result
    out["packed"] = np.stack([pack_row(row, bits) for row in out["codes"]])
    return out


def pack_row(codes, bits):
    row_bytes = (len(codes) * bits + 31) // 32 * 4
    stream = sum(int(q) << (j * bits) for j, q in enumerate(codes))  # one big integer is the clearest bit stream
    return np.frombuffer(stream.to_bytes(row_bytes, "little"), np.uint8)


def tie_row(rng, bits, offset, s=F32(2.0**-5)):
    """Multiples of half a step: w / s is x.5 exactly for half of them. offset 0.5 makes -lo / s a tie as well.
    Both ends of the range stand in every 12 columns, so that any group of 19 or more has exactly the scale s."""
    top = 2**bits - 1
    below = top // 2 + offset
    half = rng.integers(-2 * below, 2 * (top - below) + 1, D) / 2
    half[0::12], half[6::12] = -below, top - below
    return (half * s).astype(F32)


def rows_of(rng):
    normal = rng.standard_normal
    tiny = normal(D) * 1e-6
    tiny[0::12] = 0.02  # a larger one in each group keeps the 8-bit scale a normal f16 number
    spike = normal(D) * 0.02
    spike[77] = 3.0
    half_zero = normal(D)
    half_zero[:128] = 0  # a group of zeros beside one that isn't
    one = np.zeros(D)
    one[131] = -0.75
    rows = [normal(D) * 0.02 for _ in range(4)]
    rows += [normal(D) * 0.05 + 0.01 for _ in range(2)]
    rows += [np.abs(normal(D)) + 0.5, -np.abs(normal(D)) - 0.5]  # all positive, all negative: z pinned to an end
    rows += [np.full(D, 0.7), np.full(D, -0.7), np.full(D, 1.0), np.zeros(D), -np.zeros(D)]
    rows += [tie_row(rng, b, o) for b in (2, 3, 4, 8) for o in (0, 0.5)]
    rows += [tiny, normal(D) * 2e4, np.linspace(-60000, 130000, D), spike, half_zero, one]
    rows += [np.where(rng.random(D) < 0.5, 1.0, -1.0) * (1 + rng.integers(0, 3, D) * 2.0**-23)]  # an ulp apart
    # s with all 11 bits in use: half steps are still exact in f32 and w / s still ties, but w * (1/s) misses some by an ulp
    rows += [tie_row(rng, b, 0, F32(F16(x))) for b, x in ((2, 0.0433), (2, 0.051), (3, 0.0433), (4, 0.0433), (8, 0.0433))]
    rows += [np.nextafter(tie_row(rng, b, 0), F32(np.inf)) for b in (4, 8)]  # one ulp off every tie
    return np.stack(rows).astype(F32)


def edge_rows():
    """At b = 4 the scale is hi / 15. Just inside f16's range: rounds up to 2^-14; rounds down to 65504."""
    hi = [F32(15 * 2.0**-14), F32(15 * 2.0**-14 * (1 - 2.0**-12)), F32(15 * 65504.0), F32(15 * 65519.0)]
    # Just outside: rounds to a number below 2^-14, a deep subnormal, zero; rounds to infinity, f32 overflow of hi - lo.
    bad = [F32(15 * 2.0**-14 * (1 - 2.0**-9)), F32(1e-6), F32(1e-30), F32(15 * 65521.0), F32(3e38)]
    make = lambda h, sign: (np.linspace(0, 1, D).astype(F32) * h * F32(sign)).astype(F32)
    edge = np.stack([make(h, 1) for h in hi] + [make(h, -1) for h in hi])
    error = np.stack([make(h, 1) for h in bad] + [make(h, -1) for h in bad])
    error[4, 0] = F32(-3e38)  # hi - lo itself overflows f32
    return edge, error


def save(path, tensors):
    """safetensors: 8-byte header length, JSON header padded with spaces to 8 bytes, then the bytes in that order."""
    header, data = {}, b""
    for name, t in tensors.items():
        raw = np.ascontiguousarray(t).tobytes()
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def check_coverage(w, tensors):
    """The vectors are worth having only if each branch of the rule is taken, and each tempting mistake shows."""
    for bits in (2, 3, 4, 8):
        codes, scales, zeros = (tensors["b%d.g32.%s" % (bits, n)] for n in ("codes", "scales", "zeros"))
        wide = lambda t: np.repeat(t.astype(F32), 32, axis=1)[:, :D]
        top, s, z = F32(2**bits - 1), wide(scales), wide(zeros)
        ratio = w / s
        assert (np.abs(ratio - np.trunc(ratio)) == 0.5).sum() > 100, "ties"
        assert (np.rint(ratio) + z > top).any(), "upper clamp"
        assert (zeros == 0).any() and (zeros == top).any(), "zero points at both ends"
        lo = np.stack([w[:, c:c + 32].min(axis=1) for c in range(0, D, 32)], axis=1)
        hi = np.stack([w[:, c:c + 32].max(axis=1) for c in range(0, D, 32)], axis=1)
        exact = wide((np.maximum(hi, 0) - np.minimum(lo, 0)) / top)
        exact[exact == 0] = 1
        mistakes = {
            "multiply by 1/s": np.rint(w * (F32(1) / s)) + z,
            "ties away from zero": np.copysign(np.floor(np.abs(ratio) + F32(0.5)), ratio) + z,
            "round after adding z": np.rint(ratio + z),
            "s not rounded to f16": np.rint(w / exact) + z,
            "min not joined with 0": np.rint(ratio) + np.rint(-wide(lo) / s),
        }
        for name, q in mistakes.items():
            assert (np.clip(q, 0, top) != codes).any(), "%d bits: %s leaves the codes unchanged" % (bits, name)


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "rtn.safetensors")
    rng = np.random.default_rng(20240607)
    w = rows_of(rng)
    tensors = {"w": w}
    for bits, group in CASES:
        for name, t in quantize(w, bits, group).items():
            tensors["b%d.g%d.%s" % (bits, group, name)] = t
    edge, error = edge_rows()
    tensors["edge.w"], tensors["error.w"] = edge, error
    for name, t in quantize(edge, 4, 0).items():
        tensors["edge." + name] = t
    for row in error:
        assert quantize_group(row, 4) is None
    check_coverage(w, tensors)
    save(out, tensors)


if __name__ == "__main__":
    main()
