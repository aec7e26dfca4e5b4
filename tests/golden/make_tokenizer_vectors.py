#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Golden vectors of the tokenizer: small tokenizers of every kind served, and what the reference makes of nasty strings.

Needs Hugging Face `tokenizers` (the reference). Writes tokenizer_vectors.json beside itself:
  {"cases": [{"name", "tokenizer": a tokenizer.json, "config": text of a tokenizer_config.json or null, "bos",
              "vectors": [{"text", "plain": ids, "special": ids with specials parsed, "decoded": text of "special" without
                           special tokens, "kept": with them}]}]}
"""
import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = """The river ran past the old mill, and the miller's daughter counted the wheels: 1, 2, 3, 10, 100, 1000.
She'll say that they're here, that we've been there, that I'm late, that it's 12:45 and he'd gone. THEY'RE HERE, SHE'LL SAY.
Der Müller zählt Äpfel und Öfen; le café est fermé, l'été aussi. Это старая мельница у реки. 老磨坊在河边。
for (int i = 0; i < n; i++) { sum += x[i]; }    // four spaces,\ttabs\r\nand lines\n\n\nwithout end...
""" * 3

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r\n\r\n  x", "\t\n \n", "a", " a", "a ", " a ", "  a  b  ",
    "Hello, world!", "The miller's daughter", "THEY'RE she'LL We'Ve I'M it'S he'D don'T", "'\u017f '\u017fx '\u212a", "''s 's's",
    "1234567890 12 3.14 1,000", "\u0663\u0664\u0665 \u0967\u0968 \u00bd \u2167 x\u00b2", "\U00010d40\U00010d41 \U0001d2c0",
    "a\u180eb \u180e c", "\u00a0\u00a0x \u3000y\u2003z\u0085w", "\u200bzero\u200dwidth\ufeff",
    "e\u0301 \u00e9 \u212b A\u030a \u1100\u1161\u11a8 \uac01 q\u0323\u0307 q\u0307\u0323 \u0344 \u2126",
    "\U00011935\U00011930 a\U0001193e\u0334 a\u0301\u0334",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f636\u200d\U0001f32b\ufe0f \U0001f999",
    "\u8001\u78e8\u574a\u5728\u6cb3\u8fb9\u3002 \u65e5\u672c\u8a9e", "\u2581 a\u2581b \u2581\u2581", "\u0120 \u00e9 \u0130",
    "<0x0A> <0x41>", "for (int i = 0; i < n; i++) {\n    x[i]++;\n}\n", "x" * 40, "the" * 20, "a" * 33, " " * 33 + "x",
    "\n" * 20 + "x", "!!!???...---", "#$%&\n\n&%$", "\u0001\u001f\u007f", "zqj\u03a9\u2605zqj",
    "<s>", "</s>", "a<s>b", "<s> a </s>", " <s>", "<unk>", "x<unk>y", "<|user|>", "a<|user|> b", "a <|user|><|user|>b",
    "<|us", "<|user|", "<tool>", "x <tool> y", "xtool", "tool", "a tool b", "tools tool", "tool\u00e9 tool. \u00e9tool",
    "\u16eetool", "tool\u0301", "\u203ftool", "\u24d0tool \u00bdtool", "\U00010d40tool", "tool\u200d", "a nOrm xn\u00e9",
    "a  <l>  b", "a  <r>  b", "a  <b>  b", "<l><r><b>", "\n<b>\n", "<s><l> <s>", "nOrm", "e\u0301<n\u00e9> <ne\u0301>",
    "a<b>b  <s> c<tool>d", "<s>Hello", "Hello</s>", "<s> Hello",
]


def train(pre, normalizer=None, size=420, **kw):
    t = Tokenizer(models.BPE(**kw))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(pre, pre_tokenizers.ByteLevel) else []
    t.train_from_iterator([CORPUS], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(t.to_str())["model"]
    return model["vocab"], model["merges"]


def added(first, normalized=False):
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=normalized, special=False)
    tokens = [("<|user|>", dict(special=True)), ("<tool>", {}), ("tool", dict(single_word=True)), ("<l>", dict(lstrip=True)),
              ("<r>", dict(rstrip=True)), ("<b>", dict(lstrip=True, rstrip=True, special=True)),
              ("n\u00e9", dict(normalized=True)), ("<n\u00e9>", dict(normalized=True, special=True)), ("nOrm", dict(normalized=True))]
    return [{"id": first + i, "content": c, **{**flags, **f}} for i, (c, f) in enumerate(tokens)]


def special(i, content, normalized=False):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized,
            "special": True}


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def byte_level(add_prefix_space=False, use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def template(name, i):
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}}}


def tokenizer(model, **parts):
    base = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
            "post_processor": None, "decoder": None, "model": {"type": "BPE", "dropout": None, "unk_token": None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, **model}}
    return {**base, **parts}


def sequence(kind, *items):
    return {"type": "Sequence", {"n": "normalizers", "p": "pretokenizers", "d": "decoders", "o": "processors"}[kind]: list(items)}


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace("{1,3}", "")
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
MARK = "\u2581"


def sentencepiece(byte_fallback):
    """Vocabulary in sentencepiece's order: specials, bytes, then pieces; merges across words too (runs of marks)."""
    vocab, merges = train(pre_tokenizers.Metaspace(replacement=MARK, split=True), size=300)
    keep = [p for p in vocab if len(p) > 1 or p.isascii() or p in "\u2581\u00e4\u00e9\u0441"]
    merges = [m for m in merges if all(x in keep for x in (m[0], m[1], m[0] + m[1]))]
    pieces = ["<unk>", "<s>", "</s>"] + (["<0x%02X>" % b for b in range(256)] if byte_fallback else []) + keep
    for a, b in ((MARK, MARK), (MARK * 2, MARK * 2), ("x", "x"), ("xx", "xx"), ("a", "a"), ("aa", "aa"), ("aa", "a")):
        if a + b not in pieces:
            pieces.append(a + b)
        merges.append([a, b])
    return {p: i for i, p in enumerate(dict.fromkeys(pieces))}, merges


