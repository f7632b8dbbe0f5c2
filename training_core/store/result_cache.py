"""Results that cost seconds, kept beside the checkpoints: a killed run finds them again and does not redo them."""

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
    """Cached results of one run, below `folder`; with None nothing is kept.

    `fingerprint` is a digest of whatever determines the results: what another one wrote is not used. `reporter` hears
    of a stage when it begins to be computed (0 of 1) and when its result is kept (1 of 1).
    """

    def __init__(self, folder: Path | None, fingerprint: str, reporter: Reporter) -> None:
        self.folder, self.fingerprint, self.reporter = folder, fingerprint, reporter

    def cached(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The JSON document that `compute` gives, from the file if a run has written it before.

        A document that was computed passes through JSON as well, so that a resumed run goes on with the same one.

        Raises:
            ValueError: when the document is not JSON or holds a number that is not finite.
            DamagedCheckpointError: when the file exists and cannot be read.
        """
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is not None and (found := _read(path)) is not None and found["fingerprint"] == self.fingerprint:
            kept: dict[str, Any] = found["result"]
            return kept
        self.reporter.progress(0, 1, name)
        text = json.dumps({"fingerprint": self.fingerprint, "result": compute()}, allow_nan=False)
        if path is not None:
            write_atomically(path, text)
        self.reporter.progress(1, 1, name)
        result: dict[str, Any] = json.loads(text)["result"]
        return result

    def cached_tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The same for tensors, which stay bit for bit what they were."""
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        found = None if path is None else load_checkpoint(path, self.fingerprint)
        if found is not None:
            return found[0]
        self.reporter.progress(0, 1, name)
        tensors = {key: value.detach().cpu() for key, value in compute().items()}
        if path is not None:
            save_checkpoint(path, tensors, {"fingerprint": self.fingerprint})
        self.reporter.progress(1, 1, name)
        return tensors


def _read(path: Path) -> dict[str, Any] | None:
    """What a file holds, None where there is none.

    Raises:
        DamagedCheckpointError: when `ResultCache` did not write what it holds now.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedCheckpointError(path, error) from error
    if not isinstance(found, dict) or not {"fingerprint", "result"} <= set(found):
        raise DamagedCheckpointError(path, "it has no fingerprint and result")
    return found
