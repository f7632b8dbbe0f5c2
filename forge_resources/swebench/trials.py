"""Self-test of the grading harness: patches with a known correct grade, run on a real instance.

The gold patch must be graded resolved; an empty patch must not, with all FAIL_TO_PASS tests failing; nor may a part of
the gold patch, or the gold patch with an added error; and a patch that does not apply or leaves the tree is never run.
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
    """A patch with its expected status (None: unknown) and its grade. detail: why it does not apply, or which hunk was
    left out."""

    label: str
    expected: GradeStatus | None
    grade: Grade
    detail: str

    @property
    def as_expected(self) -> bool:
        """Whether the harness gives the expected status."""
        return self.expected is None or self.grade.status == self.expected


def grade_patch(
    instance: Instance, runner: ReleaseRunner, label: str, patch: str, expected: GradeStatus | None = None
) -> Trial:
    """Apply a unified diff to an instance and grade the result.

    Raises:
        SandboxUnavailableError: from the runner.
    """
    try:
        files, detail = apply_patch(instance.files, patch), ""
    except PatchError as error:
        files, detail = None, str(error)
    return Trial(label, expected, grade(instance, files, runner), detail)


def trials(instance: Instance, runner: ReleaseRunner) -> Iterator[Trial]:
    """Grade all patches of the self-test, and yield them one by one.

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
    """The gold patch without one of its hunks: the longest hunk without which it is not resolved. A gold patch of a
    single hunk has no proper part, so the empty patch is graded."""
    label = "a part of the true repair"
    trial = grade_patch(instance, runner, label, "", "empty")
    for place, files in changes_left_out(instance.files, instance.gold_files)[:MOST_PARTS]:
        graded = grade_patch(instance, runner, label, unified_patch(instance.files, files), "unresolved")
        trial = Trial(label, graded.expected, graded.grade, f"without its change at {place}")
        if not trial.grade.resolved:
            break
    return trial
