"""Rotary positions as configurations describe them: base, share of a head, and scaling.

The scalings are those of transformers (`modeling_rope_utils.py`): none, linear (arXiv 2306.15595),
Llama 3's, YaRN (2309.00071), LongRoPE (2402.13753) and dynamic NTK. The last two take other
frequencies for a whole text once it is longer than a limit; the decoder has those up to the limit.
"""

import math
from typing import Any

import numpy as np

from jaxedit.models.fields import Fields
from jaxedit.models.rope import Rope, inverse_frequencies


def rotary(
    fields: Fields,
    H: int,
    P: int,
    *,
    thetas: tuple[str, ...] = (),
    theta: float = 10000.0,
    shares: tuple[str, ...] = (),
    share: float = 1.0,
) -> Rope:
    """Read rotary positions from an HF configuration.

    transformers 4 writes them as rope_theta and rope_scaling, transformers 5 as rope_parameters.
    `rope_factors` are the frequencies' divisors that a GGUF file holds.

    Args:
      fields: the configuration.
      H: the width of a head.
      P: the positions the model was made for.
      thetas: further names of rope_theta.
      theta: the base where the configuration does not say.
      shares: names of the share of a head that is rotated; where there are none the whole head is.
      share: that share where the configuration does not say.

    Raises:
      ValueError: on a scaling that is not supported or given twice, and where an attribute's names
        contradict each other.
    """
    scaling = {**fields.mapping("rope_scaling"), **fields.mapping("rope_parameters")}
    base = _agreed(fields, scaling, ("rope_theta", *thetas), theta, most=1e38)
    dims = int(H * _agreed(fields, scaling, shares, share, most=1.0))
    check_rotary(H, dims)
    original = fields.count(_ORIGINAL, None)  # Phi 3 has it beside the entry, where it decides
    if original is not None and (scaling.get("rope_type") or scaling.get("type")) in _FROM_LENGTH:
        scaling[_ORIGINAL] = original
    rope, from_file = scaled_rope(base, dims, P, scaling), _factors_of_file(fields, dims)
    if rope.factors is not None and from_file is not None:
        raise ValueError(
            f"the file scales rotary frequencies twice: by rope_freqs.weight and by {scaling}"
        )
    return rope if from_file is None else Rope(base, dims, factors=from_file)


def check_rotary(H: int, dims: int) -> None:
    """Check that so many entries of a head of width H can be rotated in pairs.

    Raises:
      ValueError: where there are none, or no room for the last pair.
    """
    if not 1 <= dims <= H - dims % 2:
        raise ValueError(
            f"{dims} of a head's {H} entries would be rotated in pairs, which cannot be"
        )


def _factors_of_file(fields: Fields, dims: int) -> tuple[float, ...] | None:
    """Take the frequencies' divisors that a GGUF file holds.

    Raises:
      ValueError: where they are no positive numbers, or not one for each pair.
    """
    factors = fields.sequence("rope_factors", float, default=None)
    if factors is None:
        return None
    if len(factors) != (dims + 1) // 2 or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(
            f"rope_freqs.weight holds {len(factors)} divisors of rotary frequencies; expected "
            f"{(dims + 1) // 2} finite numbers above 0"
        )
    return tuple(factors)


def _agreed(
    fields: Fields, scaling: dict, aliases: tuple[str, ...], default: float, most: float
) -> float:
    """Take an attribute by all its names from the configuration and from its rotary entry.

    Raises:
      ValueError: where they contradict each other, or are no numbers above 0 and at most `most`.
    """
    given = []
    entry = Fields(dict(scaling), "the configuration's rotary entry")
    for name in aliases:
        given += [each.number(name, None, most=most) for each in (entry, fields)]
        scaling.pop(name, None)
    distinct = sorted({value for value in given if value is not None})
    if len(distinct) > 1:
        raise ValueError(
            f"the configuration gives {' or '.join(aliases)} as {distinct}: "
            "only one of these can be meant"
        )
    return distinct[0] if distinct else default


# HF's types of `rope_scaling`, and what an entry of each must hold and may hold besides the type.
_ORIGINAL = "original_max_position_embeddings"
_SCALINGS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL}, set()),
    "yarn": (
        {"factor"},
        {
            *(_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
            "truncate",
        },
    ),
    "longrope": ({"short_factor", "long_factor"}, {_ORIGINAL, "attention_factor", "factor"}),
}

_FROM_LENGTH = ("llama3", "yarn", "longrope")  # types that know the length trained first


