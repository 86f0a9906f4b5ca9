"""`make smoke`: the one-file program as a person uses it, on a machine with nothing on it. Linux.

    python -m build_scripts.smoke [FILE] [--quick]

Empty HOME, empty PATH, a TMPDIR of its own, no setting of ours. The first step that fails ends it, with all that
was written during that step. Nothing runs any more afterwards, and no folder stays.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from build_scripts import smoke_steps as steps
from build_scripts import smoke_trouble as trouble
from build_scripts.pseudo_terminal import ScreenError
from build_scripts.smoke_scene import Scene, Step, StepError, scene

FILE: Final = Path(__file__).parents[1] / "dist" / "vramancer-linux"

ALWAYS: Final[Sequence[Step]] = (
    steps.helps,
    steps.tells_its_version,
    steps.misses_the_daemon,
    steps.shows_settings_and_cache,
    steps.starts_a_master,
    steps.unpacked_once,
    steps.second_machine_joins,
    steps.both_are_ready,
    steps.answers_a_question,
    steps.shows_both_nodes,
    steps.invites,
    steps.serves_the_page,
    steps.streams,
)
SLOW: Final[Sequence[Step]] = (steps.passes_its_own_examination,)
END: Final[Sequence[Step]] = (steps.ends_with_ctrl_c, steps.leaves_nothing, trouble.starts_again_at_once)
MORE: Final[Sequence[Step]] = (
    trouble.starts_in_the_background,
    trouble.two_starts_unpack_once,
    trouble.refuses_a_damaged_file,
    trouble.mends_a_damaged_runtime,
    trouble.refuses_an_open_cache,
    trouble.refuses_a_foreign_cache,
    trouble.needs_room,
    trouble.runs_out_of_room,
    trouble.cleans_its_cache,
)


def run_steps(chosen: Sequence[Step], played: Scene) -> bool:
    """Each in turn, a line for each; after the first that fails, what was written during it. Whether all passed."""
    for step in chosen:
        played.log.begin()
        started = time.monotonic()
        words, passed = _attempt(step, played)
        elapsed_s = time.monotonic() - started
        print(f"{'✓' if passed else '✗'} {step.__name__.replace('_', ' '):32} {elapsed_s:6.1f} s  {words}")
        sys.stdout.flush()
        if not passed:
            print(f"\n{played.log.text()}")
            return False
    return True


def _attempt(step: Step, played: Scene) -> tuple[str, bool]:
    try:
        return step(played), True
    except (StepError, ScreenError) as error:
        return str(error).splitlines()[0], False
    except Exception as error:  # an answer that is no JSON, a connection that broke: the program's fault as well
        return f"{type(error).__name__}: {error}", False


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    program: Path = options.file.absolute()
    if not program.is_file():
        print(f"There is no {program}: make binary", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _end)
    chosen = [*ALWAYS, *END] if options.quick else [*ALWAYS, *SLOW, *END, *MORE]
    started = time.monotonic()
    with scene(Path(tempfile.mkdtemp(prefix="vramancer-smoke-")), program) as played:
        passed = run_steps(chosen, played)
    told = f"{len(chosen)} steps in {time.monotonic() - started:.0f} s" if passed else "failed"
    print(f"\n{program.name} ({program.stat().st_size / 1e6:.0f} MB): {told}")
    return 0 if passed else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m build_scripts.smoke", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=FILE, help="the one-file program (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="without doctor, races and damaged files")
    return parser.parse_args(arguments)


def _end(number: int, frame: object) -> NoReturn:
    """SIGTERM cleans up as Ctrl-C does."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
