"""ROME and C-ROME in plain PyTorch on an HF model, as the original repository does it; shares no
code with jaxedit.

Everything goes through hooks on whole forward passes: a right-padded batch of all templates with
all but the last target token, plus the KL prompt; positions counted from separately tokenised
pieces; gathers, Adam, stop and clamp in its order."""

from typing import NamedTuple

import tokenizers
import torch


class Modules(NamedTuple):
    """Names of an HF model's modules with {l} for the layer: the whole MLP, and its second linear
    layer.
    """

    mlp: str
    down: str


class Found(NamedTuple):
    """What ROME found: delta W = outer(u_F, v_D), and how its loop ended."""

    u_F: torch.Tensor
    v_D: torch.Tensor
    nll: float
    kl: float  # times kl_factor
    decay: float
    n_steps: int  # forward passes


def rome(
    hf_model,
    tokenizer_backend: tokenizers.Tokenizer,
    layer_module_names: Modules,
    request,
    templates: tuple[str, ...],
    hyper: dict,
    cov=None,
    prefixed: bool = False,
    at=None,
) -> Found:
    """One edit.

    Args:
      hf_model: a float32 causal language model of transformers.
      tokenizer_backend: without a begin-of-text token; token 0 pads.
      layer_module_names: the modules to hook.
      request: has `prompt` with one {}, `subject`, `target_new`.
      templates: context templates, the first is "{}".
      hyper: layer, v_num_grad_steps, v_lr, v_weight_decay, kl_factor, clamp_norm_factor.
      cov: C [F, F] or None for the identity.
      prefixed: C-ROME: one key and one value, the means over the templates, everywhere.
      at: (tokenizer, prompt with one {}, subject) -> the position of the key and value; None: the
        subject's last token.
    """
    at = at or _subject_last
    in_templates = [template.format(request.prompt) for template in templates]
    down = layer_module_names.down.format(l=hyper["layer"])
    key_F, value_D = (
        x.mean(0)
        for x in _inputs_outputs(
            hf_model, tokenizer_backend, down, in_templates, request.subject, at
        )
    )
    u_F = (
        key_F
        if cov is None
        else torch.linalg.solve(torch.as_tensor(cov).double(), key_F.double()).float()
    )
    u_F = u_F / u_F.norm()
    wanted_D, (nll, kl, decay, n_steps) = _target(
        hf_model,
        tokenizer_backend,
        layer_module_names.mlp.format(l=hyper["layer"]),
        request,
        in_templates,
        hyper,
        at,
    )
    if not prefixed:
        keys, values = _inputs_outputs(
            hf_model, tokenizer_backend, down, [request.prompt], request.subject, at
        )
        key_F, value_D = keys[0], values[0]
    v_D = (wanted_D - value_D) / torch.dot(key_F, u_F)
    return Found(u_F, v_D, nll, kl, decay, n_steps)


def _inputs_outputs(
    model, tokenizer, module: str, prompts: list[str], subject: str, place=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into a module and comes out of it at the subject's last token of each prompt."""
    seen = []
    hook = model.get_submodule(module).register_forward_hook(
        lambda module, args, output: seen.append((args[0], output))
    )
    with torch.no_grad():
        model(**_batch(tokenizer, [prompt.format(subject) for prompt in prompts]))
    hook.remove()
    at = [(place or _subject_last)(tokenizer, prompt, subject) for prompt in prompts]
    ((inputs, outputs),) = seen
    return inputs[range(len(at)), at], outputs[range(len(at)), at]


def _target(model, tokenizer, mlp: str, request, in_templates: list[str], hyper: dict, place):
    """v* = target_init + delta, and (nll, kl, decay, number of forward passes) of the last pass."""
    target = _ids(tokenizer, " " + request.target_new)
    known = tokenizer.decode(target[:-1])
    kl_prompt = "{} is a"
    prompts = [*(prompt + known for prompt in in_templates), kl_prompt]
    lookup = [place(tokenizer, prompt, request.subject) for prompt in [*in_templates, kl_prompt]]
    batch = _batch(tokenizer, [prompt.format(request.subject) for prompt in prompts])
    n = len(in_templates)
    labels = torch.full((n, batch["input_ids"].shape[1]), -100)
    for i, mask in enumerate(batch["attention_mask"][:n]):
        labels[i, int(mask.sum()) - len(target) : int(mask.sum())] = torch.tensor(target)

    delta = torch.zeros(_width(model), requires_grad=True)
    target_init = initial_log_probs = None

    def add_delta(module, args, output):
        nonlocal target_init
        if target_init is None:
            target_init = output[0, lookup[0]].detach().clone()
        output = output.clone()
        for i, at in enumerate(lookup):
            output[i, at] += delta
        return output

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([delta], lr=hyper["v_lr"])
    n_steps = 0
    for step in range(hyper["v_num_grad_steps"]):
        optimizer.zero_grad()
        hook = model.get_submodule(mlp).register_forward_hook(add_delta)
        logits = model(**batch).logits
        hook.remove()
        n_steps += 1

        kl_log_probs = torch.log_softmax(logits[n, lookup[n]], -1)
        if initial_log_probs is None:
            initial_log_probs = kl_log_probs.detach().clone()
        log_probs = torch.log_softmax(logits[:n], -1)
        chosen = torch.gather(log_probs, 2, labels.clamp(min=0)[..., None])[..., 0] * (
            labels != -100
        )
        nll = (-chosen.sum(1) / len(target)).mean()
        kl = hyper["kl_factor"] * torch.nn.functional.kl_div(
            initial_log_probs, kl_log_probs, log_target=True, reduction="sum"
        )
        decay = hyper["v_weight_decay"] * (torch.norm(delta) / torch.norm(target_init) ** 2)
        loss = nll + kl + decay
        if loss < 5e-2 or step == hyper["v_num_grad_steps"] - 1:
            break
        loss.backward()
        optimizer.step()
        most = hyper["clamp_norm_factor"] * target_init.norm()
        if delta.norm() > most:
            with torch.no_grad():
                delta[...] = delta * most / delta.norm()
    return target_init + delta.detach(), (nll.item(), kl.item(), decay.item(), n_steps)


def _subject_last(tokenizer, prompt: str, subject: str) -> int:
    """Where the subject ends in a prompt: the tokens of what is before it and of itself, counted
    apart.
    """
    before = prompt.split("{}")[0]
    if before:
        assert before[-1] == " "
        return len(_ids(tokenizer, before[:-1])) + len(_ids(tokenizer, " " + subject)) - 1
    return len(_ids(tokenizer, subject)) - 1


def prompt_last(tokenizer, prompt: str, subject: str) -> int:
    """Where a prompt ends."""
    return len(_ids(tokenizer, prompt.format(subject))) - 1


def _batch(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    rows = [_ids(tokenizer, text) for text in texts]
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        ),
    }


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _width(model) -> int:
    return model.get_input_embeddings().weight.shape[1]
