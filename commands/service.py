"""`vramancer service`: let the system itself run the node, at every login. Never imports torch or transport."""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from commands import options
from commands.background import own_command
from commands.config_file import FILE_NAMES, is_secret
from commands.local_node import refuse_second
from commands.setting_sources import key_of
from commands.terminal import notes, out, write_json
from vramancer_cli.errors import UsageError
from vramancer_cli.service import installation
from vramancer_cli.service.contracts import Account, ServiceState, ServiceSystem, SystemName
from vramancer_cli.service.systems import system_here, system_named

EXAMPLES: Final = """[bold]Examples[/]

  vramancer service install --master --model ./Llama-3.2-1B --memory 6GiB
  vramancer service install             as what this machine was before
  vramancer service install --dry-run   shows the file and the commands
  vramancer service status
  vramancer service remove

What stands after 'install' is for 'vramancer start': see its --help. VRM_*
variables stay behind; a token belongs in the config file, not here."""

NOT_RUNNING: Final = 3
IDENTITY_FILES: Final = ("authority.pem", "credentials.json")
"""What a state folder holds once its machine belongs to a cluster, as runtime/state_folder names it."""

app = typer.Typer(
    name="service",
    help="Let the system run the node at every login.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    invoke_without_command=True,
)


@dataclass(frozen=True, slots=True)
class _Start:
    """A checked `start`: its flags with whole paths, and what they mean."""

    arguments: list[str]
    master: bool
    has_model: bool
    state_folder: Path


@app.callback()
def service(invocation: typer.Context) -> None:
    """Let the system run the node at every login: systemd, launchd, or Windows' Task Scheduler."""
    if invocation.invoked_subcommand is None:
        typer.echo(invocation.get_help())


@app.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": True})
def install(
    invocation: typer.Context,
    *,
    rest: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTIONS OF START]", help="As 'vramancer start' takes them.")
    ] = None,
    dry_run: Annotated[bool, options.option("--dry-run", "Show the file and the commands, change nothing.")] = False,
    system: Annotated[
        SystemName | None,
        options.option("--system", "With --dry-run: of another system.", metavar="NAME", unset="this machine's"),
    ] = None,
) -> None:
    """Run the node now and at every login, and again when it fails.

    An older service is replaced.
    """
    if system is not None and not dry_run:
        raise UsageError("--system only goes with --dry-run.", hint="A service is installed where it is to run.")
    wanted = _checked_start(invocation, rest or [])
    command = own_command(["start", *wanted.arguments])
    chosen = _system(system or system_here())
    if dry_run:
        _show_plan(chosen, command)
        return
    _refuse_what_would_fail(chosen, wanted)
    installation.install(chosen, command)
    _tell(chosen, command)


@app.command(epilog=EXAMPLES)
def status(*, as_json: options.Json = False) -> None:
    """Show whether the service is installed, starts at login, and runs. Exits with 3 when it does not run."""
    system = _system(system_here())
    found = installation.state(system)
    if as_json:
        write_json({"system": system.name, **asdict(found), "file": str(system.file), "log": system.log_command})
    elif found.installed:
        _show_state(system, found)
    else:
        _line("No service is installed here. Install one: vramancer service install")
    if not found.running:
        raise typer.Exit(NOT_RUNNING)


@app.command(epilog=EXAMPLES)
def remove() -> None:
    """Stop the node that the system runs, and install it no more. The node's identity is kept."""
    system = _system(system_here())
    if installation.remove(system):
        _line(f"Stopped and removed: {system.file}")
    else:
        _line("No service is installed here: nothing to remove.")


def _system(name: SystemName) -> ServiceSystem:
    from platformdirs.unix import Unix  # it honours XDG_CONFIG_HOME

    user_id = getattr(os, "getuid", lambda: 0)()
    return system_named(
        name,
        Account(
            name=_user_name(name),
            user_id=user_id,
            home=Path.home(),
            config=Unix().user_config_path,
            application=options.DEFAULT_STATE_FOLDER,
        ),
    )


def _user_name(name: SystemName) -> str:
    """As Windows writes it, with the domain; the other systems do not ask."""
    here = name == system_here() == "windows"
    return (installation.run(("whoami",)).out.strip() if here else "") or Path.home().name


# --- what stands after `install` ------------------------------------------------------------------------------------


def _checked_start(invocation: typer.Context, rest: Sequence[str]) -> _Start:
    """`rest` read as `start` would read it in the service: with the config file, without the variables of this shell.

    Raises what `start` raises for a wrong command line, and UsageError for what makes no sense in a service.
    """
    command = _without_variables(_start_command(invocation))
    with command.make_context("start", list(rest), parent=invocation.find_root()) as context:
        flags = options.NodeFlags(**{field.name: context.params[field.name] for field in fields(options.NodeFlags)})
        options.node_settings(context, flags, role="head", model=context.params["model"])
    _refuse_secrets(context, command.params)
    _mention_variables(invocation)
    typed, _, _ = command.make_parser(context).parse_args(list(rest))
    return _Start(
        [word for p in command.params if _is_typed(context, p) for word in _written(context, p, typed[p.name])],
        master=context.params["master"],
        has_model=context.params["model"] is not None,
        state_folder=options.state_folder(flags.state_dir),
    )


