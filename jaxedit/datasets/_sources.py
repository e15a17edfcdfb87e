"""Data sets of the `datasets` library as a source of records."""

from collections.abc import Iterator
from typing import Any

HUB_PREFIX = "datasets:"


def hub_rows(
    name: str, n_rows: int | None = None, expected: str = "a file"
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set of the `datasets` library, streamed.

    Args:
      name: NAME[,CONFIG[,SPLIT]]; the split "train" where none is named.
      n_rows: at most so many, the first ones; None: all.
      expected: what an error recommends instead.

    Raises:
      ValueError: where the data set cannot be had.
    """
    import datasets  # slow to import

    dataset, config, split = (*name.split(","), "", "")[:3]
    try:
        rows = datasets.load_dataset(
            dataset, config or None, split=split or "train", streaming=True
        )
        yield from rows if n_rows is None else rows.take(n_rows)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the data set {name!r} could not be had ({type(error).__name__}: {said}); without a "
            f"network give {expected}, or a directory of them"
        ) from error
