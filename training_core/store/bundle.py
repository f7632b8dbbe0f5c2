"""A model bundle: one folder with a model, its tokenizer, its measurements and its lineage.

    config.json          {"format": 1, "kind": "cognate" | "ternary" | "compressed", "model": {...}}
    model.safetensors    the weights (ternary: the latent weights, which later phases continue to train)
    model.ternary        ternary only: the packed file, which decodes to the training graph's effective weights
    model.forge          compressed only: the self-contained file (weights, tokenizer, config, checksum)
    tokenizer.json       byte-level BPE in the format of the `tokenizers` library
    evaluation.safetensors  per-document counts of the evaluation suite, for paired comparisons of two bundles
    exhibits.json        optional: the phase's exhibits for people to look at, name to document
    lineage.json         parents' digests, phase configuration, code version, corpus digest, metrics

A bundle's *digest* covers kind, configuration, tensors, tokenizer and payload, but not its measurements and exhibits.

A bundle may come from an untrusted source. Nothing is ever unpickled, and other files in the folder are not read. A
part must be a regular file, because a link could point to any file of this machine. The size of JSON is bounded, and a
tokenizer must be of a kind that cannot turn a short text into a long one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from training_core.data.tokenizer import parts_of_words

FORMAT = 2  # 1: convolutions without the identity in their weights, memories with two layers
KINDS = ("cognate", "ternary", "compressed")
PAYLOADS = {"ternary": "model.ternary", "compressed": "model.forge"}
EXHIBITS = "exhibits.json"
MAX_TEXT_BYTES = 1 << 26
# Parts that a plain byte-level BPE tokenizer must not have, and those it may have, by their `tokenizers` names.
_NO_TOKENIZER_PARTS = ("padding", "truncation", "normalizer", "post_processor")
_TOKENIZER_PARTS = {"model": "BPE", "pre_tokenizer": "ByteLevel", "decoder": "ByteLevel"}


class BundleError(ValueError):
    """Raised when a bundle is missing a part, cannot be read, or does not match its digest."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The origin of a bundle. `parents` and `data` map assets to digests; `metrics` are flat measured scalars."""

    asset: str
    phase: int
    profile: str
    digest: str
    code_version: str
    corpus_digest: str
    parents: Mapping[str, str]
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle, whose tensors are read on request (`tensors`, `formats.loading.load_model`)."""

    folder: Path
    kind: str
    model_config: Mapping[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read the weights of `model.safetensors`.

        Raises:
            BundleError: when the file is missing or damaged.
        """
        return _read_tensors(self.folder / "model.safetensors")

    def payload(self) -> Path:
        """Return the path of the packed file of a ternary or compressed bundle."""
        return _own_file(self.folder / PAYLOADS[self.kind])

    def model_bytes(self) -> int:
        """Return the size in bytes of the file that a user would ship: the payload, or else the weights."""
        name = PAYLOADS.get(self.kind, "model.safetensors")
        return (self.folder / name).stat().st_size

    def tokenizer_json(self) -> str:
        """Read the tokenizer as JSON text.

        Raises:
            BundleError: when it is missing, damaged or not a plain byte-level BPE.
        """
        path = self.folder / "tokenizer.json"
        text = _read_text(path)
        _require_plain_tokenizer(path, _parsed(path, text))
        return text

    def lineage(self) -> Lineage:
        """Read what was recorded when the bundle was made.

        Raises:
            BundleError: when `lineage.json` is missing or damaged.
        """
        path = self.folder / "lineage.json"
        document = _parsed(path, _read_text(path))
        try:
            return Lineage(**document)
        except TypeError as error:
            raise BundleError(f"{path} is damaged ({error}); re-make the bundle") from error

    def evaluation_counts(self) -> dict[str, torch.Tensor]:
        """Read the per-document counts written by the evaluation suite."""
        return _read_tensors(self.folder / "evaluation.safetensors")

    def exhibits(self) -> dict[str, Any]:
        """Read the phase's exhibits, name to JSON document; empty if it has none.

        Raises:
            BundleError: when `exhibits.json` is damaged.
        """
        path = self.folder / EXHIBITS
        if not path.exists():
            return {}
        documents = _parsed(path, _read_text(path))
        if not isinstance(documents, dict):
            raise BundleError(f"{path} is damaged (it does not map names to documents); materialize the asset again")
        return documents

    def digest(self) -> str:
        """Compute the SHA-256 hex digest of kind, configuration, tensors, tokenizer and payload from disk."""
        hasher = hashlib.sha256()
        _feed(hasher, b"config", canonical_json({"kind": self.kind, "model": dict(self.model_config)}))
        _feed(hasher, b"tokenizer", _read_text(self.folder / "tokenizer.json").encode())
        if self.kind != "compressed":
            for name, tensor in sorted(self.tensors().items()):
                array = tensor.contiguous().reshape(-1)
                header = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode()
                _feed(hasher, header, array.view(torch.uint8).numpy().tobytes() if array.numel() else b"")
        if self.kind in PAYLOADS:
            _feed(hasher, b"payload", _read_bytes(self.payload()))
        return hasher.hexdigest()


@dataclass(frozen=True, slots=True)
class Product:
    """A finished model, ready to be written as a bundle (`training_core.store.bundle.write_bundle`).

    `tensors` is None for a compressed model, `payload` is None for a plain one. `metrics` are those that only the
    phase itself can measure (for instance a merge's gain over its best parent); the evaluation suite adds the
    rest. `exhibits` maps names to JSON documents for people to look at, which are stored beside the measurements
    (`training_core.store.bundle.Bundle.exhibits`).
    """

    kind: str
    model_config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] | None
    tokenizer_json: str
    payload: bytes | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    exhibits: Mapping[str, Any] = field(default_factory=dict)


