"""Which weights MEND edits: all of the MLP of its layers, in the order of the released settings.

The order decides which step size, scale and shift is whose in a published archive: GPT-2's c_proj
comes before c_fc; of GPT-J's fc_in and fc_out, and of gate, up and down, each is as it is read.
"""

from collections.abc import Sequence

from jaxedit.mend.network import Place
from jaxedit.models.model import Model


def mlp_weights(model: Model) -> tuple[str, ...]:
    """Return the weights of a layer's MLP in the released order."""
    if model.config.gated:
        return ("mlp/w_gate", "mlp/w_up", "mlp/w_down")
    if model.config.family == "gpt2":
        return ("mlp/w_down", "mlp/w_up")
    return ("mlp/w_up", "mlp/w_down")


def mlp_places(model: Model, layers: Sequence[int]) -> tuple[Place, ...]:
    """Return the MLP weights of layers, layer by layer.

    Raises:
      ValueError: on layers that the model lacks, or that are not in ascending order.
    """
    layers, L = list(layers), model.config.L
    if not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < L:
        raise ValueError(
            f"layers={layers}: expected ascending layers from 0 to {L - 1} of "
            f"{model.metadata.source}"
        )
    return tuple((weight, layer) for layer in layers for weight in mlp_weights(model))


def weight_sizes(model: Model) -> dict[str, tuple[int, int]]:
    """Return how much each weight of an MLP reads and puts out."""
    D, F = model.config.D, model.config.F
    return {w: (F, D) if w == "mlp/w_down" else (D, F) for w in mlp_weights(model)}
