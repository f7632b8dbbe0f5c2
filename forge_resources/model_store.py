"""A content-addressed store of model bundles and data folders: written once, verified, never overwritten.

    <root>/<asset>/<digest[:16]>/             one version of a model or of a data set
    <root>/<asset>/<digest[:16]>.<measured>/  the same model, measured again with a different result
    <root>/.staging/<host>-<pid>-<token>/     versions being written; leftovers of dead processes are removed
    <root>/.damaged/                          versions whose content no longer matched, moved aside
    <root>/.checkpoints/<root run>-<asset>/   training state of an unfinished run
    <root>/.making/<asset>                    locked by the run that makes the asset

A version appears by a single rename after all its files are on disk, so a failed or killed run leaves all earlier
versions intact.
"""

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import psutil
from pydantic import Field
from safetensors import SafetensorError

from forge_resources import forge_home
from forge_resources.full_disk import disk_full
from forge_resources.run_process import alone, executing
from training_core.store.atomic import flush
from training_core.store.bundle import EXHIBITS, Bundle, BundleError, open_bundle
from training_core.store.identity import digest_folder

Content = Literal["bundle", "data"]
_MEASURED = ("evaluation.safetensors", "lineage.json")
_CHECKPOINT_INPUTS = "inputs.sha256"
_CHECKPOINT_DONE = "done"
_CHECKPOINT_KEPT_S = 24 * 3600.0


class StoreError(ValueError):
    """Raised when a version is missing, damaged, or cannot be written."""


