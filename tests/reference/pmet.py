"""PMET's optimisation in plain PyTorch on an HF model, as the authors' code does it.

It shares no code with jaxedit. Hooks on whole forward passes add one vector to the attention's and
one to the MLP's output; the loop's order, its stops and the weight of the target's term are theirs.
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
    """The vectors, the value to write, and how the loop ended."""

    delta_mlp_D: torch.Tensor  # added to the MLP's output
    delta_attn_D: torch.Tensor  # added to the attention's
    z_D: torch.Tensor  # the MLP's output to write
    nll: float  # not weighted
    kl: float  # times kl_factor
    decay: float
    factors: list[float]  # the target term's weight in each pass
    n_steps: int


def optimise(
    hf_model, tokenizer, mlp: str, attn: str, request, templates: tuple[str, ...], hyper: dict
) -> Found:
    """Run the authors' loop for one request.

    Args:
      hf_model: a float32 causal language model of transformers.
      tokenizer: a backend without a begin-of-text token; token 0 pads.
      mlp: the name of the module whose output is the MLP's.
      attn: the same of the attention's last projection.
      request: has `prompt` with one {}, `subject`, `target_new`.
      templates: context templates, the first is "{}".
      hyper: v_num_grad_steps, v_lr, v_weight_decay, kl_factor, clamp_norm_factor, nll_loss_factor.
    """
    # All but the last target token behind each prompt; labels at the positions before the target's.
    target = token_ids(tokenizer, " " + request.target_new)
    in_templates = [template.format(request.prompt) for template in templates]
    known = tokenizer.decode(target[:-1])
    prompts = [*(prompt + known for prompt in in_templates), KL_PROMPT]
    lookup = [
        subject_last(tokenizer, prompt, request.subject) for prompt in [*in_templates, KL_PROMPT]
    ]
    batch = padded_batch(tokenizer, [prompt.format(request.subject) for prompt in prompts])
    n = len(in_templates)
    labels = target_labels(batch, n, target)

    width = residual_width(hf_model)
    deltas = {name: torch.zeros(width, requires_grad=True) for name in (mlp, attn)}
    inits: dict[str, torch.Tensor] = {}

    def adder(name: str):
        def add(module, args, output):
            inits.setdefault(name, output[0, lookup[0]].detach().clone())
            output = output.clone()
            for i, position in enumerate(lookup):
                output[i, position] += deltas[name]
            return output

        return add

    for parameter in hf_model.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(list(deltas.values()), lr=hyper["v_lr"])
    factor, factors, initial = hyper["nll_loss_factor"], [], None
    for step in range(hyper["v_num_grad_steps"]):
        optimizer.zero_grad()
        hooks = [
            hf_model.get_submodule(name).register_forward_hook(adder(name)) for name in (mlp, attn)
        ]
        logits = hf_model(**batch).logits
        for hook in hooks:
            hook.remove()
        factors.append(factor)

        # target loss, essence KL and weight decay
        kl_log_probs = torch.log_softmax(logits[n, lookup[n]], -1)
        initial = kl_log_probs.detach().clone() if initial is None else initial
        log_probs, is_label = torch.log_softmax(logits[:n], -1), labels != -100
        chosen = torch.gather(log_probs, 2, labels.clamp(min=0)[..., None])[..., 0] * is_label
        nll_each = -chosen.sum(1) / len(target)
        best = torch.exp((log_probs.max(2)[0] * is_label).sum(1) / len(target)).mean().item()
        kl = hyper["kl_factor"] * torch.nn.functional.kl_div(
            initial, kl_log_probs, log_target=True, reduction="sum"
        )
        decay = hyper["v_weight_decay"] * sum(
            torch.norm(deltas[name]) / torch.norm(inits[name]) ** 2 for name in deltas
        )
        loss = factor * nll_each.mean() + kl + decay

        # stops, and the weight of the target's term in the next pass
        if loss < STOP_LOSS:
            break
        if best == torch.exp(-nll_each).mean().item():
            factor = 0.1 * hyper["nll_loss_factor"]
            if kl <= 0.01:
                break
        else:
            factor = hyper["nll_loss_factor"]
        if step == hyper["v_num_grad_steps"] - 1:
            break
        loss.backward()
        optimizer.step()

        # projection
        for name, delta in deltas.items():
            most = hyper["clamp_norm_factor"] * inits[name].norm()
            if delta.norm() > most:
                with torch.no_grad():
                    delta[...] = delta * most / delta.norm()
    delta_mlp_D, delta_attn_D = deltas[mlp].detach(), deltas[attn].detach()
    return Found(
        delta_mlp_D,
        delta_attn_D,
        inits[mlp] + delta_mlp_D,
        nll_each.mean().item(),
        kl.item(),
        decay.item(),
        factors,
        len(factors),
    )
