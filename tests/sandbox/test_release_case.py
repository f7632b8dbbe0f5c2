"""Two releases of a small package as a case of SWE-bench. What needs containers is skipped without an engine; what
reads archives and applies patches needs none."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from forge_assets.cli import app
from forge_resources.swebench import trials as release_trials
from forge_resources.swebench.archives import MAX_ARCHIVE_BYTES, download_release, read_archive
from forge_resources.swebench.patches import apply_patch, changes_left_out, unified_patch
from forge_resources.swebench.releases import LIMITS, ReleaseRunner, _reported, is_test, issue_of, release_instance
from forge_resources.swebench.trials import Trial, grade_patch, trials
from training_core.tasks.repair.edits import PatchError
from training_core.tasks.repair.grading import grade
from training_core.tasks.repair.instances import Instance, InstanceError
from training_core.tasks.sandbox import (
    MAX_SOURCE_BYTES,
    MAX_STDIN_BYTES,
    Limits,
    Program,
    Sandbox,
    SandboxUnavailableError,
)

OLD_CORE = """def double(n):
    return n + n


def half(n):
    return n / 2


def last(items):
    return items[0]
"""
NEW_CORE = "def first(items):\n    return items[0]\n\n\n" + OLD_CORE.replace("n / 2", "n // 2").replace("[0]", "[-1]")
OLD_TESTS = "from tiny.core import double\n\n\ndef test_double():\n    assert double(2) == 4\n"
NEW_TESTS = """import pathlib

import pytest

from tiny import core


def test_double(four):
    assert core.double(2) == four


@pytest.mark.parametrize("n", [3, 4])
def test_half(n):
    assert core.half(n) == n // 2 and isinstance(core.half(n), int)


def test_last():
    assert core.last([1, 2]) == 2


class TestFirst:
    def test_first(self):
        assert core.first([1, 2]) == 1


@pytest.mark.xfail(reason="not yet")
def test_not_yet():
    assert core.double(2) == 5


@pytest.mark.skip
def test_skipped():
    pass


def test_never_right():
    assert False


def test_data(tmp_path):
    assert (pathlib.Path(__file__).parent / "files" / "latin.txt").read_bytes() == b"\\xe9"
    (tmp_path / "x").write_text("y")
