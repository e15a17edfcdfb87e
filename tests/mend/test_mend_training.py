"""A step of MEND's training against torch in float64; trainings that are interrupted and go on."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from mend_examples import (
    REQUESTS,
    hf_in_float64,
    layout_of,
    names_of,
    reference_factors,
    tokens_of,
    torch_mend,
)
from reference.mend import target_loss
from torch.func import functional_call

from jaxedit.mend.archive import read_archive
from jaxedit.mend.data import Data, make_data
from jaxedit.mend.hypernetwork import STEP_SIZES, init_hypernetwork, place_on_mesh
from jaxedit.mend.places import weight_sizes
from jaxedit.mend.progress import Progress, Validation
from jaxedit.mend.records import Batches
from jaxedit.mend.train import choose, train
from jaxedit.mend.training_config import Training, default_config, training_of
from jaxedit.mend.training_step import factors_of, make_optimiser, measure, train_step

CHOSEN = [(0, 0), (1, 1)]  # records and their locality texts
STEP = dict(lr=1e-3, lr_lr=2e-5, cedit=0.3, cloc=2.0)  # of all tests: a step is compiled once


def data_of(model, layout, **values) -> Data:
    config = default_config(n_train=3, n_validate=1, rank=5, **STEP, **values).to_dict()
    return make_data(model, [REQUESTS], config, layout)


def ours(model, layout, theirs, path: Path):
    """Read a network of torch."""
    torch.save({"model": {k: v.float() for k, v in theirs.state_dict().items()}}, path)
    names = dict(zip(layout.places, names_of(model), strict=True))
    return read_archive(path, layout.places, weight_sizes(model), names)


def loss_in_torch(model, directory, theirs, training) -> tuple[torch.Tensor, dict[str, float]]:
    """The mean loss of the chosen records, written as the paper has it."""
    hf, losses, sums = hf_in_float64(directory), [], {"nll_before": 0.0, "nll_after": 0.0}
    weights = dict(hf.named_parameters())
    for i, k in CHOSEN:
        request = REQUESTS[i]
        updates = theirs.updates(reference_factors(model, directory, request))
        edited = {name: weights[name] + change for name, change in updates.items()}
        row = tokens_of(model, request.prompt_text, request.target_new)
        logits = functional_call(hf, edited, (torch.tensor([row.tokens]),)).logits[0]
        locality = tokens_of(model, *request.neighbours[k]).tokens
        ids = torch.tensor([locality])
        before = torch.log_softmax(hf(ids).logits[0].detach(), -1)
        after = torch.log_softmax(functional_call(hf, edited, (ids,)).logits[0], -1)
        kl = (before.exp() * (before - after)).sum(-1).mean()
        losses.append(training.cedit * target_loss(logits, *row) + training.cloc * kl)
        own = ids[0, 1:, None]
        sums["nll_before"] -= float(before[:-1].gather(1, own).sum())
        sums["nll_after"] -= float(after[:-1].gather(1, own).sum().detach())
    return torch.stack(losses).mean(), sums


@pytest.fixture(scope="module")
def step_case(golden, shared, tmp_path_factory):
    """A model, a random network as ours and in torch, and a batch of the chosen records."""
    model, directory = golden("llama"), shared / "golden" / "llama"
    layout = layout_of(model)
    theirs = torch_mend(model, layout).double()
    for request in REQUESTS:
        theirs.see(reference_factors(model, directory, request))
    made = ours(model, layout, theirs, tmp_path_factory.mktemp("mend") / "archive.pt")
    made = place_on_mesh(model.mesh, made)
    batches = Batches(model, data_of(model, layout).training, lowest=2, size=3)
    return model, directory, theirs, made, batches.make(CHOSEN)


def test_the_loss_and_its_gradient_are_those_of_finite_differences(step_case, tmp_path):
    """Along a random direction of all parameters in which torch says that all of them ascend."""
    model, directory, theirs, made, batch = step_case
    training = Training(**STEP)

    def loss_of(parameters):
        trained = dataclasses.replace(made, parameters=parameters)
        factors = factors_of(model, trained, batch)
        measured = measure(model, trained, batch, factors, training.step)
        return measured.total_loss / measured.n, measured

    gradient, measured = jax.jit(jax.grad(loss_of, has_aux=True))(made.parameters)
    expected, sums = loss_in_torch(model, directory, theirs, training)
    assert measured.n == 2
    assert measured.total_loss / 2 == pytest.approx(float(expected.detach()), rel=1e-4)
    assert measured.nll_before == pytest.approx(sums["nll_before"], rel=1e-5)
    assert measured.nll_after == pytest.approx(sums["nll_after"], rel=1e-4)

    # A direction, in torch and as ours; the network of torch is moved along it and back. No
    # parameter's share cancels another's.
    signs = [torch.sign(g) for g in torch.autograd.grad(expected, list(theirs.parameters()))]
    generator = torch.Generator().manual_seed(1)
    moves = [torch.rand(sign.shape, generator=generator) * sign for sign in signs]
    assert next(iter(dict(theirs.named_parameters()))) == "edit_lrs"
    moves[0] = 1e-2 * moves[0]  # the step sizes, which are small
    kept = [parameter.detach().clone() for parameter in theirs.parameters()]
    losses = []
    for size in (1e-6, -1e-6, None):
        with torch.no_grad():
            for parameter, at, move in zip(theirs.parameters(), kept, moves, strict=True):
                parameter.copy_(move if size is None else at + size * move)
        if size is not None:
            losses.append(float(loss_in_torch(model, directory, theirs, training)[0].detach()))
    direction = ours(model, made.layout, theirs, tmp_path / "direction.pt").parameters
    with torch.no_grad():
        for parameter, at in zip(theirs.parameters(), kept, strict=True):
            parameter.copy_(at)
    slope = sum(float(np.vdot(gradient[name], direction[name])) for name in gradient)
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-3)


def test_a_step_moves_step_sizes_and_networks_by_their_own_rates(step_case):
    """Adam's first step is as long as its learning rate, wherever there is a gradient."""
    model, _, _, made, batch = step_case
    settings = Training(**STEP).step
    state = place_on_mesh(model.mesh, make_optimiser(settings).init(made.parameters))
    moved, _, _ = train_step(model, made, state, batch, settings)
    for name, rate in ((STEP_SIZES, 2e-5), ("48x112:both:0:bias_Y", 1e-3)):
        moves = np.abs(np.asarray(moved.parameters[name] - made.parameters[name]))
        assert np.max(moves) == pytest.approx(rate, rel=1e-2)
    for group, moments in moved.moments.items():
        assert moments.count > made.moments[group].count


