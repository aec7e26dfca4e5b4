#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a folder of hostile model folders: each is a valid tiny model with one thing wrong, named after the attack.

    usage: python3 make_hostile.py OUT

prints a line per case:  name <TAB> path of the model folder <TAB> word
`glowq eval --model PATH --text OUT/text.txt --ctx 32` must end with an error whose message contains the word (upper and
lower case alike), not by a signal, quickly, in little memory. Cases whose word is `ok` are controls and must succeed.
The folders are numbered, so that a path in a message never contains the word by accident.

Standard library only: tests write these files where they run. Nothing needs more than a few MB of disk (huge files are
sparse). Some cases hold what a lenient reader would accept: `../` and absolute shard names lead to real, valid files.
"""
import copy
import json
import os
import random
import struct
import sys

sys.dont_write_bytecode = True  # no __pycache__ beside the committed files
from hostile_cases import CASES

D, HEADS, KV, HEAD_DIM, FF, VOCAB = 16, 4, 2, 4, 16, 259


class Sparse:
    """A file of `size` bytes that starts with `head`; the rest is a hole."""
    def __init__(self, head, size):
        self.head, self.size = head, size


class Fifo:
    """A named pipe: opening it for reading must not wait for a writer."""


class Case:
    """The valid model in pieces that a case changes. `files` are written last and replace what the pieces would give;
    None leaves a file out. Bytes are written as they are, anything else as JSON."""

    def __init__(self, out):
        self.out = out
        self.config = copy.deepcopy(CONFIG)
        self.generation = {"bos_token_id": 1, "eos_token_id": [2]}
        self.tokenizer = make_tokenizer()
        self.header, self.data = make_weights()
        self.files = {}
        self.index = None  # set by shard()

    # -- safetensors

    def safetensors(self, header=None, data=None, text=None):
        """The bytes of a file; `text` replaces the header's JSON."""
        if text is None:
            text = json.dumps(self.header if header is None else header).encode()
        return struct.pack("<Q", len(text)) + text + (self.data if data is None else data)

    def header_text(self):
        return json.dumps(self.header)

    def weights(self, raw):
        self.files["model.safetensors"] = raw

    def last(self):
        """Name of the tensor at the end of the data."""
        return max(self.header, key=lambda n: self.header[n]["data_offsets"][1])

    def append(self, name, dtype, shape, raw):
        self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(self.data), len(self.data) + len(raw)]}
        self.data += raw

    def poke(self, name, element, raw):
        """Overwrite one element of a tensor."""
        at = self.header[name]["data_offsets"][0] + element * len(raw)
        self.data = self.data[:at] + raw + self.data[at + len(raw):]

    def replace(self, name, dtype, shape, raw):
        """Another tensor under an old name; all ranges are laid out again."""
        parts = {n: self.data[slice(*e["data_offsets"])] for n, e in self.header.items()}
        parts[name] = raw
        self.header[name] = {"dtype": dtype, "shape": shape}
        self.data = b""
        for n, part in parts.items():
            self.header[n]["data_offsets"] = [len(self.data), len(self.data) + len(part)]
            self.data += part

    def remove(self, name):
        parts = {n: self.data[slice(*e["data_offsets"])] for n, e in self.header.items() if n != name}
        header = {n: {k: v for k, v in self.header[n].items() if k != "data_offsets"} for n in parts}
        self.header, self.data = {}, b""
        for n, part in parts.items():
            self.append(n, header[n]["dtype"], header[n]["shape"], part)

    # -- shards

    def shard_bytes(self, names):
        header, data = {}, b""
        for n in names:
            part = self.data[slice(*self.header[n]["data_offsets"])]
            header[n] = {**self.header[n], "data_offsets": [len(data), len(data) + len(part)]}
            data += part
        return self.safetensors(header, data)

    def shard(self):
        """Two shards and an index in place of one file."""
        names = list(self.header)
        half = len(names) // 2
        self.files["model.safetensors"] = None
        self.shards = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
        for file, part in self.shards.items():
            self.files[file] = self.shard_bytes(part)
        self.index = {"metadata": {"total_size": len(self.data)},
                      "weight_map": {n: file for file, part in self.shards.items() for n in part}}
        self.files["model.safetensors.index.json"] = self.index
        return self.index["weight_map"]

    def outside(self, file):
        """A valid copy of the second shard beside the model folders; its absolute path."""
        path = os.path.join(os.path.abspath(self.out), file)
        with open(path, "wb") as f:
            f.write(self.shard_bytes(self.shards["model-00002-of-00002.safetensors"]))
        return path

    def sparse(self, head, size):
        return Sparse(head, size)

    def fifo(self):
        return Fifo()

    def write(self, folder):
        files = {"config.json": self.config, "generation_config.json": self.generation, "tokenizer.json": self.tokenizer,
                 "tokenizer_config.json": {"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}}
        if "model.safetensors" not in self.files:
            files["model.safetensors"] = self.safetensors()
        files.update(self.files)
        for name, content in files.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if isinstance(content, Fifo):
                os.mkfifo(path)
            elif content is not None:
                with open(path, "wb") as f:
                    if isinstance(content, Sparse):
                        f.write(content.head)
                        f.truncate(content.size)
                    else:
                        f.write(content if isinstance(content, bytes) else json.dumps(content, indent=1).encode())


CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "bos_token_id": 1,
          "eos_token_id": 2, "head_dim": HEAD_DIM, "hidden_act": "silu", "hidden_size": D, "intermediate_size": FF,
          "max_position_embeddings": 128, "mlp_bias": False, "num_attention_heads": HEADS, "num_hidden_layers": 1,
          "num_key_value_heads": KV, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0,
          "tie_word_embeddings": True, "torch_dtype": "float32", "vocab_size": VOCAB}


def make_weights():
    """Header and data of a one-layer Llama, tied, f32."""
    shapes = {"model.embed_tokens.weight": [VOCAB, D]}
    p = "model.layers.0."
    shapes[p + "input_layernorm.weight"] = shapes[p + "post_attention_layernorm.weight"] = [D]
    shapes[p + "self_attn.q_proj.weight"] = [HEADS * HEAD_DIM, D]
    shapes[p + "self_attn.k_proj.weight"] = shapes[p + "self_attn.v_proj.weight"] = [KV * HEAD_DIM, D]
    shapes[p + "self_attn.o_proj.weight"] = [D, HEADS * HEAD_DIM]
    shapes[p + "mlp.gate_proj.weight"] = shapes[p + "mlp.up_proj.weight"] = [FF, D]
    shapes[p + "mlp.down_proj.weight"] = [D, FF]
    shapes["model.norm.weight"] = [D]
    rng, header, data = random.Random(7), {}, b""
    for name, shape in shapes.items():
        n = shape[0] * (shape[1] if len(shape) == 2 else 1)
        raw = struct.pack("<%df" % n, *(rng.uniform(-0.5, 0.5) + (len(shape) == 1) for _ in range(n)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return header, data


def byte_letters():
    """Byte-level BPE's 256 letters: printable bytes stand for themselves, the others for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256))
    return [chr(b) if b in printable else chr(256 + next(others)) for b in range(256)]


def make_tokenizer():
    special = ["<unk>", "<s>", "</s>"]
    vocab = {s: i for i, s in enumerate(special + byte_letters())}
    added = [{"id": i, "content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, s in enumerate(special)]
    bos, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, text],
                               "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": []}}


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_hostile.py OUT")
    out = sys.argv[1]
    os.makedirs(out)  # an existing folder is refused: nothing of the user's is ever overwritten
    with open(os.path.join(out, "text.txt"), "w", encoding="ascii") as f:
        f.write("The old man counted ropes: nine, ten, eleven. He stopped at twelve and began again.\n" * 8)
    for number, (name, word, change) in enumerate(CASES):
        case = Case(out)
        change(case)
        folder = os.path.join(out, "%03d" % number)
        case.write(folder)
        print("%s\t%s\t%s" % (name, folder, word))


if __name__ == "__main__":
    main()
