"""The launchpad's view of a phase's configuration, and what identifies a phase's code and inputs.

The configuration itself is a frozen pydantic model in `training_core`. Its Dagster view has the same fields,
descriptions and types with the selected profile's values as defaults, but no bounds: the bounds are checked
inside the asset, where a violation ends the run at once instead of being retried.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model

from training_core.bundle import canonical_json

DEFAULT_PROFILE = "nano"


def selected_profile() -> str:
    """The profile whose values the launchpad shows as defaults: the variable `FORGE_PROFILE`, else nano."""
    return os.environ.get("FORGE_PROFILE") or DEFAULT_PROFILE


def launchpad_fields(config: type[BaseModel], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of `config` as Dagster config fields, with `defaults` in place of the model's own.

    Raises:
        ValueError: when a default names no field of `config`.
    """
    defaults = dict(defaults or {})
    if unknown := sorted(defaults.keys() - config.model_fields.keys()):
        raise ValueError(f"the preset sets {', '.join(unknown)}, which {config.__name__} does not have")
    fields: dict[str, Any] = {}
    for name, info in config.model_fields.items():
        default = defaults.get(name, ... if info.is_required() else info.get_default(call_default_factory=True))
        default = list(default) if isinstance(default, tuple) else default
        fields[name] = (
            _plain(info.annotation),
            Field(default, description=_describe(info.description, info.metadata)),
        )
    view = create_model(f"{config.__name__}View", __base__=dg.Config, **fields)
    return dict(view.to_fields_dict())


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


def _plain(annotation: Any) -> Any:
    """Dagster knows lists, not tuples: `tuple[int, ...]` becomes `list[int]`."""
    if get_origin(annotation) is tuple:
        return list[get_args(annotation)[0]]  # type: ignore[misc]
    return annotation


def _describe(description: str | None, bounds: Iterable[Any]) -> str:
    limits = []
    for bound in bounds:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (value := getattr(bound, name, None)) is not None:
                limits.append(f"{sign} {value:g}")
    return (description or "") + (f" ({', '.join(limits)})" if limits else "")
