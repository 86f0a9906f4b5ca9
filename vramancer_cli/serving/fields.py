"""Fields of a request's JSON as checked values. Pure: every error is an InvalidRequestError that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from vramancer_cli.errors import InvalidRequestError

Body = Mapping[str, Any]


def json_object(raw: bytes) -> Body:
    try:
        body = msgspec.json.decode(raw)
    except RecursionError:
        raise InvalidRequestError("The request's JSON is nested too deeply.", code="invalid_json") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The request is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise InvalidRequestError("The request must be a JSON object.", code="invalid_json")
    return cast("dict[str, Any]", body)


def refuse_unsupported(body: Body, unsupported: Mapping[str, tuple[Any, ...]]) -> None:
    """`unsupported`: parameter -> the values that mean "leave it off"; null always does."""
    for name in unsupported.keys() & body.keys():
        if body[name] is not None and not any(_same(body[name], harmless) for harmless in unsupported[name]):
            sentence = f"'{name}' is not supported by this server other than with its default value."
            raise InvalidRequestError(sentence, param=name, code="unsupported_parameter")


def _same(value: Any, harmless: Any) -> bool:
    """Equality in JSON's sense, where true is not 1."""
    return isinstance(value, bool) == isinstance(harmless, bool) and value == harmless


def model_name(body: Body) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise wrong("model", "the name of a model, as /v1/models lists them")
    return model


def number(body: Body, name: str, *, low: float, high: float) -> float | None:
    """None where the request does not name it; as for every function here."""
    value = body.get(name)
    if value is None:
        return None
    if not is_number(value) or not low <= value <= high:
        raise wrong(name, f"a number from {low:g} to {high:g}")
    return float(value)


def integer(body: Body, name: str, *, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not is_integer(value) or not low <= value <= high:
        raise wrong(name, f"a whole number from {low} to {high}")
    return value


def boolean(body: Body, name: str, param: str = "") -> bool:
    """False where the request does not name it."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(param or name, "true or false")
    return bool(value)


def token_ids(values: Any, name: str, expected: str) -> tuple[int, ...]:
    """A list of at least one token id. Raises InvalidRequestError, saying that `name` must be what was `expected`."""
    if not isinstance(values, list) or not values:
        raise wrong(name, expected)
    ids = cast("list[Any]", values)
    if not all(is_integer(value) and value >= 0 for value in ids):
        raise wrong(name, expected)
    return tuple(ids)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def wrong(param: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{param}' must be {expected}.", param=param, code="invalid_value")


def refused(param: str, sentence: str) -> InvalidRequestError:
    """For values that are right by themselves and do not go together with others."""
    return InvalidRequestError(sentence, param=param, code="invalid_value")
