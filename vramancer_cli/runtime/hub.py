"""Models from the hub, through huggingface_hub: which files are needed, how they come, and whether they are right.

They lie in the hub's own cache, where other programs find them too. What a repository may bring is judged by its
listing and its small files, before a byte of weights is fetched. Blocking. Never torch; nothing is ever run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vramancer_cli.errors import ModelError
from vramancer_cli.models import folder as model_folder
from vramancer_cli.models.folder import one_line
from vramancer_cli.models.weight_files import INDEX_NAME, MAX_FILES, SINGLE_NAME, indexed_names, no_weights
from vramancer_cli.runtime.hub_blobs import Blob, Verified, damaged_in, download

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Progress = Callable[[str, int, int], None]
"""(what is fetched, bytes done, bytes in all), called on the fetching thread."""

_LISTING_DEADLINE_S: Final = 20.0
_TEMPLATES_FOLDER: Final = "additional_chat_templates"


class UnreachableHubError(ModelError):
    """The hub does not answer."""

    hint = "Check the network and start again: what has come is kept. Or give a folder that holds the model."


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the hub: `org/name`, or `org/name@revision`."""

    repository: str
    revision: str

    @classmethod
    def of(cls, location: str) -> HubName:
        repository, _, revision = location.partition("@")
        return cls(repository, revision or "main")

    def __str__(self) -> str:
        return self.repository if self.revision == "main" else f"{self.repository}@{self.revision}"


def fetch(location: str, verified: Verified, progress: Progress) -> Path:
    """The model's folder in the hub's cache, filled with what is missing. Raises ModelError.

    Where the hub does not answer, what lies in the cache must do.
    """
    name = HubName.of(location)
    try:
        with _explained(name):
            return _fetched(name, verified, progress)
    except UnreachableHubError as error:
        return _cached_instead(name, verified, error)


def cached(location: str, verified: Verified) -> Path | None:
    """The model's folder in the hub's cache, if all of it is there and undamaged. Never asks the hub.

    Raises ModelError.
    """
    folder = _snapshot(HubName.of(location))
    return None if folder is None or damaged_in(folder, verified) else folder


def _cached_instead(name: HubName, verified: Verified, error: UnreachableHubError) -> Path:
    folder = _snapshot(name)
    if folder is None:
        raise error
    if damaged := damaged_in(folder, verified):
        raise ModelError(
            f"{damaged[0].name} of '{name}' is damaged: it has not the hash that the hub gave for it.",
            hint="Start with a network once: the file is then fetched again.",
        )
    return folder


def _snapshot(name: HubName) -> Path | None:
    """None where the cache has not all of it. Raises ModelError for an index that is none."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name.repository, revision=name.revision, local_files_only=True))
    except OSError:  # LocalEntryNotFoundError among them
        return None
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    """Whether no weight file is missing, as after a download that was given up."""
    index = folder / INDEX_NAME
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    return all((folder / file).is_file() for file in indexed_names(index))


# --- fetching -------------------------------------------------------------------------------------------------------


def _fetched(name: HubName, verified: Verified, progress: Progress) -> Path:
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    listing = _listing(name)
    _refuse_without_weights(name, listing)
    folder = _small_files(name, listing)
    model_folder.check_folder(folder)
    if damaged := damaged_in(folder, verified):
        for file in damaged:  # a file that is gone is fetched like one that never came
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)
        folder = _small_files(name, listing)
    weights = _weight_names(folder, listing)
    blobs = [_blob(name, listing, file) for file in weights]
    download(name.repository, _commit(listing), blobs, folder, lambda d, a: progress(str(name), d, a))
    verified.note([folder / blob.name for blob in blobs])
    return folder


def _listing(name: HubName) -> ModelInfo:
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True, timeout=_LISTING_DEADLINE_S)
    if not info.sha or len(info.siblings or ()) > MAX_FILES:
        raise ModelError(f"The hub's listing of '{name}' cannot be used.")
    return info


def _commit(listing: ModelInfo) -> str:
    assert listing.sha is not None
    return listing.sha


def _names(listing: ModelInfo) -> list[str]:
    return [sibling.rfilename for sibling in listing.siblings or ()]


def _refuse_without_weights(name: HubName, listing: ModelInfo) -> None:
    names = _names(listing)
    if not any(_is_weights(file) for file in names):
        raise no_weights(f"'{name}'", names)


def _is_weights(file: str) -> bool:
    return file.endswith(".safetensors") and "/" not in file


def _is_small(file: str) -> bool:
    """What the model's reading needs beside weights; JSON and templates are data."""
    parent, _, last = file.rpartition("/")
    if parent:
        return parent == _TEMPLATES_FOLDER and last.endswith(".jinja")
    return last.endswith((".json", ".jinja")) and not last.endswith(".bin.index.json")


