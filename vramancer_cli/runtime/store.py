"""Where a node finds a checkpoint: the built-in one, a folder, or the hub's cache (filled through huggingface_hub).

Never imports torch; blocking work runs in threads.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from transport.messages import ModelRef
from transport.types import ModelSource
from vramancer_cli.errors import ModelError
from vramancer_cli.models.catalog import builtin_folder, classify
from vramancer_cli.models.folder import check_folder, check_tokenizer

HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]
"""Never *.bin, *.pt or *.py: a checkpoint is data. And of tokenizers only the form that is read, tokenizer.json."""


async def locate(source: ModelSource, location: str) -> Path:
    """The local folder of a checkpoint, looked through before anything is opened. Raises ModelError.

    Downloads from the hub what is not in its cache.
    """
    if source == "builtin":
        return builtin_folder()
    if source == "folder":
        return await asyncio.to_thread(_folder, location)
    return await asyncio.to_thread(_hub, location)


async def locate_choice(model: str | None) -> tuple[ModelSource, str, Path]:
    """`--model` as the user gave it: its source, location and folder, for the node that reads text.

    Raises ModelError.
    """
    source, location = classify(model)
    folder = await locate(source, location)
    await asyncio.to_thread(check_tokenizer, folder)
    return source, str(folder) if source == "folder" else location, folder


async def locate_ref(ref: ModelRef) -> Path:
    return await locate(ref.source, ref.location)


async def locate_own(ref: ModelRef) -> Path | None:
    """A folder of this machine that may hold the head's model; nothing is fetched. None where there is none."""
    try:
        return await asyncio.to_thread(_own, ref)
    except (ModelError, OSError):
        return None


def _own(ref: ModelRef) -> Path | None:
    if ref.source == "builtin":
        return builtin_folder()
    return _folder(ref.location) if ref.source == "folder" else _hub(ref.location, only_cached=True)


def _folder(location: str) -> Path:
    folder = Path(location).expanduser().resolve()
    check_folder(folder)
    return folder


def _hub(name: str, *, only_cached: bool = False) -> Path:
    # Imported here: only a hub model pays for it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=only_cached))
    except GatedRepoError:
        raise ModelError(
            f"'{name}' is gated.", hint="Accept its terms on the hub, then log in with 'hf auth login'."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"The hub has no model '{name}'.", hint="Check the name, or give a folder.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"'{name}' could not be fetched from the hub: {str(error).splitlines()[0]}",
            hint="Check the network, or give a folder that holds the model.",
        ) from None
    check_folder(folder)
    return folder
