"""What identifies a result: digests of the code, of folders of data, and of everything that a model is made from."""

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from training_core.bundle import canonical_json

_CHUNK_BYTES = 1 << 20


def code_digest(modules: Iterable[str], *, extra: Mapping[str, Any]) -> str:
    """A digest of the source files of `modules` (packages with all below them), torch's version and `extra`.

    Raises:
        ValueError: when a module does not exist.
    """
    sources = {name: _source_digest(name) for name in sorted(set(modules))}
    torch_version = version("torch").split("+")[0]  # the build (CPU, CUDA) does not change the method
    return hashlib.sha256(
        canonical_json({"sources": sources, "torch": torch_version, "extra": dict(extra)})
    ).hexdigest()[:16]


def inputs_digest(code_version: str, config: BaseModel, digests: Mapping[str, str]) -> str:
    """A digest of everything an asset is made from: code, configuration and the digests of its inputs.

    An asset whose latest materialization carries the same value as `forge/inputs` is fresh.
    """
    content = {
        "code": code_version,
        "config": config.model_dump(mode="json"),
        "inputs": dict(digests),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def digest_folder(folder: Path) -> str:
    """SHA-256 over the sorted relative names and the contents of every file below `folder`.

    Raises:
        ValueError: for a link or another thing that is not a regular file.
    """
    hasher = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is not a regular file: data folders hold files and folders only")
        if path.is_dir():
            continue
        name = path.relative_to(folder).as_posix().encode()
        hasher.update(len(name).to_bytes(8, "little") + name + path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while block := file.read(_CHUNK_BYTES):
                hasher.update(block)
    return hasher.hexdigest()


@cache
def _source_digest(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(f"no source for module {module!r}: name a module or package that exists")
    origin = Path(spec.origin)
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    hasher = hashlib.sha256()
    for file in files:
        name, content = file.relative_to(origin.parent).as_posix().encode(), file.read_bytes()
        hasher.update(len(name).to_bytes(8, "little") + name + len(content).to_bytes(8, "little") + content)
    return hasher.hexdigest()
