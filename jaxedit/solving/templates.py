"""Context templates: short texts put before a prompt so that an edit holds in context.

The model itself writes them, from a few first words. "{}" is the bare prompt; the other templates
end with ". {}".
"""

from jaxedit.models.generate import generate
from jaxedit.models.model import Model

STARTERS = ("The", "Therefore", "Because", "I", "You")  # first words of the sampled texts
TOP_K = 5


def check_template(template: str) -> None:
    """Raise a ValueError where a template lacks its one `{}`, the place of the prompt."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise ValueError(
            f"the context template {template!r} must have exactly one {{}}, where the prompt goes "
            "(context_templates)"
        )


def sample_templates(
    model: Model, seed: int, lengths: tuple[int, ...] = (5, 10), n_samples: int = 2
) -> tuple[str, ...]:
    """Sample ROME's context templates, much as the code of arXiv 2402.09656.

    There a text's length counts its starter too, and white space stays as it was generated.

    Args:
      model: that writes them, with top-k sampling (k = 5).
      seed: of the sampling.
      lengths: tokens of a text behind its starter.
      n_samples: texts for each length and starter; by default 2 x 5 x 2 + 1 = 21 templates.

    Returns:
      The bare prompt "{}", then the texts, without their braces and followed by ". {}".
    """
    templates = ["{}"]
    starters = [*STARTERS] * n_samples
    for length in lengths:
        texts = generate(model, starters, max_new_tokens=length, top_k=TOP_K, seed=seed + length)
        for text in texts:
            words = text.replace("{", " ").replace("}", " ").split()
            templates.append(" ".join(words) + ". {}")
    return tuple(templates)


def sample_groups(model: Model, seed: int, length: int = 10) -> tuple[tuple[str, ...], ...]:
    """Sample MEMIT's context templates: the bare prompt, and one text of each starter.

    Args:
      model: that writes them.
      seed: of the sampling.
      length: tokens of a text behind its starter.

    Returns:
      Two groups, which count the same in a key (`jaxedit.solving.keys.pack_prompts`).
    """
    sampled = sample_templates(model, seed, lengths=(length,), n_samples=1)
    return sampled[:1], sampled[1:]
