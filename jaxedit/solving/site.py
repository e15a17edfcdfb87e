"""Where in a layer the methods define the value that they write.

A layer of a sequential decoder adds its attention's and its MLP's output to the residual stream:

    residual stream --+-- attention --(+)--+-- MLP: key k, value W k --(+)--> the next layer
                      |                |   |                            |
                      +----------------+   +----------------------------+

    method                     init, the value before the edit         vectors optimised
    ROME, C-ROME               the MLP's output                        delta
    MEMIT and its relatives    the residual stream after the layer     delta
    PMET                       the MLP's output                        delta, and the attention's
"""

import enum


class Site(enum.StrEnum):
    """What a value to write is, and which vectors are optimised to find it."""

    RESIDUAL = "residual"  # MEMIT and its relatives
    MLP = "mlp"  # ROME, C-ROME
    MLP_WITH_ATTENTION = "mlp+attention"  # PMET

    @property
    def activation(self) -> str:
        """The activation that a value is, one of `jaxedit.solving.keys.ACTIVATIONS`."""
        return "residual" if self == Site.RESIDUAL else "mlp"