def test_the_records_of_a_pass_are_each_taken_once():
    """In another order each pass; the same for the same number, whatever came before."""
    records = [type("Record", (), {"localities": [0, 1, 2]})()] * 7
    training = Training(accumulate_bs=5, max_iters=33)
    chosen = [choose(records, training, first) for first in range(0, 35, 5)]
    assert [len(each) for each in chosen] == [5, 5, 5, 5, 5, 5, 3]
    taken = [i for each in chosen for i, _ in each]
    passes = [taken[n : n + 7] for n in range(0, 28, 7)]
    assert all(sorted(each) == list(range(7)) for each in passes)
    assert len({tuple(each) for each in passes}) > 1
    assert {k for each in chosen for _, k in each} == {0, 1, 2}


def test_an_interrupted_training_goes_on_with_the_same_bits(golden, tmp_path):
    """Stopped between two validations and begun anew, beside one that ran through."""
    model, values = golden("llama"), dict(max_iters=12, val_interval=6, accumulate_bs=3)
    training, layout = Training(**STEP, **values), layout_of(model)
    data = data_of(model, layout, **values)

    def interrupt(progress):
        if progress.iteration == 9 and progress.since.n:
            raise KeyboardInterrupt

    whole = train(data, layout, training, tmp_path / "whole", lambda progress: None)
    with pytest.raises(KeyboardInterrupt):
        train(data, layout, training, tmp_path / "halved", interrupt)
    halved = train(data, layout, training, tmp_path / "halved", lambda progress: None)
    assert whole.iteration == halved.iteration == 12
    assert [each.iteration for each in whole.validations] == [6, 12]
    assert whole.validations == halved.validations
    for name in ("hypernetwork", "optimiser_state"):
        mine, theirs = (jax.tree.leaves(getattr(each, name)) for each in (whole, halved))
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    files = [(tmp_path / name / "network.safetensors").read_bytes() for name in ("whole", "halved")]
    assert files[0] == files[1]

    again = train(data, layout, training, tmp_path / "whole", lambda progress: None)
    assert again.validations == whole.validations  # it was over
    other = data_of(model, layout, **values, seed=7)
    with pytest.raises(ValueError, match=r"is of another training\. seed: 42 there, 7 now"):
        train(other, layout, training, tmp_path / "whole", lambda progress: None)


