"""Which families declare that they can be split, as transformers has it, and whether their modelling code is here.

Whether a model really can be split is found when it is loaded, by a dry run; docs/families.md has what came of that for
every family. Some that declare nothing can be split too.

Families are found by their config classes, which are small; no modelling file is opened for that. Knows no family by
name. Must never build a model or read a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vramancer_cli.errors import VramancerError

_MODEL_CLASSES: dict[str, Any] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Name of the causal language model's class, by family (`model_type`)."""


WHOLE_ONLY: Final[Mapping[str, tuple[str, str]]] = {
    "hrm_text": ("", "it inherits a plan for one list of layers, and has two that run in turns"),
    "doge": (
        "is_moe",
        "its experts are chosen by several tokens of a prompt together, so that chunks change the answer",
    ),
}
"""What is declared and does not hold: family -> the field of its config that makes it so ("": always), and why."""


class FamilyError(VramancerError):
    """The modelling code of a family cannot be imported."""

    hint = "Install VRAMancer again."


def supported_families() -> tuple[str, ...]:
    """Those of `declared_families` that can be split. Raises FamilyError as that does."""
    return tuple(family for family in declared_families() if WHOLE_ONLY.get(family, ("no",))[0])


def why_whole(config: PretrainedConfig) -> str:
    """Why a model with this config cannot be split, although its family declares a plan; "" where nothing says so."""
    field, reason = WHOLE_ONLY.get(config.model_type, ("", ""))
    return reason if field and getattr(config, field, False) else ""


def declared_families() -> tuple[str, ...]:
    """The `model_type` of every family that declares how it is cut into layers, sorted.

    That is each one with a causal language model whose config declares a pipeline plan (`base_model_pp_plan`), or
    whose text part does where the model is that of its text part alone. Raises FamilyError where a config class
    cannot be imported.
    """
    return tuple(sorted(family for family in _MODEL_CLASSES if _is_declared(family)))


def import_modelling(family: str) -> type[PreTrainedModel]:
    """The class of the family's causal language model. Raises FamilyError, with the first cause in its sentence."""
    if family not in _MODEL_CLASSES:
        raise FamilyError(f"transformers has no causal language model of the family '{family}'.")
    try:
        model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]]
    except Exception as error:  # whatever a module's own code raises while it is imported
        raise FamilyError(f"The modelling code of '{family}' cannot be imported: {_cause(error)}") from error
    if not (isinstance(model, type) and issubclass(model, PreTrainedModel)):
        # What transformers puts in the place of a class when a library that it needs is missing.
        raise FamilyError(f"The modelling code of '{family}' needs a library that is not installed.")
    return model


def _is_declared(family: str) -> bool:
    config: Any = _config_class(family)
    if _declares_plan(config):
        return True
    text = config.sub_configs.get("text_config")
    # The same class for both: transformers then builds it from the text config by itself (AutoModel.from_config).
    return text is not None and _declares_plan(text) and _MODEL_CLASSES.get(text.model_type) == _MODEL_CLASSES[family]


def _config_class(family: str) -> type[PretrainedConfig]:
    try:
        return CONFIG_MAPPING[family]
    except Exception as error:  # whatever a module's own code raises while it is imported
        raise FamilyError(f"The config class of '{family}' cannot be imported: {_cause(error)}") from error


def _declares_plan(config: Any) -> bool:
    return bool(getattr(config, "base_model_pp_plan", None))


def _cause(error: BaseException) -> str:
    """The error that started it, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
