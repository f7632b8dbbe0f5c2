"""Is the harness right? Patches of which it is known what must come of them, graded on a real case.

The true repair must be resolved; no repair must not, with every test of FAIL_TO_PASS failing; a part of the true
repair, and one with an error beside it, must not; and what does not apply, or leaves the tree, is never run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from forge_resources.swebench.patches import apply_patch, changes_left_out, unified_patch
from forge_resources.swebench.releases import ReleaseRunner
from training_core.tasks.repair.edits import PatchError
from training_core.tasks.repair.grading import Grade, GradeStatus, grade
from training_core.tasks.repair.instances import Instance

MOST_PARTS = 12
_OUTSIDE = "--- /dev/null\n+++ b/../outside.py\n@@ -0,0 +1 @@\n+print(1)\n"


@dataclass(frozen=True, slots=True)
class Trial:
    """A patch, what it must come to (empty: not known), and what it came to. detail: why it does not apply, or what
    was left out of it."""

    label: str
    expected: GradeStatus | None
    grade: Grade
    detail: str

    @property
    def as_expected(self) -> bool:
        """Whether the harness says what it must."""
        return self.expected is None or self.grade.status == self.expected


def grade_patch(
    instance: Instance, runner: ReleaseRunner, label: str, patch: str, expected: GradeStatus | None = None
) -> Trial:
    """Apply a unified diff to an instance and grade what it makes.

    Raises:
        SandboxUnavailableError: from the runner.
    """
    try:
        files, detail = apply_patch(instance.files, patch), ""
    except PatchError as error:
        files, detail = None, str(error)
    return Trial(label, expected, grade(instance, files, runner), detail)


def trials(instance: Instance, runner: ReleaseRunner) -> Iterator[Trial]:
    """The patches of which it is known what must come of them, one after the other.

    Raises:
        SandboxUnavailableError: from the runner.
    """
    gold = unified_patch(instance.files, instance.gold_files)
    yield grade_patch(instance, runner, "the true repair", gold, "resolved")
    yield grade_patch(instance, runner, "no repair", "", "empty")
    yield _part(instance, runner)
    changed = next(path for path, text in sorted(instance.gold_files.items()) if instance.files.get(path) != text)
    broken = {**instance.gold_files, changed: f"raise ValueError\n{instance.gold_files[changed]}"}
    patch = unified_patch(instance.files, broken)
    yield grade_patch(instance, runner, "the true repair and an error", patch, "unresolved")
    undone = unified_patch(instance.gold_files, instance.files)
    yield grade_patch(instance, runner, "a patch of other lines", undone, "does_not_apply")
    yield grade_patch(instance, runner, "a patch that leaves the tree", _OUTSIDE, "does_not_apply")


def _part(instance: Instance, runner: ReleaseRunner) -> Trial:
    """The true repair without one of its changes: of the longest ones the first without which it is not resolved. A
    repair that is one change has no part but none."""
    label = "a part of the true repair"
    trial = grade_patch(instance, runner, label, "", "empty")
    for place, files in changes_left_out(instance.files, instance.gold_files)[:MOST_PARTS]:
        found = grade_patch(instance, runner, label, unified_patch(instance.files, files), "unresolved")
        trial = Trial(label, found.expected, found.grade, f"without its change at {place}")
        if not trial.grade.resolved:
            break
    return trial
