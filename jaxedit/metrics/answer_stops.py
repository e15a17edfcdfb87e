"""Where a task's generated answers end, as lm-eval's own `HFLM` has it, and what tasks may ask for.

An answer ends at an end token, after the number of tokens that the task says, or at a stop text.
Stop texts are looked for in the last few tokens, special ones included; in the answer, which has
none, they are cut off with what follows.
"""

from typing import Any, NamedTuple

from jaxedit.models.model import Model
from jaxedit.models.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256  # where a task does not say how many

# What a task may ask of generation: under which names how many tokens, and what says nothing where
# the most likely token is always taken, at any value or at some.
MAX_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
OF_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p")
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (1,),
    "length_penalty": (1,),
    "use_cache": (True,),
}
# The same of what a model's own files may ask for as well, beside the number of tokens.
WITHOUT_EFFECT_IN_FILES: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "stop_strings": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "dola_layers": (),
    "max_time": (),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_new_tokens": (),
}


class Stop(NamedTuple):
    """A text that ends an answer.

    Attributes:
      text: cut off with what follows it.
      n_tokens: in so many last tokens lm-eval looks for it after each new one.
    """

    text: str
    n_tokens: int


def read_settings(model: Model, given: dict[str, Any]) -> tuple[list[Stop], int]:
    """Read a task's stop texts and number of tokens, under any of the names it may have.

    Args:
      model: that is to answer.
      given: the task's generation_kwargs.

    Raises:
      ValueError: where it asks for anything but greedy generation, or for no token, or more
        than the model has positions.
    """
    temperature = float(given.get("temperature") or 0.0)
    samples = given.get("do_sample")
    if samples is None:
        samples = temperature > 0
    if samples and ("temperature" not in given or temperature > 0):
        raise ValueError(f"a task asks for sampling ({given}); only greedy generation is there")
    known = {"until", *MAX_TOKENS_NAMES, *OF_SAMPLING}
    without_effect = WITHOUT_EFFECT | WITHOUT_EFFECT_IN_FILES
    others = {
        name: value
        for name, value in given.items()
        if name not in known and value not in without_effect.get(name, ())
    }
    if others:
        raise ValueError(
            f"a task's generation_kwargs ask for {others}, which greedy generation here has "
            "not; leave it out of the task"
        )

    # lm-eval gives the number of tokens as a length, which a file's max_new_tokens goes before.
    overridden = given.keys() - set(MAX_TOKENS_NAMES)
    others = {
        name: model.tokenizer.generation[name]
        for name, values in WITHOUT_EFFECT_IN_FILES.items()
        if name not in overridden and model.tokenizer.generation.get(name) not in (None, *values)
    }
    if others:
        raise ValueError(
            f"the generation_config.json of {model.metadata.source} asks for {others}, which "
            "lm-eval generates with and greedy generation here has not: take it out of a copy of "
            "the model's folder, and compare with numbers made without it"
        )

    # The text of the end-of-text token stops as well, as it does in lm-eval.
    until = given.get("until") or []
    texts = [until] if isinstance(until, str) else list(until)
    tokenizer = model.tokenizer
    if tokenizer.eos_id is not None:
        texts += [text for text in [tokenizer.decode([tokenizer.eos_id])] if text not in texts]
    lengths = [len(tokenizer.backend.encode(t, add_special_tokens=False)) for t in texts]
    stops = [Stop(text, n + 2) for text, n in zip(texts, lengths, strict=True) if text]
    amounts = [given[name] for name in MAX_TOKENS_NAMES if given.get(name) is not None]
    max_tokens = int(amounts[0]) if amounts else MAX_NEW_TOKENS
    if not 0 < max_tokens < model.config.P:
        raise ValueError(
            f"max_gen_toks={max_tokens}: "
            f"the model has {model.config.P} positions for prompt and answer"
        )
    return stops, max_tokens


def find_stop(tokenizer: Tokenizer, new: list[int], n_before: int, stops: list[Stop]) -> int | None:
    """Find the first new token after which lm-eval stops; return how many there are then.

    Special tokens count here: a stop text may be one.

    Args:
      tokenizer: the model's.
      new: an answer's tokens.
      n_before: how many of them have been looked at.
      stops: texts that end it.
    """
    for n in range(n_before + 1, len(new) + 1):
        for stop in stops:
            if stop.text in tokenizer.decode(new[max(0, n - stop.n_tokens) : n]):
                return n
    return None


def cut_at_stops(text: str, stops: list[Stop]) -> str:
    """Cut a text before the stop texts, one after the other."""
    for stop in stops:
        text = text.split(stop.text)[0]
    return text
