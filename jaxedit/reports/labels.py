"""Labels in figures: right of the axes beside where a line ends, and beside points."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT_SIZE = 8
LINE_HEIGHT_POINTS = 11.5  # what two labels of that size, one above the other, need
EARLY = 0.9  # of the axes' width: lines that end before it have dotted leaders
LABEL_X = 1.05  # of the axes' width: where the labels of lines begin
MARK_POINTS = 3.5  # what a mark takes around its place
# Where a label may stand beside its point: offset in points, horizontal and vertical alignment.
Place = tuple[tuple[float, float], str, str]
BESIDE: tuple[Place, ...] = (
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
)
# For points of a line that rises: first where the line is not.
BESIDE_RISING_LINE: tuple[Place, ...] = (
    ((5, -4), "left", "top"),
    ((-5, 4), "right", "bottom"),
    *BESIDE,
)


class EndLabel(NamedTuple):
    """The name of a line.

    Attributes:
      text: the name.
      x: where the line ends, in data coordinates; None: at the right edge of the axes.
      y: likewise.
      color: of the text.
    """

    text: str
    x: float | None
    y: float
    color: Any


class PointLabel(NamedTuple):
    """The name of a point: text, place in data coordinates, colour."""

    text: str
    x: float
    y: float
    color: Any = "black"


def label_line_ends(axes: "Axes", labels: Sequence[EndLabel]) -> None:
    """Name lines right of the axes, each beside its end; names that would overlap move apart.

    Args:
      axes: with their final limits.
      labels: of the lines, in any order.
    """
    # Heights as shares of the axes' own, on a linear as on a logarithmic scale.
    to_axes = axes.transData + axes.transAxes.inverted()
    x_right = axes.get_xlim()[1]
    ends = []
    for label in labels:
        x, y = to_axes.transform((x_right if label.x is None else label.x, label.y))
        ends.append((float(x), float(y)))
    height_points = axes.get_window_extent().height / root_figure(axes).dpi * 72
    heights = spread_apart([y for _, y in ends], LINE_HEIGHT_POINTS / height_points)

    # A thin line leads from each end to its name; dotted where it might be taken for the line.
    for label, end, height in zip(labels, ends, heights, strict=True):
        leader = dict(arrowstyle="-", color=label.color, linewidth=0.6, relpos=(0, 0.5))
        if end[0] < EARLY:
            leader["linestyle"] = ":"
        axes.annotate(
            label.text,
            end,
            xycoords="axes fraction",
            xytext=(LABEL_X, height),
            textcoords="axes fraction",
            fontsize=FONT_SIZE,
            color=label.color,
            va="center",
            parse_math=False,
            arrowprops=leader | dict(patchA=None, shrinkA=2, shrinkB=0),
            annotation_clip=False,
        )


def root_figure(axes: "Axes") -> "Figure":
    """Return the figure that the axes are in."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def spread_apart(places: Sequence[float], step: float) -> list[float]:
    """Move places within [0, 1] until all are `step` apart, as little as possible.

    The order stays, and the sum of the squared moves is the least there is. Where there is no room
    for so many, they are as far apart as possible.
    """
    from sklearn.isotonic import isotonic_regression  # slow to import

    n = len(places)
    if n == 0:
        return []
    step = min(step, 1 / max(n - 1, 1))
    order = np.argsort(places, kind="stable")
    offsets = step * np.arange(n)
    # Less its offset, a place that is far enough from the one before only rises.
    risen = np.array(places, float)[order] - offsets
    moved = np.empty(n)
    moved[order] = isotonic_regression(risen, y_min=0.0, y_max=1 - offsets[-1]) + offsets
    return moved.tolist()


def label_points(
    axes: "Axes",
    labels: Sequence[PointLabel],
    marks: np.ndarray,
    most: int | None = None,
    places: Sequence[Place] = BESIDE,
) -> None:
    """Name points where there is room beside them, leaving out names that would overlap.

    Args:
      axes: with their final limits.
      labels: of the points, the most important first.
      marks: what no name may cover, in data coordinates [n, 2].
      most: how many are named; None: all.
      places: where a name may stand, best first.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    # Where things are is known once the figure is laid out.
    figure = root_figure(axes)
    figure.draw_without_rendering()
    mark_size = MARK_POINTS / 72 * figure.dpi
    mark_places = axes.transData.transform(marks)

    # Each label takes the first place that is free; one that finds none is left out.
    taken: list[Any] = []
    for label in labels:
        if len(taken) == most:
            break
        for offset, horizontal, vertical in places:
            note = axes.annotate(
                label.text,
                (label.x, label.y),
                xytext=offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=FONT_SIZE,
                color=label.color,
                parse_math=False,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
            note.set_in_layout(False)
            box = note.get_window_extent()
            covers = box.padded(mark_size).count_contains(mark_places) > 0
            is_inside = axes.bbox.count_contains(box.corners()) == 4
            if is_inside and not covers and not box.count_overlaps(taken):
                taken.append(Bbox(box.get_points()))
                break
            note.remove()
