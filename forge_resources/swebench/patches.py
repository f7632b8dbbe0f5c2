"""Unified diffs: generated from files in memory, and applied strictly by `git apply`."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from difflib import SequenceMatcher, unified_diff
from pathlib import Path

from forge_resources.swebench.archives import safe_path
from training_core.tasks.repair.edits import PatchError
from training_core.tasks.repair.instances import InstanceError

_NAMED = re.compile(r"^(?:---|\+\+\+|rename from|rename to|copy from|copy to) ([^\t\n]+)", re.MULTILINE)
_SPECIAL = re.compile(r"^(?:new file |deleted file |new |old )mode (?:120000|160000)|^GIT binary patch", re.MULTILINE)


def unified_patch(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return the patch that turns `old` into `new`, in git's format."""
    pieces = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) == new.get(path):
            continue
        pieces.append(f"diff --git a/{path} b/{path}\n")
        if path not in old or path not in new:
            pieces.append(f"{'deleted' if path in old else 'new'} file mode 100644\n")
        from_name = f"a/{path}" if path in old else "/dev/null"
        to_name = f"b/{path}" if path in new else "/dev/null"
        lines = unified_diff(_lines(old.get(path, "")), _lines(new.get(path, "")), from_name, to_name)
        pieces += [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines]
    return "".join(pieces)


def changes_left_out(old: Mapping[str, str], new: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return, for every hunk of the change, its position and the files with all hunks but that one; longest hunk first.

    A change that consists of a single hunk gives an empty list.
    """
    variants: list[tuple[int, str, dict[str, str]]] = []
    for path in sorted(old.keys() & new.keys()):
        a, b = _lines(old[path]), _lines(new[path])
        changes = SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes()
        for left_out in [change for change in changes if change[0] != "equal"]:
            kept = [a[i1:i2] if each == left_out else b[j1:j2] for each in changes for _, i1, i2, j1, j2 in [each]]
            text = "".join(line for lines in kept for line in lines)
            size = max(left_out[2] - left_out[1], left_out[4] - left_out[3])
            variants.append((size, f"{path}, line {left_out[1] + 1}", {**new, path: text}))
    longest_first = sorted(variants, key=lambda each: -each[0])
    return [(place, files) for _, place, files in longest_first if files != dict(old)]


def apply_patch(files: Mapping[str, str], patch: str) -> dict[str, str]:
    """Return the files after applying a unified diff. An empty patch changes nothing.

    It is applied in an empty temporary folder without fuzz; if one hunk does not fit, the whole patch is rejected.

    Raises:
        PatchError: when it does not apply, leaves the tree, or creates something other than a text file.
    """
    if not patch.strip():
        return dict(files)
    _refuse_hostile(patch)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        for path, text in files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode())
        root.mkdir(exist_ok=True)
        # Neither a repository around the folder nor the user's git settings may affect the result.
        environment = {
            "PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": folder, "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(root.parent.resolve()),
        }  # fmt: skip
        command = ["git", "apply", "--whitespace=nowarn", "-"]
        try:
            done = subprocess.run(
                command, cwd=root, env=environment, input=patch.encode(), capture_output=True, check=False
            )
        except FileNotFoundError as error:
            raise InstanceError("patches are applied by git, which is not here: install git") from error
        if done.returncode:
            first = (done.stderr.decode(errors="replace").strip().splitlines() or ["git gave no reason"])[0]
            raise PatchError(f"the patch does not apply: {first}")
        return _read(root)


def _refuse_hostile(patch: str) -> None:
    """Raise PatchError for a patch that leaves the tree, or that creates links, submodules or binary files."""
    if special := _SPECIAL.search(patch):
        raise PatchError(f"a patch changes text files, got {special[0]!r}; links, modules and binary files are refused")
    for name in _NAMED.findall(patch):
        plain = name.strip().strip('"')
        if plain == "/dev/null":
            continue
        try:
            safe_path(plain, "the patch")
        except InstanceError as error:
            raise PatchError(str(error)) from error


def _read(root: Path) -> dict[str, str]:
    files = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            raise PatchError(f"the patch makes a link, {path.relative_to(root)}; only text files can be made")
        if path.is_file():
            try:
                files[path.relative_to(root).as_posix()] = path.read_bytes().decode()
            except UnicodeDecodeError as error:
                raise PatchError(f"the patch makes {path.relative_to(root)} other than text (UTF-8)") from error
    return files


def _lines(text: str) -> list[str]:
    """The lines of a text with their ends; only a line feed ends a line, unlike in `str.splitlines`."""
    pieces = text.split("\n")
    return [f"{piece}\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])
