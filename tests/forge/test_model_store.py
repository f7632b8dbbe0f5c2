"""The model store: nothing is half written, overwritten or silently changed."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from forge_resources.model_store import ModelStore, StoreError, measurements_digest
from training_core.store.bundle import BundleError, Lineage, open_bundle, write_bundle, write_measurements
from training_core.store.identity import digest_folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(root=str(tmp_path / "store"))


def put(store: ModelStore, value: float, *, metric: float = 1.0, count: int = 6) -> tuple[str, Path]:
    """Store a bundle of one tensor; its digest and where it lies."""
    with store.stage("model") as staged:
        bundle = write_bundle(
            staged,
            kind="cognate",
            model_config={"width": 2},
            tensors={"weight": torch.full((count,), value)},
            tokenizer_json="{}",
        )
        lineage = Lineage("model", 1, "nano", bundle.digest(), "c", "d", {}, {}, {"metric": metric})
        write_measurements(bundle, lineage, {"bytes": torch.ones(2)})
        return lineage.digest, store.commit("model", staged, lineage.digest)


def staging(store: ModelStore) -> list[Path]:
    return list((store.path / ".staging").glob("*"))


def test_commit_puts_the_bundle_under_its_digest(store: ModelStore) -> None:
    digest, folder = put(store, 1.0)
    assert folder == store.path / "model" / digest[:16]
    assert store.versions("model") == [folder]
    assert store.open_bundle("model", digest).tensors()["weight"].tolist() == [1.0] * 6
    assert staging(store) == []


def test_same_content_is_kept_not_overwritten(store: ModelStore) -> None:
    digest, folder = put(store, 1.0)
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    assert put(store, 1.0) == (digest, folder)
    assert {file.name: file.stat().st_ino for file in folder.iterdir()} == before
    assert store.versions("model") == [folder]


def test_same_model_measured_again_stands_beside_the_first(store: ModelStore) -> None:
    digest, first = put(store, 1.0, metric=1.0)
    again, second = put(store, 1.0, metric=2.0)
    assert again == digest
    assert second.name == f"{digest[:16]}.{measurements_digest(second)[:8]}"
    metrics = [open_bundle(folder).lineage().metrics["metric"] for folder in (first, second)]
    assert metrics == [1.0, 2.0]
    assert store.open_bundle("model", digest, measurements_digest(first)).folder == first
    assert store.open_bundle("model", digest, measurements_digest(second)).folder == second
    assert store.open_bundle("model", digest).folder == second
    assert put(store, 1.0, metric=2.0) == (digest, second)
    assert len(store.versions("model")) == 2


def test_unknown_digest_and_measurements_are_refused(store: ModelStore) -> None:
    digest, _ = put(store, 1.0)
    with pytest.raises(StoreError, match="no version 0000000000000000"):
        store.open_bundle("model", "0" * 64)
    with pytest.raises(StoreError, match="changed or damaged"):
        store.open_bundle("model", digest, "0" * 64)
    with pytest.raises(StoreError, match="asset names"):
        store.versions("../model")


def test_content_that_is_not_the_digest_is_not_committed(store: ModelStore) -> None:
    with store.stage("model") as staged:
        staged.mkdir()
        (staged / "a").write_bytes(b"a")
        with pytest.raises(StoreError, match="was not committed"):
            store.commit("model", staged, "0" * 64, "data")
    assert store.versions("model") == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "evaluation.safetensors"])
def test_damaged_version_is_refused_then_replaced_by_a_good_one(store: ModelStore, name: str) -> None:
    digest, folder = put(store, 1.0)
    measured = measurements_digest(folder)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 0x10
    (folder / name).write_bytes(bytes(content))
    with pytest.raises((BundleError, StoreError)):
        store.open_bundle("model", digest, measured)
    put(store, 1.0)
    assert store.open_bundle("model", digest, measured).tensors()["weight"].tolist() == [1.0] * 6
    if name != "evaluation.safetensors":  # there the model was whole, and only its measurement is set aside
        assert (next((store.path / ".damaged").iterdir()) / name).read_bytes() == bytes(content)


def test_version_without_its_measurements_is_replaced(store: ModelStore) -> None:
    digest, folder = put(store, 1.0)
    (folder / "lineage.json").unlink()
    put(store, 1.0)
    assert store.open_bundle("model", digest).lineage().metrics == {"metric": 1.0}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_and_interrupt_leave_nothing_behind(store: ModelStore, error: type[BaseException]) -> None:
    digest, _ = put(store, 1.0)

    def write_half() -> None:
        with store.stage("model") as staged:
            staged.mkdir()
            (staged / "half").write_bytes(b"x")
            raise error

    with pytest.raises(error):
        write_half()
    assert staging(store) == []
    assert [folder.name for folder in store.versions("model")] == [digest[:16]]


KILLED = """
import sys, time
from forge_resources.model_store import ModelStore
with ModelStore(root=sys.argv[1]).stage("model") as staged:
    staged.mkdir()
    (staged / "half").write_bytes(b"x" * 1000)
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_killed_writer_leaves_earlier_versions_and_its_rest_is_cleaned(store: ModelStore) -> None:
    digest, folder = put(store, 1.0)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(store.path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        assert len(staging(store)) == 1
        put(store, 2.0)  # the other process lives: its staging must stay
        assert len(staging(store)) == 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(staging(store)) == 1
    assert store.open_bundle("model", digest).folder == folder
    put(store, 3.0)
    assert staging(store) == []
    assert len(store.versions("model")) == 3


def test_staging_of_another_machine_is_left_alone(store: ModelStore) -> None:
    foreign = store.path / ".staging" / "another-host-999999999-0123abcd"
    foreign.mkdir(parents=True)
    put(store, 1.0)
    assert staging(store) == [foreign]


def write_text(store: ModelStore, size: int) -> None:
    with store.stage("data") as staged:
        staged.mkdir()
        (staged / "text").write_bytes(b"x" * size)


def full_disk_message(store: ModelStore) -> str:
    with pytest.raises(StoreError) as caught:
        put(store, 2.0, count=400_000)
    return str(caught.value)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine allows no mounts")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_full_disk_is_named_and_earlier_versions_stay(tiny_disk: Path) -> None:
    store = ModelStore(root=str(tiny_disk / "store"))
    digest, folder = put(store, 1.0)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    message = full_disk_message(store)
    assert str(store.path) in message
    assert "bytes are free" in message
    assert staging(store) == []
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert store.open_bundle("model", digest).tensors()["weight"].tolist() == [1.0] * 6
    with pytest.raises(StoreError, match="no room"):
        write_text(store, 1_000_000)
    put(store, 3.0)
    assert len(store.versions("model")) == 2


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[2])
import pytest
from test_model_store import ModelStore, full_disk_message, put
store = ModelStore(root=sys.argv[1])
digest, _ = put(store, 1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
print(full_disk_message(store))
assert store.open_bundle("model", digest).tensors()["weight"].tolist() == [1.0] * 6
"""


def test_file_size_limit_counts_as_a_full_disk(store: ModelStore) -> None:
    here = str(Path(__file__).parent)
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(store.path), here], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "no room to write model below" in ran.stdout
    assert staging(store) == []


def test_digest_folder_is_the_hash_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z").write_bytes(b"22")
    (tmp_path / "a").write_bytes(b"1")
    parts = [(b"a", b"1"), (b"b/z", b"22")]
    framed = b"".join(
        len(name).to_bytes(8, "little") + name + len(content).to_bytes(8, "little") + content for name, content in parts
    )
    assert digest_folder(tmp_path) == hashlib.sha256(framed).hexdigest()
    before = digest_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "c")
    assert digest_folder(tmp_path) != before
    (tmp_path / "link").symlink_to(tmp_path / "c")
    with pytest.raises(ValueError, match="not a regular file"):
        digest_folder(tmp_path)


def test_data_folder_is_verified(store: ModelStore) -> None:
    def put_data() -> Path:
        with store.stage("tokens") as staged:
            (staged / "shard").mkdir(parents=True)
            (staged / "shard" / "0").write_bytes(b"tokens")
            return store.commit("tokens", staged, digest_folder(staged), "data")

    folder = put_data()
    digest = digest_folder(folder)
    assert store.folder("tokens", digest, verify=True) == folder
    (folder / "shard" / "0").write_bytes(b"TOKENS")
    with pytest.raises(StoreError, match="changed or damaged"):
        store.folder("tokens", digest, verify=True)
    assert put_data() == folder
    assert (folder / "shard" / "0").read_bytes() == b"tokens"
    assert (next((store.path / ".damaged").iterdir()) / "shard" / "0").read_bytes() == b"TOKENS"


def test_versions_are_listed_oldest_first(store: ModelStore) -> None:
    names = []
    for value in (3.0, 1.0, 2.0):
        names.append(put(store, value)[1].name)
        time.sleep(0.01)
    assert [folder.name for folder in store.versions("model")] == names


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_bundle_with_a_link_or_a_folder_in_it_is_not_committed(store: ModelStore, tmp_path: Path, kind: str) -> None:
    digest, folder = put(store, 1.0)
    with store.stage("model") as staged:
        shutil.copytree(folder, staged)
        (staged / "notes").mkdir() if kind == "folder" else (staged / "notes").symlink_to("/etc/passwd")
        with pytest.raises(StoreError, match=r"holds notes: a bundle holds files, no links and folders"):
            store.commit("other", staged, digest)
    assert store.versions("other") == []
