"""Tiles, cuts and groups give what the whole picture at once gives."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from psfcn import inference, prediction
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


def turned(one, other):
    """Degrees between unit normals, the mean over the pixels."""
    return np.degrees(np.arccos(np.clip((one * other).sum(-1), -1, 1))).mean()


@pytest.fixture(params=["kernels", "PyTorch"])
def means(request, monkeypatch):
    """Both ways through the network."""
    if request.param == "PyTorch":
        monkeypatch.setattr(inference, "serves", lambda device: False)
    else:
        assert inference.serves("cpu")
    return request.param


@pytest.mark.parametrize(("height", "width", "count"), [(16, 20, 1), (13, 18, 9), (1, 1, 2), (3, 31, 4)])
@pytest.mark.parametrize("kind", ["psfcn-n", "psfcn", "upsfcn"])
def test_prepared_layers_are_the_modules(kind, height, width, count):
    model, (images, lights) = network(kind), capture(height, width, count)
    photographs = torch.from_numpy(images).permute(0, 3, 1, 2)
    directions = None if kind == "upsfcn" else torch.from_numpy(lights).float()
    with torch.no_grad():
        exact = model.double()
        exact.normalise = False
        seen = photographs[None].double()
        if kind == "psfcn-n":
            norm = seen.square().sum((1, 2), keepdim=True).sqrt()
            seen = seen / norm * (count / 32) ** 0.5
        features = exact.features(seen, None if directions is None else directions[None].double())
        vectors = exact.regressor(features)[0, :, :height, :width]
    found = inference.Prepared(network(kind))(list(photographs), directions)
    length = vectors.norm(dim=0, keepdim=True)
    scale = (length / length.median()).clamp(max=1).float()  # a vector that is short by chance may turn further
    torch.testing.assert_close(found * scale, (vectors / length).float() * scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 5])
def test_any_order_gives_the_same_bits(count, precision, means):
    images, lights = capture(19, 30, count)
    mask = np.ones((19, 30), bool)
    mask[:3, 7:] = False
    found = predict_normals(network(), images, lights, mask, precision=precision)
    order = np.random.default_rng(1).permutation(count)
    again = predict_normals(network(), images[order], lights[order], mask, precision=precision)
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), mask, atol=1e-6)


def test_photographs_are_never_held_together(monkeypatch):
    images, lights = capture(16, 16, 7)
    held, most = set(), []
    photograph = prediction._Photographs.__getitem__

    def counted(self, number):
        tensor = photograph(self, number)
        held.add(id(tensor))
        weakref.finalize(tensor, held.discard, id(tensor))
        most.append(len(held))
        return tensor

    monkeypatch.setattr(prediction._Photographs, "__getitem__", counted)
    predict_normals(network(), images, lights, np.ones((16, 16), bool))
    assert len(most) == 1 + 3 * 7  # for the size; for the norms twice, and for the layers
    assert max(most) <= 2  # one, and the one before it until the name is given away


def test_what_the_mask_leaves_out_may_be_anything(means):
    images, lights = capture(16, 16)
    mask = np.zeros((16, 16), bool)
    mask[4:9, 3:10] = True
    found = predict_normals(network(), images, lights, mask)
    images[:, ~mask] = np.nan
    np.testing.assert_array_equal(predict_normals(network(), images, lights, mask), found)


@pytest.mark.parametrize("kind", ["psfcn-n", "psfcn", "upsfcn"])
def test_tiles_are_exact(kind, means):
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
        assert mask[tile.inner].any()
        assert max(mask[tile.inner].shape) <= side
        assert tile.outer[0].start % 4 == 0  # on the raster of the strides
        assert tile.outer[1].start % 4 == 0
        picture = np.arange(height * width).reshape(height, width)
        np.testing.assert_array_equal(picture[tile.outer][tile.kept], picture[tile.inner])
    assert seen.max() == 1
    assert seen[mask].all()


def test_bfloat16_is_near(means):
    images, lights = capture(32, 32)
    mask = np.ones((32, 32), bool)
    exact, near = (predict_normals(network(), images, lights, mask, precision=p) for p in ("float32", "bfloat16"))
    assert 0 < turned(exact, near) < 3


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
