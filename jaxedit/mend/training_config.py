"""The configuration of a training of MEND: every key there is, with its published default.

The defaults are those of the authors' code and of EasyEdit, the same for GPT-2 XL, GPT-J-6B and
Llama-2-7B. Three published values are not keys: `cbase`, which nothing reads where the model itself
is not trained (`train_base` false), a batch of one edit, and one locality text an edit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxedit.did_you_mean import did_you_mean
from jaxedit.mend.network import Switches
from jaxedit.solving.ranges import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, check_ranges


@dataclasses.dataclass(frozen=True)
class Training:
    """The hyper-parameters of a training, under their published names.

    Attributes:
      lr: Adam's learning rate for the networks.
      edit_lr: the step sizes alpha at the beginning.
      lr_lr: Adam's learning rate for the step sizes.
      cedit: the weight of the edit's loss.
      cloc: the weight of the locality loss.
      accumulate_bs: edits a step of Adam; they are computed side by side.
      grad_clip: the most that the gradient's norm may be.
      max_iters: edits, at most.
      val_interval: edits between two validations.
      val_steps: at most so many of the validation's records are edited each time.
      early_stop_patience: stop after so many edits without a lower loss in the validation.
      seed: of V and of the records' order.
    """

    lr: Annotated[float, POSITIVE] = 1e-6
    edit_lr: float = 1e-4
    lr_lr: Annotated[float, NOT_NEGATIVE] = 1e-4
    cedit: float = 0.1
    cloc: float = 1.0
    accumulate_bs: Annotated[int, AT_LEAST_ONE] = 10
    grad_clip: Annotated[float, POSITIVE] = 100.0
    max_iters: Annotated[int, AT_LEAST_ONE] = 100_000
    val_interval: Annotated[int, AT_LEAST_ONE] = 1000
    val_steps: Annotated[int, AT_LEAST_ONE] = 500
    early_stop_patience: Annotated[int, AT_LEAST_ONE] = 20_000
    seed: int = 42

    @property
    def step(self) -> "StepSettings":
        """What a step needs of them."""
        return StepSettings(*(getattr(self, name) for name in StepSettings._fields))


class StepSettings(NamedTuple):
    """The hyper-parameters of a step of training, as in `Training`; all of it is static."""

    lr: float
    lr_lr: float
    cedit: float
    cloc: float
    grad_clip: float


def default_config(**values: Any) -> ConfigDict:
    """Return all keys of a training with their defaults, but for those given.

    Raises:
      ValueError: on an unknown key.
    """
    config = ConfigDict()
    config.model = "smollm2-135m"  # a name, an HF directory or hub id, a .gguf file
    config.dtype = placeholder(str)
    config.mesh = ""
    config.facts = ("builtin",)  # sources of requests; those without a neighbour are left out
    config.n_train = 800  # of each source: the first so many to train with,
    config.n_validate = 100  # and so many after them to validate with
    config.layers = ()  # whose MLP is edited; empty: the model's last three
    for defaults in (dataclasses.asdict(Training()), Switches()._asdict()):
        for name, value in defaults.items():
            config[name] = value
    for name, value in values.items():
        if name not in config:
            raise ValueError(f"a training of MEND has no key {name!r}{did_you_mean(name, config)}")
        config[name] = value
    return config


def training_of(config: Mapping[str, Any]) -> tuple[Training, Switches]:
    """Read a training's hyper-parameters and its networks' switches, checked.

    Args:
      config: as `default_config`, as a plain dictionary.

    Raises:
      ValueError: on a key that is missing or unknown, or a number out of its range.
    """
    known = default_config()
    for key in config:
        if key not in known:
            raise ValueError(f"the training has the unknown key {key!r}{did_you_mean(key, known)}")
    missing = [key for key in known if key not in config]
    if missing:
        raise ValueError(
            f"the training has no {', '.join(missing)}; begin with "
            "jaxedit.mend.training_config.default_config"
        )
    names = [field.name for field in dataclasses.fields(Training)]
    training = Training(**{name: config[name] for name in names})
    check_ranges(training)
    for name in ("n_train", "n_validate"):
        if config[name] < 1:
            raise ValueError(f"{name}={config[name]}: expected at least one record")
    return training, Switches(**{name: config[name] for name in Switches._fields})
