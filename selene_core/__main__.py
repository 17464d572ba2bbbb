"""python -m selene_core: the command line."""

from selene_core.cli import main

main()
