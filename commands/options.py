"""Every option of every verb, once: its flag, its VRM_* variable, its default and its sentence.

The one place that reads flags, the environment and the config file (flag > variable > file > default, by click's own
`envvar` and `default_map`). A group of options is a frozen dataclass; `@spread` writes its options into a verb's
signature, and the hidden --config, and hands the verb the group.
"""

from __future__ import annotations

import functools
import inspect
import platform
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from commands import config_file, setting_sources
from commands.terminal import notes
from vramancer_cli.errors import UsageError
from vramancer_cli.serving.exposure import check_start
from vramancer_cli.settings import (
    API_PORT,
    LOOPBACK,
    NODE_PORT,
    Activations,
    Dtype,
    KvCache,
    NodeSettings,
    Quantize,
    Role,
    parse_context,
    parse_device,
    parse_draft,
    parse_node_name,
    parse_port,
    parse_rate,
    parse_size,
)

Result = TypeVar("Result")


def option(
    flag: str,
    words: str,
    *,
    metavar: str = "",
    unset: str | None = None,
    parser: Callable[[Any], Any] | None = None,
    **more: Any,
) -> Any:
    """One option. `unset` describes the default where the value itself would say nothing."""
    shown: dict[str, Any] = {} if unset is None else {"show_default": unset}
    if parser is not None:
        shown["parser"] = _named(parser)
    return typer.Option(flag, help=words, metavar=metavar, show_envvar=False, **shown, **more)


