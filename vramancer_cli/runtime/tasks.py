"""Tasks that live and end together: every task of the runtime is owned by one such group.

Knows nothing of what the tasks do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator


@contextlib.asynccontextmanager
async def task_group() -> AsyncGenerator[asyncio.TaskGroup]:
    """An asyncio.TaskGroup whose first error comes out as itself, so that callers can name what they expect.

    The rest were cancelled because of it.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
