"""Captures in every layout, each written by the test, and what is said of data that would go wrong."""

import cv2
import numpy as np
import pytest
from papershelf.errors import UserError
from papershelf.images import write_image
from PIL import Image
from psfcn.captures import ReadOptions, linear, read, read_objects
from psfcn.light_files import natural_order, read_intensities, read_lights, write_lights
from psfcn.masks import propose
from scipy.io import savemat

Q, SIZE = 12, 48


def ball(count=Q, seed=0):
    """Images ``[Q, H, W, 3]`` of a Lambertian ball in linear light, lights, normals and mask."""
    rng = np.random.default_rng(seed)
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 0.3, count)
    lean = rng.uniform(0.2, 0.7, count)
    lights = np.stack([np.sin(lean) * np.cos(turn), np.sin(lean) * np.sin(turn), np.cos(lean)], -1)
    x, y = np.meshgrid(np.linspace(-1.3, 1.3, SIZE), np.linspace(1.3, -1.3, SIZE))  # y up
    mask = x**2 + y**2 < 1
    normals = np.stack([x, y, np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))], -1) * mask[..., None]
    shading = np.clip(np.einsum("qi,hwi->qhw", lights, normals), 0, 1)
    return (0.9 * shading[..., None] * [1, 0.8, 0.6]).astype(np.float32), lights, normals, mask


def to_png(path, image, bits=16):
    top = 2**bits - 1
    write_image(path, (image.clip(0, 1) * top).round().astype(np.uint16 if bits == 16 else np.uint8))


def write_folder(folder, *, bits=16, lights=True, mask=True, suffix=".png", gamma=1.0):
    folder.mkdir(parents=True, exist_ok=True)
    images, directions, normals, region = ball()
    for k, image in enumerate(images ** (1 / gamma), 1):
        to_png(folder / f"im{k}{suffix}", image, bits)
    if lights:
        write_lights(folder / "light_directions.txt", directions)
    if mask:
        write_image(folder / "mask.png", (region[..., None] * np.uint8(255)))
    return images, directions, normals, region


def test_a_plain_folder(tmp_path):
    images, directions, _, region = write_folder(tmp_path)
    found = read(tmp_path)
    np.testing.assert_allclose(found.images, images, atol=1e-5)
    np.testing.assert_allclose(found.lights, directions, atol=1e-6)
    np.testing.assert_array_equal(found.mask, region)
    assert found.names[:2] == ("im1.png", "im2.png")
    assert found.names[-1] == "im12.png"  # not between im1 and im2
    assert found.notes == ()


def test_a_diligent_object(tmp_path):
    folder = tmp_path / "ballPNG"
    images, _, normals, region = write_folder(folder)
    strength = np.linspace(0.5, 1, Q * 3).reshape(Q, 3)
    for k in range(Q):
        to_png(folder / f"{k + 1:03d}.png", images[k] * strength[k])
        (folder / f"im{k + 1}.png").unlink()
    (folder / "filenames.txt").write_text("".join(f"{k + 1:03d}.png\n" for k in range(Q)))
    np.savetxt(folder / "light_intensities.txt", strength)
    savemat(folder / "Normal_gt.mat", {"Normal_gt": 2 * normals})
    found = read(folder)
    np.testing.assert_allclose(found.images, images, atol=1e-4)
    np.testing.assert_allclose(found.normals[region], normals[region], atol=1e-6)
    assert read_objects(tmp_path) == [("ball", folder)]


def test_an_sdps_object_lists_its_images(tmp_path):
    folder = tmp_path / "Ball"
    write_folder(folder, lights=False)
    (folder / "names.txt").write_text("im3.png\nim1.png\n")
    (tmp_path / "objects.txt").write_text("Ball\n")
    found = read(read_objects(tmp_path)[0][1])
    assert found.names == ("im3.png", "im1.png")
    assert found.lights is None


def test_an_sdm_unips_folder(tmp_path):
    folder = tmp_path / "cup.data"
    images, *_ = write_folder(folder, lights=False)
    to_png(folder / "normal.tif", images[0])
    assert len(read(tmp_path).names) == Q


def test_an_lp_file_gives_each_image_its_light(tmp_path):
    _, directions, *_ = write_folder(tmp_path, lights=False)
    names = [f"im{k + 1}.png" for k in range(Q)]
    write_lights(tmp_path / "dome.lp", directions[::-1], tuple(names[::-1]))
    found = read(tmp_path)  # the folder's own order
    np.testing.assert_allclose(found.lights, directions, atol=1e-6)
    assert found.names == tuple(names)
    assert read(tmp_path / "dome.lp").names == tuple(names[::-1])


def test_a_list_file_whose_paths_begin_elsewhere(tmp_path):
    images, directions, _, region = write_folder(tmp_path / "ball", lights=False, mask=False)
    for k in range(Q):
        Image.fromarray((images[k] * 255).round().astype(np.uint8)).save(tmp_path / "ball" / f"ball.{k}.tga")
    Image.fromarray((region * 255).astype(np.uint8)).save(tmp_path / "ball" / "ball.mask.tga")
    lines = [str(Q), *(f"psmImages/ball/ball.{k}.tga" for k in range(Q)), "psmImages/ball/ball.mask.tga"]
    (tmp_path / "ball.txt").write_text("\n".join(lines))
    write_lights(tmp_path / "lights.lp", directions, tuple(f"ball.{k}.tga" for k in range(Q)))
    found = read(tmp_path / "ball.txt", ReadOptions(lights=tmp_path / "lights.lp"))
    np.testing.assert_allclose(found.images, images, atol=0.003)
    np.testing.assert_array_equal(found.mask, region)


