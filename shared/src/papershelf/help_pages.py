"""Help pages with the options in named groups and ready-made examples at the end."""

from __future__ import annotations

import logging
import sys
from functools import partial

import click

from papershelf.errors import Command

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


class Section(click.Option):
    """An option that the help page lists under its section's title."""

    def __init__(self, *args, section: str, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(Command):
    """A command whose help page groups its options by :class:`Section`, in the order of the code."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list] = {}
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        for option in sorted(options, key=lambda option: not isinstance(option, Section)):  # --help comes last
            if record := option.get_help_record(ctx):
                sections.setdefault(getattr(option, "section", "Other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\n{self.epilog.strip()}\n")


def _log_to_stderr(ctx: click.Context, _: click.Parameter, verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s: %(message)s")


verbose_option = partial(
    click.option, "-v", "--verbose", is_flag=True, expose_value=False, callback=_log_to_stderr, help="Say what is done."
)