"""
OLD: dict[str, bytes] = {
    "tiny/__init__.py": b"",
    "tiny/core.py": OLD_CORE.encode(),
    "tests/test_core.py": OLD_TESTS.encode(),
    "tests/test_gone.py": b"def test_gone():\n    pass\n",
    "CHANGES.md": b"# Changes\n\n## 1.0\n\n* All is new.\n",
    "logo.bin": b"\xff\x00",
    "pyproject.toml": b'[tool.pytest.ini_options]\naddopts = "--strict-markers --no-such-option"\n',
}
NEW: dict[str, bytes] = {
    **{path: data for path, data in OLD.items() if path != "tests/test_gone.py"},
    "tiny/core.py": NEW_CORE.encode(),
    "tiny/more.py": b"",
    "tests/test_core.py": NEW_TESTS.encode(),
    "tests/conftest.py": b"import pytest\n\n\n@pytest.fixture\ndef four():\n    return 4\n",
    "tests/files/latin.txt": b"\xe9",
    "CHANGES.md": b"# Changes\n\n## 1.1\n\n* `half` and `last` are right.\n\n## 1.0\n\n* All is new.\n",
}
TEST = "tests/test_core.py::"
FAIL_TO_PASS = {f"{TEST}{name}" for name in ("test_half[3]", "test_half[4]", "test_last", "TestFirst::test_first")}
PASS_TO_PASS = {f"{TEST}{name}" for name in ("test_double", "test_not_yet", "test_data")}


def write_archive(path: Path, files: Mapping[str, bytes], *extra: tarfile.TarInfo, top: str = "tiny-1.0/") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra:
            archive.addfile(member)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_an_archive_gives_its_files(tmp_path: Path) -> None:
    folder = special("tiny-1.0/empty", tarfile.DIRTYPE)
    assert read_archive(write_archive(tmp_path / "a.tar.gz", OLD, folder)) == dict(sorted(OLD.items()))


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (special("tiny-1.0/link", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (special("tiny-1.0/link", tarfile.LNKTYPE, "tiny-1.0/tiny/core.py"), "is a link or a device"),
        (special("tiny-1.0/device", tarfile.CHRTYPE), "is a link or a device"),
        (special("tiny-1.0/pipe", tarfile.FIFOTYPE), "is a link or a device"),
        (special("/etc/cron.d/x", tarfile.REGTYPE), "leaves the tree"),
        (special("tiny-1.0/../../x", tarfile.REGTYPE), "leaves the tree"),
        (special("tiny-1.0/a\\..\\x", tarfile.REGTYPE), "leaves the tree"),
        (special("tiny-1.0/tiny/core.py", tarfile.REGTYPE), "is there twice"),
        (special("tiny-1.0/./tiny/core.py", tarfile.REGTYPE), "is there twice"),
        (special("other/x", tarfile.REGTYPE), "one folder must hold all"),
        (special("x", tarfile.REGTYPE), "one folder must hold all"),
    ],
)
def test_a_hostile_archive_is_refused_whole(tmp_path: Path, member: tarfile.TarInfo, why: str) -> None:
    with pytest.raises(InstanceError, match=why):
        read_archive(write_archive(tmp_path / "a.tar.gz", OLD, member))


def test_a_bomb_and_what_is_no_archive_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(bytes(MAX_ARCHIVE_BYTES + 1)))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(InstanceError, match=f"more than {MAX_ARCHIVE_BYTES} bytes"):
        read_archive(bomb)
    good = write_archive(tmp_path / "good.tar.gz", OLD).read_bytes()
    for name, data in (("a", b"no archive"), ("b", good[:-100]), ("c", gzip.compress(b"no tar" * 200)), ("d", b"")):
        path = tmp_path / f"{name}.tar.gz"
        path.write_bytes(data)
        with pytest.raises(InstanceError):
            read_archive(path)


TEXT = st.text("ab\n \t", max_size=12)
TREES = st.dictionaries(st.sampled_from(["a.py", "b/c.py", "b/d e.py", "f"]), TEXT, max_size=4)


@settings(max_examples=25)
@given(TREES, TREES)
def test_a_patch_makes_what_it_was_made_of(old: dict[str, str], new: dict[str, str]) -> None:
    """git is the judge: files that are new, gone, empty, or without a last line end, included."""
    assert apply_patch(old, unified_patch(old, new)) == new


FILES = {"m.py": "one\ntwo\nthree\n", "n.py": "four\n"}
GOOD = "--- a/m.py\n+++ b/m.py\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"


def test_a_patch_by_hand() -> None:
    assert apply_patch(FILES, GOOD) == {"m.py": "one\n2\nthree\n", "n.py": "four\n"}
    assert apply_patch(FILES, "") == FILES == apply_patch(FILES, " \n")
    assert unified_patch(FILES, {**FILES, "m.py": "one\n2\nthree\n"}) == f"diff --git a/m.py b/m.py\n{GOOD}"


@pytest.mark.parametrize(
    "patch",
    [
        GOOD.replace("-two", "-zwei"),  # the context is another
        GOOD.replace(" three", " drei"),
        GOOD.replace("m.py", "o.py"),  # no such file
        GOOD + "--- a/n.py\n+++ b/n.py\n@@ -1 +1 @@\n-five\n+5\n",  # its second half does not fit: nothing is applied
        "no patch at all",
        GOOD[:-20],
        GOOD.replace("a/m.py", "a/../m.py").replace("b/m.py", "b/../m.py"),
        "--- /dev/null\n+++ b/../outside.py\n@@ -0,0 +1 @@\n+x\n",
        "--- /dev/null\n+++ /tmp/outside.py\n@@ -0,0 +1 @@\n+x\n",
        '--- /dev/null\n+++ "b/\\056\\056/outside.py"\n@@ -0,0 +1 @@\n+x\n',
        "diff --git a/../outside.py b/../outside.py\nnew file mode 100644\n",
        "diff --git a/x b/x\nnew file mode 120000\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+/etc\n\\ No newline\n",
        "diff --git a/x b/x\nnew file mode 160000\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+Subproject commit 1111111\n",
        "diff --git a/m.py b/m.py\nold mode 100644\nnew mode 120000\n",
        "diff --git a/m.py b/../m.py\nsimilarity index 100%\nrename from m.py\nrename to ../m.py\n",
        "--- /dev/null\n+++ b/.git/config\n@@ -0,0 +1 @@\n+x\n",
        "diff --git a/x b/x\nnew file mode 100644\nindex 000..111\nGIT binary patch\nliteral 1\nIcmZPo0001\n",
    ],
)
def test_a_patch_that_does_not_apply_or_leaves_the_tree_is_refused(patch: str) -> None:
    with pytest.raises(PatchError):
        apply_patch(FILES, patch)


def test_a_repository_around_it_and_the_settings_of_a_user_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a repository `git apply` leaves out files beyond its folder, silently; a setting takes other white space
    for the same."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitconfig").write_text("[apply]\n\twhitespace = fix\n\tignoreWhitespace = change\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    as_git_writes_it = f"diff --git a/m.py b/m.py\n{GOOD}"
    assert apply_patch(FILES, as_git_writes_it.replace("+2", "+2 "))["m.py"] == "one\n2 \nthree\n"
    spaced = {"m.py": "one\ntwo\nthree  3\n"}
    assert apply_patch(spaced, GOOD.replace(" three", " three  3"))["m.py"] == "one\n2\nthree  3\n"
    with pytest.raises(PatchError):
        apply_patch(spaced, GOOD.replace(" three", " three 3"))


def test_all_changes_but_one() -> None:
    old, new = {"m": "a\nb\nc\nd\ne\n", "n": "x\n"}, {"m": "a\nB\nc\nd\ne\nf\ng\n", "n": "x\n"}
    assert changes_left_out(old, new) == [
        ("m, line 6", {"m": "a\nB\nc\nd\ne\n", "n": "x\n"}),
        ("m, line 2", {"m": "a\nb\nc\nd\ne\nf\ng\n", "n": "x\n"}),
    ]
    assert changes_left_out(old, {**old, "n": "y\n"}) == []


def test_what_is_a_test_and_what_the_issue_is() -> None:
    tests = ("tests/a.sql", "tiny/tests/b.py", "conftest.py", "test_x.py", "tiny/x_test.py", "test/c.py")
    assert all(is_test(path) for path in tests)
    assert not any(
        is_test(path) for path in ("tiny/core.py", "tiny/testing.py", "latest.py", "tests.py", "contests/a.py")
    )
    assert issue_of("tiny", OLD, NEW) == "## 1.1\n\n* `half` and `last` are right."
    assert issue_of("tiny", {}, {}) == "tiny must pass the tests of its newer release."


BACKEND = """import pathlib


