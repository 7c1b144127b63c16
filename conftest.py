"""Hypothesis for every package: no deadline (a busy machine is no bug), and in CI the same cases each time."""

import importlib.util
import os

if importlib.util.find_spec("hypothesis"):  # `make gpu-check` runs where it may be missing
    from hypothesis import settings

    settings.register_profile("papershelf", deadline=None, derandomize=bool(os.environ.get("CI")))
    settings.load_profile("papershelf")
