#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Perplexity in the three protocols of `glowq eval`, by transformers in f32: the independent loop they are compared with.

Common to all: the text is one UTF-8 string, encoded once, without special tokens; --max-tokens keeps the first N of those
ids (a BOS added later isn't counted). bos is the id that the tokenizer itself puts first when asked for special tokens, or
none. A window is run alone from position 0. The logits at position i predict the id at i + 1; nll = -log softmax, natural
logarithm, softmax in f64 of f32 logits.

gptq      stream = [bos] + ids (ids alone where the tokenizer adds no BOS); floor(len(stream) / ctx) windows of ctx ids, the
          tail is dropped; every window predicts its ids 1 .. ctx-1: ctx - 1 predictions. Later windows have no BOS.
llamacpp  the same stream, cut the same way, at least two windows; if the tokenizer adds a BOS the first id of every window is
          replaced by it. Scored: the logits at positions ctx/2 .. ctx-2 (integer division): ctx - 1 - ctx/2 predictions.
windows   windows of bos + (ctx - 1) ids, all of ids in order, the last one as short as it comes; every id is scored once.
          Needs a BOS.

perplexity = exp(nll), nll = sum of all predictions' nll / their number. With n_w predictions and mean nll_w in window w:
stderr = sqrt(sum_w n_w^2 (nll_w - nll)^2) / sum_w n_w, the standard error of nll when windows are the independent unit.

With a reference, a model of the same vocabulary that reads the same windows: kl, the mean over all predictions of
KL(reference || model) = sum_v P_v (log P_v - log Q_v), in f64 of f32 logits, P the reference's softmax; nll_difference = the
model's nll - the reference's; both with a standard error as above, from the windows' means; agreements, the predictions whose
largest logit is the same id's in both (smallest_gap: between a model's two largest, anywhere).

usage: evaluate.py --model DIR --text FILE [--protocol P] [--ctx N] [--max-tokens N] [--reference DIR]    prints one JSON object
       evaluate.py --record DATA         writes protocols.json; DATA is the shared test data folder (models/, text/)
       evaluate.py --record-comparisons  writes comparisons.json
