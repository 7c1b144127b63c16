"""The command line: ``psfcn``."""

from __future__ import annotations

import click
from papershelf.errors import Group
from papershelf.help_pages import SETTINGS

from psfcn.cli_bench import COMMANDS as MEASURING
from psfcn.cli_calibrate import COMMANDS as CALIBRATION
from psfcn.cli_convert import COMMANDS as CONVERSION
from psfcn.cli_eval import COMMANDS as EVALUATION
from psfcn.cli_predict import COMMANDS as PREDICTION
from psfcn.cli_render import COMMANDS as RENDERING
from psfcn.cli_train import COMMANDS as TRAINING


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(package_name="ps-fcn", message="psfcn %(version)s")
def main() -> None:
    """Photographs of an object under different lights to a map of its normals (PS-FCN, LCNet, arXiv:2007.13145).

    \b
    Example:
      psfcn predict imgs/ lights.txt
    """


for command in (*PREDICTION, *RENDERING, *TRAINING, *EVALUATION, *CALIBRATION, *CONVERSION, *MEASURING):
    main.add_command(command)
