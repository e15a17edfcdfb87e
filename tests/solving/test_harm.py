"""The harm projection against a dense minimiser in float64, and what it promises."""

import itertools

import numpy as np
import pytest

from jaxedit.edits.edit import EDITED_WEIGHT, Dense, LowRank, to_dense
from jaxedit.edits.predicted_change import CURVATURE_SHARE, change_of_scores, loss_scores
from jaxedit.models.loss_probe import LossProbe
from jaxedit.solving.harm import harm_info, project_harm
from jaxedit.solving.harm_texts import HarmTexts
from jaxedit.solving.regulariser import KeyRegulariser
from jaxedit.solving.solve import add_past_keys, solve, whiten
from jaxedit.solving.whiteners import inverse_cholesky, null_space

F, D, LAYER = 24, 10, 3
PLACE = (EDITED_WEIGHT, LAYER)


class Problem:
    """A layer's M, keys, update and texts, at random."""

    def __init__(self, n_facts=1, n_past=0, subspace=False, mixed=False, seed=0):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(F, F)) / 3
        self.c_FF = root @ root.T + 0.1 * np.eye(F)
        self.basis_FM = null_space(self.c_FF, 1.5, LAYER) if subspace else np.eye(F)
        whitener = self.basis_FM.T / np.sqrt(2.0) if subspace else inverse_cholesky(self.c_FF)
        self.regulariser = KeyRegulariser(whitener.astype(np.float32))
        self.m_FF = 2.0 * np.eye(F) if subspace else self.c_FF.copy()
        if n_past:
            past_FR = rng.normal(size=(F, n_past)).astype(np.float32)
            self.regulariser = add_past_keys(self.regulariser, past_FR)
            self.m_FF = self.m_FF + past_FR @ past_FR.T
        key_FR = rng.normal(size=(F, n_facts)).astype(np.float32)
        other_FR = key_FR + 0.5 * rng.normal(size=key_FR.shape).astype(np.float32)
        right_FR = other_FR if mixed else key_FR
        value_RD = rng.normal(size=(n_facts, D))
        found = solve(self.regulariser, key_FR, right_FR, value_RD, 0.0 if mixed else 1.0)
        self.delta = LowRank(*PLACE, np.asarray(found.u_FR), found.v_RD)
        self.key_FR = np.concatenate([key_FR, other_FR], axis=1) if mixed else key_FR
        text_Q = np.repeat(np.arange(4), [5, 3, 6, 4])
        x_QF = rng.normal(size=(len(text_Q), F)).astype(np.float32)
        gradient = 0.1 * rng.normal(size=(1 + 3, len(text_Q), D)).astype(np.float32)
        self.probe = LossProbe((PLACE,), {PLACE: x_QF}, {PLACE: gradient}, text_Q, 4)
        self.below = 0.3 * rng.normal(size=(4, 4))

    def texts(self, weight):
        white_MQ = whiten(self.regulariser.whitener_MF, self.probe.input_of[PLACE].T)
        return HarmTexts(weight, self.probe, {LAYER: np.asarray(white_MQ).T})

    def harm(self, delta):
        return change_of_scores(loss_scores(self.probe, [delta]) + self.below).harm_nats()

    def project(self, weight):
        return project_harm(
            self.texts(weight), self.regulariser, self.delta, self.key_FR, self.below
        )


def dense_minimiser(problem: Problem, weight: float) -> np.ndarray:
    """Minimise over all entries of E = B x q, with Lagrange multipliers, in float64."""
    probe, basis_FM = problem.probe, problem.basis_FM
    delta_FD = to_dense(problem.delta).astype(np.float64)
    _, value_R, row_RD = np.linalg.svd(delta_FD)
    row_RD = row_RD[: np.count_nonzero(value_R > 1e-5 * value_R[0])]
    n_rows, width = len(row_RD), basis_FM.shape[1]

    # D has the size of its least form under M within the basis.
    m_MM = basis_FM.T @ problem.m_FF @ basis_FM
    inner_MD = np.linalg.lstsq(basis_FM, delta_FD, rcond=None)[0]
    size = np.trace(inner_MD.T @ m_MM @ inner_MD)

    # Every score as a linear function of x, the rows one after the other.
    def vectors(gradient_QD, text):
        of_text = probe.text_Q == text
        x_QM = probe.input_of[PLACE][of_text].astype(np.float64) @ basis_FM
        return np.concatenate([x_QM.T @ (gradient_QD[of_text] @ row_D) for row_D in row_RD])

    gradients = probe.gradient_of[PLACE].astype(np.float64)
    scores = loss_scores(probe, [problem.delta]) + problem.below
    hessian = 2 * np.kron(np.eye(n_rows), m_MM) / size
    slope = np.zeros(n_rows * width)
    for text in range(4):
        for draw in range(1, 4):
            p = vectors(gradients[draw], text)
            share = weight * CURVATURE_SHARE / 12
            hessian += share * np.outer(p, p)
            slope += share * p * scores[draw, text]
    seen = np.kron(np.eye(n_rows), basis_FM.T @ problem.key_FR.astype(np.float64))
    n = seen.shape[1]
    system = np.block([[hessian, seen], [seen.T, np.zeros((n, n))]])
    found = np.linalg.lstsq(system, np.concatenate([-slope, np.zeros(n)]), rcond=None)[0]
    return delta_FD + basis_FM @ found[: n_rows * width].reshape(n_rows, width).T @ row_RD


