"""Soak test: kill the processes of a deployment at random moments and compare the result with an undisturbed run.

    python -m benchmarks.soak [--minutes 20] [--seed N] [--steps 120] [--pause 20]

Code server, daemon, webserver and an MLflow server run on a temporary home with the graph of
`tests/forge/live_forge.py`: three models, trained by the real loop with a checkpoint after every step. Runs are
launched as from the UI. At a random time (at most `--pause` seconds) after all services respond again, and every fourth
time before they do, one of these events happens:

    run        SIGKILL of the process that executes a run
    code       SIGKILL of the code server; its runs survive
    worker     SIGKILL of the process in which the code server has loaded the code; then a Reload in the UI
    container  SIGKILL of the code server and all of its descendants, runs included
    daemon, webserver    SIGKILL
    mlflow     SIGKILL of the MLflow server, which then stays away for up to `--pause` seconds
    cancel     a run is cancelled in the UI

A supervisor restarts dead services. A failed run is retried by the daemon or, once the daemon has given up, re-executed
from its failure as a person would. At the end the system must be at rest: every run is in a final state; every stored
version is intact and equal to that of the undisturbed run; no training step was computed by two processes at once, and
none was repeated except those interrupted by a kill; no concurrency slot is taken, no file is half written and no
process is left. MLflow, which is given the rest as by `forge up`, has the loss of every reported step once for each
time that it was computed, one run for each model of each run, in a final state, and each model once, as champion. The
exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "forge"), str(ROOT)]

import dagster as dg  # noqa: E402
import mlflow  # noqa: E402
import psutil  # noqa: E402
from live_forge import MODELS  # noqa: E402
from live_services import FINAL, SERVICES, LiveForge, live_forge, wait_for  # noqa: E402
from mlflow_server import MlflowServer, mlflow_server  # noqa: E402

from forge_resources.model_store import ModelStore, digest_folder  # noqa: E402
from forge_resources.tracking import MlflowTracking  # noqa: E402
from training_core.store.bundle import open_bundle  # noqa: E402
from training_core.training.loop import REPORT_EVERY  # noqa: E402

SELECTIONS = (("trunk",), MODELS, MODELS)
KINDS = (
    "run",
    "run",
    "run",
    "container",
    "container",
    "code",
    "worker",
    "daemon",
    "webserver",
    "cancel",
    "mlflow",
    "mlflow",
    "mlflow",
)
BACKLOG = 3  # number of runs kept queued or executing
REST_S = 600.0
PLANNED = "refused, quality gate closed"  # expected if a run that remade the parent was killed before its gate
_REEXECUTE = """
mutation ($id: String!) { launchRunReexecution(reexecutionParams: {parentRunId: $id, strategy: FROM_FAILURE}) {
  __typename ... on PythonError { message } } }
