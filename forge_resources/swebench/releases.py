"""Real instances in the form of SWE-bench, from the source distributions of two consecutive releases of a package.

The program to repair is the older release; the tests are those of the newer one; the gold patch is the change of the
package's source; the issue is what the newer release added to its changelog. FAIL_TO_PASS and PASS_TO_PASS are
determined by running the newer tests before and after the gold patch, as in SWE-bench (arXiv:2310.06770, section 2.1).
All of this is untrusted code, and runs only in the container sandbox.

**Differs from the paper**: a release combines several pull requests; tests need only pytest and the package.
Does not cover: packages with dependencies or compiled parts; a patch that attacks the test framework, with which it
shares an interpreter (a test whose report such a patch suppresses does not count as passed).
"""

import base64
import io
import json
import re
import secrets
import zipfile
from collections.abc import Mapping
from difflib import unified_diff
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath

from training_core.tasks.repair.grading import NOT_RUN
from training_core.tasks.repair.instances import Instance, InstanceError
from training_core.tasks.sandbox import Limits, Program, Sandbox, SandboxUnavailableError

LIMITS = Limits(seconds=120.0, memory_bytes=512 << 20, output_bytes=8 << 20, processes=64)
TOOLS = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
_NOT_NEEDED = re.compile(r"pygments/(lexers/(?!__init__|_mapping|diff|python)|styles/(?!__init__|_mapping|default))")
_INSIDE = Path(__file__).with_name("container_entrypoint.py")
_CHANGES = ("change", "news", "history", "release")
_LONGEST_ISSUE = 20_000  # characters


class ReleaseRunner:
    """Runs the newer release's tests against the files under test in a container.

    data: non-text files of the older release. tests: test files of the newer one. The files under test cannot add
    tests or conftest files of their own.

    Raises:
        SandboxUnavailableError: for a sandbox without containers, which has no files and no pytest.
    """

    def __init__(
        self, sandbox: Sandbox, data: Mapping[str, bytes], tests: Mapping[str, bytes], limits: Limits = LIMITS
    ) -> None:
        if not sandbox.name.startswith("container"):
            raise SandboxUnavailableError(
                f"the tests of a release run in containers, and this is {sandbox.name}: start Docker or Podman, then "
                "forge sandbox build-image"
            )
        self._sandbox, self._data, self._tests, self._limits = sandbox, dict(data), dict(tests), limits

    def run(self, files: Mapping[str, str], tests: Mapping[str, str]) -> dict[str, str]:
        """Return the status of each test (see `training_core.tasks.repair.grading.Runner`)."""
        statuses = self.statuses(files)
        return {name: statuses.get(name, statuses.get("", NOT_RUN)) for name in tests}

    def statuses(self, files: Mapping[str, str]) -> dict[str, str]:
        """Return the status of every collected test; the key "" holds what happened to those not collected.

        Raises:
            SandboxUnavailableError: when the isolation is lost.
        """
        judged = {path: text.encode() for path, text in files.items() if not is_test(path)}
        nonce = secrets.token_hex(16)
        request = {"tools": _tools(), "tree": _zipped({**self._data, **judged, **self._tests}), "nonce": nonce}
        outcome = self._sandbox.run(Program(_INSIDE.read_text(), json.dumps(request)), self._limits)
        if outcome.status == "refused":
            raise InstanceError(f"the release is too large to be tested: {outcome.error}")
        if outcome.status != "ok":
            return {"": outcome.status}
        return _reported(outcome.stdout, nonce)


