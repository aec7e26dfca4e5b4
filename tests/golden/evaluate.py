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

usage: evaluate.py --model DIR --text FILE [--protocol P] [--ctx N] [--max-tokens N]        prints one JSON object
       evaluate.py --record DATA         writes protocols.json; DATA is the shared test data folder (models/, text/)
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
def window_nll(model, windows):
    """(sum of nll, number of predictions) of each window."""
    out = []
    # Windows of one length go together: no padding, so no attention mask to get wrong.
    for _, same in itertools.groupby(windows, key=lambda w: len(w[0])):
        same = list(same)
        for i in range(0, len(same), BATCH):
            part = same[i:i + BATCH]
            ids = torch.tensor([w[0] for w in part])
            logp = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.double(), -1)
            nll = -logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
            out += [(row[first:].sum().item(), len(row) - first) for row, (_, first) in zip(nll, part)]
    return out


def evaluate(model_dir, text_file, protocol, ctx, max_tokens=None):
    with open(text_file, "rb") as f:
        raw = f.read()
    tok = Tokenizer.from_file(os.path.join(model_dir, "tokenizer.json"))
    ids = tok.encode(raw.decode("utf-8"), add_special_tokens=False).ids[:max_tokens]
    special = tok.encode("", add_special_tokens=True).ids
    bos = special[0] if special else None
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    scored = window_nll(model, windows_of(protocol, ids, bos, ctx))
    n = sum(k for _, k in scored)
    nll = sum(s for s, _ in scored) / n
    spread = math.sqrt(sum((s - k * nll) ** 2 for s, k in scored)) / n  # n_w (nll_w - nll) = s - n_w nll
    return {"protocol": protocol, "ctx": ctx, "max_tokens": max_tokens, "perplexity": round(math.exp(nll), 7),
            "nll": round(nll, 8), "stderr": round(spread, 8), "tokens": n, "windows": len(scored), "n_ids": len(ids),
            "bos": bos, "text_sha256": hashlib.sha256(raw).hexdigest(),
            "ids_sha256_i32le": hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest()}


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


def main():
    p = argparse.ArgumentParser(description="perplexity by transformers, in the protocols of glowq eval")
    p.add_argument("--model")
    p.add_argument("--text")
    p.add_argument("--protocol", choices=("gptq", "llamacpp", "windows"), default="gptq")
    p.add_argument("--ctx", type=int, default=256)
    p.add_argument("--max-tokens", type=int)
    p.add_argument("--record", metavar="DATA")
    a = p.parse_args()
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()
    if a.record:
        record(a.record)
    elif a.model and a.text:
        print(json.dumps(evaluate(a.model, a.text, a.protocol, a.ctx, a.max_tokens)))
    else:
        p.error("give --model and --text, or --record")


if __name__ == "__main__":
    main()
