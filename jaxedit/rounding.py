"""Whole numbers rounded up."""


def ceil_div(n: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-n // divisor)


def round_up(n: int, step: int) -> int:
    """Return the least multiple of `step` that is at least n."""
    return step * ceil_div(n, step)


def next_power_of_two(n: int) -> int:
    """Return the least power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()
