# SPDX-License-Identifier: Apache-2.0
"""What make_families.py writes: each family's config.json as its publisher would write it, and its traps.

A trap is a mistake that the family's logits must expose: "config" replaces keys ("absent" removes one), "fill" sets the
tensors whose names match to a constant, "drop" leaves tensors out, "interleaved" pairs RoPE's channels as neighbours,
"same_experts" uses expert 0's weights for all. "commands": with a tokenizer and a greedy continuation. "fused_of" names a family whose weights are written once more, by transformers in
the layout that it keeps in memory: all experts of a layer in two 3-d tensors.
"""

BASE = {"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 80,
        "max_position_embeddings": 512, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": 96}

NORMS = {"norm weights taken as 1": {"fill": {r"layernorm\.weight|model\.norm\.weight": 1.0}}}
INTERLEAVED = {"RoPE on neighbouring channels": {"interleaved": True}}
THETA = {"another rope_theta": {"config": {"rope_theta": 20000.0}}}


def config(model_type, architecture, absent=(), **changes):
    c = {"architectures": [architecture], "model_type": model_type, **BASE, **changes}
    return {k: v for k, v in c.items() if k not in absent}


def llama(absent=(), **changes):
    return config("llama", "LlamaForCausalLM", absent, **{"attention_bias": False, "mlp_bias": False, "rope_scaling": None,
                                                          **changes})


def tensor_shapes(c):
    """Name -> shape of every tensor of a checkpoint with this config, in the order of the file."""
    d, heads = c["hidden_size"], c["num_attention_heads"]
    kv, hd = c.get("num_key_value_heads", heads), c.get("head_dim", d // heads)
    kind = c["model_type"]
    qkv_bias = kind in ("qwen2", "qwen2_moe") or c.get("attention_bias", False)
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], d)}

    def linear(name, rows, cols, bias=False):
        shapes[name + ".weight"] = (rows, cols)
        if bias:
            shapes[name + ".bias"] = (rows,)

    def mlp(name, ff, names=("gate_proj", "up_proj", "down_proj")):
        linear(name + names[0], ff, d, c.get("mlp_bias", False))
        linear(name + names[1], ff, d, c.get("mlp_bias", False))
        linear(name + names[2], d, ff, c.get("mlp_bias", False))

    for i in range(c["num_hidden_layers"]):
        p = "model.layers.%d." % i
        shapes[p + "input_layernorm.weight"] = shapes[p + "post_attention_layernorm.weight"] = (d,)
        linear(p + "self_attn.q_proj", heads * hd, d, qkv_bias)
        linear(p + "self_attn.k_proj", kv * hd, d, qkv_bias)
        linear(p + "self_attn.v_proj", kv * hd, d, qkv_bias)
        linear(p + "self_attn.o_proj", d, heads * hd, c.get("attention_bias", False))
        if kind in ("qwen3", "qwen3_moe"):
            shapes[p + "self_attn.q_norm.weight"] = shapes[p + "self_attn.k_norm.weight"] = (hd,)
        if kind == "mixtral":
            linear(p + "block_sparse_moe.gate", c["num_local_experts"], d)
            for e in range(c["num_local_experts"]):
                mlp(p + "block_sparse_moe.experts.%d." % e, c["intermediate_size"], ("w1", "w3", "w2"))
        elif kind in ("qwen2_moe", "qwen3_moe") and i not in c["mlp_only_layers"] and (i + 1) % c["decoder_sparse_step"] == 0:
            linear(p + "mlp.gate", c["num_experts"], d)
            for e in range(c["num_experts"]):
                mlp(p + "mlp.experts.%d." % e, c["moe_intermediate_size"])
            if kind == "qwen2_moe":
                mlp(p + "mlp.shared_expert.", c["shared_expert_intermediate_size"])
                linear(p + "mlp.shared_expert_gate", 1, d)
        else:
            mlp(p + "mlp.", c["intermediate_size"])
    shapes["model.norm.weight"] = (d,)
    if not c["tie_word_embeddings"]:
        linear("lm_head", c["vocab_size"], d)
    return shapes


LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
               "rope_type": "llama3"}  # wavelengths 6.3 (kept), 32 (blended), 167 and up (divided by the factor)

QWEN2_MOE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=24,
                 decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False, sliding_window=4, max_window_layers=2,
                 output_router_logits=False, router_aux_loss_coef=0.001, tie_word_embeddings=True, rope_theta=1000000.0)
QWEN2_MOE_TRAPS = {
    "shared expert's gate taken as zero": {"fill": {r"shared_expert_gate": 0.0}},
    "shared expert left out": {"fill": {r"shared_expert\.": 0.0}},
    "biases left out": {"fill": {r"_proj\.bias": 0.0}},
    "one expert for all": {"same_experts": True},
    "top 3 instead of 2": {"config": {"num_experts_per_tok": 3}},
    **NORMS,
}

