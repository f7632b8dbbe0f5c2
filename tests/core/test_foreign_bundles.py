"""A bundle or an artifact from a stranger: nothing of it is executed, no link is followed, and no memory is taken that
its size does not account for. What is wrong is said in a ValueError of ours.

All bundles are opened by one process that has 300 MB of address space to spare (`open_foreign_bundles`).
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.test_container import tokenizer_json
from tests.core.test_packing import forged
from training_core.data.tokenizer import load_tokenizer
from training_core.formats.container import write_container
from training_core.formats.ternary_packing import ternary_product
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.store.bundle import BundleError, Lineage, open_bundle, write_bundle, write_measurements

ROOT = Path(__file__).parents[2]
SMALL = CognateConfig(
    d_model=16, num_layers=2, num_core_layers=1, num_heads=2, d_ff=16, memory_layers=[], vocab_size=300
)
LARGEST = {"d_model": 1 << 14, "d_ff": 1 << 16, "num_layers": 256}  # what the bounds of the fields still allow
MARKER = "/executed-by-a-pickle"
Spoil = Callable[[Path], None]


class Evil:
    """Unpickled, it writes the file `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.mkdir, (self.path,)


def write(folder: Path, **changed: Any) -> Path:
    """A whole bundle of an untrained model; `changed` fields of its configuration do not fit the weights."""
    config = {"cognate": SMALL.model_dump() | changed}
    bundle = write_bundle(
        folder,
        kind="cognate",
        model_config=config,
        tensors=Cognate(SMALL).state_dict(),
        tokenizer_json=tokenizer_json(300),
    )
    lineage = Lineage("trunk", 1, "nano", bundle.digest(), "", "", {}, {}, {})
    write_measurements(bundle, lineage, {"bytes": torch.ones(1)})
    return folder


def ternary(folder: Path, payload: bytes | None = None) -> None:
    torch.manual_seed(0)
    model, settings = Cognate(SMALL), TernarySettings()
    make_ternary(model, settings)
    product = ternary_product(model, settings, tokenizer_json(300))
    write_bundle(
        folder,
        kind="ternary",
        model_config=product.model_config,
        tensors=product.tensors,
        tokenizer_json=product.tokenizer_json,
        payload=product.payload if payload is None else payload,
    )
    bundle = open_bundle(folder)
    write_measurements(bundle, Lineage("t", 4, "nano", bundle.digest(), "", "", {}, {}, {}), {"bytes": torch.ones(1)})


def artifact(folder: Path, **changed: Any) -> None:
    folder.mkdir()
    config = {"cognate": SMALL.model_dump() | changed, "threshold": 0.5, "granularity": "tensor"}
    (folder / "alone.forge").write_bytes(write_container(config, tokenizer_json(300), {}))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def tokenizer_part(**parts: Any) -> Spoil:
    return lambda folder: edit(folder / "tokenizer.json", lambda document: document.update(parts))


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content) and None


def link(name: str, target: str) -> Spoil:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return replace


def pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")  # reading it would wait for ever


def sparse(name: str) -> Spoil:
    return lambda folder: os.truncate(folder / name, 3 << 30)  # three gigabytes that take no room on the disk


def tensors(header: bytes, size: int | None = None) -> Spoil:
    content = struct.pack("<Q", len(header) if size is None else size) + header
    return lambda folder: (folder / "model.safetensors").write_bytes(content) and None


def pickled(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Evil(f"{folder.parent.parent}{MARKER}"))) and None


def saved_by_torch(folder: Path) -> None:
    torch.save({"weight": Evil(f"{folder.parent.parent}{MARKER}")}, folder / "model.safetensors")


ANNOUNCED = b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
OVERFLOWING = b'{"w":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}'
BOMB = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}
PADDING = {"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
TEMPLATE = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}

SPOILT: dict[str, tuple[Spoil, str]] = {
    "config that nests": (text("config.json", "[" * 100_000 + "]" * 100_000), "not valid JSON"),
    "config with a long number": (text("config.json", '{"format": ' + "9" * 5000 + "}"), "not valid JSON"),
    "config of 3 GB": (sparse("config.json"), "at most 67108864 bytes, got 3221225472"),
    "config without a model": (text("config.json", '{"format": 2, "kind": "cognate"}'), "'model' must be an object"),
    "config that leaves the folder": (
        text("config.json", '{"format": 2, "kind": "../../etc", "model": {}}'),
        "not a version 2 bundle of kind",
    ),
    "config that is a link": (link("config.json", "/etc/passwd"), "must be a file of its own"),
    "lineage that nests": (text("lineage.json", "[" * 100_000 + "]" * 100_000), "not valid JSON"),
    "exhibits that nest": (text("exhibits.json", '{"a":' * 100_000 + "1" + "}" * 100_000), "not valid JSON"),
    "header longer than the file": (tensors(b"{}", 1 << 40), "is damaged"),
    "header of 2^63 bytes": (tensors(b"{}", 1 << 63), "is damaged"),
    "tensor longer than the file": (tensors(ANNOUNCED), "is damaged"),
    "tensor whose size overflows": (tensors(OVERFLOWING), "is damaged"),
    "weights that are a link": (link("model.safetensors", "/dev/zero"), "must be a file of its own"),
    "weights that are a link upwards": (link("model.safetensors", "../good/model.safetensors"), "a file of its own"),
    "weights that are a pickle": (pickled("model.safetensors"), "is damaged"),
    "weights saved by torch": (saved_by_torch, "is damaged"),
    "tokenizer that is a link": (link("tokenizer.json", "/etc/passwd"), "must be a file of its own"),
    "tokenizer that is a pipe": (pipe, "must be a file of its own"),
    "tokenizer that pads": (tokenizer_part(padding=PADDING), "plain byte-level BPE tokenizer: .* padding"),
    "tokenizer that doubles 40 times": (tokenizer_part(normalizer=BOMB), "plain byte-level BPE .* normalizer"),
    "tokenizer with a template": (tokenizer_part(post_processor=TEMPLATE), "plain byte-level BPE .* post_processor"),
    "tokenizer that splits by a pattern": (
        tokenizer_part(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+b"}}),
        "plain byte-level BPE .* pre_tokenizer",
    ),
    "tokenizer of another model": (tokenizer_part(model={"type": "Unigram"}), "plain byte-level BPE .* model"),
    "tokenizer that is a list": (text("tokenizer.json", "[]"), "must be a JSON object"),
}
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "width of 10^9": ({"d_model": 10**9}, "less than or equal to 16384"),
    "width of 10^30": ({"d_model": 10**30}, "d_model"),
    "a million layers": ({"num_layers": 10**6}, "less than or equal to 256"),
    "recursion without end": ({"num_supervision": 10**9, "cycles": 10**9}, "less than or equal to 32"),
    "the largest shape": (LARGEST, r"describes a model of \d{12,} weights and \d{4} are stored"),
    "more tokens than rows": ({"vocab_size": 65535}, r"describes a model of \d{7} weights and \d{4} are stored"),
    "fewer layers than weights": ({"num_layers": 1}, "do not fit the configuration"),
}
PAYLOADS: dict[str, tuple[bytes, str]] = {
    "largest shape in the packed file": (
        forged({}, config={"cognate": SMALL.model_dump() | LARGEST, "ternary": {}}),
        r"describes a model of \d{12,} weights and 0 are stored",
    ),
    "packed file without a model": (forged({}, config={}), "does not describe a ternary model"),
    "packed tensor of 2^60 rows of nothing": (
        forged({"w.trits": torch.zeros(0, dtype=torch.uint8), "w.scale": torch.ones((), dtype=torch.float16)},
               shapes={"w": [0, 1 << 60, 1 << 60]}),
        "non-negative integers",
    ),
    "packed tensor of 10^18 weights": (
        forged({"w.trits": torch.zeros(1, dtype=torch.uint8), "w.scale": torch.ones((), dtype=torch.float16)},
               shapes={"w": [10**9, 10**9]}),
        "must be 200000000000000000 bytes",
    ),
}  # fmt: skip
ARTIFACTS: dict[str, tuple[dict[str, Any], str]] = {
    "artifact of 10^9 wide": ({"d_model": 10**9}, "does not hold a Cognate model"),
    "artifact of the largest shape": (LARGEST, r"describes a model of \d{12,} weights and 32769 are stored"),
}
FINE = {"good", "good with pickles beside it", "good ternary"}
EXPECTED = {name: message for cases in (SPOILT, SHAPES, PAYLOADS, ARTIFACTS) for name, (_, message) in cases.items()}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """The folder of everything, and what came of each bundle: the error's class, and its message or the result."""
    folder = tmp_path_factory.mktemp("foreign")
    cases = folder / "bundles"
    cases.mkdir()
    write(cases / "good")
    ternary(cases / "good ternary")
    write(cases / "good with pickles beside it")
    for name in ("pytorch_model.bin", "model.pkl", "tokenizer.pickle"):
        pickled(name)(cases / "good with pickles beside it")
    for name, (spoil, _) in SPOILT.items():
        spoil(write(cases / name))
    for name, (changed, _) in SHAPES.items():
        write(cases / name, **changed)
    for name, (payload, _) in PAYLOADS.items():
        ternary(cases / name, payload)
    for name, (changed, _) in ARTIFACTS.items():
        artifact(cases / name, **changed)
    program = [sys.executable, "-W", "ignore", "-m", "tests.core.open_foreign_bundles", str(cases)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder, json.loads(ended.stdout)


@pytest.mark.parametrize("name", list(EXPECTED))
@pytest.mark.slow
def test_what_is_wrong_is_said_before_memory_is_taken(opened: tuple[Path, dict[str, list[str]]], name: str) -> None:
    kind, message = opened[1][name]
    assert kind in ("BundleError", "PackedModelError", "ContainerError", "ValueError"), message
    assert re.search(EXPECTED[name], message), message
    assert len(message) < 2000


def test_good_bundles_open_and_pickles_are_not_read(opened: tuple[Path, dict[str, list[str]]]) -> None:
    folder, outcomes = opened
    assert set(outcomes) == FINE | set(EXPECTED)
    length = len(load_tokenizer(tokenizer_json(300)).encode("the cat sat").ids)
    for name in FINE:
        assert outcomes[name] == ["", f"logits (1, {length}, 300)"]
    assert not Path(f"{folder}{MARKER}").exists()
    pickle.loads(pickle.dumps(Evil(f"{folder}{MARKER}")))  # the marker works
    assert Path(f"{folder}{MARKER}").exists()


def test_a_payload_that_is_a_link_is_refused(tmp_path: Path) -> None:
    ternary(tmp_path / "b")
    link("model.ternary", "/etc/passwd")(tmp_path / "b")
    with pytest.raises(BundleError, match=r"model\.ternary must be a file of its own"):
        open_bundle(tmp_path / "b").digest()
