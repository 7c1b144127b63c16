"""Tensors and arrays out of pickles, without running anything that is in them.

PyTorch's files go through its own restricted reader. maurock's ``results.npy`` is a numpy file of one Python object,
which numpy reads only with leave to run code; here numbers in it are rebuilt by classes of our own, and any other
class stops the reading.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from torch import Tensor

# How readers of pickles end over a file that was cut or is of another kind.
STUMBLES = (ValueError, EOFError, TypeError, AttributeError, LookupError, struct.error)
_FLOATS = ("f2", "f4", "f8")


def read_pickled(path: Path) -> object:
    """What ``torch.save`` wrote, if it is made of tensors, numbers, strings, lists and dictionaries.

    Raises:
        UserError: it cannot be read, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():  # the word of PyTorch's messages for classes and functions
            raise UserError(f"{path}: cannot be read (no file of PyTorch's); fetch it anew") from error
        raise UserError(
            f"{path}: holds Python objects, and loading it would run code from it: refused; "
            "where it was made, save torch.save(model.state_dict(), ...)"
        ) from error
    except (OSError, RuntimeError, *STUMBLES) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); fetch it anew") from error


def read_codes(path: Path, latent: int) -> Tensor:
    """Codes ``[S, latent]``, float32, from what DeepSDF and others keep them in.

    Args:
        path: ``.pth`` with a tensor or DeepSDF's ``{epoch, latent_codes}`` (tensor or embedding), or ``.npy`` with an
            array or maurock's results.
        latent: numbers in a code.

    Raises:
        UserError: the file cannot be read, or holds no such codes.
    """
    content = _read_npy(path) if path.suffix == ".npy" else read_pickled(path)
    if isinstance(content, Mapping) and "best_latent_codes" in content:
        content = content["best_latent_codes"]
    if isinstance(content, Mapping) and "latent_codes" in content:
        content = content["latent_codes"]
    if isinstance(content, Mapping) and "weight" in content:  # an embedding's
        content = content["weight"]
    if isinstance(content, np.ndarray):
        content = torch.from_numpy(content.astype(np.float32))
    if not isinstance(content, Tensor) or content.ndim < 1 or content.shape[-1] != latent:
        found = list(content.shape) if isinstance(content, Tensor) else type(content).__name__
        raise UserError(f"{path}: expected codes of {latent} numbers for this decoder, got {found}")
    return content.detach().float().reshape(-1, latent)


def _read_npy(path: Path) -> object:
    try:
        with path.open("rb") as file:
            major = np.lib.format.read_magic(file)[0]
            header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if not dtype.hasobject:
                return np.load(path, allow_pickle=False)
            content = _Numbers(file).load().array()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {error}") from error
    except STUMBLES as error:
        raise UserError(f"{path}: cannot be read as numpy's ({error}); fetch it anew") from error
    return content[0] if shape == () and len(content) == 1 else content


class _Dtype:
    """Takes numpy's dtype's place: keeps its name and byte order."""

    def __init__(self, name: str, *_: object):
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _Array:
    """Takes an array's place; numpy's own would trust the file for its size."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.fortran, self.content = state

    def array(self) -> np.ndarray | list:
        """Numbers as numpy has them, or a list of what was in an array of objects."""
        if isinstance(self.content, list):
            return [_plain(one) for one in self.content]
        if self.dtype.name not in _FLOATS or self.dtype.order not in ("<", ">", "="):
            raise ValueError(f"an array of {self.dtype.name}")
        numbers = np.frombuffer(self.content, self.dtype.order + self.dtype.name)
        return numbers.reshape(self.shape, order="F" if self.fortran else "C")


def _plain(value: object) -> object:
    if isinstance(value, _Array):
        return value.array()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _reconstruct(*_: object) -> _Array:
    return _Array()


class _Numbers(pickle.Unpickler):
    """Reads arrays within lists and dictionaries, and refuses everything else by name."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _reconstruct
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        raise pickle.UnpicklingError(f"names {module}.{name}, and loading it would run code from it: refused")
