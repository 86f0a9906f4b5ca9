"""`vramancer start`: run a node here, as the master of a new cluster or as what it was before.

Never imports torch or transport at module level: `node` is imported once everything that can be refused was.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from commands import background, options
from commands.download_bar import DownloadBar
from commands.enter_runtime import cache_folder, enter_runtime
from commands.local_node import open_folder, refuse_second
from commands.ready_card import ready_card
from commands.terminal import interruptible, out, waiting
from vramancer_cli.errors import UsageError
from vramancer_cli.settings import NodeSettings, Role

if TYPE_CHECKING:
    from vramancer_cli.node import NodeReady
    from vramancer_cli.runtime.state_folder import StateFolder

EXAMPLES = """[bold]Examples[/]

  vramancer start --master
  vramancer start --master --model ./Llama-3.2-1B --memory 6GiB
  vramancer start --detach       as what this machine was before

Every setting can come from the environment: --port is VRM_PORT. Two more:
VRM_API_TOKEN (needed with --host 0.0.0.0) and VRM_LOG_JSON=1."""


@options.spread
def start(
    invocation: typer.Context,
    *,
    master: Annotated[bool, options.option("--master", "Found a cluster here, and let others join.")] = False,
    model: options.Model = None,
    detach: options.Detach = False,
    flags: options.NodeFlags,
    runtime: options.RuntimeFlags,
) -> None:
    """Run a node on this machine.

    With --master it founds a cluster (once) and serves the model.
    Without, it goes on as what it was before.
    """
    enter_runtime(runtime)
    folder = options.state_folder(flags.state_dir)
    role: Role = "head" if master else _role_before(open_folder(folder))
    if role == "worker" and model:
        raise UsageError("A worker holds the model that its master serves.", hint="Leave out --model here.")
    settings = options.node_settings(invocation, flags, role=role, model=model, cache=cache_folder(runtime))
    refuse_second(folder)
    if master:
        _found(settings)
    if detach:
        background.start_and_tell(folder, sys.argv[1:])
    else:
        run_node(settings)


def _role_before(folder: StateFolder) -> Role:
    """Raises UsageError where the folder belongs to no cluster."""
    if folder.authority() is not None:
        return "head"
    if folder.credentials() is not None:
        return "worker"
    from vramancer_cli.runtime import enrolment

    enrolment.refuse_removed(folder)
    raise UsageError(
        "This machine belongs to no cluster yet.",
        hint="Found one with 'vramancer start --master', or join one with 'vramancer join'.",
    )


def _found(settings: NodeSettings) -> None:
    """The cluster, before torch is loaded: a worker's folder is refused at once. Later starts find the same one."""
    from vramancer_cli.runtime import enrolment

    enrolment.found_cluster(settings.name, open_folder(settings.state_folder), time.time())


def run_node(settings: NodeSettings) -> None:
    """Runs until Ctrl-C or SIGTERM."""
    with waiting("loading torch…"), interruptible():
        from vramancer_cli import node
    with DownloadBar() as bar:
        node.run(settings, _tell, bar.show)


def _tell(ready: NodeReady) -> None:
    out().print(ready_card(ready), soft_wrap=True)
    sys.stdout.flush()
