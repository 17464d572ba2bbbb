"""While the command is being imported: Ctrl-C, or a lack of libpq, is one line and an exit status.

The package imports this first. Half a second of imports follows before selene_core.cli can run.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Final

_NAMED: Final = Path(sys.argv[0]).name if sys.argv else ""

IS_COMMAND: Final = _NAMED == "selene-core" or (
    _NAMED == "-m" and any(argument.endswith("selene_core") for argument in sys.orig_argv)
)
"""Whether this process was started as the command, and not by a program that imports the package."""


def tell_failure(code: str, what: str) -> None:
    """Report a failure as selene_core.cli.errors does, which may not be imported yet."""
    if "--json" in sys.argv or "--json" in sys.orig_argv:
        sys.stdout.write(json.dumps({"error": {"code": code, "message": what}}) + "\n")
        sys.stdout.flush()
    sys.stderr.write(f"selene-core: {what}\n")
    sys.stderr.flush()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    tell_failure("INTERRUPTED", "interrupted")
    # An exception, raised wherever an import is, could be taken for one of the import's own.
    os._exit(130)


def raise_when_interrupted() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, from here on."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Without effect where Ctrl-C is ignored, or means something else already.
if IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
