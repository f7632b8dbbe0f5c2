"""The history of every gate and claim over runs: each completed verdict with its value, and any override of it.

Verdicts come from Dagster's event log. Checks that never completed (their run died) are left out; a version that was
judged twice has two verdicts. The profile comes from the materialization that was judged, and the model store says
whether that version still exists.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from forge_assets.graph_view import Forge
from forge_assets.launchpad import selected_profile
from forge_resources.gatekeeping import completed_verdicts, judge_latest, verdict_rows
from forge_resources.model_store import ModelStore, StoreError
from forge_resources.overrides import Override, overrides_of, utc_text
from training_core.gates import Gate

_PAGE = 100


@dataclass(frozen=True, slots=True)
class GateEntry:
    """One verdict on one gate or claim of one version.

    `version` is the storage id of the materialization that was judged. `value` is None if no finite value was measured.
    If the model could not be judged at all, `threshold` is None as well, `gate` is the name of the check and `reason`
    says why.
    """

    asset: str
    gate: str
    blocking: bool
    metric: str
    direction: str
    against: str
    evidence: str
    value: float | None
    threshold: float | None
    passed: bool
    reason: str
    run_id: str
    at: float
    version: int
    digest: str
    profile: str
    stored: bool = False
    override: Override | None = None

    @property
    def margin(self) -> float | None:
        """Distance to the threshold in the metric's unit, positive when the gate passes and negative when it fails."""
        if self.value is None or self.threshold is None:
            return None
        return self.value - self.threshold if self.direction == "at_least" else self.threshold - self.value

    def required(self) -> str:
        """Return the condition as text, for instance `>= 0.84`."""
        if self.threshold is None:
            return "a model that can be read"
        return f"{'>=' if self.direction == 'at_least' else '<='} {self.threshold:g}"

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        values = {**asdict(self), "margin": self.margin, "at": utc_text(self.at)}
        return {**values, "override": None if self.override is None else self.override.as_json()}


@dataclass(frozen=True, slots=True)
class AssetGates:
    """The gates of one model: `entries` oldest first, the current `rows` of the gate table, and why it is `closed`.

    `version` is the storage id of the latest materialization, None if the model was never made.
    """

    asset: str
    version: int | None
    rows: tuple[Gate, ...]
    entries: tuple[GateEntry, ...]
    overrides: tuple[Override, ...]
    closed: tuple[str, ...]
    override: Override | None

    def latest(self) -> tuple[GateEntry, ...]:
        """Return the newest verdict on each gate of the latest version."""
        # A gate that the newest evaluation did not judge has left the table since: its verdicts are dropped.
        newest = {(entry.gate, entry.blocking): entry for entry in self.entries if entry.version == self.version}
        judged_at = {blocking: max(e.at for (_, b), e in newest.items() if b == blocking) for _, blocking in newest}
        return tuple(entry for (_, blocking), entry in newest.items() if entry.at == judged_at[blocking])

    def unjudged(self) -> tuple[Gate, ...]:
        """Return the gates and claims of the table on which the latest version has no verdict."""
        judged = {(entry.gate, entry.blocking) for entry in self.latest()}
        unread = {entry.blocking for entry in self.latest() if entry.threshold is None}
        return tuple(row for row in self.rows if (row.name, row.blocking) not in judged and row.blocking not in unread)

    def histories(self) -> dict[tuple[str, bool], list[GateEntry]]:
        """Return the verdicts of each gate in the order of the table; gates no longer in the table come last."""
        order: dict[tuple[str, bool], list[GateEntry]] = {(row.name, row.blocking): [] for row in self.rows}
        for entry in self.entries:
            order.setdefault((entry.gate, entry.blocking), []).append(entry)
        return {key: entries for key, entries in order.items() if entries}


def collect_gates(forge: Forge) -> tuple[AssetGates, ...]:
    """Return the gates of every model in topological order."""
    return tuple(_asset_gates(forge, asset) for asset in forge.assets() if forge.checks_of(asset))


