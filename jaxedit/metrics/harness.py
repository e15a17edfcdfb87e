"""lm-eval's interface to a model: log-likelihoods in packed batches, and greedy generation.

Tokens are those of lm-eval's own `HFLM`: context and continuation are tokenised together, the
context's trailing spaces with the continuation; without a context the begin-of-text token (else the
end-of-text one) stands for it; what is too long loses its beginning. Begin-of-text tokens follow
the model's own settings, and a text that begins with one gets no other. Imported where lm-eval is
used: it is slow to import.
"""

import functools
import math
from typing import Any

import jinja2
import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from jaxedit.metrics.answer_stops import cut_at_stops, find_stop, read_settings
from jaxedit.models.answer_losses import answer_losses
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.generate import continue_rows
from jaxedit.models.model import Model

FIRST_TOKENS = 16  # what is generated at first: most answers end early; then four times as many
ROWS_AT_ONCE = 32  # of generation, a device


class HarnessModel(TemplateLM):
    """A jaxedit model for `lm_eval.simple_evaluate`."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer and chat template as transformers' class, for lm-eval's records."""
        from transformers import PreTrainedTokenizerFast

        own = self.model.tokenizer
        return PreTrainedTokenizerFast(
            tokenizer_object=own.backend, chat_template=own.chat_template, **own.special_tokens
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render messages by the model's chat template, as `HFLM` does.

        Args:
          chat_history: messages, each with its "role" and "content".
          add_generation_prompt: whether an answer is to begin; else the last message goes on.
        """
        render = functools.partial(
            self.tokenizer.apply_chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        try:
            return render(chat_history)
        except jinja2.TemplateError:  # some templates take no system message
            return render([each for each in chat_history if each["role"] != "system"])

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval's results say of the model, beside the keys of `HFLM` the edits."""
        shapes = parameter_shapes(self.model.config).values()
        return {
            "model": "jaxedit",
            "model_num_parameters": sum(map(math.prod, shapes)),
            "model_dtype": str(self.model.dtype),
            "model_revision": "",
            "model_sha": "",
            "fingerprint": self.model.fingerprint,
            "n_edits": len(self.model.metadata.history),
        }

    @property
    def max_length(self) -> int:
        """The number of positions."""
        return self.model.config.P

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, else the begin-of-text one."""
        ids = self.model.tokenizer.eos_id, self.model.tokenizer.bos_id
        return next((i for i in ids if i is not None), 0)

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context: the begin-of-text token that the files name."""
        own = self.model.tokenizer
        bos_id = own.backend.token_to_id(own.special_tokens.get("bos_token", ""))
        return self.eot_token_id if bos_id is None else bos_id

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's caches."""
        return self.model.metadata.source.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokenise a text; one that begins with what stands for an empty context gets no other."""
        own = self.model.tokenizer
        if add_special_tokens is not None or not own.add_bos:
            return own.encode(string, bos=add_special_tokens)
        tokens, first = own.encode(string, bos=False), own.decode([self.prefix_token_id])
        if own.bos_id is None or (first and string.startswith(first)):
            return tokens
        own.check_ids([own.bos_id])
        return [own.bos_id, *tokens]

    def _loglikelihood_tokens(
        self, requests, disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; see lm-eval's TemplateLM.

        Returns:
          For each (texts, context tokens, continuation tokens): log p(continuation | context), and
          whether greedy decoding reproduces the continuation.

        Raises:
          ValueError: without a context or continuation in tokens, on a token that the model has no
            embedding of, and where a row is longer than the rotary frequencies allow.
        """
        # Each request as its tokens and how many of them are scored. What is too long loses its
        # beginning. A row may be one longer than the positions: its last token is only predicted.
        longest = self.model.config.P + 1
        rows = []
        for texts, context, continuation in requests:
            if not context or not continuation:
                raise ValueError(
                    f"the request {texts!r} has {len(context)} tokens of context and "
                    f"{len(continuation)} to score; lm-eval needs at least one of each"
                )
            n_scored = min(len(continuation), longest - 1)
            rows.append(((*context, *continuation)[-longest:], n_scored))
        distinct = list(dict.fromkeys(rows))
        for tokens, _ in distinct:
            self.model.tokenizer.check_ids(tokens)
            self.model.config.check_length(len(tokens) - 1, "a request of lm-eval")

        # Short answers to long contexts (LAMBADA, MMLU) apart from the others (PIQA): in their rows
        # the head then goes over few positions.
        found = {}
        for is_short in (False, True):
            chosen = [row for row in distinct if (4 * row[1] <= len(row[0])) == is_short]
            if not chosen:
                continue
            answers = [(list(tokens), len(tokens) - n_scored) for tokens, n_scored in chosen]
            losses = answer_losses(self.model, answers)
            of_answers = zip(chosen, losses.nll_nats, losses.is_argmax, strict=True)
            for row, nll_nats, is_argmax in of_answers:
                found[row] = (-float(nll_nats.sum()), bool(is_argmax.all()))
        return [found[row] for row in rows]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts, those longer than the model's positions window by window.

        Returns:
          log p of each text.
        """
        windows: list[tuple[None, list[int], list[int]]] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            of_text: Any = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.config.P,
                context_len=1,
            )
            windows += [(None, *utils.make_disjoint_window(window)) for window in of_text]
            owner += [i] * (len(windows) - len(owner))
        logps = [logp for logp, _ in self._loglikelihood_tokens(windows)]
        return np.bincount(owner, logps, minlength=len(requests)).tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context greedily up to one of its stop texts.

        Raises:
          ValueError: where a task asks for sampling, or for more tokens than the model has
            positions.
        """
        # What is asked: contexts as tokens, stop texts and number of tokens. A context that leaves
        # no room loses its beginning, once and for all.
        arguments: list[Any] = [request.args for request in requests]
        settings = [read_settings(self.model, given) for _, given in arguments]
        contexts = []
        for (context, _), (_, max_tokens) in zip(arguments, settings, strict=True):
            tokens = self.tok_encode(context) or [self.prefix_token_id]
            contexts.append(tokens[-(self.model.config.P - max_tokens) :])
        new: list[list[int]] = [[] for _ in requests]

        # Rounds over the requests that are not ended, in batches: most answers end in the first.
        unfinished = set(range(len(requests)))
        while unfinished:
            lengths = {
                i: (
                    min(settings[i][1] - len(new[i]), max(FIRST_TOKENS, 3 * len(new[i]))),
                    len(contexts[i]) + len(new[i]),
                )
                for i in sorted(unfinished)
            }
            for batch in self._batches(lengths):
                n_next = min(lengths[i][0] for i in batch)
                prompts = [contexts[i] + new[i] for i in batch]
                made = continue_rows(self.model, prompts, max_new_tokens=n_next)
                for i, (tokens, has_ended) in zip(batch, made, strict=True):
                    stops, max_tokens = settings[i]
                    n_before = len(new[i])
                    new[i] += tokens
                    at = find_stop(self.model.tokenizer, new[i], n_before, stops)
                    new[i] = new[i][:at]
                    if has_ended or at is not None or len(new[i]) >= max_tokens:
                        unfinished.remove(i)
        return [
            cut_at_stops(self.model.tokenizer.decode(tokens, skip_special=True), stops)
            for tokens, (stops, _) in zip(new, settings, strict=True)
        ]

    def _batches(self, lengths: dict[int, tuple[int, int]]) -> list[list[int]]:
        """Divide requests into batches, those of like lengths beside each other.

        Args:
          lengths: request -> how many tokens it gets next, and how many it has.
        """
        order = sorted(lengths, key=lambda i: lengths[i])
        size = ROWS_AT_ONCE * self.model.mesh.shape["data"]
        return [order[first : first + size] for first in range(0, len(order), size)]