class ModelStore(dg.ConfigurableResource[Any]):
    """Keeps every version of every asset's folder under `root`, addressed by the SHA-256 of its content."""

    root: str = Field(default="", description="Absolute path of the store; empty: models/ in the forge home.")

    @property
    def path(self) -> Path:
        """The folder that holds the store."""
        return Path(self.root) if self.root else forge_home() / "models"

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["ModelStore"]:
        """Provide the store during a run, and mark the run's process as alive meanwhile (`run_process`)."""
        run, instance = context.run, context.instance

        def ended(run_id: str) -> bool:
            other = None if instance is None else instance.get_run_by_id(run_id)
            return other is not None and other.is_finished

        with nullcontext() if run is None else executing(run.run_id, ended):
            try:
                yield self
            finally:
                if run is not None:
                    self._remove_finished_checkpoints(run.root_run_id or run.run_id)

    def alone(self, asset: str, run_id: str, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """Return a context that only one run at a time enters for `asset`; others wait, and report it through `say`."""
        _require_name(asset)
        return alone(self.path / ".making", asset, run_id, say)

    @contextmanager
    def stage(self, asset: str) -> Iterator[Path]:
        """Yield a path, not yet existing, for a new version of `asset`; it is removed on exit unless committed.

        Raises:
            StoreError: when the disk is full. Earlier versions are untouched.
        """
        _require_name(asset)
        self._remove_dead_staging()
        parent = self.path / ".staging" / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            parent.mkdir(parents=True)
            yield parent / asset
        except (OSError, SafetensorError) as error:
            if not disk_full(error):
                raise
            free = shutil.disk_usage(self.path).free
            raise StoreError(
                f"no room to write {asset} below {self.path}: {free} bytes are free ({error}). "
                "Earlier versions are unchanged; free some space or move the forge home, then try again."
            ) from error
        finally:
            shutil.rmtree(parent, ignore_errors=True)

    def commit(self, asset: str, staged: Path, digest: str, content: Content = "bundle") -> Path:
        """Make the folder `staged` the version `digest` of `asset`, durably, and return its path.

        An existing version is verified and kept; if the same model was measured again with a different result, the
        new measurement is stored beside it. A damaged version is moved to `.damaged/` and replaced.

        Raises:
            StoreError: when `staged` does not hash to `digest`.
        """
        _require_name(asset)
        if (actual := _digest(staged, content)) != digest:
            raise StoreError(f"{staged} hashes to {actual[:16]}, not to {digest[:16]}: it was not committed")
        _flush(staged)
        target = self.path / asset / digest[:16]
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._intact(target, digest, content):
            if content == "data" or measurements_digest(target) == measurements_digest(staged):
                return target
            target = target.with_name(f"{target.name}.{measurements_digest(staged)[:8]}")
            if self._intact(target, digest, content):
                os.utime(target / "lineage.json")
                return target
        os.rename(staged, target)
        flush(target.parent)
        flush(self.path)
        return target

    def open_bundle(self, asset: str, digest: str, measurements: str | None = None) -> Bundle:
        """Open the bundle `digest` of `asset`, verifying its content.

        `measurements` (`measurements_digest`) selects the version with these measurements and verifies that they
        are unchanged; without it the newest version with that content is opened.

        Raises:
            StoreError: when there is none. BundleError: when its content is damaged.
        """
        _require_name(asset)
        versions = sorted((self.path / asset).glob(f"{digest[:16]}*"), key=_measured_at, reverse=True)
        if not versions:
            raise StoreError(f"{asset} has no version {digest[:16]} in {self.path}: materialize it again")
        if measurements is None:
            return open_bundle(versions[0], expected_digest=digest)
        versions = [folder for folder in versions if measurements_digest(folder) == measurements]
        if not versions:
            raise StoreError(
                f"no version {digest[:16]} of {asset} in {self.path} was measured as {measurements[:16]}: "
                "its measurements were changed or damaged; materialize the asset again"
            )
        return open_bundle(versions[0], expected_digest=digest)

    def folder(self, asset: str, digest: str, *, verify: bool = False) -> Path:
        """Return the data folder `digest` of `asset`; `verify` reads and hashes all of it.

        Raises:
            StoreError: when it is missing or, with `verify`, damaged.
        """
        _require_name(asset)
        folder = self.path / asset / digest[:16]
        if not folder.is_dir():
            raise StoreError(f"{asset} has no version {digest[:16]} in {self.path}: materialize it again")
        if verify and (actual := digest_folder(folder)) != digest:
            raise StoreError(f"{folder} hashes to {actual[:16]}: it was changed or damaged; materialize {asset} again")
        return folder

    def open_materialized(self, asset: str, record: dg.EventLogRecord | None) -> Bundle:
        """Open exactly the bundle and the measurements that the materialization `record` names.

        Raises:
            StoreError: when there is no such version. BundleError: when its content is damaged.
        """
        return self.open_bundle(
            asset, recorded_text(asset, record, "digest"), recorded_text(asset, record, "measurements")
        )

    def versions(self, asset: str) -> list[Path]:
        """Return all versions of `asset`, oldest first."""
        _require_name(asset)
        parent = self.path / asset
        return sorted(parent.iterdir(), key=_measured_at) if parent.is_dir() else []

    def checkpoint(self, asset: str, root_run_id: str, inputs: str = "") -> Path:
        """Return the folder for the training state of `asset` in the run `root_run_id` and its retries.

        `inputs` identifies what the asset is made from (`training_core.store.identity.inputs_digest`). State left
        by other code, another configuration or other parents is removed, because resuming from it would give a
        model that its lineage does not describe.
        """
        _require_name(asset)
        folder = self.path / ".checkpoints" / f"{root_run_id}-{asset}"
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / _CHECKPOINT_INPUTS
        if not marker.is_file() or marker.read_text() != inputs:
            shutil.rmtree(folder)
            folder.mkdir()
            marker.write_text(inputs)
        (folder / _CHECKPOINT_DONE).unlink(missing_ok=True)
        return folder

    def finish(self, checkpoint: Path) -> None:
        """Mark the asset as stored, so that its training state is removed when the run ends.

        It is kept until Dagster has recorded the asset: a run killed just before that would have to train it again.
        """
        (checkpoint / _CHECKPOINT_DONE).touch()

    def unfinished(self, asset: str, inputs: str) -> list[str]:
        """Return the root runs, newest first, that left training state of `asset` for exactly `inputs`."""
        _require_name(asset)
        folders = [
            marker.parent
            for marker in (self.path / ".checkpoints").glob(f"*-{asset}/{_CHECKPOINT_INPUTS}")
            if marker.read_text() == inputs
        ]
        folders.sort(key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
        return [folder.name.removesuffix(f"-{asset}") for folder in folders]

    def _intact(self, target: Path, digest: str, content: Content) -> bool:
        """Return whether `target` exists with the content `digest`; a damaged one is moved aside."""
        if not target.exists():
            return False
        try:
            if _digest(target, content) == digest and (content == "data" or measurements_digest(target)):
                return True
        except ValueError:
            pass  # an unreadable version counts as damaged and is kept for inspection
        aside = self.path / ".damaged" / f"{target.parent.name}-{target.name}-{secrets.token_hex(4)}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.rename(target, aside)
        return False

    def _remove_finished_checkpoints(self, root_run_id: str) -> None:
        for done in (self.path / ".checkpoints").glob(f"*/{_CHECKPOINT_DONE}"):
            own = done.parent.name.startswith(f"{root_run_id}-")
            if own or time.time() - done.stat().st_mtime > _CHECKPOINT_KEPT_S:  # left by a run that was killed
                shutil.rmtree(done.parent, ignore_errors=True)

    def _remove_dead_staging(self) -> None:
        host = re.escape(socket.gethostname())
        for folder in (self.path / ".staging").glob("*"):
            match = re.fullmatch(rf"{host}-(\d+)-[0-9a-f]{{8}}", folder.name)
            if match and not psutil.pid_exists(int(match[1])):
                shutil.rmtree(folder, ignore_errors=True)


def recorded_text(asset: str, record: dg.EventLogRecord | None, name: str) -> str:
    """Return the text `name` in the metadata of the materialization `record` of `asset`.

    Raises:
        StoreError: when `asset` was never materialized or the text was not recorded.
    """
    materialization = record.asset_materialization if record is not None else None
    if materialization is None:
        raise StoreError(f"{asset} was never materialized: materialize it first")
    value = materialization.metadata.get(name)
    if value is None or not isinstance(value.value, str):
        raise StoreError(f"the latest materialization of {asset} names no {name}: materialize it again")
    return value.value


def measurements_digest(folder: Path) -> str:
    """Return the SHA-256 over the measurements, exhibits and lineage of the bundle in `folder`.

    Raises:
        BundleError: when a part is missing.
    """
    hasher = hashlib.sha256()
    exhibits = (EXHIBITS,) if (folder / EXHIBITS).exists() else ()
    for name in (*_MEASURED, *exhibits):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error.strerror}") from error
        hasher.update(len(content).to_bytes(8, "little") + content)
    return hasher.hexdigest()


def _digest(folder: Path, content: Content) -> str:
    if content == "data":
        return digest_folder(folder)
    if foreign := [path.name for path in folder.iterdir() if path.is_symlink() or not path.is_file()]:
        raise StoreError(f"{folder} holds {', '.join(sorted(foreign))}: a bundle holds files, no links and folders")
    return open_bundle(folder).digest()


def _measured_at(folder: Path) -> int:
    lineage = folder / "lineage.json"
    return (lineage if lineage.exists() else folder).stat().st_mtime_ns


def _require_name(asset: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", asset):
        raise StoreError(f"asset names are letters, digits and underscores, got {asset!r}")


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)
