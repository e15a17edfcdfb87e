"""A model as lm-eval knows models: log-likelihoods in packed batches, rolling ones, greedy
generation.

Tokens are those of lm-eval's own `HFLM`: context and continuation are tokenised together, the
context's trailing spaces with the continuation; without a context the begin-of-text token (else the
end-of-text one) stands for it; what is too long loses its beginning. Begin-of-text tokens follow
the model's own settings. Imported where lm-eval is used: it is slow to import."""

from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from jaxedit.models.generate import continue_tokens
from jaxedit.models.model import Model
from jaxedit.models.packing import pack
from jaxedit.models.score import token_losses

MAX_NEW_TOKENS = 256  # where a task does not say how many
FIRST_TOKENS = 16  # what is generated at first: most answers end early; then four times as many
ROWS_AT_ONCE = 32  # of generation, a device


class HarnessModel(TemplateLM):
    """A jaxedit model for `lm_eval.simple_evaluate`."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, else the begin-of-text one."""
        ids = self.model.tokenizer.eos_id, self.model.tokenizer.bos_id
        return next((i for i in ids if i is not None), 0)

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context."""
        bos_id = self.model.tokenizer.bos_id
        return self.eot_token_id if bos_id is None else bos_id

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's caches."""
        return self.model.metadata.source

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens of a text."""
        return self.model.tokenizer.encode(string, bos=add_special_tokens)

    def _loglikelihood_tokens(
        self, requests, disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """For each (texts, context tokens, continuation tokens): log p(continuation | context), and
        whether greedy says it.
        """
        longest = self.model.config.P + 1  # the last token is only predicted
        rows = [
            ((*context, *own)[-longest:], min(len(own), longest - 1))
            for _, context, own in requests
        ]
        distinct = list(dict.fromkeys(rows))
        packed = pack([list(tokens) for tokens, _ in distinct], self.model.mesh.shape["data"])
        # Where that last token is one too many for learned positions: nothing is read at its place.
        most = self.model.config.P - 1
        packed = packed._replace(
            position_GBT=[np.minimum(position_BT, most) for position_BT in packed.position_GBT]
        )
        scores = token_losses(self.model, packed)
        found = {
            row: (-float(nll[-row[1] :].sum()), bool(hit[-row[1] :].all()))
            for row, nll, hit in zip(distinct, scores.nll_nats, scores.is_argmax, strict=True)
        }
        return [found[row] for row in rows]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts, cut into windows as long as the model's positions where they are
        longer.
        """
        windows: list[tuple[None, list[int], list[int]]] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            found: Any = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.config.P,
                context_len=1,
            )
            windows += [(None, *utils.make_disjoint_window(window)) for window in found]
            owner += [i] * (len(windows) - len(owner))
        logp_W = [logp for logp, _ in self._loglikelihood_tokens(windows)]
        return np.bincount(owner, logp_W, minlength=len(requests)).tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to one of a request's `until` texts.

        Raises:
          ValueError: where a task asks for sampling, or for more tokens than the model has
            positions.
        """
        texts = [""] * len(requests)
        arguments: list[Any] = [request.args for request in requests]
        asked = [_read(settings) for _, settings in arguments]
        due = {
            i: self.tok_encode(context) or [self.prefix_token_id]
            for i, (context, _) in enumerate(arguments)
        }
        new: dict[int, list[int]] = {i: [] for i in due}
        while due:
            for lot in self._lots(due, asked, new):
                n_more = min(self._step(asked[i][1], new[i]) for i in lot)
                prompts = [(due[i] + new[i])[-(self.model.config.P - n_more) :] for i in lot]
                made = continue_tokens(self.model, prompts, max_new_tokens=n_more)
                for i, tokens in zip(lot, made, strict=True):
                    new[i] += tokens
                    texts[i], ended = _cut(self.model.tokenizer.decode(new[i]), asked[i][0])
                    if ended or len(tokens) < n_more or len(new[i]) >= asked[i][1]:
                        del due[i]
        return texts

    def _step(self, most: int, new: list[int]) -> int:
        """How many tokens are generated next."""
        if not 0 < most < self.model.config.P:
            raise ValueError(
                f"max_gen_toks={most}: the model has {self.model.config.P} positions for prompt and answer"
            )
        return min(most - len(new), max(FIRST_TOKENS, 3 * len(new)))

    def _lots(self, due, asked, new) -> list[list[int]]:
        """Requests to go on with together: of one number of tokens next, those of like length
        beside each other.
        """
        order = sorted(
            due, key=lambda i: (self._step(asked[i][1], new[i]), len(due[i]) + len(new[i]))
        )
        most = ROWS_AT_ONCE * self.model.mesh.shape["data"]
        return [order[i : i + most] for i in range(0, len(order), most)]


def _read(given: dict[str, Any]) -> tuple[list[str], int]:
    """A task's stop texts and number of tokens."""
    if given.get("do_sample") and float(given.get("temperature", 1.0)) > 0:
        raise ValueError(f"a task asks for sampling ({given}); only greedy generation is there")
    until = given.get("until") or []
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return [until] if isinstance(until, str) else list(until), int(
        next((given[n] for n in names if n in given), MAX_NEW_TOKENS)
    )


def _cut(text: str, until: list[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts, and whether there was one."""
    at = min((text.find(stop) for stop in until if stop and stop in text), default=-1)
    return (text[:at], True) if at >= 0 else (text, False)
