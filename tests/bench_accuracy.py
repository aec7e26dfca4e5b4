#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a model at several widths and ranks: perplexity, divergence from the 16-bit model, bytes, and the difference of
divergences to plain rounding at the same width, paired window by window. Prints a Markdown table.

    python3 tests/bench_accuracy.py [--glowq build/glowq] [--model examples/dense] [--np 2] [--bits 4 3 2] [--ranks 4 8 16 32 64]
    python3 tests/bench_accuracy.py --study sharing --model examples/moe --ranks 8 16

--study ranks: the correction at each rank, and, for its bytes, plain rounding in smaller groups: the last column compares each
correction with the rounding that comes nearest to it in bytes. --study sharing: a B of its own for every matrix at each rank, against one B for
each group at that rank and at as many bytes, with and without what is done for experts (their own statistics in the refit, their
weight in the solve).

The paired error is the standard error of the mean difference of the windows' divergences, weighted by their tokens: windows are hard
or easy for all variants alike, so it is far smaller than the two divergences' own errors.
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
parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 32, 64])
parser.add_argument("--group-size", type=int, default=128)
parser.add_argument("--smaller-groups", type=int, nargs="+", default=[64, 32, 16, 8])
parser.add_argument("--samples", type=int, default=128)
parser.add_argument("--seq-len", type=int, default=256)
args = parser.parse_args()

environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none")


def glowq(*command):
    run = ["mpirun", "-n", str(args.np), args.glowq, *command, "--json", "--quiet"]
    return json.loads(subprocess.run(run, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def evaluate(model, *options):
    return glowq("eval", "--model", model, "--reference", args.model, "--text", args.heldout, "--protocol", "windows", "--ctx", "256",
                 *options)


def calibrate(out, bits, rank, *options, group_size=args.group_size):
    return glowq("calibrate", "--model", args.model, "--text", args.text, "--out", out, "--bits", str(bits), "--rank", str(rank),
                 "--group-size", str(group_size), "--samples", str(args.samples), "--seq-len", str(args.seq_len), *options)


def paired(a, b):
    """Mean difference a - b of the divergences and its standard error."""
    weights, total = a["window_tokens"], sum(a["window_tokens"])
    a, b = a["reference"], b["reference"]
    mean = a["kl"] - b["kl"]
    spread = sum((n * (x - y - mean)) ** 2 for n, x, y in zip(weights, a["window_kl"], b["window_kl"]))
    return mean, math.sqrt(spread) / total


def row(bits, name, result, size, *baselines):
    delta = " | ".join("{:+.5f} ± {:.5f}".format(*paired(result, b)) if b else "" for b in baselines)
    perplexity = "{perplexity:.4f} ± {perplexity_stderr:.4f}".format(**result)
    divergence = "{kl:.5f} ± {kl_stderr:.5f}".format(**result["reference"])
    print(f"| {bits} | {name} | {size / 1e6:.3f} | {perplexity} | {divergence} | {delta} |", flush=True)


def corrected(scratch, bits, name, rank, baselines, *options):
    """One line of the table; gives the bytes of the correction and what was measured. A baseline may be a function of the bytes."""
    out = os.path.join(scratch, f"{bits} {name}.glowq")
    facts = calibrate(out, bits, rank, *options)
    result = evaluate(out)
    size = facts["quantized_bytes"] + facts["factor_bytes"]
    row(bits, name, result, size, *(b(size) if callable(b) else b for b in baselines))
    return facts["factor_bytes"], result


def study_ranks(scratch, bits, rounded, size):
    sizes = [(size, rounded)]
    for group_size in args.smaller_groups:
        out = os.path.join(scratch, f"w{bits}g{group_size}.glowq")
        size = calibrate(out, bits, 0, group_size=group_size)["quantized_bytes"]
        result = evaluate(out)
        row(bits, f"rounded, groups of {group_size}", result, size, rounded, None)
        sizes.append((size, result))

    def nearest(size):
        known = min(sizes, key=lambda s: abs(s[0] - size))
        return known[1] if abs(known[0] - size) < 0.05 * size else None

    for rank in args.ranks:
        corrected(scratch, bits, f"GlowQ, rank {rank}", rank, [rounded, nearest])


def study_sharing(scratch, bits, rounded, _):
    for rank in args.ranks:
        def line(name, r, baselines, *options):
            return corrected(scratch, bits, name, r, baselines, "--expert-rank", str(r), *options)

        apart, result = line(f"a B for each matrix, rank {rank}", rank, [rounded, None], "--sharing", "module")
        both = [rounded, result]
        shared, _ = line(f"a B for each group, rank {rank}", rank, both)
        # Bytes are linear in the rank: the largest that costs no more.
        line(f"a B for each group, rank {rank * apart // shared}: as many bytes", rank * apart // shared, both)
        line(f"a B for each group, rank {rank}, refit from the layer's statistics", rank, both, "--expert-refit", "layer")
        line(f"a B for each group, rank {rank}, experts weighted by their gates squared", rank, both, "--expert-weights", "gates")
        line(f"a B for each group, rank {rank}, experts weighted alike", rank, both, "--expert-weights", "none")


sharing = args.study == "sharing"
print("| bits | weights | linears, MB | perplexity | divergence, nats a token | against rounding at the same width, paired |" +
      (" against a B for each matrix |" if sharing else " against rounding in as many bytes (to 5 %) |"))
print("|---|---|---|---|---|---|---|")
none = [None, None]
with tempfile.TemporaryDirectory() as scratch:
    full = evaluate(args.model)
    for bits in args.bits:
        out = os.path.join(scratch, f"w{bits}.glowq")
        facts = calibrate(out, bits, 0)
        if bits == args.bits[0]:
            row(16, "as stored", full, facts["weight_bytes"], *none)
        rounded = evaluate(out)
        row(bits, "rounded", rounded, facts["quantized_bytes"], *none)
        (study_sharing if sharing else study_ranks)(scratch, bits, rounded, facts["quantized_bytes"])
