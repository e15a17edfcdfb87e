"""Mutations of inputs for mutate_inputs.py: of JSON by type, and of bytes."""

import copy
import json
import random
from typing import Any

LONE_SURROGATE = "\\ud800"
# What a value may be exchanged for; the strings are written as JSON of their own.
VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    "false",
    "x",
    "0",
    "a" * 300,
    "\x00",
    "../x",
    -1,
    0,
    1,
    2,
    3.5,
    -1e-6,
    1e400,
    float("nan"),
    2**31,
    10**9,
    10**18,
    10**400,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    ["x", 1],
    [1e9] * 3,
]
WORDS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x00\x00\x00\x00"]


def mutate_json(rng: random.Random, value: Any) -> bytes:
    """Change one or two places of a JSON value; sometimes its text instead."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        changed = _mutate_value(rng, changed)
    text = json.dumps(changed)
    choice = rng.randrange(40)
    if choice == 0:
        text = text.replace(": ", ": " + "[" * 100_000, 1)
    elif choice == 1:
        text = text.replace(": ", ": " + "1" * 5000 + ", " + '"more": ', 1)
    elif choice == 2:
        text = text.replace('": "', '": "' + LONE_SURROGATE, 1)
    elif choice in (3, 4, 5):
        return mutate_bytes(rng, text.encode())
    return text.encode()


def _mutate_value(rng: random.Random, value: Any) -> Any:
    """Exchange, drop, double or add one entry, the deeper the likelier."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(VALUES))
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    choice = rng.randrange(10)
    if choice < 7:
        value[key] = _mutate_value(rng, value[key])
    elif choice == 7:
        value.pop(key)
    elif choice == 8 and isinstance(value, dict):
        value[rng.choice(["more", "", str(key) + "s", "0"])] = copy.deepcopy(value[key])
    elif isinstance(value, list):
        value.insert(key, copy.deepcopy(value[rng.choice(keys)]))
    else:
        value[key] = copy.deepcopy(value[rng.choice(keys)])
    return value


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Cut, flip, exchange, double or drop bytes; most often near the beginning, where headers are.

    Args:
      rng: of the choice.
      content: what is mutated.
    """
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = len(changed)
        at = rng.randrange(end + 1) if rng.random() < 0.5 else rng.randrange(min(end, 4000) + 1)
        choice = rng.randrange(8)
        if choice == 0:
            del changed[at:]
        elif choice in (1, 2) and at < end:
            changed[at] ^= 1 << rng.randrange(8)
        elif choice == 3:
            changed[at : at + 4] = rng.choice(WORDS)
        elif choice == 4:
            changed[at : at + rng.randrange(1, 40)] = b""
        elif choice == 5:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20)))
        elif choice == 6:
            changed[at:at] = changed[at : at + rng.randrange(1, 60)]
        else:
            changed[at : at + 8] = rng.choice(WORDS) + b"\x00\x00\x00\x00"
    return bytes(changed)


def mutate_text(rng: random.Random, text: str) -> str:
    """Mutate a short text of a flag."""
    odd = [
        "",
        "²",
        "9" * 5000,
        "-1",
        "0",
        "nan",
        "inf",
        "1e9",
        "a",
        ",",
        ":",
        "=",
        "\x00",
        " ",
        "-",
    ]
    choice = rng.randrange(6)
    at = rng.randrange(len(text) + 1)
    if choice == 0:
        return rng.choice(odd)
    if choice == 1:
        return text[:at] + rng.choice(odd) + text[at:]
    if choice == 2:
        return text[:at]
    if choice == 3:
        return text * rng.choice((2, 50))
    if choice == 4:
        return text[:at] + rng.choice(odd) + text[at + 1 :]
    return "".join(rng.sample(text, len(text)))
