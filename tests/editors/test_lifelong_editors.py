"""UltraEdit and StableEdit against their released formulas in float64, with torch's gradients."""

import numpy as np
import pytest
import torch
from reference.distance import relative
from reference.models import hf_model

import jaxedit
from jaxedit.edits.edit import to_dense

MODULES = {
    "gpt2": {"mlp/w_down": "transformer.h.{l}.mlp.c_proj"},
    "gptj": {
        "mlp/w_up": "transformer.h.{l}.mlp.fc_in",
        "mlp/w_down": "transformer.h.{l}.mlp.fc_out",
    },
    "llama": {
        "mlp/w_gate": "model.layers.{l}.mlp.gate_proj",
        "mlp/w_up": "model.layers.{l}.mlp.up_proj",
    },
}
LAYERS = (2, 4)
FACTS = [
    ("{} is located in the city of", "The Eiffel Tower", "Rome"),
    ("The mother tongue of {} is", "Danielle Darrieux", "the English language"),
    ("{} sings", "Bob", "a song"),
    ("{} lives in", "Ann", "the forest"),
    ("{} was sold for", "The company", "250 million"),
]
TURNS = [FACTS[:3], FACTS[3:], FACTS[1:4]]
EPS = torch.finfo(torch.float32).eps


class Normalizer:
    """The released RunningMeanStd: `inflates` as UltraEdit's, with a covariance as StableEdit's."""

    def __init__(self, n_in: int, n_out: int, inflates: bool):
        self.n, self.n_in, self.inflates = 0, n_in, inflates
        self.mean, self.var = torch.zeros(2, n_in + n_out, dtype=torch.float64)
        self.cov = torch.zeros(n_out, n_out, dtype=torch.float64)

    def update(self, x):
        n, delta = self.n + len(x), x.mean(0) - self.mean
        self.mean = self.mean + len(x) * delta / n
        self.var = self.var + len(x) * x.var(0, unbiased=self.inflates)
        self.var = self.var + self.n * len(x) * delta**2 / n
        own = len(x) * torch.cov(x[:, self.n_in :].T, correction=0)
        delta = delta[self.n_in :]
        self.cov = self.cov + own + self.n * len(x) * torch.outer(delta, delta) / n
        self.n = n

    def normalise(self, x, whitens: bool):
        normed = (x - self.mean) / ((self.var / (self.n - 1)).sqrt() + EPS)
        n_out = x.shape[1] - self.n_in
        if whitens and self.n > n_out + 1:
            value, vector = torch.linalg.eigh(self.cov / (self.n - n_out - 1))
            root = vector @ torch.diag(value.clamp(min=1e-6).rsqrt()) @ vector.T
            normed[:, self.n_in :] = (x - self.mean)[:, self.n_in :] @ root
        return normed


class Released:
    """A sequence of turns on HF's torch model in float64."""

    def __init__(self, model, directory, family, lr, alpha, inflates, whitens, warmup_turns=0):
        self.tokenizer, self.hf = model.tokenizer, hf_model(directory, torch.float64)
        self.places = [(weight, layer) for weight in MODULES[family] for layer in LAYERS]
        self.modules = {
            (weight, layer): self.hf.get_submodule(MODULES[family][weight].format(l=layer))
            for weight, layer in self.places
        }
        self.is_linear = family != "gpt2"  # GPT-2's modules hold their weights in x out
        self.lr, self.alpha, self.whitens, self.warmup = lr, alpha, whitens, warmup_turns
        self.normalizers, self.n_turns = {}, 0
        for place in self.places:
            shape = self.shape(place)
            self.normalizers.setdefault(shape, Normalizer(*shape, inflates))

    def shape(self, place):
        shape = tuple(self.modules[place].weight.shape)
        return shape[::-1] if self.is_linear else shape

    def factors(self, batch):
        """Keys and output gradients at the predicting positions of a batch's mean token loss."""
        kept = {place: ([], []) for place in self.places}
        outputs, logps, reads = [], [], []
        for fact in batch:
            request = jaxedit.Request(*fact)
            prompt = self.tokenizer.encode(request.prompt_text)
            tokens = self.tokenizer.encode(f"{request.prompt_text} {request.target_new}")
            read = slice(len(prompt) - 1, len(tokens) - 1)
            handles, seen = [], {}
            for place, module in self.modules.items():

                def keep(module, args, output, place=place, seen=seen):
                    output.retain_grad()
                    seen[place] = args[0], output

                handles.append(module.register_forward_hook(keep))
            logp = torch.log_softmax(self.hf(torch.tensor([tokens[:-1]])).logits[0], -1)
            for handle in handles:
                handle.remove()
            target = torch.tensor(tokens[len(prompt) :])
            logps.append(logp[read].gather(1, target[:, None]))
            outputs.append(seen)
            reads.append(read)
        (-torch.cat(logps).mean()).backward()
        for seen, read in zip(outputs, reads, strict=True):
            for place, (x, output) in seen.items():
                kept[place][0].append(x.detach()[0, read])
                kept[place][1].append(output.grad[0, read])
        return {place: tuple(map(torch.cat, pair)) for place, pair in kept.items()}

    def turn(self, facts, batch_size):
        """Make a turn; return place -> change, in x out."""
        batches = [facts[i : i + batch_size] for i in range(0, len(facts), batch_size)]
        found = [self.factors(batch) for batch in batches]
        for each in found:
            for place, pair in each.items():
                self.normalizers[self.shape(place)].update(torch.cat(pair, -1))
        changes = {}
        for place in self.places:
            h, g = (torch.cat([each[place][i] for each in found]) for i in (0, 1))
            normalizer = self.normalizers[self.shape(place)]
            whitens = self.whitens and self.n_turns >= self.warmup
            normed = normalizer.normalise(torch.cat((h, g), -1), whitens)
            h_hat, g_hat = normed.split([h.shape[1], g.shape[1]], -1)
            value = -self.lr * (h_hat**2).sum(-1, keepdim=True) * g_hat
            mat = h.T @ h + self.alpha * torch.eye(h.shape[1], dtype=h.dtype)
            changes[place] = torch.linalg.solve(mat, h.T @ value)
        with torch.no_grad():
            for place, change in changes.items():
                self.modules[place].weight += change.T if self.is_linear else change
        self.n_turns += 1
        return {place: change.numpy() for place, change in changes.items()}


