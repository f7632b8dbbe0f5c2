"""Operations on streaming states: parallel prefill of a common prompt length, and dropping finished rows."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from training_core.nn.cognate import Cognate, StreamState

StateT = TypeVar("StateT")
EntryT = TypeVar("EntryT")


def read_ahead(model: Cognate, tokens_BS: Tensor) -> tuple[Tensor, StreamState]:
    """Prefill tokens (batch, seq) in parallel, equivalent to one `Cognate.step` per token; return the next token's
    logits (batch, vocab) and the state. The state's `answer` and `given` are set by the next step."""
    trace, state = model.trace(tokens_BS), model.stream(len(tokens_BS))
    for block, record in zip(state.prelude, trace.prelude, strict=True):
        block.attention.write(record.pair, 0)
        block.memory = None if record.memory is None else record.memory.after
    computed = trace.core + [trace.core[-1]] * (model.config.num_supervision - len(trace.core))
    for caches, records in zip(_flat(state.core), _flat(computed), strict=True):
        caches.write(records.pair, 0)
    state.steps_used = trace.steps.amax(0).tolist()
    state.position = len(state.steps_used)
    return model.logits(trace.y[:, -1]), state


def _flat(core: list[list[list[EntryT]]]) -> list[EntryT]:
    return [entry for passes in core for layers in passes for entry in layers]


def take_rows(state: StateT, rows: Tensor) -> StateT:
    """Return the state restricted to `rows` (kept,), in that order: all its tensors have the batch as dimension 0."""
    taken: StateT = _take(state, rows)
    return taken


def _take(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list | tuple):
        return type(value)(_take(each, rows) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _take(getattr(value, field.name), rows) for field in fields(value)})
    return value  # positions and counts are shared by all rows
