"""A sensor, off until turned on, that reports a gate or claim which passed before and fails now.

A report is an error in the tick's log, a line in `gate_flips.jsonl` in the forge home, and, where
`FORGE_ALERT_WEBHOOK` is set, a POST of that line as JSON. Verdicts are compared within one profile. What happened
before the sensor was turned on is not reported.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import dagster as dg

from forge_assets.gate_history import GateEntry, profiles_of, verdicts_of
from forge_resources import forge_home
from forge_resources.overrides import utc_text

FILE = "gate_flips.jsonl"
WEBHOOK = "FORGE_ALERT_WEBHOOK"
_TIMEOUT_S = 10.0


def flip_sensor(checks: Sequence[dg.AssetCheckKey], *, interval_s: int = 60) -> dg.SensorDefinition:
    """The sensor `gate_flips` over `checks`."""

    @dg.sensor(
        name="gate_flips",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=interval_s,
        description=f"Reports a gate that passed before and fails now: log, {FILE} in the forge home, {WEBHOOK}.",
    )
    def tick(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        seen: dict[str, float] | None = json.loads(context.cursor) if context.cursor else None
        found, newest = new_flips(context.instance, checks, seen)
        for before, now in found:
            context.log.error(describe(before, now))
            line = json.dumps(as_json(before, now), allow_nan=False)
            with (forge_home() / FILE).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            if problem := _post(line):
                context.log.error(problem)
        said = "; ".join(describe(before, now) for before, now in found)
        return dg.SensorResult(skip_reason=said or "no gate flipped from pass to fail", cursor=json.dumps(newest))

    return tick


def new_flips(
    instance: dg.DagsterInstance, checks: Sequence[dg.AssetCheckKey], seen: dict[str, float] | None
) -> tuple[list[tuple[GateEntry, GateEntry]], dict[str, float]]:
    """Each pass with the failure that followed it, and the time of the newest verdict of each check.

    `seen` is that time as of the last look; without it nothing counts as new.
    """
    found: list[tuple[GateEntry, GateEntry]] = []
    newest: dict[str, float] = {}
    for check in checks:
        name = check.to_user_string()
        entries = verdicts_of(instance, check)
        newest[name] = max((entry.at for entry in entries), default=0.0)
        since = newest[name] if seen is None else seen.get(name, 0.0)
        if newest[name] > since:
            found += [pair for pair in _flips(entries, profiles_of(instance, check.asset_key)) if pair[1].at > since]
    return found, newest


def _flips(entries: Sequence[GateEntry], profiles: dict[int, str]) -> list[tuple[GateEntry, GateEntry]]:
    """Neighbours in one gate's verdicts at one profile, of which the first passed and the second did not.

    A model that could not be judged at all follows every gate of its check.
    """
    last: dict[tuple[str, str], GateEntry] = {}
    found = []
    for entry in entries:
        profile = profiles.get(entry.version, "")
        if entry.threshold is None:  # not judged: the whole check fails
            passed = [other for (_, of), other in last.items() if of == profile and other.passed]
            found += [(passed[-1], entry)] if passed else []
            last |= {key: entry for key in last if key[1] == profile}
            continue
        before = last.get((entry.gate, profile))
        if before is not None and before.passed and not entry.passed:
            found.append((before, entry))
        last[entry.gate, profile] = entry
    return found


def describe(before: GateEntry, now: GateEntry) -> str:
    """One line: which gate, its value and threshold, and the two runs."""
    kind = "gate" if now.blocking else "claim"
    if now.threshold is None:
        what = now.reason
    else:
        value = "not measured" if now.value is None else f"{now.value:.6g}"
        earlier = "not measured" if before.value is None else f"{before.value:.6g}"
        what = f"{now.metric} = {value} (before: {earlier}), required {now.required()}"
    return (
        f"{kind} {now.asset}.{now.gate} flipped from pass to FAIL: {what}; run {now.run_id}, "
        f"passed last in run {before.run_id} on {utc_text(before.at)}"
    )


def as_json(before: GateEntry, now: GateEntry) -> dict[str, Any]:
    """The flip as plain values; `text` is what chat services show."""
    fields = ("asset", "gate", "blocking", "metric", "value", "threshold", "run_id", "digest")
    values = {name: getattr(now, name) for name in fields}
    return {
        **values,
        "at": utc_text(now.at),
        "before": {"value": before.value, "run_id": before.run_id, "at": utc_text(before.at)},
        "text": describe(before, now),
    }


def _post(line: str) -> str | None:
    """Send `line` to the webhook, if there is one; what went wrong, without the address, which may hold a secret."""
    address = os.environ.get(WEBHOOK, "").strip()
    if not address:
        return None
    if not address.startswith(("http://", "https://")):
        return f"{WEBHOOK} must be an http or https address: nothing was sent"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, data=line.encode(), headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        return f"the flip was not sent to {WEBHOOK} ({error}); it stands in {FILE}"