def _start_command(invocation: typer.Context) -> Any:
    return invocation.find_root().command.commands["start"]  # pyright: ignore[reportAttributeAccessIssue]


def _without_variables(command: Any) -> Any:
    """The same command, deaf to the environment: a service is not started out of this shell."""
    deaf = copy.copy(command)
    deaf.params = [copy.copy(parameter) for parameter in command.params]
    for parameter in deaf.params:
        parameter.resolve_envvar_value = lambda _context: None
    return deaf


def _is_typed(context: typer.Context, parameter: Any) -> bool:
    source = context.get_parameter_source(parameter.name)
    return source is not None and source.name == "COMMANDLINE" and parameter.name != "detach"


def _refuse_secrets(context: typer.Context, parameters: Sequence[Any]) -> None:
    for parameter in parameters:
        key = key_of(parameter)
        if is_secret(key) and _is_typed(context, parameter):
            file = options.DEFAULT_STATE_FOLDER / FILE_NAMES[0]
            raise UsageError(
                f"--{key} has no place in a service: every user of this machine can read its command line.",
                hint=f"Write it into {file}, readable only by you (chmod 600).",
            )


def _mention_variables(invocation: typer.Context) -> None:
    start = _start_command(invocation)
    set_here = sorted(p.envvar for p in start.params if p.envvar and p.resolve_envvar_value(invocation) is not None)
    if set_here:
        line = f"Set here, but not for the service: {', '.join(set_here)}. It gets only flags and the config file."
        notes().print(line, markup=False, soft_wrap=True)


def _written(context: typer.Context, parameter: Any, typed: Any) -> list[str]:
    """One option as words of a command line, with a path that is right from every folder."""
    flag = parameter.opts[0]
    if parameter.is_flag:
        return [flag]
    if parameter.name == "model":
        return [flag, _model(typed)]
    if parameter.multiple:
        return [word for value in typed for word in (flag, value)]
    is_path = parameter.name == "config" or isinstance(context.params[parameter.name], Path)
    return [flag, str(options.state_folder(Path(typed))) if is_path else typed]


def _model(typed: str) -> str:
    """A folder or a GGUF file as a whole path, a name of the hub as it is. Raises UsageError for what is not there."""
    folder = Path(typed).expanduser()
    if folder.is_dir() or folder.is_file():
        return str(folder.absolute())
    if typed.startswith((".", "~")) or folder.is_absolute():
        raise UsageError(f"There is no folder '{typed}'.", hint="Name a folder with a model, or one on the hub.")
    return typed


def _refuse_what_would_fail(system: ServiceSystem, wanted: _Start) -> None:
    """A service that ends at once is worse than none. Raises UsageError, AlreadyRunningError, ServiceError."""
    is_head, is_node = ((wanted.state_folder / name).exists() for name in IDENTITY_FILES)
    if not wanted.master and not is_head and not is_node:
        raise UsageError(
            "This machine belongs to no cluster yet.",
            hint="Found one with --master after 'install', or join one with 'vramancer join' first.",
        )
    if is_node and not is_head and (wanted.master or wanted.has_model):
        raise UsageError("This machine is a worker of a cluster.", hint="Leave out --master and --model here.")
    if not installation.state(system).running:
        refuse_second(wanted.state_folder)


# --- what is shown --------------------------------------------------------------------------------------------------


def _show_plan(system: ServiceSystem, command: Sequence[str]) -> None:
    text = system.render(command)
    typer.echo(f"# {system.file}\n{text}\n# then")
    for step in system.install:
        if step.outcome != "until_gone":
            _line(_words(system, step.argv))


def _tell(system: ServiceSystem, command: Sequence[str]) -> None:
    _line(f"Installed and started: {system.file}")
    _line(f"  runs  {_words(system, command)}")
    _line("  look  vramancer service status")
    _line(f"  log   {system.log_command}")
    _line("  end   vramancer service remove")
    _line(system.when)


def _show_state(system: ServiceSystem, found: ServiceState) -> None:
    pid = f", pid {found.pid}" if found.pid else ""
    _line(f"{'Running' if found.running else 'Not running'}: {system.name} says {found.detail}{pid}")
    _line(f"  at login  {'yes' if found.enabled else 'no'}")
    _line(f"  file      {system.file}")
    _line(f"  log       {system.log_command}")


def _words(system: ServiceSystem, argv: Sequence[str]) -> str:
    return subprocess.list2cmdline(argv) if system.name == "windows" else shlex.join(argv)


def _line(text: str) -> None:
    out().print(text, markup=False, soft_wrap=True)
