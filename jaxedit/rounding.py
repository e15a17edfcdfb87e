"""Whole numbers: rounded up, and read from text."""


def ceil_div(n: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-n // divisor)


def round_up(n: int, step: int) -> int:
    """Return the least multiple of `step` that is at least n."""
    return step * ceil_div(n, step)


def next_power_of_two(n: int) -> int:
    """Return the least power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def read_whole_number(text: str, most: int = 10**9) -> int | None:
    """Read a whole number written in the digits 0 to 9; None where it is none, or over `most`.

    Python's `isdigit` takes a superscript for a digit and its `int` does not; a number of thousands
    of digits is an error of its own.
    """
    is_number = text.isascii() and text.isdecimal() and len(text) <= 20
    return int(text) if is_number and int(text) <= most else None
