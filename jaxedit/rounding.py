"""Whole numbers: rounded up, and read from text."""

MOST_DIGITS = 9  # of a number of devices, layers, steps or shards


def is_whole_number(text: str) -> bool:
    """Tell whether a text is a whole number that `int` reads; of "²" or 5,000 digits it is none."""
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS


def ceil_div(n: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-n // divisor)


def round_up(n: int, step: int) -> int:
    """Return the least multiple of `step` that is at least n."""
    return step * ceil_div(n, step)


def next_power_of_two(n: int) -> int:
    """Return the least power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()
