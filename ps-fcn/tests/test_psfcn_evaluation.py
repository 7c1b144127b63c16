"""Errors of normals against computations of their own, data sets of every layout, published figures, tables."""

import math

import numpy as np
import pytest
import torch
from papershelf.errors import UserError
from papershelf.images import write_image
from psfcn import published
from psfcn.angles import degrees, mean_degrees
from psfcn.evaluation import Outcome, averages, evaluate, tables
from psfcn.evaluation_pictures import OUTSIDE, STEEPEST, UNKNOWN, error_picture, sheet
from psfcn.evaluation_sets import Entry, chosen, find, load
from psfcn.lcnet import LCNet
from psfcn.render_options import Options
from psfcn.rendering import render_sample
from psfcn.sample_folders import write_diligent
from psfcn.samples import WHITE, Sample
from scipy.io import savemat

SIZE, Q = 24, 8


def lambertian(lights=Q, size=SIZE, strengths=None):
    """The cap of a matt sphere that every light reaches: nothing is in shadow."""
    turn = np.linspace(0, 2 * np.pi, lights, endpoint=False)
    lean = np.linspace(0.2, 0.6, lights)
    directions = np.stack([np.sin(lean) * np.cos(turn), np.sin(lean) * np.sin(turn), np.cos(lean)], -1)
    x, y = np.meshgrid(np.linspace(-0.7, 0.7, size), np.linspace(0.7, -0.7, size))
    mask = np.hypot(x, y) < 0.65
    normal = np.stack([x, y, np.sqrt(1 - x**2 - y**2)], -1) * mask[..., None]
    shading = (normal @ directions.T).transpose(2, 0, 1)[..., None]
    assert shading[:, mask].min() > 0
    intensities = np.ones((lights, 3)) if strengths is None else strengths
    images = shading * [0.6, 0.5, 0.3] * intensities[:, None, None]
    return Sample(
        np.rint(images * WHITE).astype(np.uint16),
        np.float32(1),
        normal.astype(np.float32),
        np.zeros((size, size), np.float16),
        mask,
        directions.astype(np.float32),
        intensities.astype(np.float32),
        "sphere",
        "matt",
    )


def angle_by_hand(a, b):
    """One angle, in plain Python: the law of cosines on the unit vectors' chord."""
    a, b = ([v / math.sqrt(sum(w * w for w in vector)) for v in vector] for vector in (a, b))
    return 2 * math.degrees(math.asin(min(1.0, math.dist(a, b) / 2)))


def test_the_mean_error_is_that_of_an_independent_computation(tmp_path):
    write_diligent(render_sample(3, Options(size=SIZE, lights=(Q, Q))), tmp_path / "blobPNG")
    subject = load(Entry("blob", tmp_path / "blobPNG"))
    outcome = evaluate(subject, ["ls", "trimmed"])
    rows, columns = np.nonzero(subject.capture.mask)
    assert len(rows) > 50
    for method in ("ls", "trimmed"):
        normals, true = outcome.normals[method].tolist(), subject.capture.normals.tolist()
        by_hand = [angle_by_hand(normals[r][c], true[r][c]) for r, c in zip(rows, columns, strict=True)]
        assert outcome.means[method] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-4)
        assert outcome.means[method] > 1
        assert np.isnan(outcome.errors[method][~subject.capture.mask]).all()


def test_angles_of_vectors_of_any_length():
    normals = np.float32([[0, 0, 1], [0, 0, 2], [0, 0, 1], [0, 0, 0], [1, 0, 1]])
    true = np.float32([[0, 0, 3], [0, 5, 0], [0, 0, -1], [0, 0, 1], [1e-4, 0, 1e-4]])
    np.testing.assert_allclose(degrees(normals, true), [0, 90, 180, np.nan, 0], atol=1e-5)
    assert mean_degrees(normals[:, None], true[:, None], np.ones((5, 1), bool)) == pytest.approx(67.5)
    with pytest.raises(UserError, match="zero all over the mask"):
        mean_degrees(normals[:1], 0 * true[:1], np.ones(1, bool))


def test_least_squares_on_a_matt_sphere_is_exact(tmp_path):
    strengths = np.random.default_rng(0).uniform(0.4, 1, (Q, 3))
    write_diligent(lambertian(strengths=strengths), tmp_path / "sphere")
    lambertian(strengths=strengths).save(tmp_path / "sphere.npz")
    for path in (tmp_path / "sphere", tmp_path / "sphere.npz"):
        subject = load(Entry("sphere", path))
        np.testing.assert_allclose(subject.intensities, strengths, rtol=1e-5)
        outcome = evaluate(subject, ["ls"])
        assert outcome.means["ls"] < 0.01  # what 16 bits leave
        assert outcome.lights == {}


@pytest.mark.parametrize("axis", [0, 1])
def test_wrong_axes_give_a_large_error(tmp_path, axis):
    sample = lambertian()
    sample.lights[:, axis] *= -1
    sample.save(tmp_path / "s.npz")
    assert evaluate(load(Entry("s", tmp_path / "s.npz")), ["ls"]).means["ls"] > 30