def prepare_metadata_for_build_wheel(folder, settings=None):
    made = pathlib.Path(folder) / "tiny-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
    (made / "WHEEL").write_text("Wheel-Version: 1.0\\nGenerator: tiny\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return made.name
"""
PROJECT = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def test_pip_downloads_a_source_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, folder = tmp_path / "index", tmp_path / "folder"
    index.mkdir()
    folder.mkdir()
    files = {**OLD, "pyproject.toml": PROJECT, "backend.py": BACKEND.encode()}
    offered = write_archive(index / "tiny-1.0.tar.gz", files)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(index)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    made = download_release("tiny", "1.0", folder)
    assert made == folder / "tiny-1.0.tar.gz"
    assert made.read_bytes() == offered.read_bytes()
    assert read_archive(made)["tiny/core.py"] == OLD_CORE.encode()
    with pytest.raises(InstanceError, match=r"could not download the source of tiny 2.0.*--old and --new"):
        download_release("tiny", "2.0", folder)


@pytest.mark.parametrize(
    "stdout",
    ["", "x\n", "nonce", "nonce[]", "nonce{}", 'nonce{"statuses": 1, "errors": []}', "nonce" + "[" * 100_000, "{}"],
)
def test_a_report_that_is_none_says_so(stdout: str) -> None:
    assert _reported(stdout, "nonce") == {"": "ended without a report"}


def test_nothing_of_a_release_runs_in_the_embedded_sandbox(embedded: Sandbox) -> None:
    with pytest.raises(SandboxUnavailableError, match="start Docker or Podman"):
        ReleaseRunner(embedded, {}, {})


def test_without_an_engine_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_resources.sandbox.choose.engine_sockets", list)
    old, new = (str(write_archive(tmp_path / f"{n}.tar.gz", f)) for n, f in (("old", OLD), ("new", NEW)))
    made = CliRunner().invoke(app, ["repair", "release", "tiny", "--old", old, "--new", new])
    assert made.exit_code == 1
    assert "no container engine answers" in made.output
    missing = CliRunner().invoke(app, ["repair", "release", "tiny", "--old", old])
    assert (
        missing.exit_code,
        "which is the newer release of tiny? Give its version, or --new FILE" in missing.output,
    ) == (1, True)


@pytest.fixture(scope="module")
def case(container: Sandbox) -> tuple[Instance, ReleaseRunner]:
    return release_instance("tiny", OLD, NEW, container)


@pytest.fixture(scope="module")
def tried(case: tuple[Instance, ReleaseRunner]) -> dict[str, Trial]:
    return {trial.label: trial for trial in trials(*case)}


def test_the_case_is_found_by_running(case: tuple[Instance, ReleaseRunner]) -> None:
    instance, _ = case
    assert set(instance.fail_to_pass) == FAIL_TO_PASS
    assert set(instance.pass_to_pass) == PASS_TO_PASS
    assert instance.files == {path: data.decode() for path, data in OLD.items() if path != "logo.bin"}
    changed = {"tiny/core.py": NEW_CORE, "tiny/more.py": ""}
    assert instance.gold_files == {**instance.files, **changed}
    assert instance.issue == "## 1.1\n\n* `half` and `last` are right."
    assert set(instance.hidden_tests.values()) == {NEW_TESTS}


def test_the_harness_says_what_it_must(tried: dict[str, Trial]) -> None:
    statuses = {label: trial.grade.status for label, trial in tried.items()}
    assert statuses == {
        "the true repair": "resolved",
        "no repair": "empty",
        "a part of the true repair": "unresolved",
        "the true repair and an error": "unresolved",
        "a patch of other lines": "does_not_apply",
        "a patch that leaves the tree": "does_not_apply",
    }
    assert all(trial.as_expected for trial in tried.values())
    assert dict(tried["no repair"].grade.still_failing) == dict.fromkeys(FAIL_TO_PASS, "failed")
    assert tried["no repair"].grade.broken == ()
    part = tried["a part of the true repair"]
    assert dict(part.grade.still_failing) == {f"{TEST}TestFirst::test_first": "failed"}
    assert part.detail == "without its change at tiny/core.py, line 1"
    error = tried["the true repair and an error"].grade
    assert {name for name, _ in (*error.still_failing, *error.broken)} == FAIL_TO_PASS | PASS_TO_PASS
    assert "ValueError" in error.broken[0][1]
    wrong = replace(tried["no repair"], expected="resolved")
    assert not wrong.as_expected


def test_a_repair_that_breaks_what_worked_is_unresolved(case: tuple[Instance, ReleaseRunner]) -> None:
    instance, runner = case
    files = {**instance.gold_files, "tiny/core.py": NEW_CORE.replace("n + n", "n + 1")}
    trial = grade_patch(instance, runner, "breaks", unified_patch(instance.files, files))
    assert (trial.grade.status, trial.grade.still_failing) == ("unresolved", ())
    assert [name for name, _ in trial.grade.broken] == [f"{TEST}test_double"]  # what is expected to fail may


def test_a_repair_brings_no_tests_of_its_own_and_cannot_end_them_early(case: tuple[Instance, ReleaseRunner]) -> None:
    """Its tests and conftest are not run; what exits, or prints a report, or hangs, passes nothing."""
    instance, runner = case
    statuses = dict.fromkeys(sorted(FAIL_TO_PASS | PASS_TO_PASS), "passed")
    report = json.dumps({"statuses": statuses, "errors": []}).encode() + b"\n"
    forged = f"""import os
for descriptor in range(64):
    try:
        os.write(descriptor, {report!r})
    except OSError:
        pass
os._exit(0)
"""
    skip = "import pytest\n\n\ndef pytest_runtest_makereport(item, call):\n    return pytest.TestReport()\n"
    cheats = {
        "tests/test_core.py": "def test_last():\n    pass\n",
        "conftest.py": skip,
        "tiny/conftest.py": skip,
    }
    found = grade(instance, {**instance.files, **cheats}, runner)
    assert {name for name, _ in found.still_failing} == FAIL_TO_PASS
    assert found.broken == ()
    ended = grade(instance, {**instance.files, "tiny/core.py": forged}, runner)
    assert {status for _, status in (*ended.still_failing, *ended.broken)} == {"ended without a report"}
    hasty = ReleaseRunner(runner._sandbox, {}, {"test_x.py": b"while True: pass\n"}, Limits(seconds=2.0))
    assert hasty.run({"tiny/core.py": ""}, {"test_x.py::test_x": ""}) == {"test_x.py::test_x": "timeout"}


def _first_one(
    all_trials: Callable[[Instance, ReleaseRunner], Iterator[Trial]], instance: Instance, runner: ReleaseRunner
) -> Iterator[Trial]:
    return islice(all_trials(instance, runner), 1)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (OLD, {**NEW, **{path: OLD[path] for path in ("tiny/core.py", "tiny/__init__.py")}}, "FAIL_TO_PASS is empty"),
        (OLD, OLD, "nothing of the source of tiny changed"),
        (OLD, {**NEW, "tiny/more.py": b"\xff"}, "tiny/more.py is not UTF-8"),
        (
            OLD,
            {**NEW, "tests/test_core.py": b"def test_x():\n    assert False\n"},
            "no test of the newer release passes",
        ),
        ({"setup.py": b""}, NEW, "hold no source of tiny"),
    ],
)
def test_releases_that_make_no_case_are_refused(
    container: Sandbox, old: dict[str, bytes], new: dict[str, bytes], why: str
) -> None:
    with pytest.raises(InstanceError, match=why):
        release_instance("tiny", old, new, container, LIMITS)


@pytest.mark.slow
def test_the_command_prints_the_table(container: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first of its trials, for time; all of them are above."""
    first_one = partial(_first_one, release_trials.trials)
    monkeypatch.setattr(release_trials, "trials", first_one)
    old, new = (str(write_archive(tmp_path / f"{n}.tar.gz", f)) for n, f in (("old", OLD), ("new", NEW)))
    half = tmp_path / "half.diff"
    half.write_text(unified_patch({"tiny/core.py": OLD_CORE}, {"tiny/core.py": OLD_CORE.replace("n / 2", "n // 2")}))
    arguments = ["repair", "release", "tiny", "--old", old, "--new", new, "--patch", str(half)]
    made = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert made.exit_code == 0, made.output
    assert "FAIL_TO_PASS 4, PASS_TO_PASS 3" in made.output
    assert re.search(r"the true repair +resolved +4/4 +3/3", made.output)
    assert re.search(r"half\.diff +unresolved +2/4 +3/3", made.output)


def test_a_program_may_read_more_than_its_source_may_hold(embedded: Sandbox) -> None:
    """A package travels to its tests through standard input, of which there is a limit too."""
    text = "a" * (MAX_SOURCE_BYTES + 1)
    assert embedded.run(Program("print(len(input()))", text), Limits(memory_bytes=64 << 20)).stdout == f"{len(text)}\n"
    assert embedded.run(Program("print(1)", "a" * MAX_STDIN_BYTES), Limits()).status == "ok"
    assert embedded.run(Program("print(1)", "a" * (MAX_STDIN_BYTES + 1)), Limits()).status == "refused"
    assert embedded.run(Program("print(1)", "\ud800"), Limits()).status == "refused"
