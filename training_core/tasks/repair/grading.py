"""Grading of repairs (SWE-bench, arXiv:2310.06770, section 2 and its evaluation harness).

    resolved  iff  every test of FAIL_TO_PASS passes and every test of PASS_TO_PASS still passes

A `Runner` runs the tests: a sandbox for single-module programs, a container for a released package. The rule is the
same for both, and a test counts as passed only if the runner reports "passed".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from training_core.tasks.repair.instances import Instance, InstanceError
from training_core.tasks.sandbox import Limits, Sandbox

PASSED = "passed"
NOT_RUN = "not run"
GradeStatus = Literal["resolved", "unresolved", "does_not_apply", "empty"]
LIMITS = Limits(seconds=1.0, memory_bytes=64 << 20, output_bytes=2000)


class Runner(Protocol):
    """Runs tests against files in isolation."""

    def run(self, files: Mapping[str, str], tests: Mapping[str, str]) -> Mapping[str, str]:
        """Return the status of each test: "passed", or what happened instead.

        Raises:
            SandboxUnavailableError: when the isolation is lost. The programs' own failures never raise.
        """


class SandboxRunner:
    """Runs the tests of a single-file program one by one with `Sandbox.check`, hidden from the program.

    After a timeout the remaining tests are skipped: a program that hangs would hang in each of them.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits = LIMITS) -> None:
        self.sandbox, self.limits = sandbox, limits

    def run(self, files: Mapping[str, str], tests: Mapping[str, str]) -> dict[str, str]:
        """Return the status of each test (see `Runner`).

        Raises:
            InstanceError: when there is not exactly one file.
        """
        if len(files) != 1:
            raise InstanceError(f"a sandbox judges programs of one file, got {sorted(files)}: use a container")
        (candidate,) = files.values()
        statuses: dict[str, str] = {}
        for name, test in tests.items():
            hangs = "timeout" in statuses.values()
            statuses[name] = NOT_RUN if hangs else self.sandbox.check(candidate, test, self.limits).status
        return statuses


@dataclass(frozen=True, slots=True)
class Grade:
    """The grade of a repair by hidden tests.

    status: "empty" if the files are unchanged; "does_not_apply" if there are no repaired files. still_failing: tests of
    FAIL_TO_PASS that do not pass; broken: tests of PASS_TO_PASS that no longer pass; both as (name, status).
    """

    status: GradeStatus
    still_failing: tuple[tuple[str, str], ...]
    broken: tuple[tuple[str, str], ...]

    @property
    def resolved(self) -> bool:
        """Whether all FAIL_TO_PASS and PASS_TO_PASS tests pass."""
        return self.status == "resolved"


def grade(instance: Instance, files: Mapping[str, str] | None, runner: Runner) -> Grade:
    """Grade the repaired `files` of an instance; pass None if the patch did not apply.

    An empty repair is run as well, because its test statuses show whether the instance is valid (see `validate`). It is
    never resolved.

    Raises:
        SandboxUnavailableError: from the runner.
    """
    if files is None:
        nothing = tuple((name, NOT_RUN) for name in instance.fail_to_pass)
        return Grade("does_not_apply", nothing, ())
    statuses = runner.run(files, instance.hidden_tests)
    still = _not_passed(instance.fail_to_pass, statuses)
    broken = _not_passed(instance.pass_to_pass, statuses)
    if dict(files) == dict(instance.files):
        return Grade("empty", still, broken)
    return Grade("unresolved" if still or broken else "resolved", still, broken)


def validate(instance: Instance, runner: Runner) -> None:
    """Validate an instance by running it: the gold patch resolves it; without a patch every FAIL_TO_PASS test fails and
    every PASS_TO_PASS test passes.

    Raises:
        InstanceError: naming the test and what happened.
        SandboxUnavailableError: from the runner.
    """
    gold = grade(instance, instance.gold_files, runner)
    if not gold.resolved:
        name, status = (*gold.still_failing, *gold.broken)[0]
        raise InstanceError(f"{instance.name}: {name} must pass after the true repair, got {status!r}")
    before = grade(instance, instance.files, runner)
    if before.broken:
        name, status = before.broken[0]
        raise InstanceError(f"{instance.name}: {name} is in PASS_TO_PASS and must pass before it, got {status!r}")
    if fixed := sorted(instance.fail_to_pass.keys() - dict(before.still_failing).keys()):
        raise InstanceError(f"{instance.name}: {fixed[0]} is in FAIL_TO_PASS and must fail before it, but passes")


def _not_passed(tests: Mapping[str, str], statuses: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    results = ((name, statuses.get(name, NOT_RUN)) for name in tests)
    return tuple((name, status) for name, status in results if status != PASSED)
