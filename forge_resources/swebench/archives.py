"""Safe reading of untrusted source distributions into memory.

Nothing is unpacked onto the host. An archive with a link, a device, a path that leaves it, or too much content is
rejected as a whole.
"""

import gzip
import io
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from training_core.tasks.repair.instances import InstanceError

MAX_ARCHIVE_BYTES = 32 << 20  # unpacked
MAX_FILES = 10_000


def read_archive(path: Path) -> dict[str, bytes]:
    """Return the files of a source distribution (.tar.gz, PEP 625) by their path below its top-level folder.

    Raises:
        InstanceError: when it is not such an archive, contains something forbidden, or exceeds 32 MB or 10,000 files.
        OSError: when it cannot be read.
    """
    try:
        with gzip.open(path) as packed:
            data = packed.read(MAX_ARCHIVE_BYTES + 1)
        if len(data) > MAX_ARCHIVE_BYTES:
            raise InstanceError(f"{path} unpacks to more than {MAX_ARCHIVE_BYTES} bytes; larger releases are not read")
        files = _files(data, path)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeError) as error:
        raise InstanceError(f"{path} is no source distribution (.tar.gz): {error}") from error
    tops = sorted({PurePosixPath(name).parts[0] for name in files})
    if len(tops) != 1 or not all("/" in name for name in files):
        raise InstanceError(f"{path} is no source distribution: one folder must hold all, got {tops[:5]}")
    return {name.partition("/")[2]: content for name, content in sorted(files.items())}


def download_release(name: str, version: str, folder: Path) -> Path:
    """Download the source distribution of one release with pip, from the index that pip is configured for.

    pip reads its metadata as for an installation, by running the build backend that the release declares. With local
    archives instead, no code of a release runs outside the sandbox.

    Raises:
        InstanceError: with pip's reason.
    """
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
        "--no-binary", ":all:", "--dest", str(folder), f"{name}=={version}",
    ]  # fmt: skip
    before = set(folder.iterdir())
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    made = [path for path in folder.iterdir() if path not in before and path.name.endswith(".tar.gz")]
    if done.returncode or len(made) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise InstanceError(
            f"pip could not download the source of {name} {version}: {reason}. Check name, version and network, or "
            "give both archives with --old and --new"
        )
    return made[0]


def _files(data: bytes, path: Path) -> dict[str, bytes]:
    """Read the regular files of an archive.

    Raises:
        InstanceError: for a link, a device, a path that leaves the archive, a path twice, or too many files.
    """
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if member.isdir():
                continue
            if not member.isreg():
                raise InstanceError(f"{path}: {member.name} is a link or a device; such archives are refused")
            name = safe_path(member.name, str(path))
            if name in files or len(files) == MAX_FILES:
                raise InstanceError(f"{path}: {name} is there twice, or there are more than {MAX_FILES} files")
            held = archive.extractfile(member)
            files[name] = held.read() if held is not None else b""
    if not files:
        raise InstanceError(f"{path} holds no file")
    return files


def safe_path(name: str, where: str) -> str:
    """Return `name` as a normalised relative path that stays below its root.

    Raises:
        InstanceError: when it is absolute, contains "..", or is not a path.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        raise InstanceError(f"{where}: the path {name!r} leaves the tree; such archives and patches are refused")
    return "/".join(parts)
