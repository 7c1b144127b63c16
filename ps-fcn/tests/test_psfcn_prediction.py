"""Tiles, cuts and groups give what the whole picture at once gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from psfcn.networks import PSFCN
from psfcn.prediction import HALO, predict_normals, tiles


def network(kind="psfcn-n"):
    torch.manual_seed(0)
    return PSFCN(3 if kind == "upsfcn" else 6, normalise=kind == "psfcn-n").eval()


def capture(height, width, count=3, seed=0):
    rng = np.random.default_rng(seed)
    lights = rng.normal(size=(count, 3))
    lights[:, 2] = 2
    lights /= np.linalg.norm(lights, axis=1, keepdims=True)
    return rng.random((count, height, width, 3), dtype=np.float32), lights


def whole(model, images, lights, mask):
    batch = torch.from_numpy(images * mask[..., None]).permute(0, 3, 1, 2)[None]
    with torch.inference_mode():
        directions = None if lights is None else torch.from_numpy(lights).float()[None]
        normals = model(batch, directions, None)[0]
    return normals.permute(1, 2, 0).numpy() * mask[..., None]


@pytest.mark.parametrize("kind", ["psfcn-n", "psfcn", "upsfcn"])
def test_tiles_are_exact(kind):
    images, lights = capture(90, 70)
    lights = None if kind == "upsfcn" else lights
    mask = np.ones((90, 70), bool)
    mask[:9, :13] = False
    found = predict_normals(network(kind), images, lights, mask, tile=32, group=2)
    assert np.abs(found - whole(network(kind), images, lights, mask)).max() < 1e-4


def test_what_is_far_from_the_mask_is_never_looked_at():
    images, lights = capture(160, 150)
    mask = np.zeros((160, 150), bool)
    mask[75:85, 61:70] = True
    found = predict_normals(network(), images, lights, mask)
    assert np.abs(found - whole(network(), images, lights, mask)).max() < 1e-4
    spoilt = images.copy()
    spoilt[:, : 75 - HALO - 4] = np.nan
    np.testing.assert_array_equal(predict_normals(network(), spoilt, lights, mask), found)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([4, 12, 32]), st.integers(0, 100))
def test_tiles_cover_the_mask_once(height, width, side, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.05
    mask[height // 2, width // 2] = True
    seen = np.zeros((height, width), int)
    for tile in tiles(mask, side):
        seen[tile.inner] += 1
        assert tile.outer[0].start % 4 == 0  # on the raster of the strides
        assert tile.outer[1].start % 4 == 0
        picture = np.arange(height * width).reshape(height, width)
        np.testing.assert_array_equal(picture[tile.outer][tile.kept], picture[tile.inner])
    assert seen.max() == 1
    assert seen[mask].all()


def test_bfloat16_is_near():
    images, lights = capture(32, 32)
    mask = np.ones((32, 32), bool)
    exact, near = (predict_normals(network(), images, lights, mask, precision=p) for p in ("float32", "bfloat16"))
    assert 0 < np.degrees(np.arccos(np.clip((exact * near).sum(-1), -1, 1))).mean() < 3


def test_progress_counts_tiles():
    images, lights = capture(40, 40)
    seen = []
    predict_normals(
        network(), images, lights, np.ones((40, 40), bool), tile=20, progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_requests_that_do_not_fit_are_refused():
    images, lights = capture(8, 8)
    mask = np.ones((8, 8), bool)
    with pytest.raises(UserError, match="multiple of 4"):
        predict_normals(network(), images, lights, mask, tile=10)
    with pytest.raises(UserError, match="needs the lights"):
        predict_normals(network(), images, None, mask)
    with pytest.raises(UserError, match="takes no lights"):
        predict_normals(network("upsfcn"), images, lights, mask)


def test_an_empty_mask_gives_no_normals():
    images, lights = capture(8, 8)
    assert not predict_normals(network(), images, lights, np.zeros((8, 8), bool)).any()
