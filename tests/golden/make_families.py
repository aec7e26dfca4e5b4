#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write families/NAME/: tiny random-weight checkpoints and the logits that transformers computes from them.

A trained model can't show most mistakes of a decoder (zero biases, norm weights near 1, experts alike, a window longer
than the text); these can. The checkpoints are laid out by this script, name by name and shape by shape, as published ones
are, and transformers must load each without a missing or an unexpected tensor. Weights are rounded to the stored type
first; the logits come from those rounded values in f32 with eager attention.

Each family lists its traps: ways to get the architecture wrong. The script refuses to write a family unless every trap
moves some logit by TRAP_MIN, a hundred times the tolerance of the test, so that a test which passes has seen that feature.

Per family: config.json, model.safetensors (or shards and index), logits.safetensors with
    ids     I32 [n_seq, len]            no BOS is added, ids are fed as they are, positions 0 .. len-1
    logits  F32 [n_seq, len, vocab]
Some have a tokenizer too, so that the program's commands can be run on them, and generate.json: a greedy continuation.

usage: make_families.py [NAME...]        (needs torch and transformers >= 5; run by a developer, the result is committed)
"""
import json
import os
import re
import shutil
import sys
import tempfile
import zlib

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

sys.dont_write_bytecode = True  # no __pycache__ beside the committed files
from families_spec import FAMILIES, tensor_shapes

HERE = os.path.dirname(os.path.abspath(__file__))
N_SEQ, LEN = 2, 40
TRAP_MIN = 1e-2  # the tests compare logits to 1e-4
ROUTER_GAP_MIN = 1e-3  # between the last chosen and the first unchosen expert: rounding must never decide
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# ---- weights ----

def draw(rng, name, shape, tied):
    """Scales that keep activations near 1 and attention far from uniform, or its masks would hardly show."""
    if name.endswith("norm.weight"):
        return rng.uniform(0.5, 1.8, shape)
    if name.endswith(".bias"):
        return rng.normal(0, 0.4, shape)
    if "embed_tokens" in name:
        return rng.normal(0, 0.2 if tied else 1.0, shape)
    gain = 1.5 if re.search(r"(lm_head|\.gate\.weight|shared_expert_gate)", name) else 1.0
    return rng.normal(0, gain / np.sqrt(shape[-1]), shape)


def make_tensors(name, config, dtype, salt):
    rng = np.random.default_rng([zlib.crc32(name.encode()), salt])
    tied = config.get("tie_word_embeddings", False)
    return {k: torch.tensor(draw(rng, k, shape, tied), dtype=torch.float64).to(torch.float32).to(DTYPES[dtype])
            for k, shape in tensor_shapes(config).items()}


def write_checkpoint(folder, config, tensors, n_shards=1):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="ascii") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    if n_shards == 1:
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return
    names, where = list(tensors), {}
    for s in range(n_shards):  # equal counts of tensors: the cuts fall inside layers
        part = names[s * len(names) // n_shards:(s + 1) * len(names) // n_shards]
        file = "model-%05d-of-%05d.safetensors" % (s + 1, n_shards)
        save_file({k: tensors[k] for k in part}, os.path.join(folder, file), metadata={"format": "pt"})
        where.update({k: file for k in part})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="ascii") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, f, indent=1)
        f.write("\n")


# ---- the oracle ----

def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    missing = [k for k in info["missing_keys"] if k != "lm_head.weight"]
    if missing or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit("%s: transformers loads it with %s" % (folder, info))
    return model.eval()


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=ids.long(), use_cache=False).logits


def router_gap(model, ids):
    """Smallest distance between the k-th and the (k+1)-th expert's probability over all tokens and layers."""
    gaps, hooks = [], []

    def watch(module, _, output):
        p = torch.softmax(output[0].float(), -1).sort(-1, descending=True).values
        if module.top_k < p.shape[-1]:
            gaps.append((p[:, module.top_k - 1] - p[:, module.top_k]).min().item())

    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            hooks.append(module.register_forward_hook(watch))
    logits_of(model, ids)
    for h in hooks:
        h.remove()
    return min(gaps) if gaps else None


# ---- traps ----

