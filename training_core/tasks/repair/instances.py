"""Repair instances in the form of SWE-bench (Jimenez et al., 2024, arXiv:2310.06770, section 2).

A SWE-bench instance is a repository at a commit, an issue, and two sets of tests determined by running them: those that
fail before the gold patch and pass after it (FAIL_TO_PASS), and those that pass before and after (PASS_TO_PASS).

**Differs from the paper**: an instance may have a visible test, separate from the hidden ones, which the tool runs for
the model while it works. Programs are files in memory, so that nothing of them touches the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class InstanceError(ValueError):
    """Raised when an instance is invalid; the message names the test or field and what was found."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A program with a fault, and the tests that detect it.

    name: unique. files: path -> source, with the fault. issue: the specification in words. visible_test: source of the
    test that the tool may run for the model; may be empty. fail_to_pass, pass_to_pass: name of a hidden test -> its
    source. gold_files: path -> source of all files after the gold patch. kind: the kind of fault.

    Raises:
        InstanceError: when a set of tests is empty, a test is in both, or the gold patch changes nothing.
    """

    name: str
    files: Mapping[str, str]
    issue: str
    visible_test: str
    fail_to_pass: Mapping[str, str]
    pass_to_pass: Mapping[str, str]
    gold_files: Mapping[str, str]
    kind: str

    def __post_init__(self) -> None:
        for title, tests in (("FAIL_TO_PASS", self.fail_to_pass), ("PASS_TO_PASS", self.pass_to_pass)):
            if not tests:
                raise InstanceError(f"{self.name}: {title} is empty; an instance needs at least one test in each set")
        if both := sorted(self.fail_to_pass.keys() & self.pass_to_pass.keys()):
            raise InstanceError(f"{self.name}: {both[0]} is in FAIL_TO_PASS and in PASS_TO_PASS; leave it in one")
        if dict(self.files) == dict(self.gold_files):
            raise InstanceError(f"{self.name}: the true repair changes nothing; gold_files must differ from files")

    @property
    def hidden_tests(self) -> dict[str, str]:
        """All hidden tests, FAIL_TO_PASS first."""
        return {**self.fail_to_pass, **self.pass_to_pass}

    @property
    def path(self) -> str:
        """The path of the only file.

        Raises:
            InstanceError: when there are several.
        """
        if len(self.files) != 1:
            raise InstanceError(f"{self.name} has {len(self.files)} files; line edits are written for one file")
        return next(iter(self.files))

    @property
    def source(self) -> str:
        """The source of the only file, with the fault. Raises InstanceError as `path` does."""
        return self.files[self.path]
