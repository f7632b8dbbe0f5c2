"""Cache of intermediate results beside the checkpoints, so that a resumed run does not recompute them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from training_core.reporting import Reporter
from training_core.store.atomic import write_atomically
from training_core.store.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint


class ResultCache:
    """The cached results of one run in `folder`; None disables the cache.

    `fingerprint` is a digest of everything that determines the results: entries with another one are not used.
    `reporter` is told when the computation of a stage starts (0 of 1) and when its result is stored (1 of 1).
    """

    def __init__(self, folder: Path | None, fingerprint: str, reporter: Reporter) -> None:
        self.folder, self.fingerprint, self.reporter = folder, fingerprint, reporter

    def cached(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the JSON document that `compute` gives, read from the cache if an earlier run has stored it.

        Raises:
            ValueError: when the document is not JSON or contains a number that is not finite.
            DamagedCheckpointError: when the file exists and cannot be read.
        """
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is not None and (entry := _read(path)) is not None and entry["fingerprint"] == self.fingerprint:
            kept: dict[str, Any] = entry["result"]
            return kept
        self.reporter.progress(0, 1, name)
        # A fresh result takes the round trip through JSON as well, so that a resumed run continues with the same one.
        text = json.dumps({"fingerprint": self.fingerprint, "result": compute()}, allow_nan=False)
        if path is not None:
            write_atomically(path, text)
        self.reporter.progress(1, 1, name)
        result: dict[str, Any] = json.loads(text)["result"]
        return result

    def cached_tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors that `compute` gives, read from the cache, bit for bit, if an earlier run stored them."""
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        entry = None if path is None else load_checkpoint(path, self.fingerprint)
        if entry is not None:
            return entry[0]
        self.reporter.progress(0, 1, name)
        tensors = {key: value.detach().cpu() for key, value in compute().items()}
        if path is not None:
            save_checkpoint(path, tensors, {"fingerprint": self.fingerprint})
        self.reporter.progress(1, 1, name)
        return tensors


def _read(path: Path) -> dict[str, Any] | None:
    """The cache entry in a file; None if there is no file.

    Raises:
        DamagedCheckpointError: when the content is not what `ResultCache` writes.
    """
    if not path.is_file():
        return None
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedCheckpointError(path, error) from error
    if not isinstance(entry, dict) or not {"fingerprint", "result"} <= set(entry):
        raise DamagedCheckpointError(path, "it has no fingerprint and result")
    return entry
