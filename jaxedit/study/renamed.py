"""Names of a configuration before version 0.1, and what they are called now."""

from typing import Any

from jaxedit.editors import RENAMED_HYPER

RENAMED = {
    "part": "shard",
    "edits_at_once": "single_batch_size",
    "batch_size": "facts_per_edit",
    "snapshot_every": "journal_dense_every",
    "screen": "screening",
    "perplexity_every": "eval.perplexity_every",
    "divergence_every": "eval.kl_every",
    "fluency_every": "eval.fluency_every",
    "retention_every": "eval.retention_every",
    "prompts": "eval.prompts",
    "references": "eval.reference_texts",
}
RENAMED_SCREENING = {"record": "log", "hold": "skip"}


def new_name(path: str) -> str | None:
    """Return what an old key ("batch_size", "editor.keys") is called now; None if it is not old.

    An old name under the entry that the key is in now counts as well ("eval.references").
    """
    entry, _, name = path.rpartition(".")
    if entry == "editor":
        return f"editor.{RENAMED_HYPER[name]}" if name in RENAMED_HYPER else None
    renamed = RENAMED.get(name)
    if renamed is None or path == renamed:
        return None
    return renamed if entry in ("", renamed.rpartition(".")[0]) else None


def upgrade_key(key: str, value: Any) -> tuple[str, Any]:
    """Return a key of a configuration of schema 0 and its value as they are called now."""
    if key == "screen":
        value = RENAMED_SCREENING.get(value, value)
    return RENAMED.get(key, key), value
