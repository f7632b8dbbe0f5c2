"""Loading of models from bundles; the kind of a bundle determines how its weights are stored."""

from __future__ import annotations

import torch

from training_core.formats.ternary_packing import load_packed, unpack_ternary
from training_core.nn.cognate import Cognate, CognateConfig, count_parameters
from training_core.nn.stored import require_stored
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.store.bundle import Bundle, BundleError

# Prefixes of a bundle's weights that do not belong to the model itself: its thoughts (`p3_quiet_star.bundles`), the
# predictor of its temperature (`p5_curriculum.self_model`), and its experts (`p7_experts.bundles`).
THOUGHTS = "thoughts."
SELF_MODEL = "self_model."
EXPERTS = "experts."
BESIDE = (THOUGHTS, SELF_MODEL, EXPERTS)


def load_model(bundle: Bundle) -> Cognate:
    """Load the model in the form that a user would run: ternary and compressed ones are decoded from the packed file.

    Raises:
        BundleError: when a part is missing or damaged.
        ValueError: (PackedModelError, ContainerError) when the packed file is damaged.
    """
    if bundle.kind == "compressed":
        from training_core.formats.artifact import read_artifact  # only a compressed model needs its codec

        return read_artifact(_payload(bundle)).model
    if bundle.kind == "ternary":
        config, tensors = unpack_ternary(_payload(bundle))
        try:
            shape = CognateConfig.model_validate(config["cognate"])
            settings = TernarySettings.model_validate(config["ternary"])
        except KeyError as error:
            raise BundleError(f"{bundle.payload()} does not describe a ternary model: it has no {error}") from error
        require_stored(shape, sum((t if isinstance(t, torch.Tensor) else t.codes).numel() for t in tensors.values()))
        model = Cognate(shape)
        make_ternary(model, settings)
        load_packed(model, tensors)
        return model.eval()
    model, weights = untrained(bundle)
    _load_weights(model, bundle, weights)
    return model.eval()


def load_latents(bundle: Bundle) -> Cognate:
    """Load the model for further training: a ternary bundle gives its straight-through model with latent weights.

    Raises:
        BundleError: for a compressed bundle, which has no weights to train, and as `load_model`.
    """
    if bundle.kind == "compressed":
        raise BundleError("a compressed model cannot be trained further; start from its parent")
    model, weights = untrained(bundle)
    if bundle.kind == "ternary":
        make_ternary(model, ternary_settings(bundle))
    _load_weights(model, bundle, weights)
    return model.eval()


def untrained(bundle: Bundle) -> tuple[Cognate, dict[str, torch.Tensor]]:
    """Return a newly initialised model of the bundle's shape, and the tensors stored in the bundle.

    Raises:
        BundleError: when the shape needs more weights than are stored, before memory is allocated for it.
    """
    config, tensors = cognate_config(bundle), bundle.tensors()
    try:
        require_stored(config, sum(tensor.numel() for tensor in tensors.values()))
    except ValueError as error:
        raise BundleError(f"{bundle.folder}: {error}") from error
    return Cognate(config), tensors


def ternary_settings(bundle: Bundle) -> TernarySettings:
    """Return the quantisation settings of a ternary bundle.

    Raises:
        BundleError: for a bundle of another kind, or a damaged one.
    """
    try:
        return TernarySettings.model_validate(bundle.model_config["ternary"])
    except (KeyError, ValueError) as error:
        raise BundleError(f"{bundle.folder / 'config.json'} does not describe a ternary model ({error})") from error


def cognate_config(bundle: Bundle) -> CognateConfig:
    """Return the shape of the model in a bundle of any kind.

    Raises:
        BundleError: when the configuration is not that of a Cognate model.
    """
    try:
        return CognateConfig.model_validate(bundle.model_config["cognate"])
    except (KeyError, ValueError) as error:
        raise BundleError(f"{bundle.folder / 'config.json'} does not describe a Cognate model ({error})") from error


def parameter_count(bundle: Bundle) -> int:
    """Return the number of trainable scalars of the bundle's model; tied weights count once."""
    with torch.device("meta"):
        return count_parameters(Cognate(cognate_config(bundle)))


def _payload(bundle: Bundle) -> bytes:
    try:
        return bundle.payload().read_bytes()
    except OSError as error:
        raise BundleError(f"{bundle.payload()} cannot be read: {error.strerror}") from error


def _load_weights(model: Cognate, bundle: Bundle, weights: dict[str, torch.Tensor]) -> None:
    tensors = {name: t for name, t in weights.items() if not name.startswith(BESIDE)}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise BundleError(f"{bundle.folder}: the weights do not fit the configuration ({error})") from error
