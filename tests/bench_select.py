#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `glowq select` chooses on one text, measured on another: divergence from the 16-bit model with a share of the corrections' bytes,
by each score. Prints a Markdown table.

    python3 tests/bench_select.py [--glowq build/glowq] [--model examples/dense] [--np 2] [--bits 4 3 2] [--rank 16]

The last column is paired window by window: windows are hard or easy for all choices alike, so that its error is far smaller than the
divergences' own.
"""
import argparse
import json
import math
import os
import subprocess
import tempfile

parser = argparse.ArgumentParser()
parser.add_argument("--glowq", default="build/glowq")
parser.add_argument("--model", default="examples/dense")
parser.add_argument("--text", default="examples/texts/calibration.txt")
parser.add_argument("--heldout", default="examples/texts/heldout.txt")
parser.add_argument("--np", type=int, default=2)
parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--tokens", type=int, default=8192)
parser.add_argument("--shares", type=int, nargs="+", default=[25, 50, 75])
args = parser.parse_args()

environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none")


def glowq(*command):
    run = ["mpirun", "-n", str(args.np), args.glowq, *map(str, command), "--json", "--quiet"]
    return json.loads(subprocess.run(run, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def evaluate(model, *options):
    return glowq("eval", "--model", model, "--reference", args.model, "--text", args.heldout, "--protocol", "windows", "--ctx", 256,
                 *options)


def paired(a, b):
    """Mean difference a - b of the divergences and its standard error."""
    weights, total = a["window_tokens"], sum(a["window_tokens"])
    a, b = a["reference"], b["reference"]
    mean = a["kl"] - b["kl"]
    spread = sum((n * (x - y - mean)) ** 2 for n, x, y in zip(weights, a["window_kl"], b["window_kl"]))
    return mean, math.sqrt(spread) / total


def row(bits, name, groups, size, result, everything):
    kl = "{:.5f} ± {:.5f}".format(result["reference"]["kl"], result["reference"]["kl_stderr"])
    above = "" if result is everything else "{:+.5f} ± {:.5f}".format(*paired(result, everything))
    print(f"| {bits} | {name} | {groups} | {size / 1e3:.0f} | {kl} | {above} |", flush=True)


print("| bits | corrections kept | groups | KB | divergence, nats a token | above all corrections, paired |")
print("|---|---|---|---|---|---|")
with tempfile.TemporaryDirectory() as scratch:
    for bits in args.bits:
        whole = os.path.join(scratch, f"w{bits}.glowq")
        facts = glowq("calibrate", "--model", args.model, "--text", args.text, "--out", whole, "--bits", bits, "--rank", args.rank,
                      "--samples", 128, "--seq-len", 256)
        everything = evaluate(whole)
        row(bits, "none", 0, 0, evaluate(whole, "--no-correction"), everything)
        for share in args.shares:
            for score in ("order", "energy", "captured", "sensitivity"):
                out = os.path.join(scratch, f"w{bits}-{share}-{score}.glowq")
                made = glowq("select", "--model", whole, "--reference", args.model, "--text", args.text, "--max-tokens", args.tokens,
                             "--keep", f"{share}%", "--points", 1, "--score", score, "--out", out)
                chosen = made["chosen"]
                row(bits, f"{share} % by {score}", chosen["n_groups"], chosen["factor_bytes"], evaluate(out), everything)
        row(bits, "all", len(made["groups"]), facts["factor_bytes"], everything, everything)
