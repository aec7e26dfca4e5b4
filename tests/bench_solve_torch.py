#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The published procedure (GlowQ, arXiv 2603.25385) in PyTorch, on the problem that bench_solve makes: E = Q R (f32), symmetric
square root of S and its inverse by eigenvectors in f64, randomized SVD of R S^(1/2) (10 extra columns, 2 power iterations, f32),
A = Q U Sigma^(1/2), B = Sigma^(1/2) V^T S^(-1/2). Never TF32. Prints one JSON object; captured_percent is the share of
tr(E S E^T) that A B takes away, in f64, as bench_solve prints it.

E and S come from the same Philox numbers (base/philox.h), so the problem is bench_solve's but for the last bits of a logarithm.

usage: bench_solve_torch.py [--device cuda] [--m 22016] [--d 4096] [--r 64] [--repeats 3]
"""
import argparse
import json
import math
import time

import torch

STREAM_SKETCH, STREAM_WEIGHTS, SEED = 2, 5, 1
MASK = 0xFFFFFFFF


def philox(index, stream, sub):
    """The first two 32-bit numbers of (SEED, stream, sub, index), in int64: products wrap as unsigned ones do."""
    c = [index & MASK, index >> 32, torch.full_like(index, sub), torch.full_like(index, stream)]
    k0, k1 = SEED & MASK, SEED >> 32
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [((p1 >> 32) & MASK) ^ c[1] ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c[3] ^ k1, p0 & MASK]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c[0], c[1]


def normal(rows, cols, stream, sub, row0, device):
    """f32 [rows, cols], a few million at a time."""
    out = torch.empty(rows, cols, device=device)
    step = max(1, (1 << 22) // cols)
    for i in range(0, rows, step):
        n = min(step, rows - i)
        index = torch.arange((row0 + i) * cols, (row0 + i + n) * cols, dtype=torch.int64, device=device)
        v0, v1 = philox(index, stream, sub)
        u1, u2 = (v0.double() + 1) * 2.0**-32, v1.double() * 2.0**-32
        v = torch.sqrt(-2 * torch.log(u1)) * torch.cos(2 * math.pi * u2)
        out[i : i + n] = v.float().view(n, cols)
    return out


def make_error(m, d, device):
    """What 4-bit round to nearest with group 128 leaves of Gaussian weights."""
    e = normal(m, d, STREAM_WEIGHTS, 0, 0, device)
    for j in range(0, d, 128):
        w = e[:, j : j + 128]
        low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
        s = ((high - low) / 15).half().float()
        z = torch.round(-low / s).clamp(0, 15)
        e[:, j : j + 128] = w - s * ((torch.round(w / s) + z).clamp(0, 15) - z)
    return e


def make_moment(d, device):
    """S = X^T X / T of 2 d tokens X = G diag(f) H / sqrt(d), f falling from 1 to 1/30."""
    fall = (30.0 ** (-torch.arange(d, dtype=torch.float64, device=device) / d)).float()
    h = normal(d, d, STREAM_WEIGHTS, 1, 0, device)
    s = torch.zeros(d, d, dtype=torch.float64, device=device)
    for part in range(2):
        g = normal(d, d, STREAM_WEIGHTS, 2, part * d, device) * fall
        x = g @ h / math.sqrt(d)
        s += (x.T @ x).double()
    return s / (2 * d)


def published(e, s, r, omega):
    q, re = torch.linalg.qr(e)
    w, v = torch.linalg.eigh(s)
    root = w.clamp(min=1e-12 * w[-1].item()).sqrt()
    s_root, s_inverse = ((v * root) @ v.T).float(), ((v / root) @ v.T).float()
    core = re @ s_root
    y = core @ omega
    for _ in range(2):
        y = core @ (core.T @ y)
    y = torch.linalg.qr(y)[0]
    u, sigma, vt = torch.linalg.svd(y.T @ core, full_matrices=False)
    scale = sigma[:r].sqrt()
    return q @ ((y @ u[:, :r]) * scale), (scale[:, None] * vt[:r]) @ s_inverse


def captured(e, s, a, b):
    """(2 <A, E S B^T> - <A, A B S B^T>) / tr(E S E^T), f64; E in pieces."""
    a, b = a.double(), b.double()
    sb = s @ b.T
    taken, trace = -((a @ (b @ sb)) * a).sum(), torch.zeros((), dtype=torch.float64, device=e.device)
    for i in range(0, e.shape[0], 2048):
        rows = e[i : i + 2048].double()
        taken += 2 * (a[i : i + 2048] * (rows @ sb)).sum()
        trace += ((rows @ s) * rows).sum()
    return (taken / trace).item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in (("m", 22016), ("d", 4096), ("r", 64), ("repeats", 3)):
        parser.add_argument("--" + name, type=int, default=value)
    o = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    wait = torch.cuda.synchronize if o.device.startswith("cuda") else lambda: None
    e, s = make_error(o.m, o.d, o.device), make_moment(o.d, o.device)
    omega = normal(o.d, o.r + 10, STREAM_SKETCH, 0, 0, o.device)
    seconds = []
    for i in range(o.repeats + 1):  # the first makes handles and workspaces
        wait()
        start = time.perf_counter()
        a, b = published(e, s, o.r, omega)
        wait()
        if i > 0:
            seconds.append(time.perf_counter() - start)
    name = torch.cuda.get_device_name() if o.device.startswith("cuda") else "cpu, %d threads" % torch.get_num_threads()
    print(json.dumps({"method": "published, PyTorch " + torch.__version__, "device": name, "m": o.m, "d": o.d, "r": o.r,
                      "seconds": seconds, "best_s": min(seconds), "captured_percent": 100 * captured(e, s, a, b)}))


if __name__ == "__main__":
    main()
