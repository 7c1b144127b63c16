"""Camera files of every format, written as each format says and read back to the same projection."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from distrender import camera_files
from distrender.cameras import Camera
from papershelf import images
from papershelf.errors import UserError

POINTS = torch.tensor([[0.1, 0.2, -0.3], [0.0, 0.0, 0.0], [-0.5, 0.3, 0.2], [0.4, -0.4, 0.4]])


@pytest.fixture(name="camera")
def _camera():
    eyes = torch.tensor([[0.3, 1.0, 2.0], [2.4, 0.2, 0.1]], dtype=torch.float64)
    return Camera.look_at(eyes, focal=300.0, size=(120, 160))


def assert_sees_the_same(found, camera, shift=0.0):
    """Compare pixels; files that count from the first pixel's centre hold them ``shift`` lower."""
    assert found.size == camera.size
    pixels, z = found.project(POINTS)
    expected, expected_z = camera.to(torch.float32).project(POINTS)
    torch.testing.assert_close(pixels, expected + shift, atol=2e-3, rtol=0)
    torch.testing.assert_close(z, expected_z)


def write_picture(path, size=(120, 160)):
    path.parent.mkdir(exist_ok=True)
    images.write_image(path, np.zeros((*size, 3), np.uint8))


def write_middlebury(path, camera):
    rows = [
        f"im{k}.png " + " ".join(f"{v:.17g}" for v in torch.cat([a.flatten(), b.flatten(), c]).tolist())
        for k, (a, b, c) in enumerate(zip(camera.intrinsics, camera.rotation, camera.translation, strict=True))
    ]
    path.write_text("\n".join([str(len(rows)), *rows]) + "\n")


def test_ours_round_trip(tmp_path, camera):
    path = tmp_path / "cameras.json"
    camera_files.write(path, camera, ["left", "right"])
    found = camera_files.read_named(path)
    assert found.names == ("left", "right")
    assert_sees_the_same(found.cameras, camera)
    camera_files.write(path, found.cameras)
    assert camera_files.read_named(path).names == ("view_000", "view_001")


def test_middlebury(tmp_path, camera):
    path = tmp_path / "some_par.txt"
    write_middlebury(path, camera)
    with pytest.raises(UserError, match=r"im0\.png is not beside it; give the size"):
        camera_files.read(path)
    assert_sees_the_same(camera_files.read(path, (120, 160)), camera, 0.5)
    write_picture(tmp_path / "im0.png")
    found = camera_files.read_named(path)
    assert_sees_the_same(found.cameras, camera, 0.5)
    assert found.names == ("im0.png", "im1.png")


@pytest.mark.parametrize("sign", [1, -1])
def test_idr_takes_the_unit_ball_to_pixels(tmp_path, camera, sign):
    scale = np.diag([2.5, 2.5, 2.5, 1.0])
    scale[:3, 3] = 0.3, -0.2, 0.1
    matrices = {}
    for k in range(2):
        world = np.eye(4)
        pose = torch.cat([camera.rotation[k], camera.translation[k][:, None]], 1)
        world[:3] = sign * 1.7 * (camera.intrinsics[k] @ pose).numpy() @ np.linalg.inv(scale)
        matrices |= {f"world_mat_{k}": world, f"scale_mat_{k}": scale, f"world_mat_inv_{k}": np.linalg.inv(world)}
    np.savez(tmp_path / "cameras.npz", **matrices)
    write_picture(tmp_path / "image" / "000.png")
    write_picture(tmp_path / "image" / "001.png")
    found = camera_files.read_named(tmp_path / "cameras.npz")
    assert found.names == ("image/000.png", "image/001.png")
    assert_sees_the_same(found.cameras, camera, 0.5)
    torch.testing.assert_close(found.cameras.rotation, camera.rotation.float())


def test_colmap(tmp_path, camera):
    from scipy.spatial.transform import Rotation

    (tmp_path / "cameras.txt").write_text(
        "# comment\n1 PINHOLE 160 120 300 300 80 60\n2 SIMPLE_PINHOLE 160 120 300 80 60\n"
    )
    lines = ["# Image list", "# Number of images: 2"]
    for k in (1, 0):
        x, y, z, w = Rotation.from_matrix(camera.rotation[k].numpy()).as_quat()
        numbers = " ".join(f"{v:.17g}" for v in (w, x, y, z, *camera.translation[k].tolist()))
        lines += [f"{k + 7} {numbers} {k + 1} view {k}.png", "12.5 3.5 -1 8.0 9.0 4" if k else ""]
    (tmp_path / "images.txt").write_text("\n".join(lines) + "\n")
    found = camera_files.read_named(tmp_path)
    assert found.names == ("view 0.png", "view 1.png")
    assert_sees_the_same(found.cameras, camera)


def test_colmap_with_distortion_is_refused(tmp_path):
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_RADIAL 160 120 300 80 60 0.01\n")
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n")
    with pytest.raises(UserError, match=r"camera 1 is SIMPLE_RADIAL, which has distortion; undistort"):
        camera_files.read(tmp_path)
    (tmp_path / "cameras.txt").unlink()
    with pytest.raises(UserError, match=r"cameras\.txt beside it"):
        camera_files.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a_par.txt", "2\nim0.png 1 2 3\n"),
        ("a_par.txt", "1\nim0.png 1 2 3\n"),
        ("a_par.txt", ""),
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", json.dumps({"size": [4, 4], "views": [{"name": "x"}]})),
        ("cameras.npz", "text"),
        ("images.txt", "# nothing\n"),
    ],
)
def test_broken_files_are_told_in_one_line(tmp_path, name, content):
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 160 120 300 300 80 60\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name) as caught:
        camera_files.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path, camera):
    with pytest.raises(UserError, match="no such file"):
        camera_files.read(tmp_path / "cameras.npz")
    (tmp_path / "a.xml").write_text("<x/>")
    with pytest.raises(UserError, match=r"got '\.xml'"):
        camera_files.read(tmp_path / "a.xml")
    with pytest.raises(UserError, match="2 views need as many names, got 1"):
        camera_files.write(tmp_path / "a.json", camera, ["one"])


def test_the_dinosaur_is_where_its_readme_says():
    if not os.environ.get("PAPERSHELF_DATA"):
        pytest.skip("PAPERSHELF_DATA is not set")
    folder = Path(os.environ["PAPERSHELF_DATA"]) / "multiview" / "dino_sparse_ring"
    found = camera_files.read_named(folder / "dinoSR_par.txt")
    assert len(found.cameras) == 16
    assert found.cameras.size == (480, 640)
    low, high = torch.tensor([-0.061897, -0.018874, -0.057845]), torch.tensor([0.010897, 0.068227, 0.015495])
    middle = (low + high) / 2
    pixels, z = found.cameras.project(middle[None])
    assert (z > 0.5).all()
    assert (pixels > 0).all()
    assert (pixels < torch.tensor([640.0, 480.0])).all()
    bright = [images.read_image(folder / name).mean(-1) for name in found.names]
    for picture, (x, y) in zip(bright, pixels[:, 0].tolist(), strict=True):
        around = picture[int(y) - 20 : int(y) + 20, int(x) - 20 : int(x) + 20]
        assert around.mean() > 1.4 * picture.mean()  # the dinosaur, before a black background
