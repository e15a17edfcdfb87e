"""A trained hypernetwork for a model, from whichever file it lies in."""

from pathlib import Path

from jaxedit.mend.archive import read_archive
from jaxedit.mend.hypernetwork import Hypernetwork, place_on_mesh
from jaxedit.mend.network import Place
from jaxedit.mend.network_file import read_network
from jaxedit.mend.places import weight_sizes
from jaxedit.models.model import Model


def load_hypernetwork(path: Path, model: Model, places: tuple[Place, ...]) -> Hypernetwork:
    """Read a hypernetwork onto a model's devices.

    Args:
      path: a .safetensors file of `jaxedit train-mend`; anything else is a torch archive.
      model: that is edited.
      places: the weights that are edited, in the released order.

    Raises:
      ValueError: where the file cannot be read, or is of another model or other places.
    """
    if path.suffix == ".safetensors":
        hypernetwork, base = read_network(path)
        _check(path, hypernetwork, model, places)
        if base != model.rounded_fingerprint:
            raise ValueError(
                f"{path} was trained on weights with the fingerprint {base}, those of "
                f"{model.metadata.source} have {model.rounded_fingerprint}: load the model that it "
                "was trained on, or train a network for this one (jaxedit train-mend)"
            )
    else:
        hypernetwork = read_archive(path, places, weight_sizes(model), _hf_names(model, places))
    return place_on_mesh(model.mesh, hypernetwork)


def _check(path: Path, hypernetwork: Hypernetwork, model: Model, places: tuple[Place, ...]) -> None:
    """Raise a ValueError where a network is of other weights, or of weights of other sizes."""
    theirs = hypernetwork.layout.places
    if set(theirs) != set(places):
        layers = sorted({layer for _, layer in theirs})
        weights = sorted({weight for weight, _ in theirs})
        raise ValueError(
            f"{path} is a network for {', '.join(weights)} of layers {layers}; asked for are "
            f"layers {sorted({layer for _, layer in places})} of {model.metadata.source}: give "
            "layers= as it was trained"
        )
    sizes = weight_sizes(model)
    for group in hypernetwork.layout.groups:
        for weight, layer in group.places:
            if sizes[weight] != (group.x_size, group.delta_size):
                raise ValueError(
                    f"{path} is a network for a {weight} that reads {group.x_size} and puts out "
                    f"{group.delta_size}; that of {model.metadata.source}, layer {layer}, has "
                    f"{sizes[weight]}"
                )


def _hf_names(model: Model, places: tuple[Place, ...]) -> dict[Place, str]:
    """Return the names of weights in a Hugging Face checkpoint."""
    names = model.metadata.tensor_names
    return {(weight, layer): names[weight][0].format(l=layer) for weight, layer in places}
