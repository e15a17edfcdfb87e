"""PMET's optimisation in plain PyTorch on an HF model, as the authors' code does it; shares no code
with jaxedit.

Hooks on whole forward passes add one vector to the attention's and one to the MLP's output; the
loop's order, its stops and the weight of the target's term are theirs."""

from typing import NamedTuple

import torch

from reference.rome import _batch, _ids, _subject_last, _width


class Found(NamedTuple):
    """The vectors added to the MLP's and the attention's outputs, the MLP's value to write, and how
    the loop ended.
    """

    delta_mlp_D: torch.Tensor
    delta_attn_D: torch.Tensor
    z_D: torch.Tensor
    nll: float  # not weighted
    kl: float  # times kl_factor
    decay: float
    factors: list[float]  # the target term's weight in each pass
    n_steps: int


def optimise(
    model, tokenizer, mlp: str, attn: str, request, templates: tuple[str, ...], hyper: dict
) -> Found:
    """The authors' loop for one request.

    Args:
      model: a float32 causal language model of transformers.
      tokenizer: a backend without a begin-of-text token; token 0 pads.
      mlp: the name of the module whose output is the MLP's.
      attn: the same of the attention's last projection.
      request: has `prompt` with one {}, `subject`, `target_new`.
      templates: context templates, the first is "{}".
      hyper: v_num_grad_steps, v_lr, v_weight_decay, kl_factor, clamp_norm_factor, nll_loss_factor.
    """
    target = _ids(tokenizer, " " + request.target_new)
    in_templates = [template.format(request.prompt) for template in templates]
    prompts = [*(prompt + tokenizer.decode(target[:-1]) for prompt in in_templates), "{} is a"]
    lookup = [
        _subject_last(tokenizer, prompt, request.subject) for prompt in [*in_templates, "{} is a"]
    ]
    batch = _batch(tokenizer, [prompt.format(request.subject) for prompt in prompts])
    n = len(in_templates)
    labels = torch.full((n, batch["input_ids"].shape[1]), -100)
    for i, mask in enumerate(batch["attention_mask"][:n]):
        labels[i, int(mask.sum()) - len(target) : int(mask.sum())] = torch.tensor(target)

    deltas = {
        mlp: torch.zeros(_width(model), requires_grad=True),
        attn: torch.zeros(_width(model), requires_grad=True),
    }
    inits: dict[str, torch.Tensor] = {}

    def adder(name: str):
        def add(module, args, output):
            inits.setdefault(name, output[0, lookup[0]].detach().clone())
            output = output.clone()
            for i, at in enumerate(lookup):
                output[i, at] += deltas[name]
            return output

        return add

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(list(deltas.values()), lr=hyper["v_lr"])
    factor, factors, initial = hyper["nll_loss_factor"], [], None
    for step in range(hyper["v_num_grad_steps"]):
        optimizer.zero_grad()
        hooks = [
            model.get_submodule(name).register_forward_hook(adder(name)) for name in (mlp, attn)
        ]
        logits = model(**batch).logits
        for hook in hooks:
            hook.remove()
        factors.append(factor)
        kl_log_probs = torch.log_softmax(logits[n, lookup[n]], -1)
        initial = kl_log_probs.detach().clone() if initial is None else initial
        log_probs = torch.log_softmax(logits[:n], -1)
        mask = labels != -100
        chosen = torch.gather(log_probs, 2, labels.clamp(min=0)[..., None])[..., 0] * mask
        nll_each = -chosen.sum(1) / len(target)
        best = torch.exp((log_probs.max(2)[0] * mask).sum(1) / len(target)).mean().item()
        kl = hyper["kl_factor"] * torch.nn.functional.kl_div(
            initial, kl_log_probs, log_target=True, reduction="sum"
        )
        decay = hyper["v_weight_decay"] * sum(
            torch.norm(deltas[m]) / torch.norm(inits[m]) ** 2 for m in deltas
        )
        loss = factor * nll_each.mean() + kl + decay
        if loss < 5e-2:
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