"""
import argparse
import hashlib
import itertools
import json
import math
import os

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH = 16

RECORDED = [  # (where, model, text, max_tokens, protocol, ctx); "golden" is this folder, "data" the shared one
    ("golden", "families/tp_cut", "text.txt", None, "gptq", 64),
    ("golden", "families/tp_cut", "text.txt", None, "llamacpp", 64),
    ("golden", "families/tp_cut", "text.txt", None, "windows", 64),
    ("golden", "families/tp_cut", "text.txt", 500, "gptq", 33),
    ("golden", "families/tp_cut", "text.txt", 500, "llamacpp", 33),
    ("golden", "families/tp_cut", "text.txt", 500, "windows", 33),
    ("golden", "families/moe_cut", "text.txt", None, "gptq", 64),
    ("golden", "families/moe_cut", "text.txt", 500, "windows", 33),
    ("data", "models/stories260K-mixtral4-f32", "text/tinystories_197k.txt", 40000, "windows", 256),
    ("data", "models/stories260K-qwen2moe4-f32", "text/tinystories_197k.txt", 40000, "windows", 256),
    ("data", "models/babyllama361-mixtral8-bf16", "text/tinystories_197k.txt", 8000, "windows", 256),
] + [("data", "models/" + m, "text/tinystories_197k.txt", 40000, p, c)
     for m, sizes in (("stories260K-f32", (256, 512)), ("babyllama361-f32", (256,)))
     for p, c in [("gptq", c) for c in sizes] + [("llamacpp", 256), ("windows", 256)]]


SMALLEST_GAP = 2e-5  # f32 logits of another order of summation differ by less: they find the same ids most probable
SCALED = {"tensor": "model.norm.weight", "first": 0, "n": 8, "by": 2}  # changes that bf16 holds exactly
NUDGED = {"tensor": "model.layers.1.mlp.down_proj.weight", "first": 9, "n": 1, "by": 0.5}

COMPARED = [  # (where, model, what is changed in a copy of it, reference, text, max_tokens, protocol, ctx); where: a folder of ours
    ("golden", "families/moe_cut", None, "families/tp_cut", "text.txt", None, "gptq", 64),
    ("golden", "families/tp_cut", SCALED, "families/tp_cut", "text.txt", None, "windows", 64),
    ("golden", "families/tp_cut", NUDGED, "families/tp_cut", "text.txt", 500, "llamacpp", 33),
    ("examples", "moe", None, "dense", "texts/heldout.txt", 8000, "windows", 256),
]


def windows_of(protocol, ids, bos, ctx):
    """A list of (ids of the window, position of the first scored logits)."""
    if protocol == "windows":
        if bos is None:
            raise SystemExit("windows: the tokenizer adds no BOS")
        return [([bos] + ids[i:i + ctx - 1], 0) for i in range(0, len(ids), ctx - 1)]
    stream = ids if bos is None else [bos] + ids
    cut = [stream[i:i + ctx] for i in range(0, len(stream) - ctx + 1, ctx)]
    if protocol == "gptq":
        return [(w, 0) for w in cut]
    if len(cut) < 2:
        raise SystemExit("llamacpp: the text is shorter than two windows")
    return [(w if bos is None else [bos] + w[1:], ctx // 2) for w in cut]


@torch.no_grad()
def window_logp(model, windows):
    """log softmax at the scored positions of each window, f64, and the smallest gap between two largest logits."""
    out, gap = [], math.inf
    # Windows of one length go together: no padding, so no attention mask to get wrong.
    for _, same in itertools.groupby(windows, key=lambda w: len(w[0])):
        same = list(same)
        for i in range(0, len(same), BATCH):
            part = same[i:i + BATCH]
            logits = model(input_ids=torch.tensor([w[0] for w in part]), use_cache=False).logits[:, :-1].double()
            top = logits.topk(2, -1).values
            gap = min(gap, (top[..., 0] - top[..., 1]).min().item())
            yield from ((row[first:], gap) for row, (_, first) in zip(torch.log_softmax(logits, -1), part))


def nll_of(logp, window):
    ids, first = window
    return -logp.gather(-1, torch.tensor(ids[first + 1:])[:, None])[:, 0]


def mean_and_stderr(windows):
    """Of (sum, number of predictions) of each window: n_w (mean_w - mean) = sum_w - n_w mean."""
    n = sum(k for _, k in windows)
    mean = sum(s for s, _ in windows) / n
    return mean, math.sqrt(sum((s - k * mean) ** 2 for s, k in windows)) / n


def load(model_dir, change=None):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    if change:
        with torch.no_grad():
            tensor = dict(model.named_parameters())[change["tensor"]]
            tensor[change["first"]:change["first"] + change["n"]] *= change["by"]
    return model


def stream_of(model_dir, text_file, max_tokens):
    """(bytes of the text, ids, bos)."""
    with open(text_file, "rb") as f:
        raw = f.read()
    tok = Tokenizer.from_file(os.path.join(model_dir, "tokenizer.json"))
    special = tok.encode("", add_special_tokens=True).ids
    return raw, tok.encode(raw.decode("utf-8"), add_special_tokens=False).ids[:max_tokens], special[0] if special else None


def evaluate(model_dir, text_file, protocol, ctx, max_tokens=None):
    raw, ids, bos = stream_of(model_dir, text_file, max_tokens)
    windows = windows_of(protocol, ids, bos, ctx)
    scored = [(nll_of(logp, w).sum().item(), len(logp)) for (logp, _), w in zip(window_logp(load(model_dir), windows), windows)]
    nll, spread = mean_and_stderr(scored)
    return {"protocol": protocol, "ctx": ctx, "max_tokens": max_tokens, "perplexity": round(math.exp(nll), 7),
            "nll": round(nll, 8), "stderr": round(spread, 8), "tokens": sum(k for _, k in scored), "windows": len(scored),
            "n_ids": len(ids), "bos": bos, "text_sha256": hashlib.sha256(raw).hexdigest(),
            "ids_sha256_i32le": hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()}


def compare(model_dir, change, reference_dir, text_file, protocol, ctx, max_tokens=None):
    _, ids, bos = stream_of(model_dir, text_file, max_tokens)
    windows = windows_of(protocol, ids, bos, ctx)
    own, theirs, apart, kl, agreements, gap = [], [], [], [], 0, math.inf
    both = zip(window_logp(load(model_dir, change), windows), window_logp(load(reference_dir), windows), windows)
    for (q, q_gap), (p, p_gap), w in both:
        ours, other = nll_of(q, w), nll_of(p, w)
        own.append((ours.sum().item(), len(q)))
        theirs.append((other.sum().item(), len(q)))
        apart.append(((ours - other).sum().item(), len(q)))
        kl.append(((p.exp() * (p - q)).sum().item(), len(q)))
        agreements += (p.argmax(-1) == q.argmax(-1)).sum().item()
        gap = min(gap, p_gap, q_gap)
    row = {"protocol": protocol, "ctx": ctx, "max_tokens": max_tokens, "nll": mean_and_stderr(own)[0],
           "reference_nll": mean_and_stderr(theirs)[0], "tokens": sum(k for _, k in kl), "windows": len(kl),
           "agreements": agreements, "smallest_gap": gap}
    row["nll_difference"], row["nll_difference_stderr"] = mean_and_stderr(apart)
    row["kl"], row["kl_stderr"] = mean_and_stderr(kl)
    row = {k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()}
    row["window_kl"] = [round(s / k, 9) for s, k in kl]
    return row


def record(data):
    rows = []
    for where, model, text, max_tokens, protocol, ctx in RECORDED:
        root = HERE if where == "golden" else data
        result = evaluate(os.path.join(root, model), os.path.join(root, text), protocol, ctx, max_tokens)
        rows.append({"where": where, "model": model, "text": text, **result})
        print("%-34s %-9s %4d  %.5f" % (model, protocol, ctx, result["perplexity"]), flush=True)
    with open(os.path.join(HERE, "protocols.json"), "w", encoding="ascii") as f:
        json.dump(rows, f, indent=1)
        f.write("\n")


def record_comparisons():
    rows = []
    for where, model, change, reference, text, max_tokens, protocol, ctx in COMPARED:
        root = HERE if where == "golden" else os.path.join(HERE, "..", "..", where)
        paths = [os.path.join(root, p) for p in (model, reference, text)]
        result = compare(paths[0], change, paths[1], paths[2], protocol, ctx, max_tokens)
        if result["smallest_gap"] < SMALLEST_GAP:
            raise SystemExit("%s: two largest logits are %g apart" % (model, result["smallest_gap"]))
        rows.append({"where": where, "model": model, "change": change, "reference": reference, "text": text, **result})
        print("%-18s %-18s %-9s %4d  kl %.7f" % (model, reference, protocol, ctx, result["kl"]), flush=True)
    with open(os.path.join(HERE, "comparisons.json"), "w", encoding="ascii") as f:
        json.dump(rows, f, indent=1)
        f.write("\n")


def main():
    p = argparse.ArgumentParser(description="perplexity by transformers, in the protocols of glowq eval")
    p.add_argument("--model")
    p.add_argument("--text")
    p.add_argument("--protocol", choices=("gptq", "llamacpp", "windows"), default="gptq")
    p.add_argument("--ctx", type=int, default=256)
    p.add_argument("--max-tokens", type=int)
    p.add_argument("--reference")
    p.add_argument("--record", metavar="DATA")
    p.add_argument("--record-comparisons", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()
    if a.record:
        record(a.record)
    elif a.record_comparisons:
        record_comparisons()
    elif a.model and a.text and a.reference:
        print(json.dumps(compare(a.model, None, a.reference, a.text, a.protocol, a.ctx, a.max_tokens)))
    elif a.model and a.text:
        print(json.dumps(evaluate(a.model, a.text, a.protocol, a.ctx, a.max_tokens)))
    else:
        p.error("give --model and --text, --record or --record-comparisons")


if __name__ == "__main__":
    main()
