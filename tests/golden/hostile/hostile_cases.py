# SPDX-License-Identifier: Apache-2.0
"""The attacks of make_hostile.py: (name, word that the error message must contain, change to the valid model)."""
import json
import struct

CASES = []
DEEP = 100000  # levels: enough to overflow any recursive parser's stack
GATE = "model.layers.0.mlp.gate_proj.weight"
NORM = "model.norm.weight"
SECOND = "model-00002-of-00002.safetensors"
NAN, INF = struct.pack("<f", float("nan")), struct.pack("<f", float("-inf"))


def case(name, word):
    def add(change):
        CASES.append((name, word, change))
    return add


case("valid", "ok")(lambda c: None)
case("valid_sharded", "ok")(lambda c: c.shard())


# ---- safetensors: the file and its header ----

def raw(name, word, make):
    case(name, word)(lambda c: c.weights(make(c)))


def length(n):
    return struct.pack("<Q", n)


raw("file_empty", "header", lambda c: b"")
raw("file_of_5_bytes", "header", lambda c: c.safetensors()[:5])
raw("file_of_8_bytes", "header", lambda c: c.safetensors()[:8])
raw("header_truncated", "header", lambda c: c.safetensors()[:200])
raw("header_length_0", "header", lambda c: length(0) + c.data)
raw("header_length_2^63", "header", lambda c: length(2**63) + c.safetensors()[8:])
raw("header_length_2^64-1", "header", lambda c: length(2**64 - 1) + c.safetensors()[8:])
raw("header_length_2^64-8", "header", lambda c: length(2**64 - 8) + c.safetensors()[8:])  # 8 + N wraps to 0
raw("header_length_past_the_end", "header", lambda c: length(len(c.safetensors())) + c.safetensors()[8:])
raw("header_over_100_MB_claimed", "header", lambda c: length(2 * 10**8) + c.safetensors()[8:])
raw("header_over_100_MB_real", "header", lambda c: c.sparse(length(10**8 + 1) + b"{", 10**8 + 100))
raw("header_is_an_array", "begin", lambda c: c.safetensors(text=b"[" + c.header_text().encode() + b"]"))
raw("header_begins_with_a_space", "begin", lambda c: c.safetensors(text=b" " + c.header_text().encode()))
raw("header_is_zeros", "begin", lambda c: c.safetensors(text=bytes(64)))
raw("header_json_unfinished", "JSON", lambda c: c.safetensors(text=c.header_text().encode()[:-1]))
raw("header_json_followed_by_more", "JSON", lambda c: c.safetensors(text=c.header_text().encode() + b" {}"))
raw("header_nested_arrays", "depth", lambda c: c.safetensors(text=b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"))
raw("header_nested_objects", "JSON", lambda c: c.safetensors(text=b'{"a":' * DEEP + b"1" + b"}" * DEEP))
raw("header_not_utf8", "JSON", lambda c: c.safetensors(text=c.header_text().encode().replace(b"model.norm", b"model\xff.norm")))
raw("header_utf8_overlong", "JSON", lambda c: c.safetensors(
    text=c.header_text().encode().replace(b"model.norm", b"model\xc0\xae.norm")))
raw("header_name_with_nul", "JSON", lambda c: c.safetensors(text=c.header_text().replace(NORM, NORM + "\\u0000x").encode()))
raw("header_tensor_twice", "duplicate", lambda c: c.safetensors(
    text=(c.header_text()[:-1] + ", " + json.dumps({NORM: c.header[NORM]})[1:]).encode()))
raw("header_field_twice", "duplicate", lambda c: c.safetensors(
    text=c.header_text().replace('"dtype": "F32"', '"dtype": "F32", "dtype": "F16"', 1).encode()))
raw("data_truncated", "data_offsets", lambda c: c.safetensors()[:-100])
raw("data_missing", "data_offsets", lambda c: c.safetensors(data=b""))
raw("data_followed_by_more", "end", lambda c: c.safetensors(data=c.data + b"\0" * 16))
raw("file_is_a_pipe", "regular", lambda c: c.fifo())
raw("file_absent", "safetensors", lambda c: None)


# ---- safetensors: entries ----

def entry(name, word, **fields):
    """Change fields of the last tensor's entry; None drops one."""
    def change(c):
        e = c.header[c.last()]
        for key, value in fields.items():
            if value is None:
                del e[key]
            else:
                e[key] = value(e) if callable(value) else value
    case(name, word)(change)


def moved(begin, end):
    return lambda e: [e["data_offsets"][0] + begin, e["data_offsets"][1] + end]


entry("entry_without_data_offsets", "data_offsets", data_offsets=None)
entry("entry_without_shape", "shape", shape=None)
entry("entry_without_dtype", "dtype", dtype=None)
entry("dtype_unknown", "dtype", dtype="F33")
entry("dtype_is_a_number", "dtype", dtype=32)
entry("dtype_known_but_not_for_weights", "I32", dtype="I32")
entry("dtype_float8", "F8_E4M3", dtype="F8_E4M3")
entry("shape_is_a_number", "shape", shape=16)
entry("shape_negative", "shape", shape=[-16])
entry("shape_negative_twice", "shape", shape=[-4, -4])
entry("shape_float", "shape", shape=[16.0])
entry("shape_string", "shape", shape=["16"])
entry("shape_2^63", "integer", shape=[2**63])
entry("shape_2^62_x_4_wraps_to_0", "overflow", shape=[2**62, 4], data_offsets=lambda e: [e["data_offsets"][0]] * 2)
entry("shape_2^32_x_2^32_wraps_to_0", "overflow", shape=[2**32, 2**32], data_offsets=lambda e: [e["data_offsets"][0]] * 2)
entry("shape_wraps_to_the_right_size", "overflow", shape=[2**62 + 16])  # times 4 bytes: 64 modulo 2^64
entry("shape_of_1000_dimensions", "dimensions", shape=[1] * 999 + [16])
entry("byte_range_too_long_for_the_shape", "data_offsets", shape=[15])
entry("byte_range_too_short_for_the_shape", "data_offsets", shape=[17])
entry("offsets_past_the_end", "data_offsets", data_offsets=moved(4, 4))
entry("offsets_2^62", "data_offsets", data_offsets=[2**62, 2**62 + 64])
entry("offsets_negative", "data_offsets", data_offsets=[-64, 0])
entry("offsets_reversed", "data_offsets", data_offsets=lambda e: e["data_offsets"][::-1])
entry("offsets_one_number", "data_offsets", data_offsets=lambda e: e["data_offsets"][:1])
entry("offsets_floats", "data_offsets", data_offsets=lambda e: [float(x) for x in e["data_offsets"]])
entry("ranges_overlap", "overlap", data_offsets=moved(-32, -32))
entry("ranges_equal", "overlap", data_offsets=[0, 64], shape=[16])
case("entry_is_a_number", NORM)(lambda c: c.header.update({NORM: 5}))
case("metadata_is_an_array", "__metadata__")(lambda c: c.header.update({"__metadata__": []}))
case("metadata_value_is_a_number", "__metadata__")(lambda c: c.header.update({"__metadata__": {"format": 1}}))


@case("hole_between_tensors", "hole")
def _(c):
    e = c.header[c.last()]
    begin, end = e["data_offsets"]
    c.data = c.data[:begin] + bytes(64) + c.data[begin:]
    e["data_offsets"] = [begin + 64, end + 64]


@case("hole_before_the_first_tensor", "hole")
def _(c):
    c.data = bytes(64) + c.data
    for e in c.header.values():
        e["data_offsets"] = [x + 64 for x in e["data_offsets"]]


# ---- tensors against the configuration, and their values ----

def floats(n, value=0.25):
    return struct.pack("<%df" % n, *[value] * n)


case("tensor_missing", NORM)(lambda c: c.remove(NORM))
case("tensor_too_many", "stray.weight")(lambda c: c.append("stray.weight", "F32", [4], floats(4)))
case("tensor_transposed", GATE)(lambda c: c.replace(GATE, "F32", [8, 32], floats(256)))
case("tensor_of_another_size", NORM)(lambda c: c.replace(NORM, "F32", [15], floats(15)))
case("tensor_of_another_rank", NORM)(lambda c: c.replace(NORM, "F32", [1, 16], floats(16)))
case("tensor_empty", NORM)(lambda c: c.replace(NORM, "F32", [0], b""))
case("tensor_of_integers", GATE)(lambda c: c.replace(GATE, "I64", [16, 16], bytes(2048)))
case("nan_in_a_matrix", GATE)(lambda c: c.poke(GATE, 37, NAN))
case("infinity_in_a_matrix", "down_proj")(lambda c: c.poke("model.layers.0.mlp.down_proj.weight", 255, INF))
case("nan_in_a_norm", NORM)(lambda c: c.poke(NORM, 3, NAN))
case("nan_in_the_embedding", "embed_tokens")(lambda c: c.poke("model.embed_tokens.weight", 120 * 16 + 5, NAN))
case("nan_in_bf16", GATE)(lambda c: c.replace(GATE, "BF16", [16, 16], b"\x80\x3e" * 200 + b"\xc1\x7f" + b"\x80\x3e" * 55))
case("nan_in_f16", GATE)(lambda c: c.replace(GATE, "F16", [16, 16], b"\x00\x34" * 200 + b"\x01\x7e" + b"\x00\x34" * 55))


# ---- the index ----

def index(name, word):
    def add(change):
        def sharded(c):
            change(c, c.shard())
        CASES.append((name, word, sharded))
    return add


def rename(weight_map, old, new):
    for k, v in weight_map.items():
        if v == old:
            weight_map[k] = new


@index("index_parent_folder", "file name")
def _(c, weight_map):
    c.outside("outside.safetensors")
    rename(weight_map, SECOND, "../outside.safetensors")


@index("index_absolute_path", "file name")
def _(c, weight_map):
    rename(weight_map, SECOND, c.outside("outside.safetensors"))


@index("index_subfolder", "file name")
def _(c, weight_map):
    c.files["sub/" + SECOND] = c.files.pop(SECOND)
    rename(weight_map, SECOND, "sub/" + SECOND)


index("index_dot_dot", "file name")(lambda c, m: rename(m, SECOND, ".."))
index("index_empty_name", "file name")(lambda c, m: rename(m, SECOND, ""))
index("index_shard_missing", SECOND)(lambda c, m: c.files.pop(SECOND))
index("index_tensor_in_no_shard", "ghost.weight")(lambda c, m: m.update({"ghost.weight": SECOND}))
index("index_tensor_in_the_other_shard", NORM)(lambda c, m: m.update({NORM: "model-00001-of-00002.safetensors"}))
index("index_lacks_a_tensor_of_a_shard", NORM)(lambda c, m: m.pop(NORM))
index("index_value_is_a_number", NORM)(lambda c, m: m.update({NORM: 2}))
index("index_map_is_an_array", "weight_map")(lambda c, m: c.index.update(weight_map=[[k, v] for k, v in m.items()]))
index("index_map_missing", "weight_map")(lambda c, m: c.index.pop("weight_map"))
index("index_map_empty", "missing")(lambda c, m: m.clear())
index("index_unfinished", "JSON")(lambda c, m: c.files.update({"model.safetensors.index.json": b'{"weight_map": {'}))
index("index_nested", "depth")(lambda c, m: c.files.update({
    "model.safetensors.index.json": b'{"weight_map":' + b"[" * DEEP + b"]" * DEEP + b"}"}))
index("shard_truncated", SECOND)(lambda c, m: c.files.update({SECOND: c.files[SECOND][:-50]}))


@index("tensor_in_two_shards", NORM)
def _(c, weight_map):
    first = "model-00001-of-00002.safetensors"
    c.files[first] = c.shard_bytes(c.shards[first] + [NORM])


# ---- config.json ----

def config(name, word, absent=(), **changes):
    def change(c):
        c.config.update(changes)
        for key in absent:
            del c.config[key]
    case(name, word)(change)


def config_text(name, word, text):
    case(name, word)(lambda c: c.files.update({"config.json": text}))


config_text("config_absent", "config.json", None)
config_text("config_empty", "JSON", b"")
config_text("config_not_json", "JSON", b"model_type = llama\n")
config_text("config_is_an_array", "config.json", b"[]")
config_text("config_nested", "depth", b'{"model_type": "llama", "x":' + b"[" * DEEP + b"]" * DEEP + b"}")
config_text("config_key_twice", "duplicate", b'{"model_type": "llama", "model_type": "qwen2"}')
config_text("config_nan", "JSON", b'{"model_type": "llama", "rms_norm_eps": NaN}')
case("config_of_200_MB", "config.json")(lambda c: c.files.update({"config.json": c.sparse(b"{", 2 * 10**8)}))
config("config_without_model_type", "model_type", absent=("model_type",))
config("config_model_type_is_a_number", "model_type", model_type=3)
config("config_unknown_architecture", "deepseek_v3", model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"])
for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
    config("config_without_" + key, key, absent=(key,))
    config("config_%s_is_a_string" % key, key, **{key: "16"})
    config("config_%s_negative" % key, key, **{key: -16})
    config("config_%s_zero" % key, key, **{key: 0})
    config("config_%s_float" % key, key, **{key: 16.5})
config("config_hidden_size_2^62", "hidden_size", hidden_size=2**62)
config("config_layers_2^40", "layers", num_hidden_layers=2**40)
config("config_one_layer_too_many", "model.layers.1", num_hidden_layers=2)
config("config_vocab_too_large", "embed_tokens", vocab_size=512)
config("config_heads_not_dividing", "num_attention_heads", absent=("head_dim",), num_attention_heads=3, num_key_value_heads=3)
config("config_kv_heads_not_dividing", "num_key_value_heads", num_key_value_heads=3)
config("config_kv_heads_zero", "num_key_value_heads", num_key_value_heads=0)
config("config_head_dim_odd", "head_dim", head_dim=3)
config("config_head_dim_negative", "head_dim", head_dim=-4)
config("config_eps_negative", "rms_norm_eps", rms_norm_eps=-1e-5)
config("config_eps_is_a_string", "rms_norm_eps", rms_norm_eps="small")
config("config_act_gelu", "gelu", hidden_act="gelu")
config("config_tie_is_a_string", "tie_word_embeddings", tie_word_embeddings="yes")
config("config_window_negative", "sliding_window", model_type="mistral", architectures=["MistralForCausalLM"],
       sliding_window=-8)
config("config_quantized", "quantization_config", quantization_config={"quant_method": "gptq", "bits": 4})
config("rope_theta_zero", "rope_theta", rope_theta=0.0)
config("rope_theta_is_a_string", "rope_theta", rope_theta="10000")
config("rope_scaling_is_a_string", "rope_scaling", rope_scaling="llama3")
config("rope_yarn", "yarn", rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32})
config("rope_dynamic_old_key", "dynamic", rope_scaling={"type": "dynamic", "factor": 2.0})
config("rope_longrope", "longrope", rope_scaling={"rope_type": "longrope", "short_factor": [1.0, 1.0],
                                                  "long_factor": [2.0, 2.0]})
config("rope_parameters_yarn", "yarn", absent=("rope_theta", "rope_scaling"),
       rope_parameters={"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0})
config("rope_llama3_without_factor", "factor", rope_scaling={
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
config("rope_llama3_factor_zero", "factor", rope_scaling={
    "rope_type": "llama3", "factor": 0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64})
config("rope_llama3_bands_equal", "freq_factor", rope_scaling={  # the blend divides by high - low
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64})
case("generation_eos_is_a_string", "eos_token_id")(lambda c: c.generation.update(eos_token_id="</s>"))
case("generation_not_json", "JSON")(lambda c: c.files.update({"generation_config.json": b"{"}))


# ---- tokenizer.json ----

def tokenizer(name, word):
    def add(change):
        CASES.append((name, word, lambda c: change(c.tokenizer)))
    return add


def tokenizer_text(name, word, text):
    case(name, word)(lambda c: c.files.update({"tokenizer.json": text}))


def vocab(**tokens):
    return lambda t: t["model"]["vocab"].update(tokens)


def merges(*list_):
    return lambda t: t["model"].update(merges=list(list_))


tokenizer_text("tokenizer_absent", "tokenizer", None)
tokenizer_text("tokenizer_unfinished", "JSON", b'{"model": {"type": "BPE", "vocab": {')
tokenizer_text("tokenizer_nested", "depth", b'{"model":' + b"[" * DEEP + b"]" * DEEP + b"}")
tokenizer("tokenizer_without_model", "model")(lambda t: t.pop("model"))
tokenizer("tokenizer_unigram", "Unigram")(lambda t: t.update(
    model={"type": "Unigram", "unk_id": 0, "vocab": [[s, -1.0] for s in t["model"]["vocab"]]}))
tokenizer("tokenizer_wordpiece", "WordPiece")(lambda t: t.update(
    model={"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
           "max_input_chars_per_word": 100, "vocab": t["model"]["vocab"]}))
tokenizer("tokenizer_wordlevel", "WordLevel")(lambda t: t.update(
    model={"type": "WordLevel", "unk_token": "<unk>", "vocab": t["model"]["vocab"]}))
tokenizer("tokenizer_type_is_a_number", "type")(lambda t: t["model"].update(type=7))
tokenizer("tokenizer_vocab_is_an_array", "vocab")(lambda t: t["model"].update(vocab=list(t["model"]["vocab"])))
tokenizer("tokenizer_vocab_missing", "vocab")(lambda t: t["model"].pop("vocab"))
tokenizer("tokenizer_id_is_a_string", "qzq")(vocab(qzq="9"))
tokenizer("tokenizer_id_negative", "qzq")(vocab(qzq=-9))
tokenizer("tokenizer_id_2^40", "qzq")(vocab(qzq=2**40))
tokenizer("tokenizer_merge_of_an_unknown_token", "zq")(merges("zq x"))
tokenizer("tokenizer_merge_list_of_an_unknown_token", "zq")(merges(["x", "zq"]))
tokenizer("tokenizer_merge_into_an_unknown_token", "merge")(merges("z q"))
tokenizer("tokenizer_merge_of_one_part", "merge")(merges("zq"))
tokenizer("tokenizer_merge_of_three_parts", "merge")(merges(["z", "q", "x"]))
tokenizer("tokenizer_merge_is_a_number", "merge")(merges(12))
tokenizer("tokenizer_merges_is_an_object", "merges")(lambda t: t["model"].update(merges={"z": "q"}))
tokenizer("tokenizer_unknown_normalizer", "Scrambler")(lambda t: t.update(normalizer={"type": "Scrambler"}))
tokenizer("tokenizer_unknown_pre_tokenizer", "Scrambler")(lambda t: t.update(pre_tokenizer={"type": "Scrambler"}))
tokenizer("tokenizer_unknown_decoder", "Scrambler")(lambda t: t.update(decoder={"type": "Scrambler"}))
tokenizer("tokenizer_regex_unclosed", "unclosed")(lambda t: t.update(pre_tokenizer={
    "type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(unclosed"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}))
tokenizer("tokenizer_template_names_no_token", "<gone>")(lambda t: t["post_processor"]["single"].insert(
    0, {"SpecialToken": {"id": "<gone>", "type_id": 0}}))
tokenizer("tokenizer_added_id_negative", "<extra>")(lambda t: t["added_tokens"].append(
    {**t["added_tokens"][0], "id": -5, "content": "<extra>"}))


@case("tokenizer_larger_than_the_model", "vocab")
def _(c):
    """The text's ids would index past the embedding."""
    rows = 64
    c.config["vocab_size"] = rows
    c.replace("model.embed_tokens.weight", "F32", [rows, 16], floats(rows * 16))
