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
    window_rope: Rope | None = None  # of layers with a window, where it is another (Gemma 3)
    unrotated_layers: tuple[int, ...] = ()  # that have no rotary positions (SmolLM 3)
    # Each head's queries and keys go through a root-mean-square norm (Qwen 3).
    qk_norm: bool = False
    qk_norm_all_heads: bool = False  # ... all heads' together (OLMo 2)
    # A position sees itself and the window - 1 positions before it, in some layers or (None) all.
    window: int | None = None
    window_layers: tuple[int, ...] | None = None
    attn_scale: float | None = None  # times queries . keys; None: 1 / sqrt(H)
    attn_softcap: float | None = None  # c tanh(x / c) of the products (Gemma 2)
    pre_norm: bool = True  # a norm before attention and MLP
    post_norm: bool = False  # a norm after them, before the residual stream
    residual_scale: float = 1.0  # times what they add to the residual stream (Granite)
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = False  # the head is the transposed embedding
    # K counts each key-value head of the checkpoint so many times, one after the other; see
    # `replicate_kv_heads_for`.
    kv_replication: int = 1

    def check_length(self, n_tokens: int, what: str) -> None:
        """Check that a text is no longer than its positions allow.

        Rotary positions have no end: as in the paper's code a longer text is computed, and logged.

        Args:
          n_tokens: the text's length.
          what: names the text in the message.

        Raises:
          ValueError: where it is longer than a table of learned positions, or so long that its
            rotary frequencies would be others.
        """
        ropes = [rope for rope in self.ropes() if rope is not None and rope.longest is not None]
        longest = min((rope.longest for rope in ropes if rope.longest), default=n_tokens)
        if n_tokens > longest:
            raise ValueError(
                f"{what} has {n_tokens} tokens, more than {longest}, beyond which the rotary "
                f"frequencies of this {self.family} model change with a text's length; shorten or "
                "split it"
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

    @property
    def adds_as_is(self) -> bool:
        """Whether what attention and MLPs put out is what they add to the residual stream."""
        return not self.post_norm and self.residual_scale == 1

    def has_window(self, layer: int) -> bool:
        """Return whether attention in a layer has the sliding window."""
        if self.window is None:
            return False
        return self.window_layers is None or layer in self.window_layers

    def ropes(self) -> list[Rope | None]:
        """Return the rotary positions of each layer."""
        of_layer = [
            self.window_rope if self.window_rope is not None and self.has_window(l) else self.rope
            for l in range(self.L)
        ]
        return [None if l in self.unrotated_layers else rope for l, rope in enumerate(of_layer)]

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
