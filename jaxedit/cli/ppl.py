"""Perplexity of a model on texts, as the papers compute it.

jaxedit ppl                                       SmolLM2-135M on the built-in texts
jaxedit ppl --model=gpt2-xl-directory --texts=ME-PPL_50.json --json
jaxedit ppl --run=runs/laptop                     a study's model with its kept edits
"""

from absl import flags

from jaxedit.cli._flags import FLAGS, edited_flags, json_flag, load_model, model_flags, path_flag
from jaxedit.cli._output import print_json
from jaxedit.messages import escape_controls


def define_flags() -> None:
    """Define the flags of this command."""
    model_flags()
    edited_flags()
    path_flag("texts", "builtin", "a .json, .jsonl or .txt file of texts")
    flags.DEFINE_bool(
        "bos",
        None,
        "put a begin-of-text token in front of each text; absent: where the model's tokenizer "
        "always adds one, as in studies; the papers do not (--nobos)",
    )
    json_flag()


def main() -> None:
    """Score the texts."""
    from jaxedit.datasets import read_texts
    from jaxedit.metrics.baseline import name_texts
    from jaxedit.metrics.perplexity import perplexity, scores_with_bos

    texts = read_texts(FLAGS.texts)
    model = load_model()
    bos = scores_with_bos(model) if FLAGS.bos is None else FLAGS.bos
    score = perplexity(model, texts, bos=bos)
    numbers = {
        "model": model.metadata.source,
        "n_edits": len(model.metadata.history),
        "texts": FLAGS.texts,
        "bos": bos,
        "n_texts": len(texts),
        "n_tokens": int(score.n_tokens.sum()),
        "mean": score.mean,
        "pooled": score.pooled,
        "n_non_finite": score.n_non_finite,
    }
    if FLAGS.json:
        print_json({**numbers, "per_text": score.per_text})
        return
    print(f"perplexity {score.mean:,.2f} (mean over {len(texts)} texts)")
    print(f"           {score.pooled:,.2f} (pooled over {numbers['n_tokens']} tokens)")
    if score.n_non_finite:
        named = escape_controls(name_texts(model, texts, score.non_finite_texts))
        print(f"the loss of {score.n_non_finite} texts is not finite: {named}")
