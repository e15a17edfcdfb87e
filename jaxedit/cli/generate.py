"""Continue prompts with a model: greedy, or sampled from the k most likely tokens.

jaxedit generate --prompt="The Eiffel Tower is located in the city of"
jaxedit generate --prompt="Once" --prompt="Then" --top_k=5 --seed=1 --max_new_tokens=40
"""

from absl import flags

from jaxedit.cli._flags import FLAGS, json_flag, load_model, model_flags
from jaxedit.cli._output import print_json


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    flags.DEFINE_multi_string("prompt", None, "what to continue; may be given several times")
    flags.DEFINE_integer("max_new_tokens", 20, "how many tokens to add")
    flags.DEFINE_integer("top_k", None, "sample among so many most likely tokens; absent: greedy")
    flags.DEFINE_integer("seed", 0, "of the sampling")
    json_flag()


def main() -> None:
    """Generate."""
    from jaxedit.models.generate import generate

    if not FLAGS.prompt:
        raise ValueError(
            'give at least one prompt, e.g. --prompt="The Eiffel Tower is located in the city of"'
        )
    model = load_model()
    texts = generate(
        model, FLAGS.prompt, max_new_tokens=FLAGS.max_new_tokens, top_k=FLAGS.top_k, seed=FLAGS.seed
    )
    if FLAGS.json:
        print_json({"model": FLAGS.model, "texts": texts})
        return
    print("\n\n".join(texts))