def interleave(t, n_heads):
    """Rows of a q or k projection as a decoder with adjacent-pair RoPE would read them."""
    hd = t.shape[0] // n_heads
    order = torch.arange(hd).reshape(2, hd // 2).T.reshape(-1)
    return t.reshape(n_heads, hd, -1)[:, order].reshape(t.shape)


def spring(trap, config, tensors):
    """(config, tensors) of the model that a decoder with this mistake would compute."""
    config, tensors = json.loads(json.dumps(config)), dict(tensors)
    for key, value in trap.get("config", {}).items():
        if value == "absent":
            config.pop(key)
        else:
            config[key] = value
    for pattern, value in trap.get("fill", {}).items():
        hits = [k for k in tensors if re.search(pattern, k)]
        assert hits, pattern
        for k in hits:
            tensors[k] = torch.full_like(tensors[k], value)
    if "drop" in trap:
        tensors = {k: t for k, t in tensors.items() if not re.search(trap["drop"], k)}
    if trap.get("interleaved"):
        for k in tensors:
            if re.search(r"[qk]_proj.weight", k):
                heads = config["num_attention_heads"] if "q_proj" in k else config.get(
                    "num_key_value_heads", config["num_attention_heads"])
                tensors[k] = interleave(tensors[k], heads)
    if trap.get("same_experts"):
        for k in tensors:
            tensors[k] = tensors[re.sub(r"experts\.\d+\.", "experts.0.", k)].clone()  # save_file refuses shared memory
    return config, tensors


def check_traps(name, spec, tensors, ids, logits):
    for label, trap in spec["traps"].items():
        with tempfile.TemporaryDirectory() as tmp:
            write_checkpoint(tmp, *spring(trap, spec["config"], {k: t.clone() for k, t in tensors.items()}))
            moved = (logits_of(load(tmp), ids) - logits).abs().max().item()
        if moved < TRAP_MIN:
            raise SystemExit("%s: trap '%s' moves the logits by %.1e only" % (name, label, moved))
        print("  %-44s moves logits by %.3f" % (label, moved))


# ---- one family ----

def make(name, spec):
    config, dtype = spec["config"], spec["dtype"]
    folder = os.path.join(HERE, "families", name)
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(zlib.crc32(name.encode()) + 1)
    ids = torch.tensor(rng.integers(3, config["vocab_size"], (spec.get("n_seq", N_SEQ), LEN)), dtype=torch.int32)
    for salt in range(400):  # MoE: the first weights whose routing no rounding can flip
        tensors = make_tensors(name, config, dtype, salt)
        write_checkpoint(folder, config, tensors, spec.get("shards", 1))
        model = load(folder)
        gap = router_gap(model, ids)
        if gap is not None and gap < spec.get("router_gap", ROUTER_GAP_MIN):
            continue
        if not spec.get("commands") or make_commands(folder, model):
            break
    else:
        raise SystemExit("%s: no weights with clear routing and a clear continuation" % name)
    logits = logits_of(model, ids)
    noise = (logits_of(model.double(), ids) - logits).abs().max().item()
    assert noise < 2e-5, "the oracle's own rounding must stay far below the test's tolerance"
    save_file({"ids": ids, "logits": logits.contiguous()}, os.path.join(folder, "logits.safetensors"))
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print("%s: %d bytes, logits sd %.2f max %.1f, f32 against f64 %.1e%s" % (
        name, size, logits.std(), logits.abs().max(), noise, "" if gap is None else ", router gap %.1e" % gap), flush=True)
    check_traps(name, spec, tensors, ids, logits)


def make_fused(name, spec):
    """The weights and logits of another family, as transformers writes a model without going back to published names."""
    source, folder = (os.path.join(HERE, "families", n) for n in (spec["fused_of"], name))
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp, save_original_format=False)
        os.makedirs(folder)
        for file in ("config.json", "model.safetensors"):
            shutil.copy(os.path.join(tmp, file), os.path.join(folder, file))
    with safe_open(os.path.join(source, "logits.safetensors"), "pt") as f:
        ids, logits = f.get_tensor("ids"), f.get_tensor("logits")
    assert torch.equal(logits_of(load(folder), ids), logits), name
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as f:
        assert any(len(f.get_slice(k).get_shape()) == 3 for k in f.keys()), name
    shutil.copy(os.path.join(source, "logits.safetensors"), folder)
    print("%s: the logits of %s" % (name, spec["fused_of"]), flush=True)


# ---- what commands need ----

def make_tokenizer(folder):
    """Byte-level BPE with a few merges, learnt from text.txt; BOS by the template, as Llama-3's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    special = [AddedToken(s, special=True, normalized=False) for s in ("<unk>", "<s>", "</s>")]
    tok.train([os.path.join(HERE, "text.txt")], trainers.BpeTrainer(
        vocab_size=FAMILIES["tp_cut"]["config"]["vocab_size"], special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tok.save(os.path.join(folder, "tokenizer.json"))
    for file, value in (
            ("tokenizer_config.json", {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>",
                                       "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast"}),
            ("generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 0]})):
        with open(os.path.join(folder, file), "w", encoding="ascii") as f:
            json.dump(value, f, indent=2)
            f.write("\n")


def make_generation(folder, model, n_new=48, gap_min=1e-2):
    """Greedy text; False unless every step's best logit leads by gap_min, so that a correct program can't differ."""
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    prompt = "The keeper of the light"
    ids = tok.encode(prompt).ids
    start, smallest = len(ids), np.inf
    for _ in range(n_new):
        top = logits_of(model, torch.tensor([ids]))[0, -1].topk(2)
        smallest = min(smallest, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    if smallest <= gap_min or {0, 2} & set(ids[start:]):
        return False
    with open(os.path.join(folder, "generate.json"), "w", encoding="ascii") as f:
        json.dump({"prompt": prompt, "prompt_ids": ids[:start], "new_ids": ids[start:],
                   "smallest_top2_gap": round(smallest, 4)}, f, indent=1)
        f.write("\n")
    return True


def make_commands(folder, model):
    make_tokenizer(folder)
    return make_generation(folder, model)


def main():
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()
    names = sys.argv[1:] or list(FAMILIES)
    for name in names:
        (make_fused if "fused_of" in FAMILIES[name] else make)(name, FAMILIES[name])


if __name__ == "__main__":
    main()
