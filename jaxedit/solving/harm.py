"""The harm projection: from an update is taken what would harm texts and the facts do not need.

An update D = u v of a layer, as a method solved for it under its M, becomes D + E, E in the rows
that v spans, where E

    minimises  tr(E^T M E) / tr(D^T M D) + w c s(D + E)     with K^T E = 0

s is the second order of the predicted change of the texts' mean loss, their Fisher form
(`jaxedit.edits.predicted_change`). The product with the facts' keys K stays what it was, so v is
still written. The weight w trades the method's own size of a change against the texts' loss, in
nats. Where D is the least update under M, as in all methods but ROME with its two keys, D + E
minimises tr(X^T M X) in place of the first term just as well.

The first order f is left out: that of a few texts is mostly their own, and an update that may
follow it is trained on them. On other texts the loss then rises.

With q the orthonormal rows that v spans and E = y q, the change of a text's score is linear in y:

    p_r = sum_t x_t (g~_t . q_r)     of each draw and text: J columns of H = c/J sum p p^T

so that H is of low rank, and with P what M^-1 leaves of vectors that keys do not see, the texts'
scores e after the change, and then y, are

    (I + k sum_r p_r^T P p_r) e = e_0,    y_r = -k P p_r e,    k = w c tr(D^T M D) / (2 J)

where e_0 are the scores of D and of the layers below. It is exact for any number of facts. Were
keys and gradients independent of each other, H would be C times a number for each r (K-FAC), and
M = C would leave nothing to be won.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from jaxedit.edits.edit import EDITED_WEIGHT, Dense, LowRank, delta_norm
from jaxedit.edits.predicted_change import CURVATURE_SHARE, change_of_scores, loss_scores
from jaxedit.mesh import to_host
from jaxedit.solving import past_keys
from jaxedit.solving.finite import check_finite_delta
from jaxedit.solving.harm_texts import HarmTexts
from jaxedit.solving.past_keys import no_past_keys
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.solve import unwhiten_exactly, whiten_exactly

SAME_ROW = 1e-6  # singular values of v below this share of the largest are rounding


class Projected(NamedTuple):
    """A layer's update and what is predicted of it.

    Attributes:
      delta: the update after the projection.
      before: scores of the update before it [1 + n_draws, texts], of this layer alone.
      after: of the one after it.
      norm_ratio: |D + E| / |D|, in the Frobenius norm.
    """

    delta: LowRank
    before: np.ndarray
    after: np.ndarray
    norm_ratio: float = 1.0


def project_harm(
    texts: HarmTexts,
    regulariser: KeyRegulariser,
    delta: LowRank | Dense,
    key_FR: np.ndarray,
    below: np.ndarray | float = 0.0,
) -> Projected:
    """Take from a layer's update what harms texts and the facts do not need.

    Args:
      texts: whose harm it is.
      regulariser: M, with past keys.
      delta: the update, as a method solved for it under M.
      key_FR: what the facts need: keys whose product with the update stays; all that it was solved
        with.
      below: scores of the updates of the layers below [1 + n_draws, texts], which the harm is of as
        well.

    Raises:
      ValueError: on an update of as many facts as the weight is wide, or one that is not finite.
    """
    if isinstance(delta, Dense):
        raise ValueError(
            f"harm_projection: {key_FR.shape[1]} facts leave nothing of a weight of width "
            f"{len(key_FR)} that they do not need; give fewer at once, or harm_projection=0"
        )
    check_finite_delta(delta)
    before = loss_scores(texts.probe, [delta])
    v_RD = np.asarray(delta.v_RD, np.float64)
    left_RR, value_R, row_RD = np.linalg.svd(v_RD, full_matrices=False)
    rank = np.count_nonzero(value_R > SAME_ROW * value_R[0])
    if not rank or not texts.weight:
        return Projected(delta, before, before)
    coordinates = _Coordinates(regulariser, key_FR)
    u_FR, row_RD = to_host(delta.u_FR).astype(np.float64), row_RD[:rank]
    size = coordinates.size(key_FR.T @ (u_FR @ v_RD))
    y_FR = _harmless_change(texts, coordinates, delta.layer, row_RD, before + below, size)

    # D + E = (u v q^T + y) q, its columns' lengths moved to the right.
    u_FR = u_FR @ (left_RR[:, :rank] * value_R[:rank]) + y_FR
    norm_R = np.linalg.norm(u_FR, axis=0)
    u_FR, v_RD = (u_FR / norm_R).astype(np.float32), (norm_R[:, None] * row_RD).astype(np.float32)
    projected = delta._replace(u_FR=u_FR, v_RD=v_RD)
    after, ratio = loss_scores(texts.probe, [projected]), delta_norm(projected) / delta_norm(delta)
    return Projected(projected, before, after, ratio)


def harm_info(projected: list[Projected]) -> dict[str, float]:
    """Say in numbers what the projection of an edit's layers did; nothing where there was none.

    Returns:
      `harm_before_nats` and `harm_after_nats`, c s of all layers' updates before it and after it,
      and `harm_norm_ratio`, the largest ratio of a layer's norm after it to that before.
    """
    if not projected:
        return {}
    before, after = (
        change_of_scores(np.sum(scores, axis=0)).harm_nats()
        for scores in zip(*((each.before, each.after) for each in projected), strict=True)
    )
    return {
        "harm_before_nats": before,
        "harm_after_nats": after,
        "harm_norm_ratio": max(each.norm_ratio for each in projected),
    }


def _harmless_change(
    texts: HarmTexts,
    coordinates: "_Coordinates",
    layer: int,
    row_RD: np.ndarray,
    scores: np.ndarray,
    size: float,
) -> np.ndarray:
    """Solve for y, the change E = y q of an update [F, R].

    Args:
      texts: whose harm it is.
      coordinates: of M.
      layer: of the update.
      row_RD: q, orthonormal.
      scores: of the update and those of the layers below [1 + n_draws, texts].
      size: tr(D^T M D).
    """
    score = scores[1:].ravel()
    k = texts.weight * CURVATURE_SHARE * size / (2 * score.size)

    # What is left of the scores after the change, and the change that leaves it; p, as wide as
    # there are draws and texts, is made twice, so that only one fact's is held at a time.
    system = np.eye(score.size)
    for row_D in row_RD:
        vectors = coordinates.fold(_score_vectors(texts, layer, row_D))
        system += k * (vectors.T @ coordinates.unseen(vectors))
    left = scipy.linalg.solve(system, score, assume_a="pos")
    whitened = [_score_vectors(texts, layer, row_D) @ left for row_D in row_RD]
    direction_MR = coordinates.fold(np.stack(whitened, axis=1))
    return coordinates.back(-k * coordinates.unseen(direction_MR))


def _score_vectors(texts: HarmTexts, layer: int, row_D: np.ndarray) -> np.ndarray:
    """Compute p in the whitener's coordinates: its products with y are the texts' scores of y q.

    Returns:
      [M, n_draws * texts], draw by draw.
    """
    probe, white_QM = texts.probe, texts.white_QM[layer]
    factor = probe.gradient_of[EDITED_WEIGHT, layer][1:] @ row_D.astype(np.float32)
    ends = np.searchsorted(probe.text_Q, np.arange(1, probe.n_texts + 1))
    starts = np.concatenate([[0], ends[:-1]])
    by_text = [
        white_QM[start:end].T @ factor[:, start:end].T
        for start, end in zip(starts, ends, strict=True)
    ]
    vectors = np.stack(by_text, axis=2)
    return vectors.reshape(len(vectors), -1).astype(np.float64)


class _Coordinates:
    """Coordinates in which M is I + P P^T, and what its inverse leaves that keys do not see."""

    def __init__(self, regulariser: KeyRegulariser, key_FR: np.ndarray):
        self.whitener_MF, past = regulariser
        white_MR = whiten_exactly(self.whitener_MF, key_FR)
        self.past = no_past_keys(len(key_FR), len(white_MR)) if past is None else past
        self.key_MR = past_keys.fold(self.past, white_MR)
        self.solved_MR = past_keys.apply_inverse(self.past, self.key_MR)
        gram_RR = self.key_MR.T @ self.solved_MR
        self.inverse_RR = np.linalg.pinv(gram_RR, rcond=1e-12, hermitian=True)

    def size(self, written_RD: np.ndarray) -> float:
        """Return tr(D^T M D) of the least update that writes this at the keys."""
        return float(np.sum(written_RD * (self.inverse_RR @ written_RD)))

    def unseen(self, x_MJ: np.ndarray) -> np.ndarray:
        """Return M^-1 x without what would change the products with the keys."""
        solved_MJ = past_keys.apply_inverse(self.past, x_MJ)
        return solved_MJ - self.solved_MR @ (self.inverse_RR @ (self.key_MR.T @ solved_MJ))

    def fold(self, white_MJ: np.ndarray) -> np.ndarray:
        """Take what the whitener has whitened to these coordinates."""
        return past_keys.fold(self.past, white_MJ)

    def back(self, y_MR: np.ndarray) -> np.ndarray:
        """Take a change back to the weight's own coordinates [F, R]."""
        return unwhiten_exactly(self.whitener_MF, past_keys.unfold(self.past, y_MR))
