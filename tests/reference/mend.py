"""MEND in plain PyTorch, with the parameter names of its public code (2110.11309, section 3)."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

NAMES = {  # of weights in HF's models
    "gpt2": {
        "mlp/w_up": "transformer.h.{l}.mlp.c_fc.weight",
        "mlp/w_down": "transformer.h.{l}.mlp.c_proj.weight",
    },
    "gptj": {
        "mlp/w_up": "transformer.h.{l}.mlp.fc_in.weight",
        "mlp/w_down": "transformer.h.{l}.mlp.fc_out.weight",
    },
    "llama": {
        "mlp/w_gate": "model.layers.{l}.mlp.gate_proj.weight",
        "mlp/w_up": "model.layers.{l}.mlp.up_proj.weight",
        "mlp/w_down": "model.layers.{l}.mlp.down_proj.weight",
    },
}


class Block(nn.Module):
    """z + max(0, scale (U V z + b) + shift)."""

    def __init__(self, width: int, rank: int, n_modes: int | None):
        super().__init__()
        rank = min(rank, width)
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.n_modes = n_modes
        if n_modes is not None:
            self.mode_shift = nn.Embedding(n_modes, width)
            self.mode_scale = nn.Embedding(n_modes, width)
            nn.init.zeros_(self.mode_shift.weight)
            nn.init.ones_(self.mode_scale.weight)

    def forward(self, z, mode: int):
        out = z @ self.v.T @ self.u.T + self.bias
        if self.n_modes is not None:
            out = out * self.mode_scale.weight[mode] + self.mode_shift.weight[mode]
        return z + out.clamp(min=0)


class Net(nn.Module):
    """Blocks one after the other."""

    def __init__(self, width: int, rank: int, n_modes: int | None, n_hidden: int):
        super().__init__()
        self.layers = nn.ModuleList(Block(width, rank, n_modes) for _ in range(n_hidden + 1))

    def forward(self, z, mode: int):
        for layer in self.layers:
            z = layer(z, mode)
        return z


class Transform(nn.Module):
    """The network of one group of weights, with its moments."""

    def __init__(self, x_dim: int, delta_dim: int, n_modes: int | None, switches: Mapping):
        super().__init__()
        for side, dim in (("u", x_dim), ("v", delta_dim)):
            for kind in ("mean", "std", "s"):
                self.register_buffer(f"{side}_{kind}", torch.zeros(dim))
        self.register_buffer("k", torch.zeros(1))
        self.norm, self.x_dim = switches["norm"], x_dim
        sizes = switches["rank"], n_modes, switches["n_hidden"]
        takes_delta = switches["delta_only"] or (switches["one_sided"] and x_dim > delta_dim)
        takes_x = switches["x_only"] or (switches["one_sided"] and x_dim <= delta_dim)
        if switches["combine"]:
            self.mlp = Net(x_dim + delta_dim, *sizes)
        elif takes_delta or takes_x:
            name, width = ("mlp2", delta_dim) if takes_delta else ("mlp1", x_dim)
            setattr(self, name, Net(width, *sizes))
        else:
            self.mlp1, self.mlp2 = Net(x_dim, *sizes), Net(delta_dim, *sizes)

    def see(self, x, delta) -> None:
        """Add tokens to the moments one by one (Welford)."""
        for one_x, one_delta in zip(x, delta, strict=True):
            self.k += 1
            for side, one in (("u", one_x), ("v", one_delta)):
                mean, s = getattr(self, f"{side}_mean"), getattr(self, f"{side}_s")
                new_mean = mean + (one - mean) / self.k
                s += (one - mean) * (one - new_mean)
                mean.copy_(new_mean)
        for side in ("u", "v"):
            getattr(self, f"{side}_std").copy_((getattr(self, f"{side}_s") / (self.k - 1)).sqrt())

    def forward(self, x, delta, mode: int):
        if self.norm:
            x = (x - self.u_mean) / (self.u_std + 1e-7)
            delta = (delta - self.v_mean) / (self.v_std + 1e-7)
        if hasattr(self, "mlp"):
            both = self.mlp(torch.cat([x, delta], -1), mode)
            return both[..., : self.x_dim], both[..., self.x_dim :]
        mlp1, mlp2 = getattr(self, "mlp1", None), getattr(self, "mlp2", None)
        return mlp1(x, mode) if mlp1 else x, mlp2(delta, mode) if mlp2 else delta


class Mend(nn.Module):
    """The networks of weights, and their step sizes.

    Attributes:
      group_of: weight's name -> its group, and its number there.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]], switches: Mapping):
        super().__init__()
        self.names, shared = list(sizes), switches["shared"]
        groups: dict[str, list[str]] = {}
        for name, size in sizes.items():
            groups.setdefault(str(size) if shared else name.replace(".", "#"), []).append(name)
        self.group_of = {n: (key, i) for key, of in groups.items() for i, n in enumerate(of)}
        self.mend = nn.ModuleDict(
            {
                key: Transform(*sizes[of[0]], len(of) if shared else None, switches)
                for key, of in groups.items()
            }
        )
        self.edit_lrs = nn.Parameter(torch.full((len(sizes),), 1e-4))

    def see(self, factors: Mapping) -> None:
        """Add the factors of an edit to the moments, one weight after the other."""
        for name in self.names:
            self.mend[self.group_of[name][0]].see(*factors[name])

    def updates(self, factors: Mapping) -> dict[str, torch.Tensor]:
        """Return alpha sum_t d~_t x~_t^T of each weight, [out, in]."""
        found = {}
        for lr, name in zip(self.edit_lrs, self.names, strict=True):
            key, mode = self.group_of[name]
            x, delta = self.mend[key](*factors[name], mode)
            found[name] = lr * (delta.T @ x)
        return found


def factors_by_hooks(hf, names: Sequence[str], tokens: list[int], n_target: int) -> dict:
    """Return x and d of each weight at the tokens where neither is 0.

    Args:
      hf: a model of HF.
      names: of the weights.
      tokens: of a prompt and its target.
      n_target: how many of them are the target's.
    """
    inputs, outputs, handles = {}, {}, []
    for name in names:

        def keep(module, args, output, name=name):
            inputs[name] = args[0]
            output.retain_grad()
            outputs[name] = output

        module = hf.get_submodule(name.removesuffix(".weight"))
        handles.append(module.register_forward_hook(keep))
    target_loss(hf(torch.tensor([tokens])).logits[0], tokens, n_target).backward()
    for handle in handles:
        handle.remove()
    factors = {}
    for name in names:
        x, delta = inputs[name][0].detach(), outputs[name].grad[0]
        is_token = (x != 0).any(-1) & (delta != 0).any(-1)
        factors[name] = x[is_token], delta[is_token]
    return factors


def target_loss(logits, tokens: list[int], n_target: int) -> torch.Tensor:
    """Return -log p of the target's tokens, the mean."""
    logp = torch.log_softmax(logits[-n_target - 1 : -1], -1)
    return -logp.gather(1, torch.tensor(tokens[-n_target:])[:, None]).mean()
