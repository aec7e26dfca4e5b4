#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a model at several widths and ranks: perplexity, its standard error, bytes, and the difference to plain rounding
at the same width, paired window by window. Prints a Markdown table.

    python3 tests/bench_accuracy.py [--glowq build/glowq] [--model examples/dense] [--np 2] [--bits 4 3 2] [--ranks 8 16 32 64]
    python3 tests/bench_accuracy.py --study sharing --model examples/moe --ranks 8 16

--study ranks: the correction at each rank. --study sharing: a B of its own for every matrix at each rank, against one B for
each group at that rank and at as many bytes, with and without what is done for experts (their own statistics in the refit, their
weight in the solve).

The paired error is the standard error of the mean difference of the windows' NLLs, weighted by their tokens: windows are hard or
easy for all variants alike, so it is far smaller than the two perplexities' own errors.
"""
import argparse
import json
import math
import os
import subprocess
import tempfile

parser = argparse.ArgumentParser()
parser.add_argument("--glowq", default="build/glowq")
parser.add_argument("--study", choices=["ranks", "sharing"], default="ranks")
parser.add_argument("--model", default="examples/dense")
parser.add_argument("--text", default="examples/texts/calibration.txt")
parser.add_argument("--heldout", default="examples/texts/heldout.txt")
parser.add_argument("--np", type=int, default=2)
parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64])
parser.add_argument("--group-size", type=int, default=128)
parser.add_argument("--samples", type=int, default=128)
parser.add_argument("--seq-len", type=int, default=256)
args = parser.parse_args()

environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none")


def glowq(*command):
    run = ["mpirun", "-n", str(args.np), args.glowq, *command, "--json", "--quiet"]
    return json.loads(subprocess.run(run, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def evaluate(model, *options):
    return glowq("eval", "--model", model, "--text", args.heldout, "--protocol", "windows", "--ctx", "256", *options)


def calibrate(out, bits, rank, *options):
    return glowq("calibrate", "--model", args.model, "--text", args.text, "--out", out, "--bits", str(bits), "--rank", str(rank),
                 "--group-size", str(args.group_size), "--samples", str(args.samples), "--seq-len", str(args.seq_len), *options)


def paired(a, b):
    """Mean difference a - b of the NLL and its standard error."""
    weights = a["window_tokens"]
    total = sum(weights)
    mean = a["nll"] - b["nll"]
    spread = sum((n * (x - y - mean)) ** 2 for n, x, y in zip(weights, a["window_nll"], b["window_nll"]))
    return mean, math.sqrt(spread) / total


def row(bits, name, result, size, baseline=None):
    delta = ""
    if baseline:
        mean, error = paired(result, baseline)
        delta = f"{mean:+.5f} ± {error:.5f}"
    print(f"| {bits} | {name} | {result['perplexity']:.4f} ± {result['perplexity_stderr']:.4f} | {size / 1e6:.3f} | {delta} |",
          flush=True)


def corrected(scratch, bits, name, rank, rounded, *options):
    """One line of the table; gives the bytes of the correction."""
    out = os.path.join(scratch, f"{bits} {name}.glowq")
    facts = calibrate(out, bits, rank, *options)
    row(bits, name, evaluate(out), facts["quantized_bytes"] + facts["factor_bytes"], rounded)
    return facts["factor_bytes"]


def study_ranks(scratch, bits, rounded):
    for rank in args.ranks:
        corrected(scratch, bits, f"GlowQ, rank {rank}", rank, rounded)


def study_sharing(scratch, bits, rounded):
    for rank in args.ranks:
        def line(name, r, *options):
            return corrected(scratch, bits, name, r, rounded, "--expert-rank", str(r), *options)

        apart = line(f"a B for each matrix, rank {rank}", rank, "--sharing", "module")
        shared = line(f"a B for each group, rank {rank}", rank)
        # Bytes are linear in the rank: the largest that costs no more.
        line(f"a B for each group, rank {rank * apart // shared}: as many bytes", rank * apart // shared)
        line(f"the same, rank {rank}, refit from the layer's statistics", rank, "--expert-refit", "layer")
        line(f"the same, rank {rank}, experts weighted by their gates squared", rank, "--expert-weights", "gates")
        line(f"the same, rank {rank}, experts weighted alike", rank, "--expert-weights", "none")


print("| bits | weights | perplexity | linears, MB | NLL against rounding at the same width, paired |")
print("|---|---|---|---|---|")
with tempfile.TemporaryDirectory() as scratch:
    full = evaluate(args.model)
    for bits in args.bits:
        out = os.path.join(scratch, f"w{bits}.glowq")
        facts = calibrate(out, bits, 0)
        if bits == args.bits[0]:
            row(16, "as stored", full, facts["weight_bytes"])
        rounded = evaluate(out)
        row(bits, "rounded", rounded, facts["quantized_bytes"])
        study_ranks(scratch, bits, rounded) if args.study == "ranks" else study_sharing(scratch, bits, rounded)