def test_true_normals_need_not_be_unit_and_may_be_missing(tmp_path):
    sample = lambertian()
    write_diligent(sample, tmp_path / "a")
    write_diligent(sample, tmp_path / "b")
    scaled = sample.normal * np.random.default_rng(1).uniform(0.1, 9, (SIZE, SIZE, 1))
    hole = np.zeros((SIZE, SIZE), bool)
    hole[10:12, 8:15] = True
    scaled[hole] = 0
    scaled[15, 9] = np.nan
    savemat(tmp_path / "b" / "Normal_gt.mat", {"Normal_gt": scaled})
    whole, holed = (load(Entry(name, tmp_path / name)) for name in "ab")
    assert holed.measured.sum() == whole.measured.sum() - 15
    assert any(note.startswith("15 pixels of the mask") for note in holed.notes)
    assert not any("no true normal" in note for note in whole.notes)
    errors = [evaluate(subject, ["ls"]).means["ls"] for subject in (whole, holed)]
    assert errors[1] == pytest.approx(errors[0], abs=0.005)
    picture = error_picture(evaluate(holed, ["ls"]).errors["ls"], holed.capture.mask)
    assert (picture[hole] == UNKNOWN).all()
    assert (picture[~holed.capture.mask] == OUTSIDE).all()


def test_a_truth_that_is_zero_is_refused(tmp_path):
    write_diligent(lambertian(), tmp_path / "a")
    savemat(tmp_path / "a" / "Normal_gt.mat", {"Normal_gt": np.zeros((SIZE, SIZE, 3))})
    with pytest.raises(UserError, match="zero all over the mask"):
        load(Entry("a", tmp_path / "a"))


def sdps(root, names, bits=16, shared=False):
    """SDPS-Net's layout, with the truth as a picture."""
    root.mkdir()
    (root / "objects.txt").write_text("\n".join(names))
    sample = lambertian()
    for name in names:
        folder = root / name
        folder.mkdir()
        for k, image in enumerate(sample.images):
            write_image(folder / f"l_{k}.png", image)
        (folder / "names.txt").write_text("".join(f"l_{k}.png\n" for k in range(Q)))
        write_image(folder / "mask.png", sample.mask[..., None] * np.uint8(255))
        top = 2**bits - 1
        picture = np.rint((sample.normal + 1) / 2 * top).astype(f"uint{bits}")
        write_image(folder / "normal.png", picture)
        np.savetxt((root if shared else folder) / "light_directions.txt", sample.lights)
        np.savetxt(folder / "light_intensities.txt", sample.intensities)
    return root


@pytest.mark.parametrize(("bits", "shared", "most"), [(16, False, 0.01), (16, True, 0.01), (8, False, 0.4)])
def test_an_sdps_folder(tmp_path, bits, shared, most):
    root = sdps(tmp_path / "set", ["Bunny", "Sphere"], bits, shared)
    entries = find([root])
    assert [entry.name for entry in entries] == ["Bunny", "Sphere"]
    subject = load(entries[0])
    assert subject.capture.names == tuple(f"l_{k}.png" for k in range(Q))  # the truth is no photograph
    assert evaluate(subject, ["ls"]).means["ls"] < most
    assert any("8 bits" in note for note in subject.notes) == (bits == 8)


