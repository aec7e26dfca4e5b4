#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the two bundled models, dense (Llama layout) and mixture of experts (Mixtral layout), and writes Hugging Face checkpoints.

Place in the pipeline: third step. Inputs: train.bin, valid.bin and tokenizer/ of make_corpus.py. Output in --out: model.safetensors
(bf16), config.json, generation_config.json, the tokenizer's files; in --run: losses.csv and state.pt, from which the same command
goes on if it was interrupted. Ends after --minutes of training time, the learning rate following that clock, or after --steps.

    train.py --kind dense --corpus corpus --out dense --run run/dense --minutes 40
    train.py --kind moe   --corpus corpus --out moe   --run run/moe   --minutes 28
"""

import argparse
import csv
import json
import math
import os
import shutil
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

CONFIGS = {
    "dense": dict(hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4),
    "moe": dict(hidden_size=256, intermediate_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2),
}
HEAD_DIM, CONTEXT, ROPE_THETA, NORM_EPS = 32, 512, 10000.0, 1e-5
BALANCE, ROUTER_Z = 0.02, 1e-3  # weights of the load-balancing loss (Switch Transformer) and of the router's z-loss (ST-MoE)


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, NORM_EPS)


def rotate(x, cos, sin):
    """Rotary embedding, half-split: element i pairs with i + head_dim / 2 (the layout of Hugging Face weights)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.heads, self.kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.q_proj = nn.Linear(d, self.heads * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(d, self.kv * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(d, self.kv * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(self.heads * HEAD_DIM, d, bias=False)

    def forward(self, x, cos, sin):
        n, t, _ = x.shape
        q, k, v = (p(x).view(n, t, -1, HEAD_DIM).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (z.repeat_interleave(self.heads // self.kv, 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(n, t, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Expert(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.w1 = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.w2 = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)
        self.w3 = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Permute(torch.autograd.Function):
    """x[order], with the gradient as another gather: the one autograd derives would scatter, ten times slower on a CPU."""

    @staticmethod
    def forward(ctx, x, order, back):
        ctx.back = back
        return x[order]

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.back], None, None


class SparseMoe(nn.Module):
    """Top-k routing: softmax over all experts, the k largest renormalized. The auxiliary losses are left in self.aux."""

    def __init__(self, c):
        super().__init__()
        self.k = c["num_experts_per_tok"]
        self.gate = nn.Linear(c["hidden_size"], c["num_local_experts"], bias=False)
        self.experts = nn.ModuleList(Expert(c) for _ in range(c["num_local_experts"]))

    def forward(self, x):
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        with torch.autocast("cpu", enabled=False):  # the router decides in f32: a rounding there changes the path of a token
            logits = F.linear(x.float(), self.gate.weight)
        probs = logits.softmax(-1)
        top, chosen = probs.topk(self.k, -1)
        top = top / top.sum(-1, keepdim=True)
        n_experts = len(self.experts)
        share = F.one_hot(chosen, n_experts).sum((0, 1)).float() / chosen.numel()
        self.aux = BALANCE * n_experts * (share * probs.mean(0)).sum() + ROUTER_Z * logits.logsumexp(-1).square().mean()
        self.share = share.detach()
        # Tokens are sorted by expert, so that each expert sees one block of rows, and brought back to their places afterwards.
        order = chosen.flatten().argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        rows = Permute.apply(x.to(torch.bfloat16).repeat_interleave(self.k, 0), order, back)
        parts = rows.split(torch.bincount(chosen.flatten(), minlength=n_experts).tolist())
        done = Permute.apply(torch.cat([expert(part) for expert, part in zip(self.experts, parts)]), back, order)
        out = (done.view(-1, self.k, shape[-1]).float() * top[..., None]).sum(1)
        return out.view(shape)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"])
        if "num_local_experts" in c:
            self.block_sparse_moe = SparseMoe(c)
        else:
            self.mlp = MLP(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        ffn = self.block_sparse_moe if hasattr(self, "block_sparse_moe") else self.mlp
        return x + ffn(self.post_attention_layernorm(x))


class Model(nn.Module):
    """Parameter names are those of the checkpoint (below "model."); the output matrix is the embedding (tied)."""

    def __init__(self, c, vocab):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"])
        angle = torch.outer(torch.arange(CONTEXT).float(), ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:  # what is added to the residual stream starts smaller, by the number of additions (GPT-2)
                shrink = math.sqrt(2 * c["num_hidden_layers"]) if name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight")) else 1
                nn.init.normal_(p, std=0.02 / shrink)

    def forward(self, ids, targets):
        x = self.embed_tokens(ids)
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def routers(self):
        return [layer.block_sparse_moe for layer in self.layers if hasattr(layer, "block_sparse_moe")]


def batches(ids, batch, length, seed, first):
    """Random windows; step number i has the same windows however often training was interrupted."""
    step = first
    while True:
        start = np.random.default_rng([seed, step]).integers(0, len(ids) - length - 1, batch)
        block = torch.from_numpy(np.stack([ids[s:s + length + 1] for s in start]).astype(np.int64))
        yield block[:, :-1], block[:, 1:]
        step += 1


@torch.no_grad()
def validate(model, ids, batch, length, n=32):
    """Mean loss of n windows, in batches of the training shape (another shape would be compiled anew)."""
    rows = torch.from_numpy(ids[:n * length + 1].astype(np.int64))
    x, y = rows[:-1].view(n, length), rows[1:].view(n, length)
    with torch.autocast("cpu", torch.bfloat16):
        return sum(model(x[i:i + batch], y[i:i + batch]).item() for i in range(0, n, batch)) * batch / n


def export(model, kind, vocab, corpus, out):
    """The Hugging Face layout: weights in bf16 under transformers' names, and the configuration that its loader needs."""
    os.makedirs(out, exist_ok=True)
    tensors = {"model." + n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    config = {"architectures": ["MixtralForCausalLM" if kind == "moe" else "LlamaForCausalLM"], "model_type": "mixtral" if kind == "moe" else "llama",
              **CONFIGS[kind], "head_dim": HEAD_DIM, "vocab_size": vocab, "max_position_embeddings": CONTEXT, "rope_theta": ROPE_THETA,
              "rms_norm_eps": NORM_EPS, "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": True,
              "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16", "use_cache": True}
    if kind == "moe":
        config.update(sliding_window=None, output_router_logits=False, router_aux_loss_coef=BALANCE)
    else:
        config.update(attention_bias=False, mlp_bias=False, rope_scaling=None)
    for name, value in (("config.json", config), ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})):
        with open(os.path.join(out, name), "w") as f:
            json.dump(value, f, indent=2)
            f.write("\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(os.path.join(corpus, "tokenizer", name), os.path.join(out, name))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=CONFIGS, required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=CONTEXT)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, valid = (np.fromfile(os.path.join(args.corpus, f"{part}.bin"), np.uint16) for part in ("train", "valid"))
    with open(os.path.join(args.corpus, "tokenizer", "tokenizer.json"), encoding="utf-8") as f:
        vocab = len(json.load(f)["model"]["vocab"])
    model = Model(CONFIGS[args.kind], vocab)
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    if args.kind == "dense":
        forward = torch.compile(model)
    else:  # routing's shapes depend on the data: compiling them would never end
        forward = model
        for layer in model.layers:
            for part in (layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm):
                part.compile()
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train):,} training tokens", flush=True)

    os.makedirs(args.run, exist_ok=True)
    state, log = os.path.join(args.run, "state.pt"), os.path.join(args.run, "losses.csv")
    step, tokens, spent = 0, 0, 0.0
    if os.path.exists(state):
        saved = torch.load(state)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        step, tokens, spent = saved["step"], saved["tokens"], saved["spent"]
    else:
        with open(log, "w", newline="") as f:
            csv.writer(f).writerow(["step", "tokens", "seconds", "lr", "train_loss", "valid_loss"])

    def save():
        torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "step": step, "tokens": tokens, "spent": spent}, state + ".tmp")
        os.replace(state + ".tmp", state)
        export(model, args.kind, vocab, args.corpus, args.out)

    budget, recent, clock = args.minutes * 60, [], time.monotonic()
    for ids, targets in batches(train, args.batch, args.length, args.seed, step):
        progress = max(spent / budget, step / args.steps)
        if progress >= 1:
            break
        # Cosine from the peak to 2 % of it; progress is time, so that the schedule ends when the budget does on any machine.
        lr = args.lr * min(1, (step + 1) / args.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in opt.param_groups:
            group["lr"] = lr
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(ids, targets)
        (loss + sum(r.aux for r in model.routers())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + ids.numel()
        recent.append(loss.item())
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        if step % 100 == 0:
            loss_valid = validate(model, valid, args.batch, args.length)
            with open(log, "a", newline="") as f:
                csv.writer(f).writerow([step, tokens, round(spent), f"{lr:.2e}", f"{np.mean(recent):.4f}", f"{loss_valid:.4f}"])
            shares = " ".join(f"{r.share.min():.3f}-{r.share.max():.3f}" for r in model.routers())
            print(f"step {step} tokens {tokens / 1e6:.1f}M {tokens / spent:.0f}/s lr {lr:.2e} train {np.mean(recent):.4f} valid {loss_valid:.4f} {shares}", flush=True)
            recent = []
        if step % 500 == 0:
            save()
    save()
    print(f"done: {step} steps, {tokens:,} tokens, {spent / 60:.1f} minutes, valid {validate(model, valid, args.batch, args.length):.4f}", flush=True)


if __name__ == "__main__":
    main()