CASES = [
    dict(),
    dict(mixed=True),
    dict(n_facts=3),
    dict(n_facts=3, n_past=2),
    dict(n_facts=2, n_past=9),  # so many that they are folded
    dict(n_facts=2, subspace=True),
    dict(n_facts=2, subspace=True, n_past=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("weight", [1.0, 100.0])
def test_the_update_is_the_minimiser(case, weight):
    problem = Problem(**case)
    wanted_FD = dense_minimiser(problem, weight)
    found_FD = to_dense(problem.project(weight).delta)
    moved = np.linalg.norm(wanted_FD - to_dense(problem.delta))
    assert moved > 0.02 * np.linalg.norm(wanted_FD)
    assert np.linalg.norm(found_FD - wanted_FD) < 2e-4 * moved


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_keys_read_stays_and_harm_falls_with_the_weight(case):
    problem = Problem(**case)
    written_RD = problem.key_FR.T @ to_dense(problem.delta)
    harms = [problem.harm(problem.delta)]
    for weight in (1e-3, 1e-1, 1.0, 10.0, 1e3):
        projected = problem.project(weight)
        now_RD = problem.key_FR.T @ to_dense(projected.delta)
        assert np.linalg.norm(now_RD - written_RD) < 1e-5 * np.linalg.norm(written_RD)
        harms.append(problem.harm(projected.delta))
        np.testing.assert_allclose(projected.after, loss_scores(problem.probe, [projected.delta]))
    assert all(after < before for before, after in itertools.pairwise(harms))


def test_a_subspace_is_not_left():
    problem = Problem(n_facts=2, subspace=True)
    delta_FD = to_dense(problem.project(10.0).delta)
    outside_FD = delta_FD - problem.basis_FM @ (problem.basis_FM.T @ delta_FD)
    assert np.linalg.norm(outside_FD) < 1e-5 * np.linalg.norm(delta_FD)


def test_without_a_weight_or_a_value_nothing_changes():
    problem = Problem()
    assert problem.project(0.0).delta is problem.delta
    nothing = problem.delta._replace(v_RD=np.zeros((1, D), np.float32))
    kept = project_harm(problem.texts(1.0), problem.regulariser, nothing, problem.key_FR)
    assert kept.delta is nothing


def test_two_facts_with_one_value_are_written_in_one_row():
    problem = Problem(n_facts=2)
    v_RD = np.repeat(problem.delta.v_RD[:1], 2, axis=0)
    problem.delta = problem.delta._replace(v_RD=v_RD)
    projected = problem.project(10.0)
    assert problem.harm(projected.delta) < problem.harm(problem.delta)
    assert np.all(np.isfinite(to_dense(projected.delta)))


def test_an_update_without_room_is_refused():
    problem = Problem()
    dense = Dense(*PLACE, to_dense(problem.delta))
    key_FR = np.ones((F, F), np.float32)
    with pytest.raises(ValueError, match=r"24 facts leave nothing .* give fewer at once"):
        project_harm(problem.texts(1.0), problem.regulariser, dense, key_FR)
    broken = problem.delta._replace(v_RD=np.full((1, D), np.nan, np.float32))
    with pytest.raises(ValueError, match="finite"):
        project_harm(problem.texts(1.0), problem.regulariser, broken, problem.key_FR)


def test_the_numbers_of_an_edit_are_of_all_its_layers():
    problem = Problem()
    projected = problem.project(10.0)
    info = harm_info([projected, projected])
    assert harm_info([]) == {}
    assert info["harm_before_nats"] == change_of_scores(2 * projected.before).harm_nats()
    assert info["harm_after_nats"] == change_of_scores(2 * projected.after).harm_nats()
    assert info["harm_norm_ratio"] == projected.norm_ratio
