"""selene-core in this process: one of its own would import everything again, for half a second a call."""

import io
import os
import subprocess
import sys
from typing import Any
from unittest.mock import patch

from selene_core.cli import main


def selene_core(
    *arguments: str, answer: str | bytes | None = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line with more in its environment; an error that it does not tell of is raised."""
    out, err = io.BytesIO(), io.BytesIO()
    typed: Any = io.BytesIO(answer.encode() if isinstance(answer, str) else answer or b"")
    stdin = None if answer is None else io.TextIOWrapper(io.BufferedReader(typed), "utf-8")
    with (
        patch.dict(os.environ, environment),
        patch.object(sys, "argv", ["selene-core", *arguments]),
        patch.object(sys, "stdin", stdin),
        patch.object(sys, "stdout", io.TextIOWrapper(out, "utf-8", write_through=True)),
        patch.object(sys, "stderr", io.TextIOWrapper(err, "utf-8", write_through=True)),
    ):
        try:
            main()
            status = 0
        except SystemExit as exc:
            status = int(exc.code or 0)
        return subprocess.CompletedProcess(sys.argv, status, out.getvalue().decode(), err.getvalue().decode())
