"""The image of the container sandbox: Python and the libraries that it needs, nothing else.

On Debian it is built from packages without a registry, without root and in seconds: apt downloads the packages, and
their files are put into one archive. It contains no shell, no package manager and no setuid program, and the same
packages give the same bytes. On other systems it is pulled by a reference with a digest.
"""

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import docker
from docker.errors import DockerException, NotFound
from requests.exceptions import RequestException

from training_core.tasks.sandbox import SandboxUnavailableError

TOOLS = ("apt-cache", "apt-get", "dpkg-deb")
WANTED = re.compile(r"python3\.\d+-minimal|zlib1g|lib(?!perl).*")
NOT_NEEDED = re.compile(r"usr/share/|usr/lib/python3\.\d+/(test|ensurepip|idlelib|lib2to3|turtledemo)/|.*/__pycache__/")
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # links into usr, as in Debian since the /usr merge
USERS = b"root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/tmp:/\n"
GROUPS = b"root:x:0:\nnogroup:x:65534:\n"
TIMEOUT_S = 600


def build_image(client: docker.DockerClient, reference: str) -> str:
    """Build an image from Debian's packages, import it as `reference`, and return its id.

    Raises:
        SandboxUnavailableError: when a tool is missing, a package cannot be downloaded or the engine refuses.
    """
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise SandboxUnavailableError(
            f"the image is made of Debian's packages, and {', '.join(missing)} is not here: give --from an image with "
            "Python 3.11 or later, as NAME@sha256:DIGEST"
        )
    repository, _, tag = reference.rpartition(":")
    if not repository or "/" in tag:
        repository, tag = reference, "latest"
    with tempfile.TemporaryDirectory() as folder:
        archive = io.BytesIO()
        write_archive((unpack(package) for package in download(Path(folder))), archive)
        try:
            client.api.import_image_from_data(archive.getvalue(), repository=repository, tag=tag)
            return str(client.images.get(f"{repository}:{tag}").id)
        except (DockerException, RequestException) as error:
            raise SandboxUnavailableError(f"the container engine did not import the image: {error}") from error


def pull_image(client: docker.DockerClient, source: str, reference: str) -> str:
    """Pull `source`, which must contain a digest, tag it as `reference`, and return its id.

    Raises:
        SandboxUnavailableError: when it has no digest, or cannot be pulled.
    """
    if not re.fullmatch(r".+@sha256:[0-9a-f]{64}", source):
        raise SandboxUnavailableError(f"an image is pulled by its digest, got {source}: give NAME@sha256:DIGEST")
    try:
        image = client.images.pull(source)
        repository, _, tag = reference.rpartition(":")
        image.tag(repository, tag)
    except (DockerException, RequestException) as error:
        raise SandboxUnavailableError(f"{source} could not be pulled: {error}") from error
    return str(image.id)


def has_image(client: docker.DockerClient, reference: str) -> bool:
    """Return whether the engine has an image of this name."""
    try:
        client.images.get(reference)
    except NotFound:
        return False
    return True


def download(folder: Path) -> list[Path]:
    """Download the packages of Python and the libraries that it needs; return the files sorted by name.

    Raises:
        SandboxUnavailableError: when apt fails.
    """
    options = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    listed = _command(["apt-cache", "depends", "--recurse", *options, "python3"], folder).splitlines()
    names = sorted({name for name in listed if WANTED.fullmatch(name)})
    if not any(name.startswith("python3") for name in names):
        raise SandboxUnavailableError("apt knows no package python3: run apt-get update")
    _command(["apt-get", "download", "--quiet", *names], folder)
    return sorted(folder.glob("*.deb"))


def unpack(package: Path) -> bytes:
    """Return the files of a package as a tar archive.

    Raises:
        SandboxUnavailableError: when it is not a package.
    """
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise SandboxUnavailableError(f"{package.name} cannot be unpacked: {done.stderr.decode().strip()}")
    return done.stdout


def write_archive(packages: Iterable[bytes], target: io.BytesIO) -> None:
    """Write the files of packages as one tar archive, sorted by name, owned by root, without setuid bits."""
    members: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    for package in packages:
        for member, data in _files(package):
            members[member.name] = member, data
    python = max((name for name in members if re.fullmatch(r"usr/bin/python3\.\d+", name)), key=_minor)
    _link(members, "usr/bin/python3", Path(python).name)
    for name in MERGED:
        _folder(members, f"usr/{name}", 0o755)
        _link(members, name, f"usr/{name}")
    for name, mode in (("tmp", 0o1777), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)):
        _folder(members, name, mode)
    for name, data in (("etc/passwd", USERS), ("etc/group", GROUPS)):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        members[name] = member, data
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in sorted(members):
            member, data = members[name]
            archive.addfile(member, io.BytesIO(data))


def _files(package: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The files of a package in the form in which they enter the image."""
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive:
            name = _merged(member.name.removeprefix("./").strip("/"))
            if not name or name == "." or name in MERGED or NOT_NEEDED.match(f"{name}/" if member.isdir() else name):
                continue
            held = archive.extractfile(member) if member.isreg() else None
            clean = tarfile.TarInfo(name)
            clean.type, clean.linkname, clean.size = member.type, member.linkname, member.size
            clean.mode = member.mode & 0o755
            if member.islnk():
                clean.linkname = _merged(member.linkname.removeprefix("./"))
            yield clean, held.read() if held else b""


def _merged(name: str) -> str:
    return f"usr/{name}" if name.split("/")[0] in MERGED else name


def _minor(name: str) -> int:
    return int(name.rpartition(".")[2])


def _link(members: dict[str, tuple[tarfile.TarInfo, bytes]], name: str, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = tarfile.SYMTYPE, target, 0o777
    members[name] = member, b""


def _folder(members: dict[str, tuple[tarfile.TarInfo, bytes]], name: str, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    members[name] = member, b""


def _command(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SandboxUnavailableError(f"{' '.join(command[:2])} failed: {last}")
    return done.stdout
