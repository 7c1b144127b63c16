"""The command line: ``dist-render``."""

from __future__ import annotations

import click
from papershelf.errors import Group
from papershelf.help_pages import SETTINGS

from distrender import cli_bench, cli_complete, cli_convert, cli_fit, cli_pose, cli_render, cli_train


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(package_name="dist-render", message="dist-render %(version)s")
def main() -> None:
    """Render signed distance functions by sphere tracing (DIST, arXiv:1911.13225).

    \b
    Example:
      dist-render render bunny.obj -o bunny.png
    """


for module in (cli_bench, cli_complete, cli_convert, cli_fit, cli_pose, cli_render, cli_train):
    for command in module.COMMANDS:
        main.add_command(command)
