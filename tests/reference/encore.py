"""ENCORE's value in plain PyTorch on an HF model: MEMIT's loop with the released early stop.

It shares no code with jaxedit. The vector is added to a layer's output by a hook on whole forward
passes. Two stops, read before a step is taken: a loss under 0.05, always; and the -prob_cutoff-th
pass that counts. As released that is one in which exactly five target tokens of all templates but
the first are the likeliest ones; in the paper's words, one in which all of all templates are.
"""

from typing import NamedTuple

import torch

from reference.rome import (
    KL_PROMPT,
    STOP_LOSS,
    padded_batch,
    residual_width,
    subject_last,
    target_labels,
    token_ids,
)


class Found(NamedTuple):
    """The vector, the forward passes, and of each the loss and the tokens that were right."""

    delta_D: torch.Tensor
    losses: list[float]
    n_said: list[int]


def optimise(
    hf_model, tokenizer, module: str, request, templates: tuple[str, ...], hyper: dict, count: str
) -> Found:
    """Optimise one request's vector.

    Args:
      hf_model: a float32 causal language model of transformers.
      tokenizer: its backend.
      module: the layer whose output the vector is added to.
      request: has `prompt` with one {}, `subject`, `target_new`.
      templates: context templates, the first is "{}".
      hyper: v_num_grad_steps, v_lr, v_weight_decay, kl_factor, clamp_norm_factor, prob_cutoff.
      count: "five_tokens" or "all_templates".
    """
    target, n = token_ids(tokenizer, " " + request.target_new), len(templates)
    in_templates = [template.format(request.prompt) for template in templates]
    places = [subject_last(tokenizer, each, request.subject) for each in [*in_templates, KL_PROMPT]]
    known = tokenizer.decode(target[:-1])
    prompts = [*(prompt + known for prompt in in_templates), KL_PROMPT]
    batch = padded_batch(tokenizer, [prompt.format(request.subject) for prompt in prompts])
    labels = target_labels(batch, n, target)
    is_label = labels != -100

    delta = torch.zeros(residual_width(hf_model), requires_grad=True)
    init_D, first_kl, losses, n_said, n_counted = None, None, [], [], 0

    def add_delta(layer, args, output):
        nonlocal init_D
        hidden = output[0] if isinstance(output, tuple) else output
        if init_D is None:
            init_D = hidden[0, places[0]].detach().clone()
        moved = hidden.clone()
        for row, place in enumerate(places):
            moved[row, place] += delta
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    optimizer = torch.optim.Adam([delta], lr=hyper["v_lr"])
    for step in range(hyper["v_num_grad_steps"]):
        optimizer.zero_grad()
        hook = hf_model.get_submodule(module).register_forward_hook(add_delta)
        logp = torch.log_softmax(hf_model(**batch).logits, -1)
        hook.remove()
        kl_logp = logp[n, places[n]]
        first_kl = kl_logp.detach().clone() if first_kl is None else first_kl
        chosen = torch.gather(logp[:n], 2, labels.clamp(min=0)[..., None])[..., 0]
        nll = -(chosen * is_label).sum(1).mean() / len(target)
        kl = torch.nn.functional.kl_div(first_kl, kl_logp, log_target=True, reduction="sum")
        assert init_D is not None
        decay = hyper["v_weight_decay"] * delta.norm() / init_D.norm() ** 2
        loss = nll + hyper["kl_factor"] * kl + decay

        # Both stops, and the last pass, which takes no step.
        is_said = (logp[:n].argmax(-1) == labels) & is_label
        losses.append(loss.item())
        n_said.append(int(is_said[1:].sum()))
        all_said = bool(is_said.sum() == is_label.sum())
        n_counted += n_said[-1] == 5 if count == "five_tokens" else all_said
        cutoff = hyper["prob_cutoff"]
        if loss < STOP_LOSS or (cutoff is not None and n_counted >= -cutoff):
            break
        if step == hyper["v_num_grad_steps"] - 1:
            break
        loss.backward()
        optimizer.step()
        most = hyper["clamp_norm_factor"] * init_D.norm()
        if delta.norm() > most:
            with torch.no_grad():
                delta *= most / delta.norm()
    return Found(delta.detach(), losses, n_said)
