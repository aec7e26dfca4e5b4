#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Gathers the training text, trains the tokenizer, and writes the token ids that train.py reads.

Place in the pipeline: second step. Inputs: the generator's training split (made here), plain text files, folders of documentation
(HTML, text, gzipped either). Output in --out: tokenizer/ (tokenizer.json, tokenizer_config.json,
chat_template.jinja), train.bin and valid.bin (uint16
ids), sources.json (bytes and tokens of each source).

    apt-get download debian-handbook python3.11-doc ... && for d in *.deb; do dpkg -x $d docs; done
    make_corpus.py --out corpus --synthetic-bytes 36000000 --text stories.txt --text wiki.txt:0.9 --docs docs/usr/share
"""

import argparse
import gzip
import json
import os
import random
import re
from html.parser import HTMLParser

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from make_texts import SEEDS, generate

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
# The pre-tokenizer of the Llama-3 family: contractions, words with one leading mark, up to three digits, punctuation, newlines, spaces.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Both models' chat_template.jinja.
CHAT_TEMPLATE = r'''{#- The training texts' own form of a conversation: "Question: ... Answer: ...", one a line. -#}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] | trim + '\n\n' }}
    {%- elif message['role'] == 'user' %}
        {{- 'Question: ' + message['content'] | trim }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' Answer: ' + message['content'] | trim + '\n' }}
    {%- else %}
        {{- raise_exception('This model knows no role "' ~ message['role'] ~ '"') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- ' Answer:' }}
{%- endif %}
'''
ENGLISH = {"the", "of", "to", "and", "is", "a", "in", "that", "it", "for", "you"}
PROSE = {"p", "dd", "li", "h1", "h2", "h3", "h4"}


class ProseParser(HTMLParser):
    """Collects the text of paragraphs, list items and headings; code, tables and navigation are left out."""

    def __init__(self):
        super().__init__()
        self.out, self.open, self.skip = [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag in PROSE:
            self.out.append([])
            self.open.append(tag)
        self.skip += tag in ("script", "style", "pre", "table", "nav", "head")

    def handle_endtag(self, tag):
        if tag in PROSE and tag in self.open:
            while self.open.pop() != tag:
                pass
        self.skip -= tag in ("script", "style", "pre", "table", "nav", "head") and self.skip > 0

    def handle_data(self, data):
        if self.open and not self.skip:
            self.out[-1].append(data)

    def text(self):
        return "\n\n".join(re.sub(r"\s+", " ", "".join(part)).strip() for part in self.out)


def is_prose(paragraph):
    """English sentences, not tables, addresses or code. The thresholds were set by reading what they let through."""
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    words = paragraph.split()
    english = sum(w in ENGLISH for w in words) >= 0.12 * len(words)
    return len(paragraph) >= 80 and letters >= 0.92 * len(paragraph) and paragraph[-1] in ".!?\"'" and paragraph.isascii() and english


def documentation(folders, limit):
    """Paragraphs of prose below the folders, each once, in an order that mixes the books; at most `limit` bytes."""
    files, seen, kept, size = [], set(), [], 0
    for folder in folders:
        for root, _, names in sorted(os.walk(folder)):
            files += [os.path.join(root, n) for n in sorted(names) if re.search(r"(\.html?|\.txt|\.dict|/fortunes/[\w-]+)(\.gz|\.dz)?$", os.path.join(root, n))]
    random.Random(0).shuffle(files)
    for path in files:
        with (gzip.open if path.endswith((".gz", ".dz")) else open)(path, "rb") as f:
            text = f.read(4 << 20).decode("utf-8", "ignore")
        if ".htm" in path:
            parser = ProseParser()
            parser.feed(text)
            text = parser.text()
        fresh = []
        for paragraph in re.split(r"\n\s*\n|\n%\n", text):
            paragraph = re.sub(r"\s+", " ", paragraph).strip()
            if is_prose(paragraph) and hash(paragraph) not in seen:
                seen.add(hash(paragraph))
                fresh.append(paragraph)
        if fresh:
            kept.append("\n\n".join(fresh))
            size += len(kept[-1])
        if size > limit:
            break
    return kept


def train_tokenizer(texts, vocab, out):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab, special_tokens=[BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, tok.token_to_id(BOS))])
    os.makedirs(out, exist_ok=True)
    tok.save(os.path.join(out, "tokenizer.json"))
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump({"add_bos_token": True, "add_eos_token": False, "bos_token": BOS, "eos_token": EOS, "clean_up_tokenization_spaces": False,
                   "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast"}, f, indent=2)
        f.write("\n")
    with open(os.path.join(out, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(CHAT_TEMPLATE)
    return tok


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--synthetic-bytes", type=int, default=36_000_000)
    parser.add_argument("--text", action="append", default=[], help="FILE or FILE:FRACTION (only that first part of it)")
    parser.add_argument("--repeat", type=int, default=2, help="how often each --text enters the corpus")
    parser.add_argument("--docs", action="append", default=[])
    parser.add_argument("--docs-bytes", type=int, default=12_000_000)
    parser.add_argument("--vocab", type=int, default=2048)
    args = parser.parse_args()

    sources = {"synthetic": generate("training", SEEDS["training"], args.synthetic_bytes).split("\n\n\n")[:-1]}
    for spec in args.text:
        path, _, part = spec.partition(":")
        with open(path, encoding="utf-8") as f:
            text = f.read()
        sources[os.path.basename(path)] = re.split(r"\n(?=Once upon a time|One day| = [^=]+ = \n)", text[:int(len(text) * float(part or 1))]) * args.repeat
    if args.docs:
        sources["documentation"] = documentation(args.docs, args.docs_bytes)

    rng = random.Random(0)
    sample = [t for docs in sources.values() for t in rng.sample(docs, min(len(docs), 6000))]
    tok = train_tokenizer(sample, args.vocab, os.path.join(args.out, "tokenizer"))

    # One stream of documents in random order, each opened by BOS and closed by EOS, so both ids mean something to the model.
    report, stream = {}, []
    for name, docs in sources.items():
        ids = [e.ids + [tok.token_to_id(EOS)] for start in range(0, len(docs), 4096) for e in tok.encode_batch(docs[start:start + 4096])]
        report[name] = {"bytes": sum(len(d.encode()) for d in docs), "tokens": sum(map(len, ids)), "documents": len(docs)}
        stream += [np.array(i, np.uint16) for i in ids]
    rng.shuffle(stream)
    n_valid = max(1, len(stream) // 200)
    np.concatenate(stream[:n_valid]).tofile(os.path.join(args.out, "valid.bin"))
    np.concatenate(stream[n_valid:]).tofile(os.path.join(args.out, "train.bin"))
    with open(os.path.join(args.out, "sources.json"), "w") as f:
        json.dump(report, f, indent=1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
