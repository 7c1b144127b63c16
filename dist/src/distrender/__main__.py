"""``python -m distrender`` is ``dist-render``."""

from distrender.cli import main

main(prog_name="dist-render")