def _named(parser: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`parser` with its complaint as a ValueError, to which typer adds the option's name."""

    def parse(value: Any) -> Any:
        try:
            return parser(value)
        except UsageError as error:
            raise ValueError(f"{error} {error.hint}") from error

    return parse


def _each(parser: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """For an option that may be given several times: in a variable or a file its values stand apart by commas."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(parser(part) for part in text.split(","))

    return functools.update_wrapper(parse, parser)


def setting(flag: str, words: str, **more: Any) -> Any:
    """An option that the environment may set too: --node-port is VRM_NODE_PORT."""
    return option(flag, words, envvar="VRM_" + flag.removeprefix("--").replace("-", "_").upper(), **more)


Model = Annotated[
    str | None, setting("--model", "The model to serve.", metavar="ID|FOLDER|GGUF", unset="the built-in one")
]
Code = Annotated[str | None, setting("--code", "The pairing code that the master shows.", metavar="CODE")]
Json = Annotated[bool, option("--json", "Write JSON to stdout.")]
Detach = Annotated[bool, option("--detach", "Run in the background, and return when it answers.")]
StateDir = Annotated[
    Path,
    setting("--state-dir", "Where the node's identity is kept.", metavar="FOLDER", unset="your application folder"),
]
ApiToken = Annotated[str | None, setting("--api-token", "The API's bearer token.", hidden=True)]

DEFAULT_STATE_FOLDER = Path(typer.get_app_dir("vramancer"))


def _this_machine() -> str:
    return platform.node().split(".")[0][:40] or "node"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFlags:
    """What `start` and `join` have in common."""

    host: Annotated[str, setting("--host", "Where the API listens.", metavar="ADDRESS")] = LOOPBACK
    port: Annotated[int, setting("--port", "Port of API and page; 0: any free.", metavar="PORT", parser=parse_port)] = (
        API_PORT
    )
    node_port: Annotated[
        int, setting("--node-port", "Port for the other nodes; 0: any free.", metavar="PORT", parser=parse_port)
    ] = NODE_PORT
    name: Annotated[
        str,
        setting("--name", "What people call this node.", metavar="NAME", unset="the machine's", parser=parse_node_name),
    ] = _this_machine()
    device: Annotated[
        list[Any],
        setting(
            "--device",
            "auto (every GPU), cuda:N, mps, xpu or cpu; again for another.",
            metavar="DEVICE",
            unset="auto",
            parser=_each(parse_device),
        ),
    ] = field(default_factory=list[Any])
    memory: Annotated[
        list[Any],
        setting(
            "--memory",
            "The most a device may use: 6GiB; again for the next device.",
            metavar="SIZE",
            unset="what is free",
            parser=_each(parse_size),
        ),
    ] = field(default_factory=list[Any])
    dtype: Annotated[Dtype, setting("--dtype", "auto, float32, bfloat16 or float16.", metavar="TYPE")] = "auto"
    quantize: Annotated[
        Quantize,
        setting("--quantize", "Hold layers in int8, int4 (int4-64, int4-128) or none.", metavar="FORMAT"),
    ] = "auto"
    kv_cache: Annotated[
        KvCache, setting("--kv-cache", "plain, or int8: keys and values in about half the memory.", metavar="FORMAT")
    ] = "plain"
    activations: Annotated[
        Activations,
        setting("--activations", "On links: plain, int8, int4 or auto (int8 on slow ones).", metavar="FORMAT"),
    ] = "auto"
    context: Annotated[
        int | None,
        setting(
            "--context", "Longest prompt plus answer.", metavar="TOKENS", unset="from the model", parser=parse_context
        ),
    ] = None
    no_prefix_cache: Annotated[
        bool, setting("--no-prefix-cache", "Compute every prompt anew; the master's choice counts.")
    ] = False
    draft: Annotated[
        int | None,
        setting(
            "--draft", "Tokens to guess ahead: auto, off, or a number.", metavar="N", unset="auto", parser=parse_draft
        ),
    ] = None
    state_dir: StateDir = DEFAULT_STATE_FOLDER
    log_json: Annotated[bool, setting("--log-json", "Log lines as JSON.", hidden=True)] = False
    api_token: ApiToken = None
    rate_limit: Annotated[
        int | None,
        setting(
            "--rate-limit", "API requests a minute; 0: any.", metavar="N", unset="600, off loopback", parser=parse_rate
        ),
    ] = None
    cors_origin: Annotated[
        str | None, setting("--cors-origin", "Sites whose pages may use the API.", metavar="URL,URL", unset="none")
    ] = None
    allow_lan_http: Annotated[
        bool, setting("--allow-lan-http", "Let keys and texts cross the network in the clear.")
    ] = False
    production: Annotated[bool, setting("--production", "Refuse every relaxation of the API.", hidden=True)] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiFlags:
    """How a verb that asks a running node finds it."""

    url: Annotated[str | None, setting("--url", "The node to ask.", metavar="URL", unset="the one that runs here")] = (
        None
    )
    state_dir: StateDir = DEFAULT_STATE_FOLDER
    api_token: ApiToken = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeFlags:
    """Where the one-file program keeps its unpacked runtime, and where a build without one fetches it."""

    cache_dir: Annotated[
        Path | None, setting("--cache-dir", "Where the runtime lies.", metavar="FOLDER", hidden=True)
    ] = None
    runtime_url: Annotated[str | None, setting("--runtime-url", "Where to fetch it.", metavar="URL", hidden=True)] = (
        None
    )


_GROUPS = (NodeFlags, ApiFlags, RuntimeFlags)


def node_settings(
    invocation: typer.Context,
    flags: NodeFlags,
    *,
    role: Role,
    model: str | None = None,
    head: str | None = None,
    cache: Path | None = None,
) -> NodeSettings:
    """Raises UsageError for an API that would be more open than it may be: now, not after torch is loaded."""
    settings = NodeSettings(
        role=role,
        model=model,
        host=flags.host,
        port=flags.port,
        port_given=is_given(invocation, "port"),
        node_port=flags.node_port,
        node_port_given=is_given(invocation, "node_port"),
        name=flags.name,
        devices=tuple(chain.from_iterable(flags.device)) or ("auto",),
        memory_bytes=tuple(chain.from_iterable(flags.memory)),
        dtype=flags.dtype,
        context_tokens=flags.context,
        state_folder=state_folder(flags.state_dir),
        api_token=flags.api_token,
        log_json=flags.log_json,
        head=head,
        cors_origin=flags.cors_origin,
        allow_lan_http=flags.allow_lan_http,
        production=flags.production,
        rate_limit=flags.rate_limit,
        cache_folder=cache,
        quantize=flags.quantize,
        kv_cache=flags.kv_cache,
        activations=flags.activations,
        prefix_cache=not flags.no_prefix_cache,
        draft=flags.draft,
    )
    for warning in check_start(settings):
        notes().print(f"warning: {warning}", markup=False, soft_wrap=True)
    return settings


def state_folder(typed: Path) -> Path:
    """The folder as an absolute path, the same from wherever it is looked at."""
    return typed.expanduser().absolute()


def is_given(invocation: typer.Context, name: str) -> bool:
    """Whether a person chose this value, by flag, by environment or in the config file."""
    source = invocation.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _read_config(context: typer.Context, named: Path | None) -> config_file.ConfigFile | None:
    """What the eager --config does: after --help, which therefore needs no file, and before every other option."""
    if context.resilient_parsing:  # only completing words
        return None
    found = config_file.load(named, DEFAULT_STATE_FOLDER, setting_sources.lasting(context))
    context.default_map = setting_sources.by_parameter(found.values, context.command.params)
    return found


_CONFIG: Final = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        setting("--config", "The config file.", metavar="FILE", hidden=True, is_eager=True, callback=_read_config),
    ],
)


def spread(verb: Callable[..., Result]) -> Callable[..., Result]:
    """Replaces each parameter of `verb` that is a group by the group's options, gathered again when it is called.

    Adds --config, whose value (a ConfigFile) stays in the context's `params`.
    """
    signature = inspect.signature(verb, eval_str=True)
    groups = {name: p.annotation for name, p in signature.parameters.items() if p.annotation in _GROUPS}

    @functools.wraps(verb)
    def gathered(**values: Any) -> Result:
        values.pop(_CONFIG.name, None)
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        return verb(**values)

    parameters = [
        option
        for name, parameter in signature.parameters.items()
        for option in (_options_of(groups[name]) if name in groups else [_by_name(parameter)])
    ] + [_CONFIG]
    gathered.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    gathered.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return gathered


def _options_of(group: type[Any]) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default_of(field),
            annotation=types[field.name],
        )
        for field in fields(group)
    ]


def _default_of(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _by_name(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
