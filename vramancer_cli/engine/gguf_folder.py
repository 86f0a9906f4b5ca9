"""A GGUF file made into a model folder: config.json, tokenizer and chat template from its metadata.

The weights stay where they are, and everything after this sees a folder like any other. What transformers knows of the
format is used as it is; what the file says and transformers would leave out is added here, or refused: a model that
answers slightly wrong is worse than none.
Must never know a family but by the table of architectures.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from vramancer_cli.engine import architecture
from vramancer_cli.engine.checkpoint import GGUF_NAMES, Checkpoint
from vramancer_cli.engine.gguf_file import GgufArray, GgufHead
from vramancer_cli.engine.gguf_parts import model_name, read_parts
from vramancer_cli.engine.gguf_tensor import GGUF_ARCHITECTURE, tensors_in
from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import TOKENIZER_NAME, one_line
from vramancer_cli.models.weight_files import GGUF_NAME, USE_SAFETENSORS

ARCHITECTURES: Final = {
    "llama": "llama",  # Mistral's files too
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
"""general.architecture -> model_type, where the metadata says everything that the family's config asks."""
_MADE_BY: Final = f"2 {transformers.__version__}"
"""Part of a folder's name: another version of this code or of transformers may make another folder of the same file."""
_MORE_KEYS: Final = {
    "attention.key_length": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""What the files say beyond transformers' mapping."""
_NEEDED: Final = (
    "context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)  # fmt: skip
_DEFAULT_ROPE_BASE: Final = 10_000.0
_TOKENS: Final = "tokenizer.ggml.tokens"
_OUTPUT: Final = "output.weight"
_ROPE_FACTORS: Final = "rope_freqs.weight"
_LLAMA3_ROPE: Final = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""The one way of stretching positions that files hold as a tensor; it is believed only where it gives that tensor."""
_WHOLE_WORDS: Final = ("llama3", "llama-v3", "llama-bpe", "tekken")
"""tokenizer.ggml.pre of vocabularies that take a word which is a token as it is, and begin every text with BOS unless
they say otherwise: not written in the file, but what llama.cpp does by these names."""
_STOPS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")


def unfold(path: Path, shelf: Path) -> Path:
    """The model folder of a GGUF file, made on `shelf` where it is not there yet. Raises ModelError.

    `path` may be any of several files that make up a model. The folder holds no weights: gguf.json says where they are,
    so the files have to stay.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    heads = read_parts(path)
    files = [{"path": str(head.path), "head_sha256": hashlib.sha256(head.head).hexdigest()} for head in heads]
    made_of = hashlib.sha256(f"{_MADE_BY} {json.dumps(files)}".encode()).hexdigest()[:32]
    folder = shelf / made_of / model_name(path)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            whole = Path(made) / folder.name
            whole.mkdir()
            _fill(whole, heads)
            _write(whole / GGUF_NAME, {"files": files})
            whole.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another process was faster
            return folder
        raise ModelError(f"The folder of {path.name} cannot be kept in {shelf}: {error.strerror or error}.") from error
    return folder


def _fill(folder: Path, heads: Sequence[GgufHead]) -> None:
    config = _config(heads)
    _write(folder / "config.json", config)
    _write(folder / "config.json", config | {GGUF_NAMES: _names(folder, heads, config)})
    named = (heads[0].metadata.get(f"tokenizer.ggml.{name}") for name in _STOPS)
    stops = [number for number in named if isinstance(number, int)]
    _write(folder / "generation_config.json", {"eos_token_id": stops} if stops else {})
    _write_tokenizer(folder, heads[0].path)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


# --- config.json ------------------------------------------------------------------------------------------------------


def _config(heads: Sequence[GgufHead]) -> dict[str, Any]:
    head = heads[0]
    kind = head.metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"{head.path.name} holds a model of the architecture '{one_line(kind)}', which VRAMancer cannot read as "
            f"GGUF yet; it reads {', '.join(ARCHITECTURES)}.",
            hint=USE_SAFETENSORS,
        )
    _refuse_left_out(head, kind)
    of_family = {**GGUF_CONFIG_MAPPING[kind], **_MORE_KEYS}
    config: dict[str, Any] = {"model_type": ARCHITECTURES[kind], GGUF_ARCHITECTURE: kind}
    config |= _renamed(head, f"{kind}.", of_family) | _renamed(head, "tokenizer.", GGUF_CONFIG_MAPPING["tokenizer"])
    tokens = head.metadata.get(_TOKENS)
    if "vocab_size" not in config and isinstance(tokens, GgufArray):
        config["vocab_size"] = tokens.length
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("rope_theta", _DEFAULT_ROPE_BASE)
    config["tie_word_embeddings"] = all(entry.name != _OUTPUT for part in heads for entry in part.entries)
    return config | _rope_scaling(heads)


def _renamed(head: GgufHead, prefix: str, mapping: Mapping[str, str | None]) -> dict[str, Any]:
    found = {
        name: head.metadata[prefix + key] for key, name in mapping.items() if name and prefix + key in head.metadata
    }
    for name, value in found.items():
        if not isinstance(value, (int, float)):
            raise ModelError(f"The metadata of {head.path.name} gives no single number for '{name}'.")
    return found


def _refuse_left_out(head: GgufHead, kind: str) -> None:
    """What would change the answers and has no place in the config that is made here."""
    lacking = [key for key in _NEEDED if f"{kind}.{key}" not in head.metadata]
    if lacking:
        raise ModelError(f"The metadata of {head.path.name} lacks '{kind}.{lacking[0]}'.", hint="Download it again.")
    scaling = head.metadata.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(
            f"{head.path.name} stretches positions by '{one_line(scaling)}', which VRAMancer cannot read as GGUF yet.",
            hint=USE_SAFETENSORS,
        )


def _rope_factors(heads: Sequence[GgufHead]) -> list[torch.Tensor]:
    """What the model divides the rotary frequencies by, if it does."""
    named = {_ROPE_FACTORS: _ROPE_FACTORS}
    return [tensor.read() for head in heads for tensor in tensors_in(head, {}, named)]


def _rope_scaling(heads: Sequence[GgufHead]) -> dict[str, Any]:
    """Read off the factors."""
    factors = _rope_factors(heads)
    return {"rope_scaling": {**_LLAMA3_ROPE, "factor": float(factors[0].max())}} if factors else {}


def _refuse_other_rope(heads: Sequence[GgufHead], config: transformers.PretrainedConfig) -> None:
    """Whether transformers computes from the config what the file says."""
    for stored in _rope_factors(heads):
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        head_dim: Any = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        base: Any = getattr(config, "rope_parameters", {}).get("rope_theta")
        plain = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        factors = stored.float()
        if factors.shape != plain.shape or not torch.allclose(plain / factors, frequencies, rtol=1e-4):
            raise ModelError(
                f"{heads[0].path.name} stretches positions in a way that VRAMancer cannot read as GGUF yet.",
                hint=USE_SAFETENSORS,
            )


# --- names ------------------------------------------------------------------------------------------------------------


def _names(folder: Path, heads: Sequence[GgufHead], config: dict[str, Any]) -> dict[str, str]:
    """Name in the files -> name in transformers, for every tensor."""
    head = heads[0]
    own = {entry.name: entry.name for part in heads for entry in part.entries}
    stored = {tensor.name: tensor for part in heads for tensor in tensors_in(part, config, own)}
    checkpoint = Checkpoint(folder, config, dict(stored), "")
    model = architecture.build(checkpoint, torch.float32)
    _refuse_other_rope(heads, model.config)
    _refuse_unsaid_scale(head, model.config)
    kind = head.metadata["general.architecture"]
    known = get_gguf_hf_weights_map(model, TensorProcessor(config=config), model_type=kind)
    strange = own.keys() - known.keys() - {_ROPE_FACTORS}
    if strange:
        raise ModelError(
            f"{head.path.name} holds '{one_line(min(strange))}', for which '{config['model_type']}' has no place.",
            hint=USE_SAFETENSORS,
        )
    return {name: known[name] for name in own if name in known}


def _refuse_unsaid_scale(head: GgufHead, config: transformers.PretrainedConfig) -> None:
    """Some families scale queries by a number that the file does not hold: mostly, but not always, by head size."""
    scalar: Any = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != getattr(config, "head_dim", None):
        raise ModelError(
            f"{head.path.name} does not say how this size of '{config.model_type}' scales its attention.",
            hint=USE_SAFETENSORS,
        )


# --- tokenizer --------------------------------------------------------------------------------------------------------


def _write_tokenizer(folder: Path, path: Path) -> None:
    try:
        kind, parts, settings = get_gguf_tokenizer(str(path))
        tokenizer, _ = convert_gguf_tokenizer(kind, parts)
        if parts.get("pre_tokenizer_type") in _WHOLE_WORDS:
            tokenizer.model.ignore_merges = True
            settings.setdefault("add_bos_token", True)
        ends = {name: settings[f"{name}_token"] for name in ("bos", "eos") if settings.pop(f"add_{name}_token", False)}
        if any(ends.values()):
            tokenizer.post_processor = _with_ends(tokenizer, **ends)
        tokenizer.save(str(folder / TOKENIZER_NAME))
    except Exception as error:  # whatever transformers makes of a stranger's vocabulary
        raise ModelError(f"The tokenizer in {path.name} cannot be read: {one_line(error)}.") from error
    settings = {name: value for name, value in settings.items() if value is not None}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})


def _with_ends(tokenizer: Tokenizer, bos: str | None = None, eos: str | None = None) -> TemplateProcessing:
    """What llama.cpp puts around every text by itself. Raises ValueError for a token that is not there."""
    one = [part for part in (bos, "$A", eos) if part]
    two = [part for part in (bos, "$A", eos, bos, "$B:1", eos) if part]
    tokens = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token]
    return TemplateProcessing(single=one, pair=two, special_tokens=tokens)
