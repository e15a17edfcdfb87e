"""Commands run in the tests' process: one of their own would import for seconds first."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from jaxedit.cli import run


def run_command(
    folder: Path, *arguments: str, encoding: str = "utf-8"
) -> subprocess.CompletedProcess:
    """Run `jaxedit` with arguments in a folder; return its status, and what it wrote as texts.

    Args:
      folder: the command's working directory.
      arguments: what stands behind `jaxedit`.
      encoding: of its standard output and standard error.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, {"COLUMNS": "160"}),
        mock.patch.object(logging.root, "handlers", []),  # the command makes its own
        mock.patch.object(sys, "argv", ["jaxedit", *arguments]),  # ml_collections reads these
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        status = run(sys.argv)
    for stream in streams:
        stream.flush()
    written = [stream.buffer.getvalue().decode(encoding) for stream in streams]
    return subprocess.CompletedProcess(arguments, status, *written)
