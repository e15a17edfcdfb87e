"""The configuration of a decoder: sizes by axis letter, and switches between families."""

import dataclasses
import logging
import math

from jaxedit.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What distinguishes one decoder from another; sizes carry the letters of `jaxedit.axes`."""

    family: str
    L: int
    D: int
    F: int
    N: int
    K: int
    H: int
    V: int
    P: int  # the most positions the model was made for
    eps: float  # of the norms
    activation: str  # "gelu_tanh" | "gelu" | "silu"
    norm: str = "rms"  # "rms" | "layer"
    norm_offset: float = 0.0  # added to the stored scale of a root-mean-square norm (Gemma: 1)
    gated: bool = True  # MLP = (act(x w_gate) * x w_up) w_down instead of act(x w_up) w_down
    parallel: bool = False  # attention and MLP read the same residual stream
    shared_norm: bool = False  # ... through the same norm (GPT-J)
    embed_scale: float = 1.0  # times the token embedding (Gemma: sqrt(D))
    learned_positions: bool = False
    rope: Rope | None = None
    # Each head's queries and keys go through a root-mean-square norm (Qwen 3).
    qk_norm: bool = False
    # In some layers a position sees itself and the window - 1 positions before it.
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = False  # the head is the transposed embedding
    # K counts each key-value head of the checkpoint so many times, one after the other; see
    # `replicate_kv_heads_for`.
    kv_replication: int = 1

    def check_length(self, n_tokens: int, what: str) -> None:
        """Check that a text is no longer than the positions and sliding window allow.

        Up to a window's length it hides nothing, so attention here has none. Rotary positions have
        no end: as in the paper's code a longer text is computed, and logged.

        Args:
          n_tokens: the text's length.
          what: names the text in the message.

        Raises:
          ValueError: where it is longer than a table of learned positions or a sliding window.
        """
        if self.window is not None and n_tokens > self.window:
            raise ValueError(
                f"{what} has {n_tokens} tokens, more than the sliding window of {self.window} "
                f"of this {self.family} model; shorten or split it"
            )
        if n_tokens <= self.P:
            return
        message = (
            f"{what} has {n_tokens} tokens, more than the {self.P} positions "
            f"of this {self.family} model"
        )
        if self.learned_positions:
            raise ValueError(f"{message}; shorten or split it")
        logging.getLogger("jaxedit").warning(
            "%s; rotary positions go on, but it was not trained there", message
        )

    def sizes(self) -> dict[str, int]:
        """Return axis letter -> size, for parameters' shapes and for layout patterns."""
        return {letter: getattr(self, letter) for letter in "LDFNKHVP"}


def replicate_kv_heads_for(config: DecoderConfig, n_model: int) -> DecoderConfig:
    """Repeat each key-value head as often as a mesh axis `model` of this size needs to split them.

    Query heads that share a key-value head may lie on several devices, and each of these needs a
    copy. Where not even the query heads can be split, both are left as they are.
    """
    copies = math.lcm(config.K, n_model) // config.K
    if config.N % n_model or copies == 1:
        return config
    return dataclasses.replace(
        config, K=config.K * copies, kv_replication=config.kv_replication * copies
    )
