"""Where second moments lie: a path, an address in a bucket, or covariances on the hub."""

import os
from pathlib import Path

from jaxedit.files import expand_home
from jaxedit.messages import first_line
from jaxedit.models.hub import split_revision
from jaxedit.remote import fetch_file, fetch_folder, is_remote

HUB_PREFIX = "hub:"


def find_stats(place: str | os.PathLike[str]) -> Path:
    """Return the file or folder of second moments that a place names; fetch it where it is remote.

    Args:
      place: a path; an address in a bucket (gs://, s3://, hf://), of a file or of a folder of .npz
        files; or hub:OWNER/NAME[@REVISION], a repository of .npz files, of the kind model or
        dataset.

    Raises:
      ValueError: where it cannot be had.
    """
    place = expand_home(place)
    if place.startswith(HUB_PREFIX):
        return _npz_folder(_fetch_repository(place.removeprefix(HUB_PREFIX)), place)
    if not is_remote(place):
        return Path(place)
    if place.endswith((".safetensors", ".npz")):
        return fetch_file(place)
    return _npz_folder(fetch_folder(place, ["*.npz"]), place)


def _npz_folder(folder: Path, place: str) -> Path:
    """Return the one folder below that holds .npz files."""
    folders = sorted({path.parent for path in folder.rglob("*.npz")})
    if len(folders) != 1:
        found = ", ".join(str(each.relative_to(folder)) for each in folders) or "none"
        raise ValueError(
            f"{place} must hold one folder of .npz files, one a layer; such folders there: {found}"
        )
    return folders[0]


def _fetch_repository(name: str) -> Path:
    """Fetch the .npz files of a repository of the hub, a model's or a data set's."""
    import huggingface_hub
    from huggingface_hub import errors

    hub_id, revision = split_revision(name)
    missing: Exception | None = None
    for kind in ("model", "dataset"):
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    hub_id,
                    repo_type=kind,
                    revision=revision or None,
                    allow_patterns=["*.npz"],
                )
            )
        except errors.RepositoryNotFoundError as error:
            missing = error
        except Exception as error:
            missing = error
            break
    raise ValueError(
        f"{HUB_PREFIX}{name} could not be had from the hub ({type(missing).__name__}: "
        f"{first_line(missing)}); check the name, log in by `hf auth login` where it is private or "
        "gated, or give a folder of .npz files"
    ) from missing
