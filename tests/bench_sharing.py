#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bytes of the correction of all experts' gate and up, from configurations alone: one B for the layer against one B for each
{gate, up} pair and against one B for each matrix, at equal rank. Prints a Markdown table.

    python3 tests/bench_sharing.py examples/shapes/mixtral-8x7b.json examples/shapes/qwen1.5-moe-a2.7b.json ...

A correction of rank r has r (rows + columns) numbers for a matrix with a B of its own, r rows for one that shares it; r cancels.
"""
import json
import sys


def saved(d_model, widths):
    """Shares saved against (a B for each matrix, a B for each pair); widths: of the experts."""
    rows = sum(2 * w for w in widths)
    shared = rows + d_model
    return 1 - shared / (rows + 2 * len(widths) * d_model), 1 - shared / (rows + len(widths) * d_model)


print("| model | experts | saved against a B for each matrix | against a B for each pair |")
print("|---|---|---|---|")
for path in sys.argv[1:]:
    with open(path) as f:
        config = json.load(f)
    n = config.get("num_local_experts") or config.get("num_experts")
    routed = [config.get("moe_intermediate_size") or config["intermediate_size"]] * n
    shared_width = config.get("shared_expert_intermediate_size", 0)
    variants = [(f"{n}", routed)]
    if shared_width:
        variants.append((f"{n} and the shared one", routed + [shared_width]))
    name = path.split("/")[-1].removesuffix(".json")
    for what, widths in variants:
        print("| {} | {} | {:.1%} | {:.1%} |".format(name, what, *saved(config["hidden_size"], widths)))
