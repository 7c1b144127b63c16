"""The state of a training run, read back to go on from it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from papershelf.errors import UserError

# What torch.load makes of a file that is missing, cut off, or something else altogether.
UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)


def read_state(file: Path, here: Mapping[str, object], data: tuple[str, ...]) -> dict:
    """What a run saved with ``torch.save``: tensors, numbers, strings and dicts, nothing that runs.

    Args:
        file: of the run.
        here: the recipe and what is known of the data now; a run goes on only where these are the same.
        data: keys of the state that hold what is known of the data, beside ``config``, which holds the recipe: dicts
            that are joined to it, or single values.

    Raises:
        UserError: the file cannot be read, is no such state, or was made with another recipe or other data.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(f"{file} cannot be resumed from ({error}); leave out --resume to begin anew") from error
    if not isinstance(state, dict) or "config" not in state:
        raise UserError(f"{file} is no checkpoint of a training run; leave out --resume to begin anew")
    there = dict(state["config"])
    for key in data:
        there |= state[key] if isinstance(state[key], dict) else {key: state[key]}
    differing = [f"{k} {there.get(k)} (now {here[k]})" for k in here if there.get(k) != here[k]]
    if differing:
        raise UserError(f"{file} was made with {', '.join(differing)}; give the same options, or another run folder")
    return state
