"""ROME and C-ROME in plain PyTorch on an HF model, as the original repository does it.

It shares no code with jaxedit. Everything goes through hooks on whole forward passes: a
right-padded batch of all templates with all but the last target token, plus the KL prompt;
positions counted from separately tokenised pieces; gathers, Adam, stop and clamp in its order.
"""

from typing import NamedTuple

import tokenizers
import torch

STOP_LOSS = 5e-2
KL_PROMPT = "{} is a"


class Modules(NamedTuple):
    """Names of an HF model's modules, with {l} for the layer."""

    mlp: str
    down: str  # the MLP's second linear layer


class Found(NamedTuple):
    """The update of ROME, delta W = outer(u_F, v_D), and how its loop ended."""

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
    """Make one edit.

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
    at = at or subject_last
    in_templates = [template.format(request.prompt) for template in templates]
    down, mlp = (name.format(l=hyper["layer"]) for name in reversed(layer_module_names))

    # u = C^-1 k_bar
    key_CF, value_CD = inputs_and_outputs(
        hf_model, tokenizer_backend, down, in_templates, request.subject, at
    )
    key_F, value_D = key_CF.mean(0), value_CD.mean(0)
    u_F = key_F
    if cov is not None:
        u_F = torch.linalg.solve(torch.as_tensor(cov).double(), key_F.double()).float()
    u_F = u_F / u_F.norm()

    # v = (v* - W k) / (k . u), with the bare prompt's key and value in ROME as released
    wanted_D, (nll, kl, decay, n_steps) = find_target(
        hf_model, tokenizer_backend, mlp, request, in_templates, hyper, at
    )
    if not prefixed:
        keys, values = inputs_and_outputs(
            hf_model, tokenizer_backend, down, [request.prompt], request.subject, at
        )
        key_F, value_D = keys[0], values[0]
    v_D = (wanted_D - value_D) / torch.dot(key_F, u_F)
    return Found(u_F, v_D, nll, kl, decay, n_steps)


def inputs_and_outputs(
    hf_model, tokenizer, module: str, prompts: list[str], subject: str, at=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Record a module's input and output at the subject's last token of each prompt."""
    at = at or subject_last
    seen = []
    hook = hf_model.get_submodule(module).register_forward_hook(
        lambda module, args, output: seen.append((args[0], output))
    )
    with torch.no_grad():
        hf_model(**padded_batch(tokenizer, [prompt.format(subject) for prompt in prompts]))
    hook.remove()
    positions = [at(tokenizer, prompt, subject) for prompt in prompts]
    ((inputs, outputs),) = seen
    rows = range(len(prompts))
    return inputs[rows, positions], outputs[rows, positions]


def find_target(hf_model, tokenizer, mlp: str, request, in_templates: list[str], hyper: dict, at):
    """Find v* = target_init + delta; return (nll, kl, decay, number of passes) of the last pass."""
    # All but the last target token behind each prompt; labels at the positions before the target's.
    target = token_ids(tokenizer, " " + request.target_new)
    known = tokenizer.decode(target[:-1])
    prompts = [*(prompt + known for prompt in in_templates), KL_PROMPT]
    lookup = [at(tokenizer, prompt, request.subject) for prompt in [*in_templates, KL_PROMPT]]
    batch = padded_batch(tokenizer, [prompt.format(request.subject) for prompt in prompts])
    n = len(in_templates)
    labels = target_labels(batch, n, target)

    delta = torch.zeros(residual_width(hf_model), requires_grad=True)
    target_init = initial_log_probs = None

    def add_delta(module, args, output):
        nonlocal target_init
        if target_init is None:
            target_init = output[0, lookup[0]].detach().clone()
        output = output.clone()
        for i, position in enumerate(lookup):
            output[i, position] += delta
        return output

    for parameter in hf_model.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([delta], lr=hyper["v_lr"])
    n_steps = 0
    for step in range(hyper["v_num_grad_steps"]):
        optimizer.zero_grad()
        hook = hf_model.get_submodule(mlp).register_forward_hook(add_delta)
        logits = hf_model(**batch).logits
        hook.remove()
        n_steps += 1

        # target loss, essence KL and weight decay
        kl_log_probs = torch.log_softmax(logits[n, lookup[n]], -1)
        if initial_log_probs is None:
            initial_log_probs = kl_log_probs.detach().clone()
        log_probs, is_label = torch.log_softmax(logits[:n], -1), labels != -100
        chosen = torch.gather(log_probs, 2, labels.clamp(min=0)[..., None])[..., 0] * is_label
        nll = (-chosen.sum(1) / len(target)).mean()
        kl = hyper["kl_factor"] * torch.nn.functional.kl_div(
            initial_log_probs, kl_log_probs, log_target=True, reduction="sum"
        )
        decay = hyper["v_weight_decay"] * (torch.norm(delta) / torch.norm(target_init) ** 2)
        loss = nll + kl + decay
        if loss < STOP_LOSS or step == hyper["v_num_grad_steps"] - 1:
            break
        loss.backward()
        optimizer.step()

        # projection
        most = hyper["clamp_norm_factor"] * target_init.norm()
        if delta.norm() > most:
            with torch.no_grad():
                delta[...] = delta * most / delta.norm()
    return target_init + delta.detach(), (nll.item(), kl.item(), decay.item(), n_steps)


def target_labels(batch: dict[str, torch.Tensor], n: int, target: list[int]) -> torch.Tensor:
    """Label the last positions of the first n rows with the target's tokens; -100 elsewhere."""
    labels = torch.full((n, batch["input_ids"].shape[1]), -100)
    for i, mask in enumerate(batch["attention_mask"][:n]):
        end = int(mask.sum())
        labels[i, end - len(target) : end] = torch.tensor(target)
    return labels


def subject_last(tokenizer, prompt: str, subject: str) -> int:
    """Find where the subject ends: the tokens before it and its own, counted apart."""
    before = prompt.split("{}")[0]
    if not before:
        return len(token_ids(tokenizer, subject)) - 1
    assert before[-1] == " "
    n_before = len(token_ids(tokenizer, before[:-1]))
    return n_before + len(token_ids(tokenizer, " " + subject)) - 1


def prompt_last(tokenizer, prompt: str, subject: str) -> int:
    """Find where a prompt ends."""
    return len(token_ids(tokenizer, prompt.format(subject))) - 1


def padded_batch(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    """Tokenise texts and pad them on the right."""
    rows = [token_ids(tokenizer, text) for text in texts]
    longest = max(map(len, rows))
    tokens = [row + [0] * (longest - len(row)) for row in rows]
    masks = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(masks)}


def token_ids(tokenizer, text: str) -> list[int]:
    """Tokenise without special tokens."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def residual_width(hf_model) -> int:
    """Return D."""
    return hf_model.get_input_embeddings().weight.shape[1]
