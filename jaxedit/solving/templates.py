"""Context templates: short texts the model itself begins with, put before a prompt so that an edit
holds in context.
"""

from jaxedit.models.generate import generate
from jaxedit.models.model import Model

STARTERS = ("The", "Therefore", "Because", "I", "You")


def check_template(template: str) -> None:
    """Raises a ValueError where a template does not have exactly one `{}`, where the prompt goes."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise ValueError(
            f"the context template {template!r} must have exactly one {{}}, where the prompt goes (context_templates)"
        )


def sample_templates(
    model: Model, seed: int, lengths: tuple[int, ...] = (5, 10), n_each: int = 2
) -> tuple[str, ...]:
    """ "{}" and, for each length and starter, `n_each` continuations of that many tokens, followed
    by ". {}".

    As the code of arXiv 2402.09656: top-k sampling with k = 5, braces removed; 2 x 5 x 2 + 1 = 21
    templates."""
    templates = ["{}"]
    for length in lengths:
        texts = generate(
            model, [*STARTERS] * n_each, max_new_tokens=length, top_k=5, seed=seed + length
        )
        templates += [
            " ".join(text.replace("{", " ").replace("}", " ").split()) + ". {}" for text in texts
        ]
    return tuple(templates)


def sample_groups(model: Model, seed: int, length: int = 10) -> tuple[tuple[str, ...], ...]:
    """MEMIT's context templates: the bare prompt, and one continuation of `length` tokens of each
    starter.
    """
    sampled = sample_templates(model, seed, lengths=(length,), n_each=1)
    return sampled[:1], sampled[1:]
