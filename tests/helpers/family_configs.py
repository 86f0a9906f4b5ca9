"""Tiny configs of every family, small enough to run in seconds, with each of the family's mechanisms switched on.

A config is derived from the family's own default: sizes are shrunk by what their field means, layer types keep their
order and each appears at least twice. What cannot be derived stands in `QUIRKS`, with its reason. Test data: never
imported by the program.
"""

from __future__ import annotations

from collections.abc import Callable
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
    "shared_intermediate_size": 48,
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
    "index_n_heads": 2,
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

QUIRKS: Final[dict[str, dict[str, Any]]] = {}
"""By family: fields that have to fit each other in a way that their names do not tell."""


def tiny_config(family: str) -> PretrainedConfig:
    """A config of `family` (a `model_type` with a causal language model), checked by its own class."""
    kind: Any = CONFIG_MAPPING[family]
    default = kind()
    text = default.get_text_config()
    fields = _fields(type(text), text)
    config = type(text)(**fields)
    return config


def _fields(kind: type[PretrainedConfig], default: PretrainedConfig) -> dict[str, Any]:
    declared = default.to_dict()
    fields: dict[str, Any] = {name: size for name, size in _SIZES.items() if declared.get(name) is not None}
    layers = {
        name: _layer_list(declared[name]) for name in _LAYER_LISTS if isinstance(declared.get(name), (list, tuple))
    }
    count = max([4, *(len(items) for items in layers.values())])
    fields |= {name: _stretched(items, count) for name, items in layers.items()}
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if name in declared:
            fields[name] = count
    fields |= {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
    fields |= QUIRKS.get(default.model_type, {})
    return fields


_LAYER_LISTS: Final = ("layer_types", "mlp_layer_types", "indexer_types", "no_rope_layers", "num_attention_heads_per_layer", "layer_rope_theta", "activation_sparsity_pattern")


def _layer_list(items: list[Any]) -> list[Any]:
    """Every kind of layer twice, in the order of the default's first period."""
    return list(dict.fromkeys(items)) * 2


def _stretched(items: list[Any], count: int) -> list[Any]:
    return (items * count)[:count]