def test_a_missing_mask_is_proposed_and_said(tmp_path):
    *_, region = write_folder(tmp_path, mask=False)
    found = read(tmp_path)
    assert (found.mask & region).sum() / (found.mask | region).sum() > 0.93
    assert "proposed" in found.notes[0]


def test_a_black_capture_has_no_object(tmp_path):
    for k in range(3):
        to_png(tmp_path / f"{k}.png", np.zeros((8, 8, 3)))
    assert not propose(np.zeros((3, 8, 8, 3))).any()
    with pytest.raises(UserError, match="mask is empty"):
        read(tmp_path)


def test_gamma_is_noticed_and_undone(tmp_path):
    images, *_ = write_folder(tmp_path, gamma=2.2)
    assert any("gamma" in note for note in read(tmp_path).notes)
    undone = read(tmp_path, ReadOptions(gamma="2.2"))
    np.testing.assert_allclose(undone.images, images, atol=2e-4)
    assert undone.notes == ()


def test_srgb_is_the_standard_s_curve():
    encoded = np.array([0, 0.04, 0.5, 1], np.float32)
    np.testing.assert_allclose(linear(encoded, "srgb"), [0, 0.0030960, 0.2140411, 1], rtol=1e-4)
    with pytest.raises(UserError, match="gamma"):
        linear(encoded, "bright")


@pytest.mark.parametrize("axis", ["x", "y"])
def test_lights_with_an_axis_turned_round_are_noticed(tmp_path, axis):
    _, directions, *_ = write_folder(tmp_path)
    write_lights(tmp_path / "wrong.txt", directions * [-1 if axis == a else 1 for a in "xyz"])
    (note,) = read(tmp_path, ReadOptions(lights=tmp_path / "wrong.txt")).notes
    assert f"--flip-lights {axis}" in note
    assert read(tmp_path, ReadOptions(lights=tmp_path / "wrong.txt", flip_lights=axis)).notes == ()


def test_lights_that_point_away_or_are_not_unit_are_noticed(tmp_path):
    _, directions, *_ = write_folder(tmp_path)
    write_lights(tmp_path / "far.txt", 3 * directions)
    found = read(tmp_path, ReadOptions(lights=tmp_path / "far.txt"))
    assert "unit length" in found.notes[0]
    np.testing.assert_allclose(np.linalg.norm(found.lights, axis=1), 1)
    write_lights(tmp_path / "away.txt", -directions)
    assert "point away" in read(tmp_path, ReadOptions(lights=tmp_path / "away.txt")).notes[0]


def test_sixteen_bits_read_as_eight_are_noticed(tmp_path):
    images, *_ = write_folder(tmp_path)
    for k in range(Q):
        write_image(tmp_path / f"im{k + 1}.png", (images[k] * 30).astype(np.uint8))
    assert any("16-bit" in note for note in read(tmp_path).notes)


def test_overexposure_is_noticed(tmp_path):
    images, *_ = write_folder(tmp_path)
    for k in range(Q):
        to_png(tmp_path / f"im{k + 1}.png", images[k] * 3)
    assert any("overexposed" in note for note in read(tmp_path).notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.txt", "0 0 1\n0 0.6 0.8\n"),
        ("counted.txt", "2\n0 0 1\n0 0.6 0.8\n"),
        ("commas.csv", "0,0,1\n0, 0.6, 0.8\n"),
        ("dome.lp", "2\na.jpg 0 0 1\nwith space.jpg 0 0.6 0.8\n"),
    ],
)
def test_forms_of_light_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    np.testing.assert_allclose(read_lights(tmp_path / name).directions, [[0, 0, 1], [0, 0.6, 0.8]])


@pytest.mark.parametrize("turned", [False, True])
def test_lights_of_opencv(tmp_path, turned):
    directions = np.array([[0, 0, 1], [0, 0.6, 0.8], [0.6, 0, 0.8], [-0.6, 0, 0.8]])
    file = cv2.FileStorage(str(tmp_path / "lights.yml"), cv2.FILE_STORAGE_WRITE)
    file.write("Lights", np.ascontiguousarray(directions.T if turned else directions))
    file.release()
    np.testing.assert_allclose(read_lights(tmp_path / "lights.yml").directions, directions)


def test_intensities_of_one_number_hold_for_all_channels(tmp_path):
    (tmp_path / "i.txt").write_text("1\n2\n")
    np.testing.assert_array_equal(read_intensities(tmp_path / "i.txt"), [[1, 1, 1], [2, 2, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("3\n0 0 1\n", "announces 3 lights and lists 1"),
        ("0 0 1\n0 up 1\n", "l.txt:2: expected `x y z`"),
        ("0 0 nan\n", "not finite"),
        ("many\n0 0 1\n", "how many"),
    ],
)
def test_light_files_that_are_wrong(tmp_path, text, message):
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_lights(tmp_path / "l.txt")


def test_captures_that_do_not_fit_together(tmp_path):
    _, directions, *_ = write_folder(tmp_path)
    write_lights(tmp_path / "few.txt", directions[:5])
    with pytest.raises(UserError, match="5 lights and there are 12 images"):
        read(tmp_path, ReadOptions(lights=tmp_path / "few.txt"))
    write_image(tmp_path / "small.png", np.zeros((4, 4, 1), np.uint8))
    with pytest.raises(UserError, match="4x4 and the images 48x48"):
        read(tmp_path, ReadOptions(mask=tmp_path / "small.png"))
    to_png(tmp_path / "im5.png", np.zeros((10, 10, 3)))
    with pytest.raises(UserError, match=r"im5.png is 10x10 uint16"):
        read(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match="no objects"):
        read_objects(tmp_path / "empty")


def test_files_are_in_the_order_people_expect():
    assert sorted(["b10.png", "b9.png", "A2.png"], key=natural_order) == ["A2.png", "b9.png", "b10.png"]
