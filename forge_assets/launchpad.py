"""The launchpad's view of a phase's configuration.

The configuration itself is a frozen pydantic model in `training_core`. Its Dagster view has the same fields,
descriptions and types with the selected profile's values as defaults, but no bounds: the bounds are checked
inside the asset, where a violation ends the run at once instead of being retried.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model

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
