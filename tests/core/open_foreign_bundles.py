"""Open every bundle below a folder as a user would, under a memory limit, and print the outcome of each as JSON.

Run as a separate process, which may allocate `SPARE_BYTES` of address space beyond what it uses after its imports.
"""

import json
import resource
import sys
from pathlib import Path

import torch

from training_core.data.tokenizer import load_tokenizer
from training_core.formats.artifact import read_artifact
from training_core.formats.loading import load_latents, load_model
from training_core.store.bundle import Bundle, open_bundle

SPARE_BYTES = 300 << 20


def use(bundle: Bundle) -> str:
    """Do everything that is done with a bundle: encode a sentence, run the model, and read lineage and exhibits."""
    bundle.digest()
    tokenizer = load_tokenizer(bundle.tokenizer_json())
    ids = tokenizer.encode("the cat sat").ids
    model = load_model(bundle)
    if bundle.kind != "compressed":
        load_latents(bundle)
        bundle.lineage()
        bundle.exhibits()
    return f"logits {tuple(model(torch.tensor([ids])).logits.shape)}"


def outcome(folder: Path) -> list[str]:
    try:
        if (folder / "alone.forge").is_file():
            return ["", type(read_artifact((folder / "alone.forge").read_bytes()).model).__name__]
        return ["", use(open_bundle(folder))]
    except ValueError as error:
        return [type(error).__name__, str(error)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folders = sorted(Path(sys.argv[1]).iterdir())
    outcome(
        next(folder for folder in folders if folder.name == "good")
    )  # triggers the lazy imports before the limit is set
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(status["VmSize"].split()[0]) * 1024 + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps({folder.name: outcome(folder) for folder in folders}))
