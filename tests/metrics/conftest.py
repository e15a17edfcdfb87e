"""The golden models in torch, and what they are asked."""

import functools

import pytest
import torch
import transformers
from answers_in_torch import Torch


@pytest.fixture(scope="module")
def torch_of(shared):
    """Make a function: (family, with a begin-of-text token) -> Torch."""
    # The models are tiny: more threads than free cores would only wait for one another.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)

    @functools.cache
    def load(family: str, bos: bool = False) -> Torch:
        directory = shared / "golden" / family
        read = transformers.AutoModelForCausalLM.from_pretrained
        model = read(directory, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        return Torch(model, tokenizer, [model.config.bos_token_id] if bos else [])

    yield load
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def prompts_of(golden_expected):
    """Make a function: family -> the golden requests' prompts and targets, beginnings of texts."""

    def find(family: str) -> tuple[list[str], list[str], list[str]]:
        cases, _ = golden_expected(family)
        asked = [case["prompt"].replace("{}", case["subject"]) for case in cases["requests"]]
        targets = [case["target_new"] for case in cases["requests"]]
        beginnings = [text[:n].rstrip() for text in cases["texts"][:12] for n in (20, 40)]
        return asked, targets, beginnings

    return find