FAMILIES = {
    # As the first Llama-2 files: no head_dim, no rope_theta, no biases named, as many KV heads as heads. Its eps is large
    # enough to be seen.
    "llama2": {"dtype": "float32", "config": llama(
        ("rope_theta", "num_key_value_heads", "attention_bias", "mlp_bias"), intermediate_size=40, rms_norm_eps=1e-2,
        torch_dtype="float32"),
        "traps": {**NORMS, **INTERLEAVED, **THETA,
                  "eps of 1e-6": {"config": {"rms_norm_eps": 1e-6}},
                  "lm_head tied to the embedding": {"config": {"tie_word_embeddings": True}, "drop": "lm_head"}}},
    "llama3": {"dtype": "bfloat16", "config": llama(
        hidden_size=64, rope_theta=500000.0, rope_scaling=LLAMA3_ROPE),
        "traps": {**NORMS, **INTERLEAVED, **THETA,
                  "rope_scaling ignored": {"config": {"rope_scaling": None}},
                  "linear scaling": {"config": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}},
                  "another factor (low band)": {"config": {"rope_scaling": {**LLAMA3_ROPE, "factor": 4.0}}},
                  "another low_freq_factor (middle band)": {"config": {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 0.5}}},
                  "no middle band": {"config": {"rope_scaling": {
                      **LLAMA3_ROPE, "low_freq_factor": 1.0, "high_freq_factor": 1.01}}},
                  "first band scaled too": {"config": {"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 16.0}}}}},
    # As newer configs: rope_theta only inside rope_parameters, dtype instead of torch_dtype.
    "llama_rope_parameters": {"dtype": "bfloat16", "config": llama(
        ("rope_theta", "rope_scaling", "torch_dtype"), dtype="bfloat16", head_dim=12, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 300.0, "rope_type": "default"}),
        "traps": {**NORMS, "default theta": {"config": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}}}},
    # llama3 scaling nested in rope_parameters as well.
    "llama3_rope_parameters": {"dtype": "bfloat16", "config": llama(
        ("rope_theta", "rope_scaling", "torch_dtype"), dtype="bfloat16", head_dim=16, tie_word_embeddings=True,
        num_hidden_layers=1, rope_parameters={"rope_theta": 500000.0, **LLAMA3_ROPE}),
        "traps": {"scaling ignored": {"config": {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}}}},
    "mistral": {"dtype": "bfloat16", "config": config(
        "mistral", "MistralForCausalLM", head_dim=16, sliding_window=8),
        "traps": {**NORMS, **INTERLEAVED, **THETA,
                  "window ignored": {"config": {"sliding_window": None}},
                  "window one too long": {"config": {"sliding_window": 9}},
                  "window one too short": {"config": {"sliding_window": 7}}}},
    # sliding_window is there and small, and doesn't count.
    "qwen2": {"dtype": "float32", "config": config(
        "qwen2", "Qwen2ForCausalLM", intermediate_size=64, tie_word_embeddings=True, rope_theta=1000000.0,
        sliding_window=4, use_sliding_window=False, max_window_layers=0, torch_dtype="float32"),
        "traps": {**NORMS, **INTERLEAVED, **THETA,
                  "window applied": {"config": {"use_sliding_window": True}},
                  "q bias left out": {"fill": {r"q_proj\.bias": 0.0}},
                  "k bias left out": {"fill": {r"k_proj\.bias": 0.0}},
                  "v bias left out": {"fill": {r"v_proj\.bias": 0.0}}}},
    # Layers 1 and 2 slide, layer 0 doesn't.
    "qwen2_swa": {"dtype": "bfloat16", "config": config(
        "qwen2", "Qwen2ForCausalLM", num_hidden_layers=3, intermediate_size=48, tie_word_embeddings=True, sliding_window=8,
        use_sliding_window=True, max_window_layers=1),
        "traps": {"window ignored": {"config": {"use_sliding_window": False}},
                  "window in every layer": {"config": {"max_window_layers": 0}},
                  "window one layer late": {"config": {"max_window_layers": 2}},
                  "window one too long": {"config": {"sliding_window": 9}}}},
    "qwen3": {"dtype": "bfloat16", "config": config(
        "qwen3", "Qwen3ForCausalLM", head_dim=16, tie_word_embeddings=True, vocab_size=131, rope_theta=1000000.0,
        attention_bias=False, sliding_window=None, use_sliding_window=False, max_window_layers=2),
        "traps": {**NORMS, **THETA,
                  "q_norm weights taken as 1": {"fill": {r"q_norm": 1.0}},
                  "k_norm weights taken as 1": {"fill": {r"k_norm": 1.0}}}},
    "llama_bias": {"dtype": "bfloat16", "config": llama(attention_bias=True, mlp_bias=True, vocab_size=101),
        "traps": {name + " bias left out": {"fill": {name + r"_proj\.bias": 0.0}}
                  for name in ("q", "k", "v", "o", "gate", "up", "down")}},
    "llama_f16": {"dtype": "float16", "config": llama(torch_dtype="float16", num_key_value_heads=1), "traps": {**NORMS, **THETA}},
    "llama_bf16_sharded": {"dtype": "bfloat16", "shards": 3, "config": llama(intermediate_size=64),
                           "traps": {**NORMS, **THETA}},
    # For tensor parallelism: o's 192 inputs in heads of 24 and down's 176 cut quantization groups of 64 at 2 and 4 ranks.
    "tp_cut": {"dtype": "bfloat16", "n_seq": 1, "commands": True, "config": llama(
        hidden_size=64, intermediate_size=176, num_attention_heads=8, num_key_value_heads=4, head_dim=24, vocab_size=288,
        tie_word_embeddings=True),
        "traps": {**NORMS, **INTERLEAVED}},
    # The same with experts: fewer than ranks, so that some rank holds none, and a shared one that 8 ranks cut unevenly.
    "moe_cut": {"dtype": "bfloat16", "n_seq": 1, "commands": True, "config": config(
        "qwen2_moe", "Qwen2MoeForCausalLM", norm_topk_prob=True, **{
            **QWEN2_MOE, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 288,
            "num_experts": 5, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 44}),
        "traps": {**QWEN2_MOE_TRAPS, **INTERLEAVED}},
    "mixtral": {"dtype": "bfloat16", "config": config(
        "mixtral", "MixtralForCausalLM", intermediate_size=22, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=None, output_router_logits=False, router_aux_loss_coef=0.02, rope_theta=1000000.0),
        "traps": {**NORMS, **THETA, "one expert for all": {"same_experts": True},
                  "top 1": {"config": {"num_experts_per_tok": 1}}, "top 3": {"config": {"num_experts_per_tok": 3}},
                  "router left out": {"fill": {r"moe\.gate": 0.0}}}},
    "qwen2moe_norm": {"dtype": "bfloat16", "config": config(
        "qwen2_moe", "Qwen2MoeForCausalLM", norm_topk_prob=True, **QWEN2_MOE),
        "traps": {**QWEN2_MOE_TRAPS, "weights not normalized": {"config": {"norm_topk_prob": False}}}},
    "qwen2moe_nonorm": {"dtype": "bfloat16", "config": config(
        "qwen2_moe", "Qwen2MoeForCausalLM", norm_topk_prob=False, num_hidden_layers=1, **QWEN2_MOE),
        "traps": {**QWEN2_MOE_TRAPS, "weights normalized": {"config": {"norm_topk_prob": True}}}},
    "qwen3moe": {"dtype": "bfloat16", "config": config(
        "qwen3_moe", "Qwen3MoeForCausalLM", head_dim=16, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=12,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False, tie_word_embeddings=True,
        sliding_window=None, use_sliding_window=False, output_router_logits=False, router_aux_loss_coef=0.001,
        rope_theta=1000000.0),
        "traps": {**NORMS, "one expert for all": {"same_experts": True},
                  "weights not normalized": {"config": {"norm_topk_prob": False}},
                  "q_norm weights taken as 1": {"fill": {r"q_norm": 1.0}},
                  "k_norm weights taken as 1": {"fill": {r"k_norm": 1.0}}}},
    # Layer 0 is dense by the step, 1 by name, 2 by the step, 3 has 60 experts: a number that 8 doesn't divide.
    # Their probabilities are near 1/60, so the gap of the routing is less.
    "qwen3moe_layers": {"dtype": "bfloat16", "n_seq": 1, "router_gap": 2e-4, "config": config(
        "qwen3_moe", "Qwen3MoeForCausalLM", head_dim=8, num_hidden_layers=4, intermediate_size=24, num_experts=60,
        num_experts_per_tok=8, moe_intermediate_size=4, norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[1],
        attention_bias=False, tie_word_embeddings=True, sliding_window=None, use_sliding_window=False,
        output_router_logits=False, router_aux_loss_coef=0.001, rope_theta=1000000.0),
        "traps": {**NORMS, "one expert for all": {"same_experts": True},
                  "weights normalized": {"config": {"norm_topk_prob": True}},
                  "top 7 instead of 8": {"config": {"num_experts_per_tok": 7}},
                  "experts left out": {"fill": {r"experts\.\d+\.down": 0.0}},
                  "dense MLP of layer 1 left out": {"fill": {r"layers\.1\.mlp\.down": 0.0}}}},
    # A shared expert beside a dense layer.
    "qwen2moe_layers": {"dtype": "bfloat16", "n_seq": 1, "config": config(
        "qwen2_moe", "Qwen2MoeForCausalLM", norm_topk_prob=False, intermediate_size=24,
        **{**QWEN2_MOE, "mlp_only_layers": [0], "num_experts": 5, "num_experts_per_tok": 5}),
        "traps": {k: t for k, t in QWEN2_MOE_TRAPS.items() if k != "top 3 instead of 2"}},
    "mixtral_fused": {"fused_of": "mixtral"},
    "qwen2moe_fused": {"fused_of": "qwen2moe_norm"},
    "qwen3moe_fused": {"fused_of": "qwen3moe"},
}