def release_instance(
    name: str, old: Mapping[str, bytes], new: Mapping[str, bytes], sandbox: Sandbox, limits: Limits = LIMITS
) -> tuple[Instance, ReleaseRunner]:
    """Return the instance of two releases of the package `name`, and the runner of its tests.

    Raises:
        InstanceError: when the package's source is not found or unchanged, or the newer tests do not distinguish the
            releases.
        SandboxUnavailableError: without containers, or when they are lost.
    """
    before = {path: text for path, data in old.items() if (text := _text(data)) is not None}
    package = {path for path in (*old, *new) if _is_source(path, name)}
    if not package & old.keys() or not package & new.keys():
        raise InstanceError(f"the releases hold no source of {name}: its folder must be {name}/ or src/{name}/")
    fresh = {path: _text(new[path]) for path in sorted(package & new.keys())}
    if odd := [path for path, text in fresh.items() if text is None]:
        raise InstanceError(f"{odd[0]} is not UTF-8; the source of a release must be, so that patches can be applied")
    gold = {path: text for path, text in before.items() if path not in package}
    gold |= {path: text for path, text in fresh.items() if text is not None}
    if gold == before:
        raise InstanceError(f"nothing of the source of {name} changed between the releases; give two that differ")
    tests = {path: data for path, data in new.items() if is_test(path)}
    runner = ReleaseRunner(sandbox, {path: data for path, data in old.items() if path not in before}, tests, limits)
    now = runner.statuses(gold)
    passing = sorted(test for test, status in now.items() if test and status == "passed")
    if not passing:
        raise InstanceError(f"no test of the newer release passes on its own source ({now.get('', 'none was found')})")
    was = runner.statuses(before)
    sources = {test: (_text(tests.get(test.partition("::")[0], b"")) or "") for test in passing}
    fixed = [test for test in passing if was.get(test) != "passed"]
    instance = Instance(
        name=name,
        files=before,
        issue=issue_of(name, old, new),
        visible_test="",
        fail_to_pass={test: sources[test] for test in fixed},
        pass_to_pass={test: sources[test] for test in passing if test not in set(fixed)},
        gold_files=gold,
        kind="release",
    )
    return instance, runner


def issue_of(name: str, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> str:
    """Return what the newer release added to its changelog; a generic sentence if it has none."""
    for path in sorted(new, key=lambda path: (path.count("/"), path)):
        stem = PurePosixPath(path).stem.casefold()
        if any(word in stem for word in _CHANGES) and not path.endswith(".py"):
            before, after = ((_text(files.get(path, b"")) or "").splitlines() for files in (old, new))
            lines = unified_diff(before, after, n=0)
            added = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]
            if text := "\n".join(added).strip():
                return text[:_LONGEST_ISSUE]
    return f"{name} must pass the tests of its newer release."


def is_test(path: str) -> bool:
    """Return whether a path belongs to the tests: in a folder named "test" or "tests", or named as pytest expects."""
    *folders, base = PurePosixPath(path).parts
    named = base == "conftest.py" or (
        base.endswith(".py") and (base.startswith("test_") or base[:-3].endswith("_test"))
    )
    return named or any(folder in ("test", "tests") for folder in folders)


def _reported(stdout: str, nonce: str) -> dict[str, str]:
    """Parse the report in a container's output, the last line that begins with the nonce."""
    lines = [line for line in stdout.splitlines() if line.startswith(nonce)]
    try:
        report = json.loads(lines[-1].removeprefix(nonce))
        statuses = {str(test): str(status) for test, status in report["statuses"].items()}
        errors = "; ".join(map(str, report["errors"]))
    except (IndexError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"": "ended without a report"}
    return {**statuses, "": f"not found ({errors})" if errors else NOT_RUN}


def _is_source(path: str, name: str) -> bool:
    folders = {name, name.replace("-", "_")}
    parts = PurePosixPath(path).parts
    inner = parts[1:] if parts[0] == "src" else parts
    held = bool(inner) and (inner[0] in folders or (len(inner) == 1 and inner[0].removesuffix(".py") in folders))
    return held and path.endswith(".py") and not is_test(path)


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


@cache
def _tools() -> str:
    """The Python files of pytest and its dependencies as installed here, zipped.

    Raises:
        InstanceError: when one is not installed.
    """
    files: dict[str, bytes] = {}
    for name in TOOLS:
        try:
            listed = metadata.files(name) or []
        except metadata.PackageNotFoundError as error:
            raise InstanceError(
                f"the tests of a release need {name}, which is not installed: pip install pytest"
            ) from error
        inside = [each for each in listed if each.suffix == ".py" and ".." not in each.parts]
        inside = [each for each in inside if not _NOT_NEEDED.match(str(each))]
        files |= {str(path): path.read_binary() for path in inside}
    return _zipped(files)


def _zipped(files: Mapping[str, bytes]) -> str:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in sorted(files.items()):
            archive.writestr(path, data)
    return base64.b85encode(packed.getvalue()).decode()
