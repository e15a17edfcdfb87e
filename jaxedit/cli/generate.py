"""Continue prompts with a model, or talk to an edited one: greedy, or sampled.

jaxedit generate --prompt="The Eiffel Tower is located in the city of"
jaxedit generate --run=runs/laptop --prompt="Where is the Eiffel Tower?" --chat
jaxedit generate --edit=rome.safetensors --prompt="Once" --temperature=0.8 --top_p=0.9 --seed=1

To a terminal the text is written as it comes. Which edits the model has goes to standard error.
"""

import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxedit.cli._flags import FLAGS, edited_flags, json_flag, load_model, model_flags
from jaxedit.cli._output import print_json
from jaxedit.distributed import is_multiprocess
from jaxedit.messages import escape_controls

if TYPE_CHECKING:
    from jaxedit.models.model import Model


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    edited_flags()
    flags.DEFINE_multi_string("prompt", None, "what to continue; may be given several times")
    flags.DEFINE_integer("max_new_tokens", 20, "how many tokens to add")
    flags.DEFINE_integer("top_k", None, "sample among so many most likely tokens")
    flags.DEFINE_float("temperature", None, "sample, with the logits divided by this; 0: greedy")
    flags.DEFINE_float(
        "top_p", None, "sample among the fewest most likely tokens with this probability together"
    )
    flags.DEFINE_integer("seed", 0, "of the sampling")
    flags.DEFINE_bool(
        "chat", False, "put each prompt into the model's chat template, as a user's message"
    )
    json_flag()


def main() -> None:
    """Generate."""
    from jaxedit.models.generate import continue_texts, stream

    if not FLAGS.prompt:
        raise ValueError(
            'give at least one prompt, e.g. --prompt="The Eiffel Tower is located in the city of"'
        )
    model = load_model()
    token_lists = [prompt_tokens(model, prompt) for prompt in FLAGS.prompt]
    asked: dict[str, Any] = {
        name: FLAGS[name].value
        for name in ("max_new_tokens", "top_k", "temperature", "top_p", "seed")
    }

    # A person reads along; a pipe gets all texts at once.
    if sys.stdout.isatty() and not FLAGS.json and not is_multiprocess():
        for i, tokens in enumerate(token_lists):
            shown = escape_controls(shown_prompt(model, tokens))
            print(("\n\n" if i else "") + shown, end="", flush=True)
            for piece in stream(model, tokens, **asked):
                print(escape_controls(piece), end="", flush=True)
        print()
        return
    said = continue_texts(model, token_lists, **asked)
    texts = [
        shown_prompt(model, tokens) + new for tokens, new in zip(token_lists, said, strict=True)
    ]
    if FLAGS.json:
        n_edits = len(model.metadata.history)
        print_json({"model": model.metadata.source, "n_edits": n_edits, "texts": texts})
        return
    print("\n\n".join(texts))


def prompt_tokens(model: "Model", prompt: str) -> list[int]:
    """Tokenise a prompt as it is, or in the chat template, which has its own begin of text."""
    if not FLAGS.chat:
        return model.tokenizer.encode(prompt)
    rendered = model.tokenizer.render_chat([{"role": "user", "content": prompt}])
    return model.tokenizer.encode(rendered, bos=False)


def shown_prompt(model: "Model", tokens: list[int]) -> str:
    """Return what stands before a continuation: the prompt; nothing in a chat."""
    return "" if FLAGS.chat else model.tokenizer.decode(tokens, skip_special=True)
