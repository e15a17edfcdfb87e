"""Archives of trained networks of the MEND, MEMIT and EasyEdit repositories: torch files.

An archive is a dictionary whose "model" holds, under the names of MEND's public code (algs/mend.py
and nn.py there; "gtn." in the place of "mend." in the ROME and MEMIT repositories),

    edit_lrs                                  a step size for each weight
    mend.GROUP.u_mean, .v_mean                the means of x (u) and d (v)
    mend.GROUP.u_std, .v_std                  their standard deviations
    mend.GROUP.u_s, .v_s                      their squared deviations, summed
    mend.GROUP.k                              the tokens that these are of
    mend.GROUP.NET.layers.N.u                 U of block N, [out, rank]
    mend.GROUP.NET.layers.N.v                 V, [rank, in]
    mend.GROUP.NET.layers.N.bias              b
    mend.GROUP.NET.layers.N.mode_scale.weight, .mode_shift.weight    a row for each weight

GROUP is "(in, out)" of the weights that share a network (x_dim and delta_dim: a Conv1D's shape as
it is, a Linear's turned round), or a weight's name with "#" for "."; NET is "mlp" where x and d are
combined, else "mlp1" of x and "mlp2" of d. "model_config" is left out, and so is what begins with
"model.". The archive does not say whether factors are normalised: all published settings do.

Tested on archives that a test writes; no published one has been tried.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxedit.mend.hypernetwork import STEP_SIZES, Hypernetwork
from jaxedit.mend.moments import Moments
from jaxedit.mend.network import Group, Layout, Place, Switches, make_layout, parameter_shapes
from jaxedit.torch_files import read_torch

# What "model_config" may be an object of.
CONFIGURATIONS = tuple(
    f"transformers.models.{module}.configuration_{module}.{name}"
    for module, name in (
        ("gpt2", "GPT2Config"),
        ("gptj", "GPTJConfig"),
        ("gpt_neox", "GPTNeoXConfig"),
        ("llama", "LlamaConfig"),
        ("mistral", "MistralConfig"),
        ("qwen2", "Qwen2Config"),
    )
)
NETS = {"mlp": "both", "mlp1": "x", "mlp2": "delta"}
KINDS = {  # of a block: name there -> ours, whether it lies transposed
    "v": ("v_YR", True),
    "u": ("u_RY", True),
    "bias": ("bias_Y", False),
    "mode_scale.weight": ("scale_EY", False),
    "mode_shift.weight": ("shift_EY", False),
}
BLOCK = re.compile(r"(mlp[12]?)\.layers\.(\d+)\.(.+)")


def read_archive(
    path: Path,
    places: tuple[Place, ...],
    sizes: Mapping[str, tuple[int, int]],
    names: Mapping[Place, str],
) -> Hypernetwork:
    """Read a published network.

    Args:
      path: of the archive.
      places: the weights that it edits, in the released order.
      sizes: weight -> how much it reads and puts out.
      names: of the weights in a Hugging Face checkpoint.

    Raises:
      ValueError: where the file is no such archive, or of another model.
    """
    archive = read_torch(path, CONFIGURATIONS)
    state = archive.get("model", archive)
    if not isinstance(state, Mapping) or "edit_lrs" not in state:
        raise ValueError(
            f"{path} is no archive of a trained MEND network: it has no 'edit_lrs' in 'model'"
        )
    arrays = {
        re.sub(r"^(mend|gtn)\.", "", str(name)): np.asarray(value.detach().float().cpu().numpy())
        for name, value in state.items()
        if hasattr(value, "detach") and not str(name).startswith("model.")
    }
    try:
        layout = make_layout(_switches(arrays), places, dict(sizes))
        found = _parameters(arrays, layout, names)
        return Hypernetwork(found, _moments(arrays, layout, names), layout)
    except (KeyError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is not the archive of a network for these weights ({what}); give the model "
            "and the layers that it was trained for"
        ) from error


def _switches(arrays: Mapping[str, np.ndarray]) -> Switches:
    """Find out what the networks are like by the names of their parameters."""
    blocks = [match for name in arrays if (match := BLOCK.search(name))]
    nets = {match[1] for match in blocks}
    if not nets:
        raise ValueError("it holds no blocks of a network")
    first = next(name for name in arrays if name.endswith(".u"))
    is_one_side = "mlp" not in nets and not all(
        {f"{group}.{net}.layers.0.u" for net in ("mlp1", "mlp2")} <= set(arrays)
        for group in {name.split(".mlp")[0] for name in arrays if ".mlp" in name}
    )
    return Switches(
        n_hidden=max(int(match[2]) for match in blocks),
        rank=max(array.shape[1] for name, array in arrays.items() if name.endswith(".u")),
        combine="mlp" in nets,
        shared=first.startswith("("),
        one_sided=is_one_side and nets == {"mlp1", "mlp2"},
        x_only=is_one_side and nets == {"mlp1"},
        delta_only=is_one_side and nets == {"mlp2"},
    )


def _group_name(layout: Layout, group: Group, names: Mapping[Place, str]) -> str:
    """Return what the archive calls a group."""
    if layout.switches.shared:
        return f"({group.x_size}, {group.delta_size})"
    return names[group.places[0]].replace(".", "#")


def _parameters(
    arrays: Mapping[str, np.ndarray], layout: Layout, names: Mapping[Place, str]
) -> dict[str, Any]:
    """Return the parameters under our names.

    Raises:
      KeyError: where one is missing; ValueError where it has another shape or is not finite.
    """
    net_of = {side: net for net, side in NETS.items()}
    theirs_of = {ours: (theirs, is_turned) for theirs, (ours, is_turned) in KINDS.items()}
    name_of = {group.name: _group_name(layout, group, names) for group in layout.groups}
    parameters = {}
    for name, shape in parameter_shapes(layout).items():
        group, side, block, kind = name.split(":")
        theirs, is_turned = theirs_of[kind]
        there = f"{name_of[group]}.{net_of[side]}.layers.{block}.{theirs}"
        array = arrays[there].T if is_turned else arrays[there]
        parameters[name] = _checked(there, array, shape)
    step_sizes = _checked("edit_lrs", arrays["edit_lrs"], (len(layout.places),))
    return parameters | {STEP_SIZES: step_sizes}


def _moments(
    arrays: Mapping[str, np.ndarray], layout: Layout, names: Mapping[Place, str]
) -> dict[str, Moments]:
    """Return the moments; the deviations are those of the standard deviations in use."""
    moments = {}
    for group in layout.groups:
        name = _group_name(layout, group, names)
        (k,) = _checked(f"{name}.k", arrays[f"{name}.k"], (1,))
        fields = [k]
        for side, size in (("u", group.x_size), ("v", group.delta_size)):
            mean_Y, std_Y = (
                _checked(f"{name}.{side}_{kind}", arrays[f"{name}.{side}_{kind}"], (size,))
                for kind in ("mean", "std")
            )
            fields += [mean_Y, jnp.square(std_Y) * (k - 1)]
        moments[group.name] = Moments(*fields)
    return moments


def _checked(name: str, array: np.ndarray, shape: tuple[int, ...]):
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}, expected {shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds numbers that are not finite")
    return jnp.asarray(array, jnp.float32)