def test_a_training_stops_when_validations_get_no_better(golden):
    """After `early_stop_patience` edits without a lower loss, or at the most edits."""
    training = Training(val_interval=10, early_stop_patience=20, max_iters=100)
    made = init_hypernetwork(layout_of(golden("llama")), 1e-4, seed=0)
    progress, found = Progress(0, made, ()), []
    for iteration, loss in enumerate([5.0, 3.0, 4.0, 3.5, 1.0], start=1):
        progress = progress._replace(iteration=10 * iteration)
        assert progress.is_due(training)
        assert not progress.is_over(training)
        validation = Validation(10 * iteration, loss, 0.0, 0.0, 0.0, 0.0)
        progress = progress._replace(validations=(*progress.validations, validation))
        found.append(progress.is_over(training))
        assert not progress.is_due(training)
    assert found == [False, False, False, True, False]
    assert progress.best.iteration == 50
    assert not progress._replace(iteration=59).is_due(training)
    assert progress.is_over(Training(max_iters=50))


def test_an_untrained_network_ascends(step_case):
    """Its step sizes are positive: the target's loss becomes larger; without them nothing is."""
    model, _, _, made, batch = step_case
    untrained = init_hypernetwork(made.layout, 1e-2, seed=0)
    losses = []
    for size in (1.0, 0.0):
        parameters = untrained.parameters | {STEP_SIZES: size * untrained.parameters[STEP_SIZES]}
        network = dataclasses.replace(made, parameters=parameters)
        network = place_on_mesh(model.mesh, network)
        settings = Training(**STEP).step
        state = place_on_mesh(model.mesh, make_optimiser(settings).init(network.parameters))
        losses.append(train_step(model, network, state, batch, settings)[2])
    assert losses[0].edit_loss > 1.1 * losses[1].edit_loss
    assert losses[1].locality_loss == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(lr=0.0), "lr=0.0: expected a positive number"),
        (dict(accumulate_bs=0), "accumulate_bs=0: expected a number, 1 or more"),
        (dict(n_train=0), "n_train=0: expected at least one record"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        training_of(default_config(**values).to_dict())


def test_records_without_neighbours_are_refused(golden):
    model, config = golden("llama"), default_config(n_train=1, n_validate=1).to_dict()
    bare = [dataclasses.replace(request, neighbours=()) for request in REQUESTS]
    with pytest.raises(ValueError, match="none of 2 records has a neighbour"):
        make_data(model, [bare], config, layout_of(model))
    with pytest.raises(ValueError, match=r"a source has 4 records .* ask for more"):
        make_data(model, [REQUESTS], config | {"n_train": 9}, layout_of(model))
