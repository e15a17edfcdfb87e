"""The hyper-parameters that methods share, under their published names.

Two published names accept one value each. They exist so that published settings can be given
unchanged, and anything else raises:

    v_loss_layer     None, or the last layer: the loss reads the model's own logits
    kl_factor of FT  0: the released code of fine-tuning has no such term
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from jaxedit.edits.edit import EDITABLE_WEIGHTS, EDITED_WEIGHT
from jaxedit.edits.spaces import check_leading_space
from jaxedit.models.model import Model
from jaxedit.solving.packed_prompts import POOLINGS
from jaxedit.solving.prompts import check_fact_token
from jaxedit.solving.ranges import AT_LEAST_ONE, POSITIVE, SEED, check_ranges
from jaxedit.solving.templates import check_template

SOLVE_DTYPES = ("float64", "float32")
PROB_CUTOFF_COUNTS = ("all_templates", "five_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetHyper:
    """Hyper-parameters of the optimisation of a value (`jaxedit.solving.value`).

    All methods that optimise a value have those under Attributes. Those under Switches are class
    attributes here, which leave the term out; a method that has one declares it as a field of its
    own hyper-parameters.

    Attributes:
      v_num_grad_steps: the most forward passes; one update less.
      v_lr: Adam's learning rate.
      v_weight_decay: the weight of |delta| / |init|^2.
      kl_factor: the weight of the KL term.
      clamp_norm_factor: the most that |delta| / |init| may be.
      keep_unedited_norm: the value gets the norm of what the unedited model holds at its place.
      leading_space: between prompt and target, of requests that say nothing of it: "joined",
        "separate", "none" or "separate-no-space" (`jaxedit.edits.spaces`).
      fact_token: where keys are read and the vector is added: "subject_last"; the prompt's "last"
        token; or "auto", the prompt's last token where the subject's is at position 0, and else the
        subject's (`jaxedit.solving.prompts.fact_token_of`).

    Switches:
      nll_loss_factor: the weight of the target's term (PMET).
      prob_cutoff: -k also stops at the k-th pass in which the target is the likeliest in every
        template (ENCORE).
      prob_cutoff_count: which passes that counts: "all_templates", or as released "five_tokens"
        (`jaxedit.editors.encore`).
      reduce_nll_when_correct: weighs the target's term less once it is the likeliest (PMET).
    """

    v_num_grad_steps: Annotated[int, AT_LEAST_ONE] = 20
    v_lr: Annotated[float, POSITIVE] = 0.5
    v_weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp_norm_factor: Annotated[float, POSITIVE] = 4.0
    keep_unedited_norm: bool = False
    leading_space: str = "joined"
    fact_token: str = "subject_last"

    nll_loss_factor: ClassVar[float] = 1.0
    prob_cutoff: ClassVar[int | None] = None
    prob_cutoff_count: ClassVar[str] = "all_templates"
    reduce_nll_when_correct: ClassVar[bool] = False

    def target_settings(self) -> dict[str, Any]:
        """Return all that the optimisation reads, by name; without what else a method has."""
        return {name: getattr(self, name) for name in TargetHyper.__annotations__}

    def check_target(self) -> None:
        """Raise a ValueError on a number that cannot be meant."""
        check_ranges(self)
        if self.prob_cutoff_count not in PROB_CUTOFF_COUNTS:
            raise ValueError(
                f"prob_cutoff_count={self.prob_cutoff_count!r}: expected "
                f"{' or '.join(map(repr, PROB_CUTOFF_COUNTS))}"
            )
        check_leading_space(self.leading_space)
        check_fact_token(self.fact_token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueHyper(TargetHyper):
    """Hyper-parameters of all methods that optimise a value: the optimisation's and these.

    Attributes:
      anchor: "bos" puts a begin-of-text token in front of every prompt, when the edit is made and
        when the edited model is asked; the edit remembers it.
      v_loss_layer: the layer whose output the loss reads: the last one, or None for it.
      target_cache: a folder; values found on a model without edits are kept there
        (`jaxedit.solving.value_cache`).
      seed: of context templates that are sampled.
      norm_anchor_scaling: NAS: the MLP's part of the value gets the mean norm that values have on
        the unedited model (`jaxedit.solving.norm_anchor`).
      norm_anchor_value: this norm; None: as it is in the statistics.
    """

    anchor: str | None = None
    v_loss_layer: int | None = None
    target_cache: str | None = None
    seed: Annotated[int, SEED] = 0
    norm_anchor_scaling: bool = False
    norm_anchor_value: Annotated[float | None, POSITIVE] = None

    def check(self, model: Model) -> None:
        """Raise a ValueError on a value that cannot be meant for this model."""
        self.check_target()
        last = model.config.L - 1
        if self.anchor not in (None, "bos"):
            raise ValueError(f"anchor={self.anchor!r}: expected 'bos', or nothing")
        if self.v_loss_layer not in (None, last):
            raise ValueError(
                f"v_loss_layer={self.v_loss_layer}: the reference reads the logits of the last "
                f"layer, here {last}"
            )
        if self.norm_anchor_scaling and self.keep_unedited_norm:
            raise ValueError("norm_anchor_scaling and keep_unedited_norm exclude each other")
        if self.norm_anchor_value is not None and not self.norm_anchor_scaling:
            raise ValueError(
                f"norm_anchor_value={self.norm_anchor_value} is for norm_anchor_scaling=True"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarmHyper:
    """Hyper-parameters of the harm projection (`jaxedit.solving.harm`).

    Attributes:
      harm_projection: w, the weight of the predicted harm, per nat; 0: no projection.
      harm_texts: whose loss is not to rise: "builtin", a .json, .jsonl or .txt file, ... (as
        `texts` of a study, which these must not be).
      harm_tokens: how many tokens of them are looked at, in parts spread evenly over all.
    """

    harm_projection: float = 0.0
    harm_texts: str = ""
    harm_tokens: Annotated[int, AT_LEAST_ONE] = 4000

    def check_harm(self) -> None:
        """Raise a ValueError where the projection lacks its texts."""
        if self.harm_projection and not self.harm_texts:
            raise ValueError(
                f"harm_projection={self.harm_projection} needs texts whose loss is not to rise: "
                "give harm_texts=, a .json, .jsonl or .txt file of others than are evaluated"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankOneHyper(HarmHyper, ValueHyper):
    """Hyper-parameters of ROME and C-ROME under their published names.

    Attributes:
      layer: the layer to edit (or `layers=[one]`); None: the one published for the model.
      mom2_adjustment: True asks for stats, False ignores them, None uses them where given.
      context_templates: texts with one `{}` each, the first usually "{}"; None samples 21 from
        `seed`.
    """

    layer: int | None = None
    mom2_adjustment: bool | None = None
    context_templates: tuple[str, ...] | None = None

    @property
    def edited_layer(self) -> int:
        """The layer, as given or as published for the model."""
        assert self.layer is not None, "make_editor resolves it"
        return self.layer

    def check(self, model: Model) -> None:
        """Raise a ValueError on a value that cannot be meant for this model."""
        last = model.config.L - 1
        if not 0 <= self.edited_layer < last:
            raise ValueError(
                f"layer={self.edited_layer}: {model.metadata.source} can be edited at layers 0 to "
                f"{last - 1}"
            )
        super().check(model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLayerHyper(ValueHyper):
    """Hyper-parameters of the family under their published names; each method adds its own.

    Attributes:
      layers: the layers to edit; the values are those after the last of them. empty:
        those published for the model.
      context_templates: groups of texts with one `{}` each; None samples [["{}"], [five of ten
        tokens] from `seed`.
      key_pooling: "group_means" as released (the bare prompt counts a half) or "mean".
      mom2_adjustment: False replaces the second moments by the identity.
      solve_dtype: of the solve that is as wide as the batch, "float64" as released or "float32".
    """

    layers: tuple[int, ...] = ()
    clamp_norm_factor: Annotated[float, POSITIVE] = 0.75
    context_templates: tuple[tuple[str, ...], ...] | None = None
    key_pooling: str = "group_means"
    mom2_adjustment: bool = True
    solve_dtype: str = "float64"

    def check(self, model: Model) -> None:
        """Raise a ValueError on a value that cannot be meant for this model."""
        super().check(model)
        layers, last = list(self.layers), model.config.L - 1
        if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= last:
            raise ValueError(
                f"layers={layers}: expected ascending layers from 0 to {last - 1} of "
                f"{model.metadata.source}"
            )
        for name, given, allowed in (
            ("key_pooling", self.key_pooling, POOLINGS),
            ("solve_dtype", self.solve_dtype, SOLVE_DTYPES),
        ):
            if given not in allowed:
                raise ValueError(f"{name}={given!r}: expected {' or '.join(map(repr, allowed))}")
        groups = self.context_templates
        if groups is None:
            return
        if not all(isinstance(each, tuple | list) for each in (groups, *groups)):
            raise ValueError(
                "context_templates must be a list of groups of texts, e.g. "
                '[["{}"], ["I think that {}"]]'
            )
        for template in (template for group in groups for template in group):
            check_template(template)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedFormHyper(HarmHyper, MultiLayerHyper):
    """Hyper-parameters of those of the family that solve for each layer's update once.

    Attributes:
      bare_key: whether the bare prompt's key is written by itself, beside the pooled one.
      preserved_subjects: subjects for which the answer to a fact's prompt shall stay, where it is
        written at the prompt's last token (`jaxedit.solving.key_constraints`).
    """

    bare_key: bool = False
    preserved_subjects: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BreadthFirstHyper:
    """Hyper-parameters of fine-tuning in epochs over all requests of an edit.

    `weights` says which weights of a layer are changed; a method that lets one choose declares it
    as a field of its own hyper-parameters.

    Attributes:
      layers: whose weights are changed; empty: those published for the model.
      lr: Adam's learning rate.
      epochs: the most passes over the requests.
      minibatch: requests a step.
      end_of_text: whether the model is taught to end its text behind the target.
      leading_space: of requests that say nothing of it: one of `jaxedit.edits.spaces.SPACES`.
      seed: of what is drawn, together with the requests' texts.
    """

    layers: tuple[int, ...] = ()
    lr: Annotated[float, POSITIVE] = 5e-4
    epochs: Annotated[int, AT_LEAST_ONE] = 25
    minibatch: Annotated[int, AT_LEAST_ONE] = 100
    end_of_text: bool = True
    leading_space: str = "joined"
    seed: int = 0

    weights: ClassVar[tuple[str, ...]] = (EDITED_WEIGHT,)
    anchor: ClassVar[str | None] = None  # no begin-of-text token is put in front

    @property
    def slots(self) -> dict[str, tuple[int, ...]]:
        """Weight -> layers that an edit changes."""
        return {weight: tuple(self.layers) for weight in self.weights}

    def check(self, model: Model) -> None:
        """Raise a ValueError on a value that cannot be meant for this model."""
        check_ranges(self)
        check_leading_space(self.leading_space)
        check_places(model, self.layers, self.weights)


def check_places(model: Model, layers: Sequence[int], weights: Sequence[str]) -> None:
    """Raise a ValueError where a model lacks a layer or weight, or none or one twice is given."""
    given, L = list(layers), model.config.L
    if not given or not all(0 <= layer < L for layer in given):
        raise ValueError(f"layers={given}: {model.metadata.source} has layers 0 to {L - 1}")
    known = [weight for weight in EDITABLE_WEIGHTS if weight in model.base]
    if not weights or not all(weight in known for weight in weights):
        raise ValueError(
            f"weights={list(weights)}: of {model.metadata.source} can be edited: {', '.join(known)}"
        )
    for name, values in (("layers", given), ("weights", list(weights))):
        if len(set(values)) < len(values):
            raise ValueError(f"{name}={values}: expected each once")
