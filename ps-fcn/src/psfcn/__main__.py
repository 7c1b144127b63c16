"""``python -m psfcn`` is ``psfcn``."""

from psfcn.cli import main

main(prog_name="psfcn")
