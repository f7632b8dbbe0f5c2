"""The packed ternary file: bytes by hand, bit equality with the training graph, damage that is noticed."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import Tensor, nn

from training_core.formats.ternary_packing import (
    PackedModelError,
    load_packed,
    pack_ternary,
    pack_trits,
    round_to_half_,
    unpack_ternary,
    unpack_trits,
)
from training_core.nn.ternary import Ternary, apply_ternary, ternary_modules

CONFIG = {"d_model": 12, "layers": [1, 2], "name": "tiny", "rate": 0.1}


class Model(nn.Module):
    """A ternary table, ternary layers with and without bias, a plain one, a counter, a rebuilt buffer."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.halt = nn.Linear(width, 1)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("phase", torch.linspace(0, 1, width) / 3, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.phase
        x = self.norm(x + self.down(F.relu(self.up(x)))) * torch.sigmoid(self.halt(x))
        return F.linear(x, self.embedding.effective_weight())


def select(name: str, module: nn.Module) -> bool:
    return name != "halt"


def ternary_model(seed: int, granularity: str = "tensor") -> Model:
    torch.manual_seed(seed)
    model = Model()
    apply_ternary(model, select, granularity=granularity)
    round_to_half_(model)
    return model


def test_five_trits_a_byte_by_hand() -> None:
    # digits are code + 1, least significant first: (1,-1,0,1,0) -> 2 + 0*3 + 1*9 + 2*27 + 1*81 = 146
    assert pack_trits(torch.tensor([1, -1, 0, 1, 0], dtype=torch.int8)).tolist() == [146]
    assert pack_trits(torch.ones(5, dtype=torch.int8)).tolist() == [242]
    assert pack_trits(-torch.ones(5, dtype=torch.int8)).tolist() == [0]
    assert pack_trits(torch.tensor([0, 1, 1, 1, 1, 1, -1, 1], dtype=torch.int8)).tolist() == [241, 2 + 0 + 18]
    assert pack_trits(torch.zeros(0, dtype=torch.int8)).numel() == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_trits_round_trip(codes: list[int]) -> None:
    packed = pack_trits(torch.tensor(codes, dtype=torch.int8))
    assert packed.numel() == math.ceil(len(codes) / 5)
    assert unpack_trits(packed, len(codes)).tolist() == codes


@pytest.mark.parametrize(("packed", "count"), [([243], 5), ([242], 4), ([1, 1], 5), ([], 1)])
def test_impossible_trits_are_refused(packed: list[int], count: int) -> None:
    with pytest.raises(PackedModelError, match="pack the model again"):
        unpack_trits(torch.tensor(packed, dtype=torch.uint8), count)


def test_pack_trits_refuses_other_codes() -> None:
    with pytest.raises(ValueError, match=r"got 128 in magnitude"):
        pack_trits(torch.tensor([0, -128], dtype=torch.int8))


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_decoded_model_is_the_training_graph(granularity: str) -> None:
    model = ternary_model(0, granularity)
    data = pack_ternary(model, CONFIG)
    config, tensors = unpack_ternary(data)
    assert config == CONFIG
    for name, module in ternary_modules(model):
        stored = tensors[f"{name}.weight"]
        assert isinstance(stored, Ternary)
        assert torch.equal(stored.dequantize(), module.effective_weight())
    assert torch.equal(tensors["halt.weight"], model.halt.weight)
    assert tensors["steps"].item() == 3
    assert "phase" not in tensors
    other = ternary_model(1, granularity)
    tokens = torch.randint(17, (2, 7))
    assert not torch.equal(other(tokens), model(tokens))
    loaded = load_packed(other, tensors)
    assert loaded is other
    assert torch.equal(loaded(tokens), model(tokens))
    assert [*ternary_modules(loaded)] == []


def test_rounding_to_half_is_what_packing_asks_for() -> None:
    torch.manual_seed(0)
    model = Model()
    apply_ternary(model, select)
    latents = {name: module.weight.detach().clone() for name, module in ternary_modules(model)}
    phase = model.phase.clone()
    with pytest.raises(ValueError, match=r"(up\.bias|halt\.weight) does not have float16 values"):
        pack_ternary(model, CONFIG)
    expected = model.halt.weight.detach().half().float()
    round_to_half_(model)
    assert torch.equal(model.halt.weight, expected)
    assert torch.equal(model.phase, phase)
    for name, module in ternary_modules(model):
        assert torch.equal(module.weight, latents[name])
    assert len(pack_ternary(model, CONFIG)) > 0
    with torch.no_grad():
        model.norm.weight[2] = 7e4
        model.halt.bias[0] = 1 / 3
    with pytest.raises(ValueError, match=r"norm\.weight must be finite"):
        round_to_half_(model)
    assert model.halt.bias.item() == torch.tensor(1 / 3).item()


def test_bytes_are_reproducible_and_small() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(256, 512, bias=False), nn.Linear(512, 256, bias=False)])
    apply_ternary(model, lambda name, module: True)
    data = pack_ternary(model, CONFIG)
    assert data == pack_ternary(copy.deepcopy(model), dict(reversed(CONFIG.items())))
    payload = 2 * math.ceil(256 * 512 / 5) + 2 * 2  # trits and scales
    header = 8 + int.from_bytes(data[:8], "little")
    assert len(data) == header + payload
    assert header < 800
    assert 1.6 <= 8 * payload / (2 * 256 * 512) < 1.601


