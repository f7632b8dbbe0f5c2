"""Identity of results: digests of the code, of data folders, and of all inputs that a model is made from.

The code of a result is every module of ours that its function reaches by imports, found in the source (`ast`),
including imports inside functions. There is no hand-kept list that could have gaps. Excluded are the modules that judge
a model rather than make it (`JUDGES`): after a change of a threshold a model is judged again, not trained again.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from training_core.store.bundle import canonical_json

_CHUNK_BYTES = 1 << 20


OURS = ("training_core", "forge_resources", "forge_assets")
JUDGES = frozenset({"gates"})  # matched against the last part of a module's name


def code_digest(modules: Iterable[str], *, extra: Mapping[str, Any]) -> str:
    """Return a digest of the source of every module that `modules` reach by imports, torch's version and `extra`.

    Raises:
        ValueError: when a module does not exist.
    """
    sources = {name: _source(name).digest for name in sorted(reachable(modules))}
    torch_version = version("torch").split("+")[0]  # the build (CPU, CUDA) does not change the method
    return hashlib.sha256(
        canonical_json({"sources": sources, "torch": torch_version, "extra": dict(extra)})
    ).hexdigest()[:16]


def reachable(modules: Iterable[str]) -> set[str]:
    """Return `modules` and all modules of ours that they import, directly or indirectly.

    Raises:
        ValueError: when one of `modules` does not exist.
    """
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += _source(name).imports
    return reached


def inputs_digest(code_version: str, config: BaseModel, digests: Mapping[str, str]) -> str:
    """Return a digest of everything an asset is made from: code, configuration and the digests of its inputs.

    An asset is fresh if its latest materialization has this value as `forge/inputs`.
    """
    content = {
        "code": code_version,
        "config": config.model_dump(mode="json"),
        "inputs": dict(digests),
    }
    return hashlib.sha256(canonical_json(content)).hexdigest()


def digest_folder(folder: Path) -> str:
    """Return the SHA-256 over the sorted relative names and the contents of all files below `folder`.

    Raises:
        ValueError: for a link or anything else that is not a regular file.
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


@dataclass(frozen=True, slots=True)
class _Source:
    digest: str
    imports: tuple[str, ...]


@cache
def _source(module: str) -> _Source:
    """The digest of a module's file, and the modules of ours that it imports."""
    path = _file_of(module)
    if path is None:
        raise ValueError(f"no source for module {module!r}: name a module or package that exists")
    content = path.read_bytes()
    parents = [module.rpartition(".")[0]] if "." in module else []  # importing a module runs its package first
    imports = {name for name in (*_imported(ast.parse(content)), *parents) if name.rpartition(".")[2] not in JUDGES}
    return _Source(hashlib.sha256(content).hexdigest(), tuple(sorted(imports)))


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names of modules of ours in import statements anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError("relative imports are not followed: write the module's full name")
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in OURS)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            yield node.module
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in names if _file_of(name) is not None)


@cache
def _file_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)
