"""Models from the Hugging Face hub: a branch, tag, commit or pull request of a repository."""

import importlib.util
from pathlib import Path

from jaxedit.files import local_path
from jaxedit.messages import first_line
from jaxedit.models.built_in import BUILT_IN
from jaxedit.remote import is_remote

SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
SAFETENSORS, TORCH = "*.safetensors", "pytorch_model*.bin"
# Mistral's repositories hold their weights a second time, and some have other models in folders.
UNWANTED = ["consolidated*", "*/*"]


def split_revision(name: str) -> tuple[str, str]:
    """Split "owner/name@REVISION" into hub id and revision, which is empty where there is none.

    Raises:
      ValueError: where nothing stands before or behind the @.
    """
    hub_id, at, revision = name.partition("@")
    if at and not (hub_id and revision):
        raise ValueError(f"{name!r}: expected owner/name, or owner/name@REVISION")
    return hub_id, revision


def is_hub_id(name: str) -> bool:
    """Tell whether a model's name can be one of the hub, without a revision."""
    is_here = name in BUILT_IN or is_remote(name) or local_path(name).exists()
    return not is_here and name.count("/") == 1 and "@" not in name and not name.startswith(".")


def download_model(hub_id: str, revision: str = "") -> Path:
    """Fetch a model's files, once; return their folder.

    Of a model without safetensors files torch's are fetched, where torch is there to read them.

    Args:
      hub_id: owner/name.
      revision: a branch, a tag, a commit, or "refs/pr/N" for pull request N; empty: the default.

    Raises:
      ValueError: where it cannot be had; the message says why, and what to do.
    """
    folder = _fetch(hub_id, revision, [*SMALL_FILES, SAFETENSORS])
    if not any(folder.glob(SAFETENSORS)):
        if importlib.util.find_spec("torch") is None:
            raise ValueError(
                f"{hub_id} has no safetensors files here; install torch to read torch's, by "
                "pip install 'jaxedit[verify]', or take a revision that has them, such as a pull "
                f"request's: {hub_id}@refs/pr/N, with the number from its page of pull requests"
            )
        folder = _fetch(hub_id, revision, [TORCH])
    return folder


def _fetch(hub_id: str, revision: str, wanted: list[str]) -> Path:
    """Fetch files of a model, those that are not there yet; return their folder."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            hub_id,
            revision=revision or None,
            allow_patterns=wanted,
            ignore_patterns=UNWANTED,
        )
    except Exception as error:
        raise ValueError(_not_had(hub_id, revision, error)) from error
    return Path(folder)


def _not_had(hub_id: str, revision: str, error: Exception) -> str:
    """Say why a model cannot be had, and what to do."""
    from huggingface_hub import errors

    login = "log in by `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError
        return f"{hub_id} is gated: accept its terms on its page on the hub, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{hub_id} has no revision {revision!r}; give a branch, a tag, a commit, or refs/pr/N "
            "for pull request N"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no model {hub_id!r}; check the name, or if it is private, {login}"
    offline = " or ".join(map(repr, BUILT_IN))
    name = f"{hub_id}@{revision}" if revision else hub_id
    return (
        f"{name!r} is not a file or directory here, and could not be had from the hub "
        f"({type(error).__name__}: {first_line(error)}). Offline, give a directory or {offline}"
    )
