"""Edits as EasyEdit's tutorials write them: flat records without the true answer.

Beside the prompt stands one paraphrase (`rephrase_prompt`) or one neighbour (`locality_prompt`,
`locality_ground_truth`), or both. A file with the arguments of `BaseEditor.edit`, an
object of lists, is read as records of the form `knowedit`."""

from jaxedit.datasets.counterfact_flat import request

__all__ = ["FIELDS", "KEYS", "request"]

KEYS = frozenset({"prompt", "subject", "target_new", "rephrase_prompt"})
MORE_KEYS = (frozenset({"prompt", "subject", "target_new", "locality_prompt"}),)
FIELDS = {
    "prompt": str,
    "subject": str,
    "target_new": str,
    "rephrase_prompt?": str,
    "locality_prompt?": str,
    "locality_ground_truth?": str,
}
