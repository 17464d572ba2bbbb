"""Run the command line: python -m selene_core."""

from selene_core.cli import main

main()