def test_a_truth_of_another_size_is_named(tmp_path):
    root = sdps(tmp_path / "set", ["Bunny"])
    write_image(root / "Bunny" / "normal.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(UserError, match=r"normal.png is 5x4 and the images 24x24"):
        load(find([root])[0])


def test_objects_are_found_in_every_layout(tmp_path):
    parent, pms, samples = tmp_path / "DiLiGenT", tmp_path / "DiLiGenT" / "pmsData", tmp_path / "samples"
    for folder in (pms, samples, tmp_path / "other"):
        folder.mkdir(parents=True)
    sample = lambertian()
    for folder in (pms / "ballPNG", pms / "catPNG", tmp_path / "other" / "ballPNG"):
        write_diligent(sample, folder)
    for k in (10, 2):
        sample.save(samples / f"{k}.npz")
    (samples / ".part-1-3.npz").touch()  # of a renderer at work

    def names(*folders, only=()):
        return [entry.name for entry in find(folders, only)]

    assert names(parent) == names(pms) == ["ball", "cat"]
    assert names(pms / "catPNG") == ["cat"]
    assert names(samples) == ["2", "10"]
    assert names(samples / "2.npz") == ["2"]
    assert names(pms, samples, only=("10", "ball")) == ["10", "ball"]
    assert names(pms, tmp_path / "other") == ["pmsData/ball", "cat", "other/ball"]
    with pytest.raises(UserError, match="there twice"):
        find([pms, pms])
    with pytest.raises(UserError, match=r"there is no object bal among 2; there are ball"):
        find([pms], ("bal",))


def test_fewer_lights_are_the_same_for_the_same_seed(tmp_path):
    first = chosen(96, 10, 0)
    np.testing.assert_array_equal(first, chosen(96, 10, 0))
    assert len(set(first)) == 10
    assert (np.diff(first) > 0).all()
    assert not np.array_equal(first, chosen(96, 10, 1))
    assert set(first) < set(chosen(96, 32, 0))
    np.testing.assert_array_equal(chosen(5, 7, 0), np.arange(5))
    lambertian().save(tmp_path / "s.npz")
    some = load(Entry("s", tmp_path / "s.npz"), 5, seed=3)
    np.testing.assert_array_equal(some.capture.lights, lambertian().lights[chosen(Q, 5, 3)])
    assert some.capture.images.shape[0] == some.intensities.shape[0] == 5
    assert any(
        "all are taken where 50 are asked for" in note for note in load(Entry("s", tmp_path / "s.npz"), 50).notes
    )


def test_the_bear_can_lose_its_damaged_images(tmp_path):
    for name in ("bearPNG", "catPNG"):
        write_diligent(lambertian(96, 16), tmp_path / name)
    cat, bear = find([tmp_path])  # in the papers' order
    whole = load(bear)
    assert whole.diligent
    assert len(whole.capture.images) == 96
    assert any("--skip-damaged" in note for note in whole.notes)
    subject = load(bear, skip_damaged=True)
    assert subject.capture.names[0] == "021.png"
    assert len(subject.capture.images) == len(subject.intensities) == 76
    assert subject.notes == ()
    assert set(load(bear, 10, skip_damaged=True).capture.names) <= set(subject.capture.names)
    assert len(load(cat).capture.images) == 96
    (tmp_path / "small").mkdir()
    write_diligent(lambertian(20, 16), tmp_path / "small" / "bearPNG")
    other = load(Entry("bear", tmp_path / "small" / "bearPNG"))  # an object of the same name is not DiLiGenT's
    assert (other.diligent, len(other.capture.images)) == (False, 20)


def test_found_lights_are_measured(tmp_path, monkeypatch):
    strengths = np.random.default_rng(2).uniform(0.3, 1, (Q, 1)).repeat(3, 1)
    lambertian(strengths=strengths).save(tmp_path / "s.npz")
    subject = load(Entry("s", tmp_path / "s.npz"))
    lean = math.radians(5)
    turn = np.float32([[1, 0, 0], [0, math.cos(lean), -math.sin(lean)], [0, math.sin(lean), math.cos(lean)]])
    found = subject.capture.lights.astype(np.float32) @ turn.T
    seen = 3 * strengths[:, 0].astype(np.float32)  # no method can know the scale
    monkeypatch.setattr("psfcn.lcnet.decode", lambda _: (torch.from_numpy(found)[None], torch.from_numpy(seen)[None]))
    torch.manual_seed(0)
    outcome = evaluate(subject, ["ls"], None, LCNet().eval())
    cosines = (found * subject.capture.lights).sum(1)
    assert outcome.lights["direction"] == pytest.approx(np.degrees(np.arccos(cosines)).mean(), abs=0.02)
    assert outcome.lights["intensity"] < 1e-5
    assert outcome.means["ls"] == pytest.approx(5, abs=0.6)  # the normals turn with the lights
    picture = sheet("s", subject, outcome)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3


def test_colours_of_errors():
    mask = np.ones((1, 4), bool)
    blue, middle, red, above = error_picture(np.array([[0.0, STEEPEST / 2, STEEPEST, 170.0]]), mask)[0].astype(int)
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert middle[1] > max(blue[1], red[1])
    np.testing.assert_array_equal(red, above)


def outcome(**means):
    return Outcome({}, {}, means, {})


def test_a_table_has_every_object_and_the_average():
    outcomes = {f"object{k}": outcome(ls=float(k), robust=2.0) for k in range(7)}
    text = tables(outcomes, [], width=50)
    assert max(len(line) for line in text.splitlines()) <= 50
    words = text.split()
    assert all(words.count(name) == 1 for name in outcomes)
    assert words.count("average") == 1
    assert text.splitlines()[-2].split()[-1] == "3.00"  # the last block's row of ls
    assert averages(outcomes) == {"ls": 3.0, "robust": 2.0}
    assert "published" not in text


def test_published_rows_are_the_papers():
    ours = {name: outcome(ls=1.0) for name in published.OBJECTS}
    text = tables(ours, published.OBJECTS, width=200)
    row = next(line for line in text.splitlines() if "PS-FCN+N, 96 images" in line)
    assert row.endswith("2.67    4.76    6.17    7.72    7.15    7.53    7.84    10.92    6.72    12.39     7.39")
    for method, cells in (published.CALIBRATED | published.UNCALIBRATED).items():
        assert sum(cells) / 10 == pytest.approx(published.AVERAGES[method], abs=0.006)  # nothing mistyped
    fewer = {label: average for label, cells, average in published.rows(published.OBJECTS, 10) if not cells}
    assert fewer == {"least squares, 10 images": 16.10, "PS-FCN, 10 images": 10.19}
    some = {label: (cells, average) for label, cells, average in published.rows(["cat", "mug", "ball"], 10)}
    assert some["PS-FCN, 96 images"] == ({"ball": 2.82, "cat": 6.16}, pytest.approx(4.49))
    assert len(some) == 4
    assert published.rows(["mug"]) == []