def test_any_reader_of_safetensors_can_open_it() -> None:
    model = ternary_model(0)
    raw = safetensors.torch.load(pack_ternary(model, CONFIG))
    assert raw["up.weight.trits"].dtype == torch.uint8
    assert raw["up.weight.trits"].shape == (math.ceil(12 * 24 / 5),)
    assert raw["up.weight.scale"].dtype == torch.float16
    assert raw["up.weight.scale"].item() == model.up.weight.detach().abs().mean().half().item()
    assert raw["halt.weight"].dtype == torch.float16


def test_tied_parameters_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight
            self.a = nn.LayerNorm(4)
            self.b = self.a

    model = Tied()
    apply_ternary(model, lambda name, module: True)
    data = pack_ternary(model, {})
    _, tensors = unpack_ternary(data)
    assert sorted(tensors) == ["a.bias", "a.weight", "embedding.weight"]
    other = Tied()
    apply_ternary(other, lambda name, module: True)
    load_packed(other, tensors)
    assert torch.equal(other.head.weight, model.head.effective_weight())


def test_every_flipped_bit_is_noticed() -> None:
    data = pack_ternary(ternary_model(0), CONFIG)
    generator = random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    for position in [*range(header), *generator.sample(range(header, len(data)), 200)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << generator.randrange(8)
        with pytest.raises(PackedModelError):
            unpack_ternary(bytes(damaged))


def test_truncated_and_foreign_files_are_refused() -> None:
    data = pack_ternary(ternary_model(0), CONFIG)
    for size in [*range(0, 64), *range(64, len(data), 37), len(data) - 1]:
        with pytest.raises(PackedModelError):
            unpack_ternary(data[:size])
    generator = random.Random(1)
    for foreign in (b"", data + b"\0", generator.randbytes(500), b"\xff" * 100, safetensors.torch.save({})):
        with pytest.raises(PackedModelError):
            unpack_ternary(foreign)


def forged(tensors: dict[str, Tensor], **fields: object) -> bytes:
    """A file with a valid digest and the given tensors and metadata."""
    document = {
        "config": {},
        "format": "forge.ternary",
        "sha256": "0" * 64,
        "shapes": {},
        "version": 2,
    } | fields
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    data = safetensors.torch.save(tensors, metadata={"forge.ternary": text})
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 1}, "format version 1"),
        ({"config": []}, "object as config"),
        ({"shapes": {"w": [2, -3]}}, "non-negative integers"),
        ({"shapes": {"w": [True]}}, "non-negative integers"),
        ({"shapes": {"w": "23"}}, "non-negative integers"),
        ({"shapes": {"v": [10**9, 10**9]}}, "must be 200000000000000000 bytes"),
        ({"shapes": {"v": [7]}}, "must be 2 bytes"),
        ({"shapes": {"x": [5]}}, "x must have .trits"),
        ({"shapes": {"w": [5]}}, "w.scale must be one finite number"),
    ],
)
def test_forged_metadata_is_refused(fields: dict, message: str) -> None:
    tensors = {"w.trits": torch.zeros(1, dtype=torch.uint8), "w.scale": torch.zeros(3, dtype=torch.float16)}
    tensors |= {"v.trits": torch.zeros(1, dtype=torch.uint8), "v.scale": torch.ones((), dtype=torch.float16)}
    with pytest.raises(PackedModelError, match=message):
        unpack_ternary(forged(tensors, **fields))


def test_loading_into_another_model_is_refused() -> None:
    _, tensors = unpack_ternary(pack_ternary(ternary_model(0), CONFIG))
    torch.manual_seed(0)
    wider = Model(width=14)
    apply_ternary(wider, select)
    with pytest.raises(PackedModelError, match=r"embedding\.weight.*shape"):
        load_packed(wider, tensors)
    fewer = Model()
    apply_ternary(fewer, lambda name, module: name == "up")
    before = {name: tensor.clone() for name, tensor in fewer.state_dict().items()}
    with pytest.raises(PackedModelError, match=r"down\.weight"):
        load_packed(fewer, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fewer.state_dict().items())
    tensors.pop("halt.bias")
    with pytest.raises(PackedModelError, match=r"halt\.bias"):
        load_packed(ternary_model(0), tensors)


def test_packing_needs_ternary_modules_and_json() -> None:
    with pytest.raises(ValueError, match="no ternary module"):
        pack_ternary(Model(), CONFIG)
    with pytest.raises(ValueError, match="come back from JSON"):
        pack_ternary(ternary_model(0), {"shape": (1, 2)})
    with pytest.raises(ValueError, match="not JSON serializable"):
        pack_ternary(ternary_model(0), {"shape": {1, 2}})
    with pytest.raises(ValueError, match="float32 latent"):
        pack_ternary(ternary_model(0).double(), CONFIG)


def test_safetensors_itself_would_not_notice_a_flip() -> None:
    """The digest is needed: the container format alone reads damaged weights without a word."""
    data = bytearray(pack_ternary(ternary_model(0), CONFIG))
    data[-1] ^= 1
    try:
        safetensors.torch.load(bytes(data))
    except SafetensorError:
        pytest.fail("safetensors now checks its data; the digest may be redundant")
    with pytest.raises(PackedModelError, match="SHA-256"):
        unpack_ternary(bytes(data))
