"""Edit facts in language models, and measure after every edit whether the model still works."""

from jaxedit.editors import make_editor
from jaxedit.edits.edit import Dense, Edit, LowRank, apply, undo
from jaxedit.edits.request import PromptAnswer, Request
from jaxedit.metrics.perplexity import Perplexity, perplexity
from jaxedit.models.generate import generate
from jaxedit.models.layers import logits
from jaxedit.models.load import load
from jaxedit.models.model import Model
from jaxedit.stats.collect import collect_stats
from jaxedit.stats.second_moments import Stats

__version__ = "0.1.0"

__all__ = [
    "Dense",
    "Edit",
    "LowRank",
    "Model",
    "Perplexity",
    "PromptAnswer",
    "Request",
    "Stats",
    "apply",
    "collect_stats",
    "generate",
    "load",
    "logits",
    "make_editor",
    "perplexity",
    "undo",
]