"""


@dataclass(slots=True)
class Counts:
    """Counts of kills, restarts, manual re-executions and refused runs."""

    kills: Counter[str] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
    by_hand: int = 0
    refusals: int = 0


class Soak:
    """A soak test of `forge`; `config` is the configuration of every model."""

    def __init__(
        self, forge: LiveForge, mlflow: MlflowServer, config: dict[str, Any], chance: random.Random, pause_s: float
    ) -> None:
        self.forge, self.mlflow, self.config, self.chance, self.pause_s = forge, mlflow, config, chance, pause_s
        self.mlflow_back = 0.0  # when the MLflow server is started again
        self.store = ModelStore(root=str(forge.store))
        self.counts = Counts()
        self.cancelled: set[str] = set()
        self.settled: set[str] = set()  # failures that were retried
        self.reload_wanted = False
        self.seen = 0
        self.expected: dict[str, str] = {}
        self.before: set[str] = set()  # the undisturbed runs

    def undisturbed(self) -> None:
        """Make the data and the models once, undisturbed, and record their digests."""
        for assets in (("tokens", "evaluation_suite"), MODELS):
            assert self.forge.finished(self.forge.launch(*assets, config=self.config), REST_S) == "SUCCESS"
        self.expected = {name: self.digests(name)[0] for name in MODELS}
        self.forge.diary.unlink()
        self.before = {run.run_id for run in self.forge.instance.get_runs()}

    def digests(self, asset: str) -> list[str]:
        """Return the verified digest of every version of a model."""
        return [
            open_bundle(folder, expected_digest=open_bundle(folder).lineage().digest).digest()
            for folder in self.store.versions(asset)
        ]

    def disturb(self, seconds: float) -> None:
        """Launch runs and kill processes until the time is over."""
        end, next_kill = time.monotonic() + seconds, 0.0
        awaited = True  # whether all services must respond before the next event
        while time.monotonic() < end:
            self.supervise()
            if awaited and self.answering():
                awaited, next_kill = False, time.monotonic() + self.chance.uniform(0.5, self.pause_s)
            if not awaited and time.monotonic() >= next_kill and self.strike(self.chance.choice(KINDS)):
                awaited, next_kill = self.chance.random() < 0.75, time.monotonic() + self.chance.uniform(0.5, 5.0)
            time.sleep(0.2)

    def answering(self) -> bool:
        """Return whether all services respond and a model is training."""
        forge = self.forge
        steps = forge.diary.stat().st_size if forge.diary.exists() else 0
        training, self.seen = steps != self.seen, steps
        return training and all(forge.alive(name) and forge.answers(name) for name in SERVICES)

    def supervise(self, *, launching: bool = True) -> None:
        """Restart dead services, keep a backlog of runs, and re-execute failed runs that were not retried."""
        for name in SERVICES:
            if not self.forge.alive(name):
                self.forge.spawn(name)
                self.counts.restarts[name] += 1
        if not self.mlflow.alive() and time.monotonic() >= self.mlflow_back:
            self.mlflow.spawn()
            self.counts.restarts["mlflow"] += 1
        if self.reload_wanted and self.asked(self.forge.reload):
            self.reload_wanted = False
        runs = self.forge.instance.get_runs()
        if launching and sum(not run.is_finished for run in runs) < BACKLOG:
            assets = self.chance.choice(SELECTIONS)
            tags = {"dagster/max_retries": "2"}
            self.asked(lambda: self.forge.launch(*assets, config=self.config, tags=tags))
        for run in runs:
            if run.status == dg.DagsterRunStatus.FAILURE and run.run_id not in self.settled:
                self.settle(run, {other.parent_run_id for other in runs})

    def settle(self, run: dg.DagsterRun, parents: set[str | None]) -> None:
        """Ensure that a failed run is retried, unless it failed because the gate of a parent was closed."""
        record = self.forge.instance.get_run_record_by_id(run.run_id)
        assert record is not None
        if run.run_id in parents:
            self.settled.add(run.run_id)
        elif PLANNED in self.reason(run):
            self.settled.add(run.run_id)
            self.counts.refusals += 1
        elif time.time() - (record.end_time or time.time()) > 30 and self.asked(  # longer than the daemon needs
            lambda: self.forge.ask(_REEXECUTE, id=run.run_id)
        ):
            self.settled.add(run.run_id)
            self.counts.by_hand += 1

    def reason(self, run: dg.DagsterRun) -> str:
        """Return why a run failed."""
        kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
        logged = self.forge.instance.all_logs(run.run_id, of_type=kinds)
        data = [entry.dagster_event.event_specific_data for entry in logged if entry.dagster_event]
        return f"{[entry.user_message for entry in logged]} {data}"

    def asked(self, question: Callable[[], object]) -> bool:
        """Return whether the webserver answered; it may be down, or may not reach the code server."""
        try:
            question()
        except (OSError, AssertionError):
            return False
        return True

    def strike(self, kind: str) -> bool:
        """Cause one event and return whether it happened; it needs a target, for instance an active run."""
        forge = self.forge
        active = {dg.DagsterRunStatus.STARTED}
        runs = [run.run_id for run in forge.instance.get_runs() if run.status in active]
        run_id = self.chance.choice(runs) if runs else None
        if kind == "cancel" and run_id is not None:
            if not self.asked(lambda: forge.terminate(run_id)):
                return False
            self.cancelled.add(run_id)
        elif kind == "run" and run_id is not None:
            pid = forge.run_process(run_id)
            if pid is None or not psutil.pid_exists(pid):
                return False
            os.kill(pid, signal.SIGKILL)
        elif kind == "mlflow" and self.mlflow.alive():
            self.mlflow.kill()
            self.mlflow_back = time.monotonic() + self.chance.uniform(0, self.pause_s)
        elif kind in SERVICES and forge.alive(kind):
            forge.kill(kind)
        elif kind in ("worker", "container") and forge.alive("code"):
            below = psutil.Process(forge.processes["code"].pid).children(recursive=kind == "container")
            if kind == "container":
                forge.kill("code")
            for process in below:
                if process.is_running():
                    process.kill()
            self.reload_wanted = kind == "worker"
        else:
            return False
        self.counts.kills[kind] += 1
        print(f"{time.strftime('%H:%M:%S')} {kind}", flush=True)
        return True

    def rest(self) -> None:
        """Wait, with all services running, until every run has ended; then make all models once more."""
        self.reload_wanted = True
        self.mlflow_back = 0.0

        def at_rest() -> bool:
            self.supervise(launching=False)
            runs = self.forge.instance.get_runs()
            failed = {run.run_id for run in runs if run.status == dg.DagsterRunStatus.FAILURE}
            return all(run.is_finished for run in runs) and failed <= self.settled

        wait_for(at_rest, REST_S, lambda: self.forge.logs(SERVICES))
        assert self.forge.finished(self.forge.launch(*MODELS, config=self.config), REST_S) == "SUCCESS"
        wait_for(lambda: not self.forge.slots_taken(), 60)

    def problems(self) -> list[str]:
        """Return a line for every violation of the final state that the module docstring describes."""
        runs = self.forge.instance.get_runs()
        problems = [f"run {run.run_id} is {run.status.value}" for run in runs if run.status.value not in FINAL]
        for name, digest in self.expected.items():
            problems += [f"{name} has other weights: {d}" for d in self.digests(name) if d != digest]
        for name in ("tokens", "evaluation_suite"):
            folders = self.store.versions(name)
            problems += [f"{f} is damaged" for f in folders if not digest_folder(f).startswith(f.name)]
        problems += [f"slot of {run_id} is taken" for run_id in self.forge.slots_taken()]
        for folder in (".staging", ".damaged"):
            problems += [f"{path} is left" for path in (self.forge.store / folder).glob("*")]
        ended = {run.root_run_id or run.run_id for run in runs if run.status.value in ("CANCELED", "FAILURE")}
        for path in (self.forge.store / ".checkpoints").glob("*"):  # failed and cancelled runs may leave checkpoints
            if not path.name.startswith(tuple(ended)) or list(path.glob("*.partial")):
                problems.append(f"{path} is left")
        return problems + steps_twice(self.forge.diary, int(self.config["steps"]))[1] + self.tracked()

    def tracked(self) -> list[str]:
        """Return a line for everything that MLflow lacks, has twice or has in another state."""
        self.mlflow.start()
        for name, value in (("FORGE_HOME", str(self.forge.home / "forge")), ("FORGE_MLFLOW_URI", self.mlflow.uri)):
            os.environ[name] = value
        print(f"journals kept for MLflow: {len(list((self.forge.home / 'forge' / 'tracking').glob('*.jsonl')))}")
        MlflowTracking().replay()
        journals = (self.forge.home / "forge" / "tracking").iterdir()
        problems = [f"{path.name} is not delivered" for path in journals]
        client = mlflow.MlflowClient(self.mlflow.uri, self.mlflow.uri)
        experiment = client.get_experiment_by_name("agent-forge")
        assert experiment is not None
        runs, token = [], None
        while token is None or token:
            page = client.search_runs([experiment.experiment_id], page_token=token, max_results=500)
            runs, token = [*runs, *page], page.token or ""
        models = {run.info.run_id: run for run in runs if "dagster.asset_key" in run.data.tags}
        roots = {run.info.run_id: run.data.tags["dagster.root_run_id"] for run in runs if run.info.run_id not in models}
        named = Counter((roots[run.data.tags["mlflow.parentRunId"]], str(run.info.run_name)) for run in models.values())
        problems += [f"{name} has {count} runs in MLflow" for name, count in named.items() if count > 1]
        problems += [
            f"{run.info.run_name} is {run.info.status} in MLflow" for run in runs if run.info.status == "RUNNING"
        ]
        for name, digest in self.expected.items():
            versions = client.search_model_versions(f"name = 'forge-{name}'")
            champion = client.get_model_version_by_alias(f"forge-{name}", "champion").tags["digest"]
            if len(versions) != 1 or champion != digest:
                problems.append(f"{name} has {len(versions)} versions in MLflow; the champion is {champion}")
        begun = steps_begun(self.forge.diary)
        metrics = 0
        for run in models.values():
            key = f"{roots[run.data.tags['mlflow.parentRunId']]}-{run.info.run_name}"
            history = client.get_metric_history(run.info.run_id, "training/loss")
            metrics += len(history)
            if key.rpartition("-")[0] not in self.before:
                problems += wrong_metrics(
                    key, Counter(metric.step for metric in history), begun.pop(key, []), int(self.config["steps"])
                )
        problems += [f"{key} has no run in MLflow" for key in begun]
        print(f"MLflow: {len(models)} runs of models, {metrics} losses")
        return problems

    def left_processes(self) -> list[str]:
        """Return a line for every process that outlives the services."""
        left = self.forge.family()
        psutil.wait_procs(left, timeout=60)  # Dagster's servers take a while to notice that their parent is gone
        return [f"process {p.pid} is left: {' '.join(p.cmdline())[:200]}" for p in left if p.is_running()]


def steps_begun(diary: Path) -> dict[str, list[list[int]]]:
    """Return the steps that each process began, in order, by run and model."""
    begun: dict[str, dict[str, list[int]]] = {}
    for line in diary.read_text().splitlines():
        key, step, process = line.split()
        begun.setdefault(key, {}).setdefault(process, []).append(int(step))
    return {key: list(attempts.values()) for key, attempts in begun.items()}


def wrong_metrics(key: str, found: Counter[int], attempts: list[list[int]], total: int) -> list[str]:
    """Return a line for each step whose metrics are missing or there too often.

    A process reports a step before it begins the next one; of its last step it may have reported nothing.
    """
    every = max(1, min(REPORT_EVERY, total // 20))
    at_least = Counter(step for steps in attempts for step in steps[:-1] if step % every == 0)
    last = [steps[-1] for steps in attempts]
    at_most = at_least + Counter(step for step in last if step % every == 0 or step + 1 == total)
    return [
        f"step {step} of {key} is {found[step]} times in MLflow, wanted {at_least[step]} to {at_most[step]}"
        for step in sorted(found.keys() | at_most.keys())
        if not at_least[step] <= found[step] <= at_most[step]
    ]


def steps_twice(diary: Path, total: int) -> tuple[int, list[str]]:
    """Return the number of steps computed more than once, and the problems that a kill does not explain."""
    attempts: dict[str, list[tuple[str, list[int]]]] = {}
    for line in diary.read_text().splitlines():
        key, step, process = line.split()
        group = attempts.setdefault(key, [])
        if not group or group[-1][0] != process:
            group.append((process, []))
        group[-1][1].append(int(step))
    again, problems = 0, []
    for key, group in attempts.items():
        if len({process for process, _ in group}) != len(group):
            problems.append(f"two processes trained {key} at once")
        for (_, before), (process, after) in pairwise(group):
            lost = before[-1] + 1 - after[0]
            again += max(lost, 0)
            if not 0 <= lost <= 1:
                problems.append(f"{key} went on at step {after[0]} in {process}, after {before[-1]}: {lost} steps lost")
        if any(steps != list(range(steps[0], steps[-1] + 1)) or steps[-1] >= total for _, steps in group):
            problems.append(f"{key} has gaps")
    return again, problems


def main() -> None:
    """Run the soak test and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--steps", type=int, default=120, help="steps of each model, a twentieth of a second each")
    parser.add_argument("--pause", type=float, default=20.0, help="longest pause between two kills, in seconds")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    config = {"steps": arguments.steps, "step_s": 0.05}
    with (
        tempfile.TemporaryDirectory(prefix="forge-soak-", dir=memory) as folder,
        mlflow_server(Path(folder) / "mlflow") as server,
        live_forge(Path(folder) / "home", "live_forge", server.uri) as forge,
    ):
        soak = Soak(forge, server, config, random.Random(arguments.seed), arguments.pause)
        soak.undisturbed()
        soak.disturb(60 * arguments.minutes)
        soak.rest()
        runs = forge.instance.get_runs()
        problems = soak.problems()
        again, _ = steps_twice(forge.diary, arguments.steps)
        begun = len(forge.diary.read_text().splitlines())
        forge.interrupt()
        problems += soak.left_processes()
    retries = sum(run.parent_run_id is not None for run in runs)
    print("kills:", ", ".join(f"{kind} {number}" for kind, number in sorted(soak.counts.kills.items())))
    print("restarts:", ", ".join(f"{name} {number}" for name, number in sorted(soak.counts.restarts.items())))
    print("runs:", ", ".join(f"{s} {n}" for s, n in sorted(Counter(run.status.value for run in runs).items())))
    print(f"retries: {retries}, of which {soak.counts.by_hand} by hand; refused at a gate: {soak.counts.refusals}")
    print(f"training steps: {begun} begun, {again} of them twice ({again * config['step_s']:.2f} s lost)")
    print("\n".join(problems) if problems else "nothing is wrong")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
