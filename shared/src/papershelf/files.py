"""Output files that are either whole or not there.

Everything is written under a temporary name beside its final place and renamed at the end: within
one folder a rename is a single step, so nobody ever sees half a file, and a failed or interrupted
run leaves what was there before.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from papershelf.errors import UserError

NAME_KEPT = 50  # characters: at four bytes each they fit the 255 bytes of a file name, with the rest


@contextmanager
def atomic_path(final: Path | str) -> Iterator[Path]:
    """A temporary path to write to, which becomes ``final`` when the block ends without an error.

    It lies in the folder of ``final`` and ends like it (``.mp4``, ``.tar.gz``), since writers go by
    the suffix. On any exception, Ctrl-C included, it is removed and ``final`` stays as it was. A
    symbolic link is followed; a device or a pipe (``/dev/null``) is handed through as it is.

    Raises:
        UserError: ``final`` is a folder, or its folder is missing or cannot be written to.
    """
    try:
        target = Path(final).resolve()
        if target.is_dir():
            raise UserError(f"cannot write {final}: it is a folder; name a file")
        part = None
        if target.is_file() or not target.exists():
            part = target.with_name(f".part-{secrets.token_hex(4)}-{target.name[-NAME_KEPT:]}")
            # Not tempfile: its files are private to the user, and the final one would be too.
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileNotFoundError as error:
        raise UserError(f"cannot write {final}: there is no folder {target.parent}; make it first") from error
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror}; choose another place or name") from error
    if part is None:
        yield target
        return
    try:
        yield part
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
