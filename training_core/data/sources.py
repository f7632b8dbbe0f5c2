"""Where the text of a corpus comes from: files, a package or a dataset hub, and the identity of what is there."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from training_core.data.documents import CorpusConfig, CorpusError
from training_core.data.packages import file_sha256
from training_core.data.paths import expanded

HUB_TIMEOUT_S = 20
_COMMIT = re.compile("[0-9a-f]{40}")


def sources(config: CorpusConfig) -> dict[str, str]:
    """Return the identity of everything outside the forge that the corpus is read from, by its name.

    files: absolute path -> "size:SHA-256" of every file that matches now; package: name==version -> SHA-256 of the
    wheel; hub: dataset name -> commit, or the folder's absolute path -> digest of its files' names, sizes and contents.

    Raises:
        CorpusError: when no file matches, a file cannot be read, or the hub cannot be asked.
    """
    if config.source == "package":
        return {config.package: config.package_sha256}
    if config.source == "files":
        return {str(path.absolute()): _file_identity(path) for path in expand_paths(config.paths)}
    if (folder := dataset_folder(config)) is not None:
        return {str(folder): _folder_identity(folder)}
    return {config.hub_dataset: hub_commit(config)}


def expand_paths(patterns: Iterable[str]) -> list[Path]:
    """Return the sorted distinct files that the paths and globs name. A file of exactly that name comes before a glob.

    Raises:
        CorpusError: when a pattern matches no file.
    """
    matched: dict[Path, Path] = {}
    for pattern in patterns:
        literal = expanded(pattern)
        if literal.is_file():
            files = [literal]
        else:
            files = [path for path in map(Path, glob.iglob(str(literal), recursive=True)) if path.is_file()]
        if not files:
            raise CorpusError(
                f"{pattern!r} is a folder: name the files in it, for instance '{pattern.rstrip('/')}/**/*.jsonl'"
                if literal.is_dir()
                else f"no file matches {pattern!r} (looked for {str(literal.absolute())!r}): give an existing file, or "
                "a glob that matches some"
            )
        for path in files:
            matched.setdefault(path.resolve(), path)
    return sorted(matched.values())


def dataset_folder(config: CorpusConfig) -> Path | None:
    """Return the absolute path of the local folder that `hub_dataset` names, or None for a dataset of the hub."""
    folder = expanded(config.hub_dataset)
    return folder.absolute() if folder.is_dir() else None


def hub_commit(config: CorpusConfig) -> str:
    """Return the commit of the hub's dataset that `hub_revision` names now (empty: the latest).

    Raises:
        CorpusError: when the hub cannot be reached, or has no such dataset or revision.
    """
    if _COMMIT.fullmatch(config.hub_revision):
        return config.hub_revision
    try:
        import huggingface_hub
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of its HTTP library
    except ModuleNotFoundError as error:
        raise CorpusError("source = hub needs the optional extra: pip install 'agent-forge[hub]'") from error
    try:
        info = huggingface_hub.HfApi().dataset_info(
            config.hub_dataset, revision=config.hub_revision or None, timeout=HUB_TIMEOUT_S
        )
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorpusError(
            f"the revision {config.hub_revision or 'main'!r} of the dataset {config.hub_dataset!r} cannot be found "
            f"({reason}); check the name, hub_revision and the network, set hub_revision to a full commit, or name a "
            "local dataset folder"
        ) from error
    if not info.sha:
        raise CorpusError(f"the hub names no commit for the dataset {config.hub_dataset!r}; set hub_revision to one")
    return str(info.sha)


def _file_identity(path: Path) -> str:
    try:
        return f"{path.stat().st_size}:{file_sha256(path)}"
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error


def _folder_identity(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise CorpusError(f"the dataset folder {folder} holds no file")
    lines = (f"{path.relative_to(folder).as_posix()}\0{_file_identity(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
