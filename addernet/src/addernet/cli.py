"""The command line: ``addernet``."""

from __future__ import annotations

import click
from papershelf.errors import Group
from papershelf.help_pages import SETTINGS

from addernet.cli_files import COMMANDS as FILES
from addernet.cli_study import COMMANDS as STUDIES
from addernet.cli_train import train


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(package_name="papershelf-addernet", message="addernet %(version)s")
def main() -> None:
    """AdderNet: convolutional networks without multiplications (arXiv:1912.13200).

    \b
    Example:
      addernet train cifar-10-batches-py/ -o run/
    """


for command in (train, *STUDIES, *FILES):
    main.add_command(command)
