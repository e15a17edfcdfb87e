"""Edit facts in language models, and measure after every edit whether the model still works."""

from jaxedit.editors import make_editor
from jaxedit.edits.apply import apply, undo
from jaxedit.edits.edit import Dense, Edit, LowRank
from jaxedit.edits.request import PromptAnswer, Request
from jaxedit.imports.adapter import import_adapter, import_edit
from jaxedit.metrics.perplexity import Perplexity, perplexity
from jaxedit.models.generate import generate
from jaxedit.models.layers import logits
from jaxedit.models.load import load
from jaxedit.models.model import Model
from jaxedit.reports.study import Study, open_study, run_study
from jaxedit.solving.update_constraints import prune
from jaxedit.stats.collect import collect_stats
from jaxedit.stats.second_moments import Stats
from jaxedit.study.edited import edit_model
from jaxedit.study.replay import edited_model

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
    "Study",
    "apply",
    "collect_stats",
    "edit_model",
    "edited_model",
    "generate",
    "import_adapter",
    "import_edit",
    "load",
    "logits",
    "make_editor",
    "open_study",
    "perplexity",
    "prune",
    "run_study",
    "undo",
]
