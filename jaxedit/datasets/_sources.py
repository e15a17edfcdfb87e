"""Where facts and texts lie: a file, an address on the web (fetched once), a data set of the
`datasets` library.
"""

from collections.abc import Iterator
from typing import Any

HUB_PREFIX = "datasets:"


def hub_rows(
    name: str, n_rows: int | None = None, expected: str = "a file"
) -> Iterator[dict[str, Any]]:
    """The rows of a data set NAME[,CONFIG[,SPLIT]] of the `datasets` library, streamed.

    Raises:
      ValueError: where it cannot be had.
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
            f"the data set {name!r} could not be had ({type(error).__name__}: {said}); without a network give {expected}, or "
            "a directory of them"
        ) from error
