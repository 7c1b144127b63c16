"""What several tests of rife need."""

from dataclasses import replace

import pytest


@pytest.fixture(scope="session")
def averaging(tmp_path_factory):
    """Weights of a small network that finds no motion and an even mask, so new frames are means, at any time."""
    import torch
    from rife.model import Rife
    from rife.presets import V4_6

    from rife import checkpoints

    model = Rife(replace(V4_6, widths=(8, 8, 8, 8)))
    for block in model.blocks:
        for parameter in block.head.parameters():
            torch.nn.init.zeros_(parameter)
    path = tmp_path_factory.mktemp("weights") / "averaging.safetensors"
    checkpoints.save(model, path, {})
    return path
