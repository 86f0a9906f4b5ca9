"""Tiny configs of every family, small enough to run in seconds, with each of the family's mechanisms switched on.

A config is derived from the family's own default: sizes are shrunk by what their field means, layer types keep their
order and each appears at least twice. What cannot be derived stands in `QUIRKS`, with its reason. Test data: never
imported by the program.
"""

from __future__ import annotations

from typing import Any, Final

from transformers import CONFIG_MAPPING, PretrainedConfig

VOCABULARY: Final = 160
WINDOW_TOKENS: Final = 8
TOP_K: Final = 6
"""Tokens (or blocks) that an indexer chooses: less than any prompt of the matrix has."""

_SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "ffn_hidden_size": 96,
    "dense_intermediate_size": 96,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 48,
    "shared_experts_intermediate_size": 48,
    "hidden_size_per_layer_input": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "head_dim": 16,
    "swa_head_dim": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 512,
    "model_max_length": 512,
    "original_max_position_embeddings": 512,
    "sliding_window": WINDOW_TOKENS,
    "sliding_window_size": WINDOW_TOKENS,
    "keep_window_size": TOP_K,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "gated_norm_rank": 8,
    "laurel_rank": 8,
    "d_rel": 8,
    "rel_extent": 16,
    "index_topk": TOP_K,
    "index_topk_blocks": 2,
    "index_block_size": 4,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "block_size": 16,
    "n_routed_experts": 8,
    "num_experts": 8,
    "num_local_experts": 8,
    "moe_num_experts": 8,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 4,
    "num_expert_group": 4,
    "topk_group": 2,
    "rotary_dim": 8,
    "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 2,
    "moe_layer_start_index": 1,
    "query_pre_attn_scalar": 16,
    "initializer_range": 0.15,
    "embedding_initializer_range": 0.15,
    "dim_model_base": 16,
    "n_positions": 512,
    "n_embd": 64,
    "n_embed": 64,
    "num_attention_head": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "state_size": 16,
    "shared_intermediate_size": 48,
    "n_head": 4,
    "n_inner": 96,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "max_seq_len": 512,
    "n_heads": 4,
    "d_model": 64,
    "rotary_pct": 0.5,
}
"""What a field becomes in every family that has it."""

_MIXED: Final = ["full_attention", "sliding_attention"] * 2
_WINDOWED: Final[dict[str, Any]] = {"sliding_window": WINDOW_TOKENS, "layer_types": _MIXED}
_ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}
_SHARED_KV: Final[dict[str, Any]] = {
    "num_hidden_layers": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 4,
    "num_kv_shared_layers": 4,
}
_SPEECH_AND_VISION: Final[dict[str, Any]] = {
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "crop_size": 28, "patch_size": 14,
    },
    "audio_config": {
        "hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2,
        "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 16, "input_size": 16,
    },
}  # fmt: skip

QUIRKS: Final[dict[str, dict[str, Any]]] = {
    # Windows that the default leaves off.
    "qwen2": {"use_sliding_window": True, **_WINDOWED},
    "qwen2_moe": {"use_sliding_window": True, **_WINDOWED},
    "qwen3": {"use_sliding_window": True, **_WINDOWED},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": WINDOW_TOKENS},
    "smollm3": {"use_sliding_window": True, "no_rope_layers": [1, 1, 0, 0], **_WINDOWED},
    "mixtral": {"sliding_window": WINDOW_TOKENS},
    "phi3": {"sliding_window": WINDOW_TOKENS},
    "starcoder2": {"sliding_window": WINDOW_TOKENS},
    "ministral": {"head_dim": 16, **_WINDOWED},
    "ministral3": {"sliding_window": WINDOW_TOKENS},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "doge": {"keep_window_size": TOP_K},
    # Layer types that the default does not mix.
    "deepseek_v2": {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "num_experts_per_tok": 2},
    "dots1": {
        "num_experts_per_tok": 2, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 4, "topk_group": 2,
        **_WINDOWED,
    },
    "cohere_compass_text": {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": None}, **_WINDOWED},
    "laguna": {
        "num_attention_heads_per_layer": [4, 2, 4, 2],
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
        **_WINDOWED,
    },
    "mellum": {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE}, **_WINDOWED},
    "minimax_m3_vl_text": {"index_n_heads": 2, "layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "glm_moe_dsa": {"indexer_types": ["full", "shared"] * 2},
    "deepseek_v4": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"] * 2,
        "mlp_layer_types": ["hash_moe"] * 3 + ["moe"] * 3,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "index_topk": 3,
        "partial_rotary_factor": 0.5,
    },
    # Keys and values shared between layers, and heads of different sizes.
    "gemma3n_text": {"activation_sparsity_pattern": [0.95, 0.0] * 4, "intermediate_size": 96, **_SHARED_KV},
    "gemma4_text": {
        "global_head_dim": 32, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 32, **_SHARED_KV,
    },
    "gemma4_unified_text": {"global_head_dim": 32, **_SHARED_KV},
    # Sizes that have to fit each other.
    "dots3_note_text": {
        "head_dim": 24, "n_group": 4, "topk_group": 2, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24, "swa_kv_lora_rank": 32, "swa_head_dim": 24, "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "phi4_multimodal": _SPEECH_AND_VISION,
}  # fmt: skip
"""By family: fields that have to fit each other in a way that their names do not tell."""


def tiny_config(family: str) -> PretrainedConfig:
    """A config of `family` (a `model_type` with a causal language model), checked by its own class."""
    kind: Any = CONFIG_MAPPING[family]
    default = kind()
    text = default.get_text_config()
    fields = _fields(type(text), text)
    return type(text)(**fields)


def _fields(kind: type[PretrainedConfig], default: PretrainedConfig) -> dict[str, Any]:
    declared = default.to_dict()
    fields: dict[str, Any] = {name: size for name, size in _SIZES.items() if declared.get(name) is not None}
    layers = {
        name: _layer_list(declared[name]) for name in LAYER_LISTS if isinstance(declared.get(name), (list, tuple))
    }
    count = max([4, *(len(items) for items in layers.values())])
    fields |= {name: _stretched(items, count) for name, items in layers.items()}
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if name in declared:
            fields[name] = count
    fields |= {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
    if "head_dim" in fields and declared["head_dim"] == declared.get("qk_rope_head_dim"):
        fields["head_dim"] = fields["qk_rope_head_dim"]
    if "kv_lora_rank" in fields:  # latent attention has a key head for every query head
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields |= QUIRKS.get(default.model_type, {})
    return fields


LAYER_LISTS: Final = (
    "layer_types",
    "mlp_layer_types",
    "indexer_types",
    "no_rope_layers",
    "num_attention_heads_per_layer",
    "layer_rope_theta",
    "activation_sparsity_pattern",
)


def _layer_list(items: list[Any]) -> list[Any]:
    """Every kind of layer twice, in the order of the default's first period."""
    return list(dict.fromkeys(items)) * 2


def _stretched(items: list[Any], count: int) -> list[Any]:
    return (items * count)[:count]
