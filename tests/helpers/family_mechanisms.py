"""What a family does beyond plain attention, and that a tiny config of it really does it in the matrix."""

from __future__ import annotations

from collections import Counter
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from tests.helpers.family_configs import LAYER_LISTS
from vramancer_cli.engine.trace import Trace

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")


def mechanisms(config: PretrainedConfig, trace: Trace, prompt_tokens: int) -> tuple[str, ...]:
    """Their names, each checked: prompts of `prompt_tokens` and the dry run must show it. Raises AssertionError."""
    found = (
        _layer_types(config), _windows(config, prompt_tokens), _choices(config, trace, prompt_tokens),
        _experts(config), _groups(config), _shared(config, trace), _states(config, trace), _beside(trace),
    )  # fmt: skip
    return tuple(name for name in found if name)


def _layer_types(config: PretrainedConfig) -> str:
    """Every type that the family's default mixes is there, and each type at least twice."""
    kind: Any = CONFIG_MAPPING[config.model_type]
    default = kind().to_dict()
    several = False
    for name in LAYER_LISTS:
        items = getattr(config, name, None)
        if isinstance(items, (list, tuple)) and isinstance(items[0], str) and name in default:
            counts = Counter(items)
            assert set(default[name] or ()) <= counts.keys(), f"{name} lacks a kind of layer"
            assert min(counts.values()) >= 2, f"{name} has a kind of layer only once"
            several |= len(counts) > 1
    return "mixed layers" if several else ""


def _windows(config: PretrainedConfig, prompt_tokens: int) -> str:
    types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) or getattr(config, "sliding_window_size", None)
    if not window or (types and not any("sliding" in kind or "compressed" in kind for kind in types)):
        return ""
    assert prompt_tokens >= 3 * window, "the prompt is shorter than three windows"
    return "window"


def _choices(config: PretrainedConfig, trace: Trace, prompt_tokens: int) -> str:
    top_k = getattr(config, "index_topk", None)
    rates = getattr(config, "compress_rates", None) or {"": 1}
    if top_k is None:
        return ""
    assert top_k < prompt_tokens // max(1, min(rates.values())), "the indexer chooses everything"
    own = any(layer < 0 for layer in trace.kv_shapes) or any(state != (0, 0) for state in trace.states.values())
    assert own, "the indexer keeps nothing"
    return "indexer"


def _experts(config: PretrainedConfig) -> str:
    experts = next((getattr(config, name) for name in _EXPERTS if isinstance(getattr(config, name, None), int)), 0)
    chosen = next((getattr(config, name) for name in _CHOSEN if isinstance(getattr(config, name, None), int)), 0)
    if not experts or not chosen or not getattr(config, "is_moe", True):
        return ""
    assert chosen < experts, "every expert is chosen"
    return "experts"


def _groups(config: PretrainedConfig) -> str:
    groups = getattr(config, "n_group", None) or getattr(config, "num_expert_group", None)
    if not groups:
        return ""
    assert groups > config.topk_group, "every group of experts is chosen"
    return "expert groups"


def _shared(config: PretrainedConfig, trace: Trace) -> str:
    if not hasattr(config, "num_kv_shared_layers"):
        return ""
    assert config.num_kv_shared_layers > 0 and len(trace.same_as) == config.num_kv_shared_layers, "no shared KV"
    return "shared KV"


def _states(config: PretrainedConfig, trace: Trace) -> str:
    kept = {layer for layer, state in trace.states.items() if state != (0, 0)}
    linear = {i for i, kind in enumerate(getattr(config, "layer_types", None) or ()) if "linear" in kind}
    assert linear <= kept, "a linear layer keeps no state"
    return "state" if kept else ""


def _beside(trace: Trace) -> str:
    middle = len(trace.seams.calls) // 2
    return "more crosses" if len(trace.seams.at(middle)) > 1 else ""
