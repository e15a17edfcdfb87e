"""The READMEs taken apart: prose, code, commands, tables."""

import re
import shlex
from pathlib import Path

from jaxedit.cli._main import command_names

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
READMES = sorted(ROOT.glob("README.md")) + sorted(ROOT.glob("[a-z]*/README.md"))
LINKED = [*READMES, ROOT / "CHANGELOG.md"]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(path), re.MULTILINE | re.DOTALL)


def inline(path: Path) -> list[str]:
    """The code between backticks in the text."""
    return re.findall(r"`([^`\n]+)`", prose(path))


def prose(path: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(path), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """The arguments of each `jaxedit COMMAND` in blocks of bash and in the text.

    Those behind a script of launch/, such as `bash launch/gpu.sh study --workdir=runs/all`, count.
    """
    lines = [line for block in blocks(path, "bash") for line in joined_lines(block)]
    found = []
    for line in [*lines, *inline(path)]:
        if "jaxedit " not in line and "launch/" not in line:
            continue
        words = shlex.split(line, comments=True)
        known = [i for i, word in enumerate(words) if word in command_names()]
        if words[:1] == ["jaxedit"] and len(words) > 1 and not words[1].isupper():
            found.append(words[1:])
        elif words[:1] in (["bash"], ["docker"]) and known:
            found.append(words[known[0] :])
    return found


def joined_lines(block: str) -> list[str]:
    """The lines of a block of bash, those that a backslash continues as one."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def table(path: Path, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    lines = read(path).split(f"\n{heading}\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return rows[2:]


def names_in(cells: list[str]) -> list[str]:
    """The code in the first cells of a table's rows."""
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


# What all READMEs promise
