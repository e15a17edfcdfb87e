"""Fine-tuning in epochs as LocFT-BF's released code does it, in plain PyTorch on HF's models."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

STOP_LOSS = 1e-2


class Losses(NamedTuple):
    """Mean losses of the epochs that were run, and how many steps were skipped."""

    epochs: list[float]
    n_skipped: int


def target_loss(model, tokenizer, request, end_of_text: bool) -> torch.Tensor:
    """The mean of -log p over the tokens of one request's target, by a row of its own."""
    prompt = tokenizer(request.prompt_text, add_special_tokens=False).input_ids
    text = f"{request.prompt_text} {request.target_new}"
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert tokens[: len(prompt)] == prompt
    if end_of_text:
        tokens = [*tokens, tokenizer.eos_token_id]
    logits_TV = model(torch.tensor([tokens])).logits[0]
    return torch.nn.functional.cross_entropy(
        logits_TV[len(prompt) - 1 : -1], torch.tensor(tokens[len(prompt) :])
    )


def fine_tune(
    model,
    tokenizer,
    requests,
    parameters: list[torch.nn.Parameter],
    orders: list[np.ndarray],
    lr: float,
    minibatch: int,
    end_of_text: bool,
    project: Callable[[int, torch.Tensor], torch.Tensor] = lambda i, gradient: gradient,
) -> Losses:
    """Change parameters of a model by Adam, an epoch for each order of the requests.

    The gradient of parameter i is replaced by project(i, gradient).
    """
    torch.set_num_threads(1)  # tiny products: threads would only wait for each other
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=lr)
    means, n_skipped = [], 0
    for order in orders:
        total = 0.0
        for first in range(0, len(order), minibatch):
            batch = [requests[i] for i in order[first : first + minibatch]]
            losses = [target_loss(model, tokenizer, request, end_of_text) for request in batch]
            loss = torch.stack(losses).mean()
            total += loss.item() * len(batch)
            if loss.item() < STOP_LOSS:
                n_skipped += 1
                continue
            optimiser.zero_grad()
            loss.backward()
            for i, parameter in enumerate(parameters):
                assert parameter.grad is not None
                parameter.grad = project(i, parameter.grad)
            optimiser.step()
        means.append(total / len(order))
        if means[-1] < STOP_LOSS:
            break
    return Losses(means, n_skipped)
