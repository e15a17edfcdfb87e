"""What the formats of an export have in common: what is asked of them, and what they answer."""

from typing import NamedTuple


class ExportOptions(NamedTuple):
    """What is asked of a format.

    Attributes:
      dtype: of what is written: "float32", "bfloat16" or "float16".
      max_rank: of a low-rank factorisation; a change of a higher rank is cut to it by its SVD.
      base: the HF base's directory or hub id, where the model was not loaded from one (.gguf).
    """

    dtype: str = "float32"
    max_rank: int = 512
    base: str | None = None


class WrittenWeight(NamedTuple):
    """One weight's change as it was written.

    Attributes:
      name: the weight's name there.
      layer: which layer of the model.
      rank: of the factors; None: written out.
      error: relative Frobenius error of the change that is read back from what was written.
    """

    name: str
    layer: int
    rank: int | None
    error: float
