#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An independent evaluation of a Hugging Face checkpoint in f32, to compare the C program with. Llama and Mixtral layouts.

Place in the pipeline: the oracle. It shares no code with train.py or with the C program, and reads only the checkpoint's files.
Needs torch, safetensors and tokenizers; `check` also needs transformers.

    reference.py eval     --model dense --text texts/heldout.txt --protocol windows --ctx 256 --max-tokens 40000
    reference.py generate --model dense --prompt "Once, in the town of" --max-tokens 48
    reference.py routing  --model moe   --text texts/heldout.txt
    reference.py check    --model dense --text texts/heldout.txt       (logits of one window against transformers' own)
    reference.py golden   --model dense --model moe --text texts/heldout.txt > golden.json

Protocols. `ids` is the text encoded once without special tokens, its first --max-tokens ids kept.
    gptq      BOS (if the tokenizer adds it) + ids; floor(n / ctx) windows, the tail dropped; the ctx - 1 predictions inside each scored
    llamacpp  BOS (if the tokenizer adds it) + ids; floor(n / ctx) chunks, the first id of each replaced by BOS (if added);
              logits at positions ctx/2 .. ctx-2 scored, so ctx/2 - 1 predictions each
    windows   BOS + ctx - 1 ids a window, each id scored, the partial last window included
nll is the mean over all scored tokens, perplexity = exp(nll). stderr is the standard error of nll from the windows' means nll_w of n_w
tokens: sqrt(sum_w n_w^2 (nll_w - nll)^2) / sum_w n_w; tokens of one window are not independent, windows nearly are.
perplexity_stderr = perplexity * stderr (delta method).
"""

import argparse
import hashlib
import json
import math
import os
import struct
import sys

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

PROMPTS = ["Once, in the town of Larkhill, there lived a", "Anna is taller than Paul. Paul is taller than Ruth.", "The library contains"]


class Checkpoint:
    """Configuration, tokenizer and weights (as f32, whatever they are stored as) of one directory."""

    def __init__(self, path, rtn_bits=0, group_size=128):
        self.path = path
        with open(os.path.join(path, "config.json")) as f:
            self.config = c = json.load(f)
        if c["model_type"] not in ("llama", "mixtral") or c.get("rope_scaling") or c.get("attention_bias") or c.get("mlp_bias") or c.get("sliding_window"):
            sys.exit(f"{path}: this reference knows plain Llama and Mixtral only")
        index = os.path.join(path, "model.safetensors.index.json")
        files = ["model.safetensors"]
        if os.path.exists(index):
            with open(index) as f:
                files = sorted(set(json.load(f)["weight_map"].values()))
        self.weights = {}
        for name in files:
            with safe_open(os.path.join(path, name), "pt") as f:
                self.weights.update({key: f.get_tensor(key).float() for key in f.keys()})
        if rtn_bits:
            for key, w in self.weights.items():
                if ".layers." in key and w.dim() == 2 and not key.endswith("block_sparse_moe.gate.weight"):
                    self.weights[key] = round_to_nearest(w, rtn_bits, group_size)
        self.tokenizer = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
        added = self.tokenizer.encode("", add_special_tokens=True).ids
        self.bos = added[0] if added else None
        if self.bos is None and os.path.exists(os.path.join(path, "tokenizer_config.json")):
            with open(os.path.join(path, "tokenizer_config.json")) as f:
                settings = json.load(f)
            if settings.get("add_bos_token"):
                token = settings["bos_token"]
                self.bos = self.tokenizer.token_to_id(token if isinstance(token, str) else token["content"])
        self.routes = None  # set to a list to record each MoE layer's choices

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @torch.no_grad()
    def logits(self, ids):
        """ids [n, t] -> logits [n, t, vocab]"""
        c, w = self.config, self.weights
        n, t = ids.shape
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        dim = c.get("head_dim") or c["hidden_size"] // heads
        theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
        angle = torch.outer(torch.arange(t).float(), 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim))
        cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()
        hidden_keys = torch.ones(t, t, dtype=torch.bool).triu(1)
        norm = lambda x, key: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"]) * w[key]
        turn = lambda x: x * cos + torch.cat((-x[..., dim // 2:], x[..., :dim // 2]), -1) * sin
        x = w["model.embed_tokens.weight"][ids]
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            h = norm(x, p + "input_layernorm.weight")
            q = turn((h @ w[p + "self_attn.q_proj.weight"].T).view(n, t, heads, dim).transpose(1, 2))
            k = turn((h @ w[p + "self_attn.k_proj.weight"].T).view(n, t, kv, dim).transpose(1, 2)).repeat_interleave(heads // kv, 1)
            v = (h @ w[p + "self_attn.v_proj.weight"].T).view(n, t, kv, dim).transpose(1, 2).repeat_interleave(heads // kv, 1)
            score = (q @ k.transpose(2, 3) / math.sqrt(dim)).masked_fill(hidden_keys, -math.inf)
            x = x + (score.softmax(-1) @ v).transpose(1, 2).reshape(n, t, heads * dim) @ w[p + "self_attn.o_proj.weight"].T
            h = norm(x, p + "post_attention_layernorm.weight")
            x = x + (self.experts(h, p + "block_sparse_moe.") if c["model_type"] == "mixtral" else self.mlp(h, p + "mlp.", "gate_proj", "up_proj", "down_proj"))
        x = norm(x, "model.norm.weight")
        return x @ (w["model.embed_tokens.weight"] if c.get("tie_word_embeddings") else w["lm_head.weight"]).T

    def mlp(self, x, prefix, gate, up, down):
        w = self.weights
        return (torch.nn.functional.silu(x @ w[f"{prefix}{gate}.weight"].T) * (x @ w[f"{prefix}{up}.weight"].T)) @ w[f"{prefix}{down}.weight"].T

    def experts(self, x, prefix):
        """Every expert computes every token and the unchosen ones get weight 0: slow, and hard to get wrong."""
        probs = (x @ self.weights[prefix + "gate.weight"].T).softmax(-1)
        top, chosen = probs.topk(self.config["num_experts_per_tok"], -1)
        if self.routes is not None:
            self.routes.append(chosen)
        weight = torch.zeros_like(probs).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
        return sum(weight[..., e, None] * self.mlp(x, f"{prefix}experts.{e}.", "w1", "w3", "w2") for e in range(probs.shape[-1]))


def round_to_nearest(w, bits, group):
    """Asymmetric round-to-nearest of groups along each row: min <= 0 <= max, f16 scale, integer zero point; a shorter last group."""
    levels, out = 2 ** bits - 1, torch.empty_like(w)
    for start in range(0, w.shape[1], group):
        part = w[:, start:start + group]
        low, high = part.amin(1, keepdim=True).clamp(max=0), part.amax(1, keepdim=True).clamp(min=0)
        scale = ((high - low) / levels).half().float()
        scale[high == low] = 1.0
        zero = (-low / scale).round().clamp(0, levels)
        out[:, start:start + group] = (((part / scale).round() + zero).clamp(0, levels) - zero) * scale
    return out


def windows_of(ids, bos, protocol, ctx):
    """The windows (lists of ids) and, for each, the first position whose logits are scored."""
    if protocol == "windows":
        if bos is None:
            sys.exit("protocol windows needs a tokenizer that adds BOS")
        return [[bos] + ids[i:i + ctx - 1] for i in range(0, len(ids), ctx - 1)], 0
    stream = ([] if bos is None else [bos]) + ids
    chunks = [stream[i:i + ctx] for i in range(0, len(stream) - ctx + 1, ctx)]
    if protocol == "llamacpp":
        return [chunk if bos is None else [bos] + chunk[1:] for chunk in chunks], ctx // 2
    return chunks, 0


def evaluate(ckpt, text, protocol, ctx, max_tokens=0):
    ids = ckpt.encode(text)
    ids = ids[:max_tokens] if max_tokens else ids
    windows, first = windows_of(ids, ckpt.bos, protocol, ctx)
    if not windows:
        sys.exit(f"text has {len(ids)} tokens, less than one window of {ctx}")
    means, counts, total = [], [], 0.0
    for i in range(0, len(windows), 8):
        group = windows[i:i + 8]
        longest = max(map(len, group))  # only the last window can be shorter: padded at the end, where causal attention cannot look
        logits = ckpt.logits(torch.tensor([w + [0] * (longest - len(w)) for w in group]))
        for row, window in zip(logits, group):
            target = torch.tensor(window[first + 1:])
            nll = -row[first:len(window) - 1].double().log_softmax(-1).gather(1, target[:, None]).sum().item()
            total += nll
            counts.append(len(target))
            means.append(nll / len(target))
    mean, n = total / sum(counts), sum(counts)
    stderr = math.sqrt(sum((k * (m - mean)) ** 2 for k, m in zip(counts, means))) / n
    return {"protocol": protocol, "ctx": ctx, "max_tokens": max_tokens, "perplexity": math.exp(mean), "nll": mean, "stderr": stderr,
            "perplexity_stderr": math.exp(mean) * stderr, "tokens": n, "windows": len(windows),
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "ids_sha256": hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest(),
            "window_nll": [round(m, 7) for m in means], "window_tokens": counts}


def generate(ckpt, prompt, max_tokens):
    """Greedy; stops after an end-of-text id. min_margin is the smallest gap of the two best logits: below it, rounding may differ."""
    eos = ckpt.config.get("eos_token_id")
    prompt_ids = ([] if ckpt.bos is None else [ckpt.bos]) + ckpt.encode(prompt)
    ids, margin, finish = list(prompt_ids), math.inf, "length"
    for _ in range(max_tokens):
        best, where = ckpt.logits(torch.tensor([ids]))[0, -1].topk(2)
        margin = min(margin, (best[0] - best[1]).item())
        ids.append(where[0].item())
        if ids[-1] == eos:
            finish = "stop"
            break
    new = ids[len(prompt_ids):]
    return {"prompt": prompt, "prompt_ids": prompt_ids, "ids": new, "text": ckpt.tokenizer.decode(new), "finish": finish, "min_margin": round(margin, 5)}


def routing(ckpt, text, max_tokens):
    """Share of the routed slots that each expert of each layer gets; 1 / experts would be perfectly even."""
    ckpt.routes = []
    evaluate(ckpt, text, "windows", 256, max_tokens)
    layers, shares = ckpt.config["num_hidden_layers"], []
    for layer in range(layers):
        chosen = torch.cat([r.flatten() for r in ckpt.routes[layer::layers]])
        shares.append([round(v, 4) for v in (torch.bincount(chosen, minlength=ckpt.config["num_local_experts"]) / len(chosen)).tolist()])
    return {"tokens": max_tokens, "share": shares}


def check(ckpt, text):
    """Largest difference from transformers' f32 logits on one window of 256 ids."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(ckpt.path, dtype=torch.float32).eval()
    ids = torch.tensor([[ckpt.bos] + ckpt.encode(text)[:255]])
    with torch.no_grad():
        theirs = model(ids).logits
    ours = ckpt.logits(ids)
    return {"class": type(model).__name__, "max_abs_difference": (ours - theirs).abs().max().item(), "max_abs_logit": theirs.abs().max().item(),
            "argmax_equal": bool((ours.argmax(-1) == theirs.argmax(-1)).all())}


def golden(paths, text):
    out = {"text": "texts/heldout.txt", "arithmetic": "f32, from the weights as stored", "models": {}}
    for path in paths:
        ckpt = Checkpoint(path)
        out["models"][os.path.basename(os.path.normpath(path))] = {
            "eval": [evaluate(ckpt, text, "windows", 256, 40000), evaluate(ckpt, text, "gptq", 256), evaluate(ckpt, text, "llamacpp", 256)],
            "generate": [generate(ckpt, prompt, 48) for prompt in PROMPTS]}
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["eval", "generate", "routing", "check", "golden"])
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--text")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--protocol", choices=["gptq", "llamacpp", "windows"], default="windows")
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=0, help="eval: ids of the text used (0: all); generate: new ids")
    parser.add_argument("--rtn", type=int, default=0, help="round the layers' matrices to this many bits first")
    parser.add_argument("--group-size", type=int, default=128)
    args = parser.parse_args()

    text = None
    if args.text:
        with open(args.text, encoding="utf-8", newline="") as f:
            text = f.read()
    if args.command == "golden":
        result = golden(args.model, text)
    else:
        ckpt = Checkpoint(args.model[0], args.rtn, args.group_size)
        result = {"eval": lambda: evaluate(ckpt, text, args.protocol, args.ctx, args.max_tokens), "generate": lambda: generate(ckpt, args.prompt, args.max_tokens),
                  "routing": lambda: routing(ckpt, text, args.max_tokens or 40000), "check": lambda: check(ckpt, text)}[args.command]()
    json.dump(result, sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