def cases():
    vocab, merges = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    n = len(vocab)
    strings = [" ".join(m) for m in merges]
    yield "llama3", tokenizer({"vocab": vocab, "merges": strings, "ignore_merges": True},
                              added_tokens=[special(n, "<s>")] + added(n + 1), decoder=byte_level(True, True),
                              pre_tokenizer=sequence("p", split(LLAMA3), byte_level()),
                              post_processor=sequence("o", byte_level(), template("<s>", n))), None, n
    # A piece that no merge makes: only ignore_merges finds it.
    yield "llama3-whole", tokenizer({"vocab": {**vocab, "daughter": n}, "merges": [m for m in merges if m[0] + m[1] != "da"],
                                     "ignore_merges": True}, decoder=byte_level(), post_processor=byte_level(),
                                    pre_tokenizer=sequence("p", split(LLAMA3, "Removed", True), byte_level())), \
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "a"}, -1
    yield "qwen", tokenizer({"vocab": vocab, "merges": merges}, added_tokens=added(n), normalizer={"type": "NFC"}, decoder=byte_level(),
                            pre_tokenizer=sequence("p", split(QWEN), byte_level())), \
        {"add_bos_token": False, "bos_token": None, "model_max_length": 10**30, "tokenizer_class": "Qwen2Tokenizer"}, -1
    yield "cased", tokenizer({"vocab": vocab, "merges": merges}, decoder=byte_level(),
                             pre_tokenizer=sequence("p", split(CASED), byte_level())), None, -1
    yield "gpt2", tokenizer({"vocab": vocab, "merges": strings}, added_tokens=added(n), decoder=byte_level(),
                            pre_tokenizer=byte_level(False, True)), None, -1
    yield "gpt2-prefix", tokenizer({"vocab": vocab, "merges": strings}, added_tokens=added(n), decoder=byte_level(),
                                   pre_tokenizer=byte_level(True, True)), \
        {"add_bos_token": True, "bos_token": {"content": "<|user|>"}}, n
    # Bytes without a piece vanish, or become unk.
    few = {p: i for i, p in enumerate(p for p in vocab if p not in ("q", "\u00cf", "\u0120q"))}
    left = [m for m in merges if m[0] in few and m[1] in few and m[0] + m[1] in few]
    yield "bytes-missing", tokenizer({"vocab": few, "merges": left}, pre_tokenizer=byte_level(False, True), decoder=byte_level()), None, -1
    yield "bytes-unk", tokenizer({"vocab": {**few, "<unk>": len(few)}, "merges": left, "unk_token": "<unk>"},
                                 pre_tokenizer=byte_level(False, True)), None, -1

    prepend = sequence("n", {"type": "Prepend", "prepend": MARK}, {"type": "Replace", "pattern": {"String": " "}, "content": MARK})
    back = sequence("d", {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0})
    vocab, merges = sentencepiece(True)
    n = len(vocab)
    model = {"vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    specials = [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")]
    yield "llama2", tokenizer({**model, "merges": [" ".join(m) for m in merges]}, added_tokens=specials + added(n), normalizer=prepend,
                              decoder=back, post_processor=template("<s>", 1)), None, 1
    yield "llama2-normalized", tokenizer(model, added_tokens=[special(i, c, True) for i, c in enumerate(("<unk>", "<s>", "</s>"))],
                                         normalizer=prepend, decoder=back), {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}, 1
    for scheme in ("first", "always", "never"):
        meta = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": scheme == "always"}
        yield "metaspace-" + scheme, tokenizer(model, added_tokens=specials + added(n), pre_tokenizer=meta,
                                               decoder=sequence("d", {"type": "ByteFallback"}, {**meta, "type": "Metaspace"}),
                                               post_processor=template("<s>", 1)), {"add_bos_token": False, "bos_token": "<s>"}, -1
    # Half of the byte pieces: a character falls back only if all its bytes have one, and pending unks wait behind bytes.
    half = {p: i for i, p in enumerate(p for p in vocab if p not in ("<0xE8>", "<0xF0>", "<0x21>"))}
    yield "half-bytes", tokenizer({**model, "vocab": half}, normalizer=prepend, decoder=back), None, -1
    vocab, merges = sentencepiece(False)
    for fuse in (False, True):
        yield "unk-fused" if fuse else "unk", tokenizer({"vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": fuse},
                                                       normalizer=prepend, decoder=back, added_tokens=specials), None, -1
    yield "no-unk", tokenizer({"vocab": vocab, "merges": merges}, normalizer=prepend), None, -1