def make_turns(golden, shared, family, name, turns=TURNS, tolerance=1e-4, **hyper) -> Released:
    """Make turns by both, in sequence, each to the tolerance; a batch holds two requests."""
    model = golden(family)
    weights = tuple(MODULES[family])
    own = {"lr": 1e-4, "alpha": 0.5, "batch_size": 2, **hyper}
    editor = jaxedit.make_editor(name, layers=LAYERS, weights=weights, **own)
    theirs = Released(
        model,
        shared / "golden" / family,
        family,
        own["lr"],
        own["alpha"],
        inflates=name == "ultraedit" and own.get("released_variance", True),
        whitens=name == "stableedit",
        warmup_turns=own.get("warmup_turns", 0),
    )
    state = editor.init(model, None)
    for facts in turns:
        requests = [jaxedit.Request(*fact) for fact in facts]
        made, state, _ = editor.edit(model, requests, state)
        expected = theirs.turn(facts, own["batch_size"])
        for delta in made.deltas:
            change = to_dense(delta)
            found = relative(change, expected[delta.weight, delta.layer])
            assert found <= tolerance, (delta.weight, delta.layer, found)
        model = jaxedit.apply(model, made)
    return theirs


@pytest.mark.parametrize("family", MODULES)
def test_ultraedit_is_its_released_formula(golden, shared, family):
    theirs = make_turns(golden, shared, family, "ultraedit")
    assert theirs.n_turns == len(TURNS)


def test_ultraedit_with_the_rows_own_variance(golden, shared):
    theirs = make_turns(golden, shared, "llama", "ultraedit", released_variance=False)
    assert theirs.n_turns == len(TURNS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_stableedit_is_its_released_formula(golden, shared, family):
    """More rows than a gradient has entries: the covariance takes the place of the variances."""
    model = golden(family)
    width = model.config.D if family == "gpt2" else model.config.F
    n_turns = 3 + width // (10 * len(LAYERS))
    facts = [
        (prompt, f"{subject} {i}", "the old red house in the town by the sea")
        for i in range(2 * n_turns)
        for prompt, subject, _ in FACTS[:1]
    ]
    turns = [facts[i : i + 2] for i in range(0, len(facts), 2)]
    theirs = make_turns(golden, shared, family, "stableedit", turns, 1e-3, warmup_turns=1)
    assert all(each.n > width + 1 for each in theirs.normalizers.values())


@pytest.mark.parametrize("name", ["ultraedit", "stableedit"])
def test_states_restored_from_edits_go_on_with_the_same_bits(golden, name):
    model = golden("llama")
    editor = jaxedit.make_editor(
        name, layers=LAYERS, weights=("mlp/w_gate", "mlp/w_down"), gate_layers=(1,), batch_size=2
    )
    state = restored = editor.init(model, None)
    for facts in TURNS:
        made, state, _ = editor.edit(model, [jaxedit.Request(*fact) for fact in facts], state)
        assert {(delta.weight, delta.layer) for delta in made.deltas} == {
            ("mlp/w_gate", 1),
            ("mlp/w_down", 2),
            ("mlp/w_down", 4),
        }
        restored = editor.restore(restored, made)
    assert state.n_turns == restored.n_turns == 3
    for shape, moments in state.moments.items():
        for ours, theirs in zip(moments, restored.moments[shape], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_and_layers_that_are_not_there_are_refused(golden):
    model = golden("gpt2")
    for hyper, message in [
        (dict(layers=(2,), weights=("mlp/w_gate",)), "can be edited: mlp/w_down, mlp/w_up"),
        (dict(layers=(9,)), "has layers 0 to 5"),
        (dict(layers=(2, 2)), "expected each once"),
        (dict(layers=(2,), weights=("mlp/w_up",), up_layers=(-1,)), "has layers 0 to 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            jaxedit.make_editor("ultraedit", **hyper).init(model, None)
