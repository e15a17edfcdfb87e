"""The published hyper-parameters of every method. The argument is METHOD/MODEL[/SOURCE].

    jaxedit stats --model=EleutherAI/gpt-j-6b --layers=3,4,5,6,7,8 --corpus=CORPUS
    jaxedit study --config=published:memit/gpt-j-6b --config.stats=stats.safetensors \\
        --config.facts=counterfact.json --config.texts=ME-PPL_50.json

The rows and their sources stand in `jaxedit/editors/_published.py` and as a table in README.md
beside this file; without a source the first row of a method and model counts.

The guard keeps every edit (action "keep"). facts_per_edit is 1; the authors of AlphaEdit and NSE
wrote 100 facts an edit (--config.facts_per_edit=100). Hardware, estimated: gpt2-xl fits one 16 GB
accelerator in float32; the others in bfloat16 one of 24 GB for ROME and FT, and one of 40 GB for
the methods that hold second moments, 2 to 7 GB. Time: not measured here; the journal's `time_s`
says it for each edit. Expected: for ROME see `paper.py`; the others have not been run here on these
models.
"""

from jaxedit.editors import ENTRIES, find_published
from jaxedit.study.config import default_config

VARIANTS = ENTRIES


def get_config(entry="rome/gpt2-xl"):
    published = find_published(entry)
    config = default_config(entry.split("/")[0], **published.hyper)
    config.update(model=published.model, mode="sequential", guard=dict(action="keep"))
    return config