def main():
    result = []
    for name, file, config, bos in cases():
        t = Tokenizer.from_str(json.dumps(file))
        # Tokens flagged "normalized" decode to their normalized form in some releases of the reference, which then doesn't know
        # them as special any more. Decoding is asked of the same tokenizer without the flag.
        raw = [{**a, "normalized": False} for a in file["added_tokens"]]
        decoding = Tokenizer.from_str(json.dumps({**file, "added_tokens": raw}))
        vectors = []
        for text in TEXTS:
            t.encode_special_tokens = True
            plain = t.encode(text, add_special_tokens=False).ids
            t.encode_special_tokens = False
            parsed = t.encode(text, add_special_tokens=False).ids
            vectors.append({"text": text, "plain": plain, "special": parsed, "decoded": decoding.decode(parsed, skip_special_tokens=True),
                            "kept": decoding.decode(parsed, skip_special_tokens=False)})
        result.append({"name": name, "tokenizer": file, "config": config and json.dumps(config), "bos": bos, "vectors": vectors})
    path = pathlib.Path(__file__).with_name("tokenizer_vectors.json")
    path.write_text(json.dumps({"cases": result}, separators=(",", ":")) + "\n")
    print(f"{path.name}: {len(result)} tokenizers, {len(TEXTS)} texts, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
