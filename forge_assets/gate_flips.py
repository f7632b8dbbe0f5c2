"""A sensor (off by default) that reports every gate or claim that flips from passed to failed.

A flip is logged as an error in the sensor tick and appended as one JSON line to `gate_flips.jsonl` in the forge home;
if `FORGE_ALERT_WEBHOOK` is set, the line is also sent there by POST. Lines that could not be sent wait in
`gate_flips.unsent.jsonl` for the next tick; the newest thousand are kept. Verdicts are compared within one profile.
Flips from before the sensor was turned on are not reported.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import dagster as dg

from forge_assets.gate_history import GateEntry, profiles_of, verdicts_of
from forge_resources import forge_home
from forge_resources.overrides import utc_text
from training_core.store.atomic import write_atomically

FILE = "gate_flips.jsonl"
UNSENT = "gate_flips.unsent.jsonl"
WEBHOOK = "FORGE_ALERT_WEBHOOK"
_TIMEOUT_S = 10.0
_TICK_S = 30.0  # Dagster gives up a tick, and what it has done, after a minute
_KEPT = 1000  # unsent lines
_LATER = (408, 425, 429)  # HTTP statuses below 500 that ask for another attempt


def flip_sensor(checks: Sequence[dg.AssetCheckKey], *, interval_s: int = 60) -> dg.SensorDefinition:
    """Return the sensor `gate_flips`, which watches `checks`."""

    @dg.sensor(
        name="gate_flips",
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=interval_s,
        description=f"Reports gates that flip from pass to fail: tick log, {FILE} in the forge home, {WEBHOOK}.",
    )
    def tick(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        seen: dict[str, float] | None = json.loads(context.cursor) if context.cursor else None
        flips, newest = new_flips(context.instance, checks, seen)
        for before, now in flips:
            context.log.error(describe(before, now))
        lines = [json.dumps(as_json(before, now), allow_nan=False) for before, now in flips]
        if lines:
            with (forge_home() / FILE).open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
        if problem := send(lines):
            context.log.error(problem)
        summary = "; ".join(describe(before, now) for before, now in flips)
        return dg.SensorResult(skip_reason=summary or "no gate flipped from pass to fail", cursor=json.dumps(newest))

    return tick


def new_flips(
    instance: dg.DagsterInstance, checks: Sequence[dg.AssetCheckKey], seen: dict[str, float] | None
) -> tuple[list[tuple[GateEntry, GateEntry]], dict[str, float]]:
    """Return each pass with the failure that followed it, and the time of the newest verdict of each check.

    `seen` holds those times as of the previous tick; without it (the first tick) nothing counts as new.
    """
    flips: list[tuple[GateEntry, GateEntry]] = []
    newest: dict[str, float] = {}
    for check in checks:
        name = check.to_user_string()
        entries = verdicts_of(instance, check)
        newest[name] = max((entry.at for entry in entries), default=0.0)
        since = newest[name] if seen is None else seen.get(name, 0.0)
        if newest[name] > since:
            flips += [pair for pair in _flips(entries, profiles_of(instance, check.asset_key)) if pair[1].at > since]
    return flips, newest


def _flips(entries: Sequence[GateEntry], profiles: dict[int, str]) -> list[tuple[GateEntry, GateEntry]]:
    """Return consecutive verdicts on one gate at one profile where the first passed and the second failed.

    A verdict on a model that could not be read counts as a failure of every gate of its check.
    """
    last: dict[tuple[str, str], GateEntry] = {}
    flips = []
    for entry in entries:
        profile = profiles.get(entry.version, "")
        if entry.threshold is None:  # the model could not be read, so that the whole check failed
            passed = [other for (_, of), other in last.items() if of == profile and other.passed]
            flips += [(passed[-1], entry)] if passed else []
            last |= {key: entry for key in last if key[1] == profile}
            continue
        before = last.get((entry.gate, profile))
        if before is not None and before.passed and not entry.passed:
            flips.append((before, entry))
        last[entry.gate, profile] = entry
    return flips


def describe(before: GateEntry, now: GateEntry) -> str:
    """Return a line that names the gate, its value and threshold, and the two runs."""
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
    """Return the flip as plain values; `text` is the field that chat services display."""
    fields = ("asset", "gate", "blocking", "metric", "value", "threshold", "run_id", "digest")
    values = {name: getattr(now, name) for name in fields}
    return {
        **values,
        "at": utc_text(now.at),
        "before": {"value": before.value, "run_id": before.run_id, "at": utc_text(before.at)},
        "text": describe(before, now),
    }


def send(lines: Sequence[str]) -> str | None:
    """Send the lines that wait and then `lines` to the webhook, if one is set, and return the problem, if any.

    Those that could not be sent wait in `gate_flips.unsent.jsonl`. The problem does not name the address, which may
    hold a secret.
    """
    address = os.environ.get(WEBHOOK, "").strip()
    if not address:
        return None
    if not address.startswith(("http://", "https://")):
        return f"{WEBHOOK} must be an http or https address: nothing was sent"
    unsent = forge_home() / UNSENT
    try:
        waiting = [*(unsent.read_text(encoding="utf-8").splitlines() if unsent.exists() else ()), *lines]
        end, problem = time.monotonic() + _TICK_S, None
        while waiting and problem is None and time.monotonic() < end:
            problem, answered = _post(address, waiting[0])
            if problem is None or answered:
                del waiting[0]
        if waiting:
            waiting = waiting[-_KEPT:]
            write_atomically(unsent, "".join(line + "\n" for line in waiting))
            problem = f"{problem or 'the time for sending is over'}; {len(waiting)} wait in {UNSENT} for the next tick"
        else:
            unsent.unlink(missing_ok=True)
    except OSError as error:
        return f"{UNSENT} cannot be used ({error}): flips that were not sent to {WEBHOOK} stand in {FILE}"
    return problem


def _post(address: str, line: str) -> tuple[str | None, bool]:
    """Send a line; return the problem, if any, and whether the webhook answered that it will never take the line."""
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(address, data=line.encode(), headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return None, True
    except urllib.error.HTTPError as error:
        final = 400 <= error.code < 500 and error.code not in _LATER
        error.close()
        return f"the flip was not sent to {WEBHOOK} ({error}); it stands in {FILE}", final
    except http.client.HTTPException as error:  # its text may repeat the address
        return f"the flip was not sent to {WEBHOOK} ({type(error).__name__}); it stands in {FILE}", False
    except OSError as error:
        return f"the flip was not sent to {WEBHOOK} ({error}); it stands in {FILE}", False
    except ValueError as error:  # likewise
        return f"{WEBHOOK} is no address to send to ({type(error).__name__}); the flip stands in {FILE}", False