def canonical_json(value: Any) -> bytes:
    """Return JSON bytes with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def write_bundle(
    folder: Path,
    *,
    kind: str,
    model_config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor] | None,
    tokenizer_json: str,
    payload: bytes | None = None,
) -> Bundle:
    """Write everything except evaluation and lineage into the new `folder` and open it.

    Raises:
        ValueError: for an unknown `kind`, or when a kind lacks its tensors or payload.
        OSError: from the file system (disk full, no permission).
    """
    if kind not in KINDS:
        raise ValueError(f"bundle kind must be one of {KINDS}, got {kind!r}")
    if (kind in PAYLOADS) != (payload is not None) or (kind != "compressed") != (tensors is not None):
        raise ValueError(
            f"a {kind} bundle needs exactly its own parts: tensors={tensors is not None}, payload={payload is not None}"
        )
    folder.mkdir(parents=True)
    document = {"format": FORMAT, "kind": kind, "model": dict(model_config)}
    (folder / "config.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    if tensors is not None:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    if payload is not None:
        (folder / PAYLOADS[kind]).write_bytes(payload)
    return open_bundle(folder)


def write_measurements(
    bundle: Bundle,
    lineage: Lineage,
    counts: Mapping[str, torch.Tensor],
    exhibits: Mapping[str, Any] | None = None,
) -> None:
    """Add the measurements of the written bundle, and its exhibits if there are any.

    Raises:
        ValueError: for an exhibit that is not JSON or contains a number that is not finite.
    """
    documents = _exhibits_json(exhibits or {})
    save_file({name: t.contiguous() for name, t in counts.items()}, bundle.folder / "evaluation.safetensors")
    (bundle.folder / "lineage.json").write_text(json.dumps(asdict(lineage), indent=2, sort_keys=True) + "\n")
    if documents:
        (bundle.folder / EXHIBITS).write_text(documents, encoding="utf-8")


def open_bundle(folder: Path, *, expected_digest: str | None = None) -> Bundle:
    """Open the bundle in `folder`, verifying its digest when one is given.

    Raises:
        BundleError: when a part is missing or damaged, or the digest differs.
    """
    path = folder / "config.json"
    document = _parsed(path, _read_text(path))
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("kind") not in KINDS:
        raise BundleError(
            f"{path} is not a version {FORMAT} bundle of kind {', '.join(KINDS)}; materialize the asset again"
        )
    if not isinstance(document.get("model"), dict):
        raise BundleError(f"{path} describes no model: 'model' must be an object; materialize the asset again")
    bundle = Bundle(folder, document["kind"], document["model"])
    if expected_digest is not None and (actual := bundle.digest()) != expected_digest:
        raise BundleError(
            f"{folder} does not hold the bundle {expected_digest[:16]}: its content hashes to {actual[:16]}. "
            "The files were changed or damaged; materialize the asset again."
        )
    return bundle


def _exhibits_json(exhibits: Mapping[str, Any]) -> str:
    documents: list[str] = []
    for name, document in sorted(exhibits.items()):
        try:
            documents.append(f"{json.dumps(name)}: {json.dumps(document, sort_keys=True, allow_nan=False)}")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the exhibit {name!r} is not JSON ({error}): hand over plain dicts, lists, text and finite numbers"
            ) from error
    return "{" + ",\n".join(documents) + "}\n" if documents else ""


def _feed(hasher: hashlib._Hash, header: bytes, content: bytes) -> None:
    hasher.update(len(header).to_bytes(8, "little") + header + len(content).to_bytes(8, "little"))
    hasher.update(content)


def _own_file(path: Path) -> Path:
    """Return `path` unless it is a link, a pipe or a device; a missing file is left to the subsequent read."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BundleError(f"{path} must be a file of its own, not a link or a device: put the file itself in its place")
    return path


def _read_bytes(path: Path) -> bytes:
    try:
        return _own_file(path).read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _read_text(path: Path) -> str:
    if path.is_file() and (size := path.stat().st_size) > MAX_TEXT_BYTES:
        raise BundleError(f"{path} must have at most {MAX_TEXT_BYTES} bytes, got {size}: it is not a bundle's")
    try:
        return _read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not text: it is damaged") from error


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged (not valid JSON: {error}); materialize the asset again") from error


def _require_plain_tokenizer(path: Path, document: Any) -> None:
    """Reject tokenizers with padding, a normalizer or a template, which could turn a short text into gigabytes."""
    if not isinstance(document, dict):
        raise BundleError(f"{path} is not a tokenizer: it must be a JSON object; materialize the asset again")
    wrong = [part for part in _NO_TOKENIZER_PARTS if document.get(part) is not None]
    for part, kind in _TOKENIZER_PARTS.items():
        content = document.get(part)
        plain = content is None or (isinstance(content, dict) and content.get("type", kind) == kind)
        if not plain and not (part == "pre_tokenizer" and content == parts_of_words()):
            wrong.append(part)
    if wrong:
        raise BundleError(f"{path} must be a plain byte-level BPE tokenizer: remove or replace its {', '.join(wrong)}")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(_own_file(path), framework="pt"):
            pass
        return load_file(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing") from error
    except SafetensorError as error:
        raise BundleError(f"{path} is damaged ({error}); materialize the asset again") from error
