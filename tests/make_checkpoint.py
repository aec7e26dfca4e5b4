#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of random weights on disk, of any size, in the layout of Hugging Face (bf16 shards with an index): what
bench_stream.sh calibrates. No more than a few MB are in memory at a time; needs nothing but Python.

  python3 tests/make_checkpoint.py --config examples/shapes/llama-2-7b.json --layers 21 --tokenizer examples/dense --out DIR

Dense families of Llama's layout without biases. A matrix' elements have a random sign and mantissa and one of two exponents, so that their deviation is
about 1 / sqrt(d_in) and a linear about keeps its input's variance.
"""
import argparse
import json
import math
import os
import random
import shutil

PIECE = 1 << 22  # bytes
SHARD = 2 << 30


def random_bf16(rng, n_bytes, deviation):
    """n_bytes of bf16: sign, 8 bits of exponent, 7 of mantissa. Magnitudes are uniform in [m, 2 m) or in [2 m, 4 m), mean square
    35 / 6 m^2; the exponent of m is even, so that its lowest bit chooses."""
    exponent = 2 * round((127 + math.log2(deviation / math.sqrt(35 / 6))) / 2)
    high = bytes((byte & 0x80) | (exponent >> 1) for byte in range(256))
    out = bytearray(rng.randbytes(n_bytes))
    out[1::2] = out[1::2].translate(high)
    return bytes(out)


def tensors(config):
    """(name, shape, deviation; 0: ones) in the order of the files."""
    d, ff = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or d // heads
    q, kv = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    yield "model.embed_tokens.weight", [config["vocab_size"], d], 1
    for i in range(config["num_hidden_layers"]):
        name = "model.layers.%d." % i
        yield name + "input_layernorm.weight", [d], 0
        for module, rows, cols in (("self_attn.q_proj", q, d), ("self_attn.k_proj", kv, d), ("self_attn.v_proj", kv, d),
                                   ("self_attn.o_proj", d, q)):
            yield name + module + ".weight", [rows, cols], 1 / math.sqrt(cols)
        yield name + "post_attention_layernorm.weight", [d], 0
        for module, rows, cols in (("mlp.gate_proj", ff, d), ("mlp.up_proj", ff, d), ("mlp.down_proj", d, ff)):
            yield name + module + ".weight", [rows, cols], 1 / math.sqrt(cols)
    yield "model.norm.weight", [d], 0
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", [config["vocab_size"], d], 1 / math.sqrt(d)


def size_of(shape):
    return 2 * math.prod(shape)


def shards(config):
    """Lists of tensors, each list of about SHARD bytes."""
    one, size = [], 0
    for t in tensors(config):
        if one and size + size_of(t[1]) > SHARD:
            yield one
            one, size = [], 0
        one.append(t)
        size += size_of(t[1])
    yield one


def write_shard(path, one, rng):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in one:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size_of(shape)]}
        at += size_of(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, shape, deviation in one:
            left = size_of(shape)
            while left:
                n = min(left, PIECE)
                f.write(random_bf16(rng, n, deviation) if deviation else b"\x80\x3f" * (n // 2))
                left -= n
        f.flush()
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # as if it had lain there for long


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--config", required=True)
    p.add_argument("--layers", type=int)
    p.add_argument("--tokenizer", required=True, help="folder whose tokenizer is copied; its ids have to be below vocab_size")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", required=True)
    a = p.parse_args()
    with open(a.config) as f:
        config = json.load(f)
    if a.layers:
        config["num_hidden_layers"] = a.layers
    os.makedirs(a.out, exist_ok=True)
    with open(os.path.join(a.out, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(a.tokenizer, name), a.out)
    rng = random.Random(a.seed)
    files = list(shards(config))
    index = {"metadata": {"total_size": sum(size_of(t[1]) for one in files for t in one)}, "weight_map": {}}
    for i, one in enumerate(files):
        name = "model-%05d-of-%05d.safetensors" % (i + 1, len(files))
        write_shard(os.path.join(a.out, name), one, rng)
        index["weight_map"].update({t[0]: name for t in one})
    with open(os.path.join(a.out, "model.safetensors.index.json"), "w") as f:
        json.dump(index, f, indent=1)
    print("%s: %.2f GB in %d shards" % (a.out, index["metadata"]["total_size"] / 1e9, len(files)))


if __name__ == "__main__":
    main()