def _asset_gates(forge: Forge, asset: str) -> AssetGates:
    checks = forge.checks_of(asset)
    key = dg.AssetKey(asset)
    judged = judge_latest(forge.instance, key, [check for check in checks if check.name == "gate"])
    made = _materializations(forge.instance, key)
    overrides = overrides_of(forge.instance, key)
    entries = [
        _joined(entry, made.get(entry.version, {}), overrides, forge.store)
        for check in checks
        for entry in verdicts_of(forge.instance, check)
    ]
    version = None if judged.record is None else judged.record.storage_id
    profile = str(made[version].get("profile") or selected_profile()) if version is not None else selected_profile()
    ordered = tuple(sorted(entries, key=lambda entry: entry.at))
    judged_metrics = {entry.metric: 0.0 for entry in entries if entry.version == version}
    rows = forge.rows(asset, profile, judged_metrics)
    return AssetGates(asset, version, rows, ordered, tuple(overrides), judged.closed, judged.override)


def verdicts_of(instance: dg.DagsterInstance, check: dg.AssetCheckKey, *, after: float = 0.0) -> list[GateEntry]:
    """Return the verdict on every gate in each completed evaluation of `check` later than `after`, oldest first.

    Fields that the event log does not hold (such as `profile`) are left empty.
    """
    entries: list[GateEntry] = []
    for record in completed_verdicts(instance, check):
        evaluation, event = record.evaluation, record.event
        target = evaluation.target_materialization_data if evaluation is not None else None
        if evaluation is None or event is None or target is None or event.timestamp <= after:
            continue
        digest = evaluation.metadata.get("digest")
        rows: Sequence[Mapping[str, Any]] = verdict_rows(evaluation)
        unread = {"gate": check.name, "metric": "", "required": "", "against": "", "evidence": ""}
        for row in rows or [{**unread, "passed": evaluation.passed}]:
            value = evaluation.metadata.get(str(row["metric"]))
            threshold = evaluation.metadata.get(f"threshold/{row['gate']}")
            entries.append(
                GateEntry(
                    asset=check.asset_key.to_user_string(),
                    gate=str(row["gate"]),
                    blocking=check.name == "gate",
                    metric=str(row["metric"]),
                    direction=str(row["required"]).split(" ")[0],
                    against=str(row["against"]),
                    evidence=str(row["evidence"]),
                    value=None if value is None else float(value.value),  # type: ignore[arg-type]
                    threshold=None if threshold is None else float(threshold.value),  # type: ignore[arg-type]
                    passed=bool(row["passed"]),
                    reason="" if rows else evaluation.description or "no reason given",
                    run_id=record.run_id,
                    at=event.timestamp,
                    version=target.storage_id,
                    digest="" if digest is None else str(digest.value),
                    profile="",
                )
            )
    return sorted(entries, key=lambda entry: entry.at)


def profiles_of(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[int, str]:
    """Return the profile of every materialization of `key`, by storage id."""
    return {version: str(values.get("profile", "")) for version, values in _materializations(instance, key).items()}


def _joined(entry: GateEntry, made: Mapping[str, Any], overrides: Sequence[Override], store: ModelStore) -> GateEntry:
    """Return `entry` completed from its materialization, the store and the overrides."""
    override = next(
        (o for o in overrides if o.version == entry.version and entry.gate in o.failed),
        None,
    )
    digest = entry.digest or str(made.get("digest", ""))
    values = {**{name: getattr(entry, name) for name in GateEntry.__slots__}, "digest": digest}
    values["profile"] = str(made.get("profile", ""))
    values["stored"] = _stored(store, entry.asset, digest)
    values["override"] = override if entry.blocking and not entry.passed else None
    return GateEntry(**values)


def _stored(store: ModelStore, asset: str, digest: str) -> bool:
    try:
        return store.folder(asset, digest).is_dir()
    except StoreError:
        return False


def _materializations(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[int, dict[str, Any]]:
    """Return the metadata of every materialization of `key`, by storage id."""

    def pages() -> Iterator[dg.EventLogRecord]:
        cursor: str | None = None
        more = True
        while more:
            page = instance.fetch_materializations(key, limit=_PAGE, cursor=cursor)
            yield from page.records
            cursor, more = page.cursor, page.has_more

    return {
        record.storage_id: {name: value.value for name, value in record.asset_materialization.metadata.items()}
        for record in pages()
        if record.asset_materialization is not None
    }
