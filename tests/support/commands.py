"""selene-core in this process: one of its own would import everything again, for half a second a call."""

import io
import os
import subprocess
import sys
from unittest.mock import patch

from selene_core.cli import main


def selene_core(*arguments: str, answer: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with more in its environment; an error that it does not tell of is raised."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        patch.dict(os.environ, environment),
        patch.object(sys, "argv", ["selene-core", *arguments]),
        patch.object(sys, "stdin", io.StringIO(answer)),
        patch.object(sys, "stdout", io.TextIOWrapper(out, "utf-8", write_through=True)),
        patch.object(sys, "stderr", io.TextIOWrapper(err, "utf-8", write_through=True)),
    ):
        try:
            main()
            status = 0
        except SystemExit as exc:
            status = int(exc.code or 0)
        return subprocess.CompletedProcess(sys.argv, status, out.getvalue().decode(), err.getvalue().decode())