def scaled_rope(theta: float, dims: int, P: int, scaling: dict[str, Any]) -> Rope:
    """Return the rotary embedding of an HF `rope_scaling` (or `rope_parameters`) entry.

    Args:
      theta: the base.
      dims: entries of a head that are rotated.
      P: the positions the model was made for.
      scaling: the entry, without base and share.

    Raises:
      ValueError: on a type that is not supported, on an entry with more or less than its type has,
        and on a number that is none or out of range.
    """
    entry = Fields(scaling, "rotary scaling")
    kind = entry.text("rope_type", None) or entry.text("type", None) or "default"
    if kind not in _SCALINGS:
        raise ValueError(
            f"rotary scaling of type {kind!r} is not supported; supported: {', '.join(_SCALINGS)}"
        )
    needed, optional = _SCALINGS[kind]
    held = {name for name, value in scaling.items() if value is not None} - {"rope_type", "type"}
    if not needed <= held <= needed | optional:
        expected = sorted(needed) or "nothing else"
        besides = f" and maybe {sorted(optional)}" if optional else ""
        raise ValueError(
            f"rotary scaling of type {kind!r} has {expected}{besides}, got {sorted(held)}"
        )
    if kind == "linear":
        n_pairs = len(inverse_frequencies(theta, dims))
        return Rope(theta, dims, factors=(_factor(entry),) * n_pairs)
    if kind == "dynamic":
        _factor(entry)  # of longer texts
        return Rope(theta, dims, longest=P)
    if kind == "llama3":
        return Rope(theta, dims, factors=_llama3_factors(theta, dims, entry))
    if kind == "yarn":
        return _yarn(theta, dims, P, entry)
    if kind == "longrope":
        return _longrope(theta, dims, P, entry)
    return Rope(theta, dims)


def _llama3_factors(theta: float, dims: int, entry: Fields) -> tuple[float, ...]:
    """Stretch long wavelengths by `factor`, keep short ones, blend those between."""
    turns = entry.count(_ORIGINAL) * inverse_frequencies(theta, dims) / (2 * math.pi)
    low = entry.number("low_freq_factor")
    high = entry.number("high_freq_factor", above=low)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return tuple((1 / (kept + (1 - kept) / _factor(entry))).tolist())


def _yarn(theta: float, dims: int, P: int, entry: Fields) -> Rope:
    """Blend by pair: few turns over the trained length are stretched, many kept (2309.00071, 3.2).

    The temperature is 0.1 ln(factor) + 1 (eq. 22), or the ratio of two such with mscale and
    mscale_all_dim.
    """
    factor, original = _factor(entry), entry.count(_ORIGINAL, None) or P
    fast = entry.number("beta_fast", None) or 32.0
    slow = entry.number("beta_slow", None) or 1.0

    # The pairs, fractional, that turn so often over the trained length.
    def pair_of(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(fast), pair_of(slow)
    if entry.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    pair = np.arange(len(inverse_frequencies(theta, dims)))
    stretched = np.clip((pair - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    factors = 1 / (1 - stretched + stretched / factor)

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    attention_factor = entry.number("attention_factor", None)
    if attention_factor is None:
        both = entry.number("mscale", None), entry.number("mscale_all_dim", None)
        attention_factor = temperature(1.0)
        if all(both):
            attention_factor = temperature(both[0]) / temperature(both[1])
    return Rope(theta, dims, factors=tuple(factors.tolist()), attention_factor=attention_factor)


def _longrope(theta: float, dims: int, P: int, entry: Fields) -> Rope:
    """Take the short factors, which hold up to the trained length (2402.13753)."""
    original = entry.count(_ORIGINAL, None) or P
    factors: dict[str, list[float]] = {}
    for name in ("short_factor", "long_factor"):
        factors[name] = entry.sequence(name, int, float)
        n_pairs, found = len(inverse_frequencies(theta, dims)), len(factors[name])
        if found != n_pairs or not all(0 < each < math.inf for each in factors[name]):
            raise ValueError(
                f"rotary scaling has {found} numbers in {name}; expected {n_pairs}, finite and "
                "above 0"
            )
    attention_factor = entry.number("attention_factor", None)
    if attention_factor is None:
        factor = entry.number("factor", None, most=1e30) or P / original
        attention_factor = 1.0
        if factor > 1:
            attention_factor = math.sqrt(1 + math.log(factor) / math.log(original))
    short = tuple(map(float, factors["short_factor"]))
    is_the_same = factors["short_factor"] == factors["long_factor"]
    longest = None if is_the_same else original
    return Rope(theta, dims, factors=short, attention_factor=attention_factor, longest=longest)


def _factor(entry: Fields) -> float:
    """Take how many times as long a text may be; float32 frequencies hold up to 1e30 times."""
    return entry.number("factor", most=1e30)