def _small_files(name: HubName, listing: ModelInfo) -> Path:
    """Bring them; gives the snapshot's folder. The first one also makes the hub's cache remember the revision."""
    from huggingface_hub import hf_hub_download

    names = _names(listing)
    if "config.json" not in names:
        raise ModelError(f"'{name}' has no config.json.")
    for sibling in listing.siblings or ():
        if _is_small(sibling.rfilename) and (sibling.size or 0) > model_folder.VOCABULARY_MAX_BYTES:
            raise ModelError(f"{one_line(sibling.rfilename)} of '{name}' is too large to be read.")
    folder = Path(hf_hub_download(name.repository, "config.json", revision=name.revision)).parent
    if folder.name != listing.sha:
        raise ModelError(f"'{name}' was changed on the hub just now.", hint="Try again.")
    for file in filter(_is_small, names):
        hf_hub_download(name.repository, file, revision=listing.sha)
    return folder


def _weight_names(folder: Path, listing: ModelInfo) -> list[str]:
    """Those that the index names; without one, the single file; else all. The rest is other forms of the same."""
    names = _names(listing)
    if INDEX_NAME in names:
        indexed = indexed_names(folder / INDEX_NAME)
        if not set(indexed) <= set(filter(_is_weights, names)):
            raise ModelError(f"{INDEX_NAME} names files that the repository does not have.")
        return indexed
    return [SINGLE_NAME] if SINGLE_NAME in names else sorted(filter(_is_weights, names))


def _blob(name: HubName, listing: ModelInfo, file: str) -> Blob:
    sibling = next(sibling for sibling in listing.siblings or () if sibling.rfilename == file)
    if sibling.lfs is None:
        raise ModelError(f"The hub gives no SHA-256 for {one_line(file)} of '{name}'.")
    return Blob(file, sibling.lfs.size, sibling.lfs.sha256)


@contextmanager
def _explained(name: HubName) -> Generator[None]:
    """What may go wrong with the hub, each as its own sentence."""
    import httpx2
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"'{name}' is gated.", hint="Accept its terms on the hub, then log in with 'hf auth login'."
        ) from None
    except (RepositoryNotFoundError, DisabledRepoError):
        raise ModelError(
            f"The hub has no model '{name.repository}'.",
            hint="Check the name, or give a folder. A private one needs 'hf auth login'.",
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"'{name.repository}' has no revision '{name.revision}'.", hint="Name a branch, a tag or a commit."
        ) from None
    except OfflineModeIsEnabled:
        raise UnreachableHubError(
            f"'{name}' is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it.",
            hint="Unset HF_HUB_OFFLINE, or give a folder that holds the model.",
        ) from None
    except (httpx2.HTTPError, HfHubHTTPError) as error:
        raise UnreachableHubError(f"'{name}' could not be fetched from the hub: {_first_line(error)}.") from None
    except OSError as error:
        raise ModelError(f"'{name}' could not be fetched from the hub: {_first_line(error)}.") from None


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).splitlines() or [type(error).__name__]
    return one_line(lines[0])
