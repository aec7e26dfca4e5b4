#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How calibration scales: time by stage on several grids of ranks, one thread a rank, and what ranks send each other, counted and by
`glowq plan`. Prints Markdown.

    python3 tests/bench_scaling.py [--glowq build/glowq] [--grids 1x1 1x2] [--repeat 3] [-- CALIBRATE'S OPTIONS]

Without options of calibrate: two layers of a 1B shape. To those given are added --stop 0 --max-steps 3, unless --max-steps is among
them: each group then takes four blocks of the solver, so that work and traffic are known beforehand and the same on all grids.

A grid SxR is S stages of R ranks. Runs take turns (all grids, then all again), and the median run by total time stands for its
grid. Efficiency is time on the first grid x its ranks / (time x ranks): 1 is ideal. Stages are rank 0's, waits for other ranks
among them. Every run has to leave the same bytes. Meant for a machine that does nothing else; more ranks than cores show nothing.
"""
import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

STAGES = ["read", "forward", "moments", "quantize", "solve", "refit", "write"]
ROOT = pathlib.Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser()
parser.add_argument("--glowq", default="build/glowq")
parser.add_argument("--mpiexec", default="mpirun")
parser.add_argument("--grids", nargs="+", default=["1x1", "1x2"])
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--out", help="folder for the results, which are removed (default: one in the system's)")
parser.add_argument("options", nargs="*", help="of calibrate, behind --")
args = parser.parse_args()
options = args.options or ["--synthetic", str(ROOT / "examples/shapes/llama-3.2-1b.json"), "--layers", "2", "--samples", "32",
                           "--seq-len", "512", "--rank", "64"]
if not any(o.startswith("--max-steps") for o in options):
    options += ["--stop", "0", "--max-steps", "3"]
environment = dict(os.environ, OMP_NUM_THREADS="1", GLOWQ_THREADS="1", OPENBLAS_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1",
                   OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_hwloc_base_binding_policy="none",
                   OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_mpi_yield_when_idle="1")


def n_ranks(grid):
    stages, replicas = grid.split("x")
    return int(stages) * int(replicas)


def must(command):
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("%s\nexit code %d: %s%s" % (" ".join(command), done.returncode, done.stdout, done.stderr))
    return done.stdout


def published(out):
    """One hash of all that has to be the same on every grid."""
    hashes = hashlib.sha256()
    for path in sorted(out.glob("layers/*.h5")) + [out / "head.h5", out / "manifest.json"]:
        hashes.update(hashlib.sha256(path.read_bytes()).digest())
    return hashes.hexdigest()


def calibrate(grid, out):
    """run.json of a calibration, and its bytes."""
    launch = [] if n_ranks(grid) == 1 else [args.mpiexec, "-n", str(n_ranks(grid))]
    shutil.rmtree(out, ignore_errors=True)
    must(launch + [args.glowq, "calibrate", *options, "--grid", grid, "--device", "cpu", "--out", str(out)])
    run = json.loads((out / "run.json").read_text())
    bytes_ = published(out)
    shutil.rmtree(out)
    return run, bytes_


def plan(grid):
    return json.loads(must([args.glowq, "plan", *options, "--ranks", str(n_ranks(grid)), "--grid", grid, "--json"]))


def row(cells):
    print("| " + " | ".join(cells) + " |")


def seconds(run, stage):
    """The rest: the embedding and the head among it, and whatever else is outside the layers."""
    if stage == "all":
        return run["seconds"]
    return run["stages"][stage] if stage in STAGES else run["seconds"] - sum(run["stages"].values())


def table_of_times(runs):
    first = args.grids[0]
    row(["stage"] + ["%s, %d rank%s" % (g, n_ranks(g), "s" * (n_ranks(g) > 1)) for g in args.grids] +
        ["efficiency of " + g for g in args.grids[1:]])
    row(["---"] * (2 * len(args.grids)))
    for stage in STAGES + ["the rest", "all"]:
        times = [seconds(runs[g], stage) for g in args.grids]
        if max(times) < 0.005:
            continue
        ideal = times[0] * n_ranks(first)
        row([stage] + ["%.2f s" % t for t in times] +
            ["%.2f" % (ideal / (t * n_ranks(g))) if times[0] >= 0.005 else "" for g, t in zip(args.grids[1:], times[1:])])


def table_of_traffic(runs):
    """Of each grid, by stage, the rank that is furthest from the plan."""
    row(["grid", "stage", "rank", "sent, counted", "sent, planned", "received, counted", "received, planned"])
    row(["---"] * 7)
    worst = 0
    for grid in args.grids:
        if n_ranks(grid) == 1:
            continue
        planned = plan(grid)["ranks"]
        for stage in STAGES:
            def off(p):
                counted, by_plan = (r[p]["network"]["stages"][stage] for r in (runs[grid]["ranks"], planned))
                return max(abs(counted[way] - by_plan[way]) / max(counted[way], by_plan[way], 4096) for way in counted)
            rank = max(range(n_ranks(grid)), key=off)
            counted, by_plan = (r[rank]["network"]["stages"][stage] for r in (runs[grid]["ranks"], planned))
            worst = max(worst, off(rank))
            if counted["sent"] + counted["received"] + by_plan["sent"] + by_plan["received"] > 0:
                row([grid, stage, str(rank)] + ["{:,}".format(r[way]) for way in ("sent", "received")
                                                for r in (counted, by_plan)])
    groups = runs[args.grids[0]]["ranks"][0]["groups"]
    print("\nCounted differs from planned by at most %.2f%% in a stage of a rank. %d of %d groups were solved in f64, which sends more and "
          "which no plan foresees." % (100 * worst, groups["f64"], groups["f32"] + groups["f64"]))


def main():
    runs = {grid: [] for grid in args.grids}
    seen = set()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        for _ in range(args.repeat):
            for grid in args.grids:
                run, bytes_ = calibrate(grid, pathlib.Path(folder) / "scaling.glowq")
                runs[grid].append(run)
                seen.add(bytes_)
    medians = {g: sorted(r, key=lambda run: run["seconds"])[len(r) // 2] for g, r in runs.items()}
    spread = max(max(x["seconds"] for x in r) / min(x["seconds"] for x in r) for r in runs.values())
    print("`%s`, one thread a rank, %d cores, load %.1f before, median of %d, slowest at most %.2f times the fastest\n" %
          (" ".join(options).replace(str(ROOT) + "/", ""), os.cpu_count(), load, args.repeat, spread))
    table_of_times(medians)
    print()
    table_of_traffic(medians)
    print("Bytes written: %s." % ("the same in all runs" if len(seen) == 1 else "%d different results" % len(seen)))
    return len(seen) != 1


sys.exit(main())
