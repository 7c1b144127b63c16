"""Colours of flow against their definition, .flo files against OpenCV, and ``rife flow`` on real files."""

import json
import math
from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from papershelf.errors import UserError
from papershelf.images import read_image, write_image
from rife.cli_study import flow_command
from rife.flow_color import color_wheel, flow_to_rgb, read_flo, write_flo
from rife.reader import VideoReader
from video_clips import frames_of, make_clip

FLOW = (3.0, -2.0)  # what the network of `moving` says from its new frame to the second one, in pixels


def color_of(u, v, longest=1.0):
    return flow_to_rgb(torch.tensor([[[u]], [[v]]]), longest)[:, 0, 0]


def wheel_by_interpolation(angle):
    """The hue at an angle (radians, clockwise on the screen from "right"), another way round."""
    corners = [0, 15, 21, 25, 36, 49, 55]  # red, yellow, green, cyan, blue, magenta, red
    levels = {"r": [1, 1, 0, 0, 0, 1, 1], "g": [0, 1, 1, 1, 0, 0, 0], "b": [0, 0, 0, 1, 1, 1, 0]}
    place = (angle / (2 * math.pi) % 1) * 55
    return [np.interp(place, corners, levels[c]) for c in "rgb"]


def test_the_wheel_has_55_hues():
    wheel = color_wheel()
    assert wheel.shape == (55, 3)
    assert wheel.amax(1).eq(1).all()
    assert wheel.amin(1).eq(0).all()


@pytest.mark.parametrize(
    ("u", "v", "color"),
    [
        (1, 0, (1, 0, 0)),  # right: red
        (0, 1, (1, 13.75 / 15, 0)),  # down: nearly yellow
        (-1, 0, (0, 1 - 2.5 / 11, 1)),  # left: cyan, a little blue
        (0, -1, (5.25 / 13, 0, 1)),  # up: violet
        (0, 0, (1, 1, 1)),
    ],
)
def test_known_directions(u, v, color):
    assert color_of(float(u), float(v)).tolist() == pytest.approx(color, abs=1e-5)


@given(st.floats(0, 2 * math.pi), st.floats(0, 1))
def test_any_flow_equals_the_definition(angle, length):
    hue = np.array(wheel_by_interpolation(angle))
    expected = 1 - length * (1 - hue)
    found = color_of(length * math.cos(angle), length * math.sin(angle))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_opposite_directions_lie_half_a_wheel_apart():
    """Turning the flow by 180 degrees moves each hue by 27.5 steps of the wheel."""
    wheel = color_wheel()
    for k in range(55):
        angle = 2 * math.pi * k / 55
        assert color_of(math.cos(angle), math.sin(angle)).tolist() == pytest.approx(wheel[k].tolist(), abs=1e-4)
        across = (wheel[(k + 27) % 55] + wheel[(k + 28) % 55]) / 2
        assert color_of(-math.cos(angle), -math.sin(angle)).tolist() == pytest.approx(across.tolist(), abs=1e-4)


def test_hues_have_no_seam():
    angles = torch.linspace(-0.01, 0.01, 21)
    colors = flow_to_rgb(torch.stack([angles.cos(), angles.sin()])[:, None], 1.0)
    assert (colors.diff(dim=2).abs() < 0.02).all()


def test_length_is_saturation():
    full, half = color_of(2.0, 1.0, math.hypot(2, 1)), color_of(1.0, 0.5, math.hypot(2, 1))
    torch.testing.assert_close(half, (1 + full) / 2)
    torch.testing.assert_close(color_of(4.0, 2.0, math.hypot(2, 1)), 0.75 * full)  # beyond the maximum
    torch.testing.assert_close(color_of(8.0, 4.0, None), full)  # the longest in the picture


def test_unknown_flow_is_black():
    flow = torch.zeros(2, 1, 4)
    flow[0] = torch.tensor([math.nan, 1e10, math.inf, 1.0])
    colors = flow_to_rgb(flow)
    assert colors[:, 0, :3].eq(0).all()
    torch.testing.assert_close(colors[:, 0, 3], torch.tensor([1.0, 0.0, 0.0]))


def test_flo_files_are_middleburys(tmp_path):
    flow = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    write_flo(tmp_path / "a.flo", flow)
    data = (tmp_path / "a.flo").read_bytes()
    assert np.frombuffer(data, "<f4", 1)[0] == 202021.25
    assert np.frombuffer(data, "<i4", 2, 4).tolist() == [7, 5]
    np.testing.assert_array_equal(cv2.readOpticalFlow(str(tmp_path / "a.flo")), flow.permute(1, 2, 0))
    assert torch.equal(read_flo(tmp_path / "a.flo"), flow)
    cv2.writeOpticalFlow(str(tmp_path / "b.flo"), flow.permute(1, 2, 0).numpy().copy())
    assert torch.equal(read_flo(tmp_path / "b.flo"), flow)


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"PNG?", "no .flo file"), (b"PIEH" + bytes(8), "says 0x0"), (b"PIEH\1\0\0\0\1\0\0\0xyz", "damaged or cut off")],
)
def test_damaged_flo_files(tmp_path, data, said):
    (tmp_path / "a.flo").write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_flo(tmp_path / "a.flo")


# ---------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """Weights of a small network that finds the same flow everywhere: FLOW to the second frame, -FLOW to the first."""
    from rife.model import Rife
    from rife.presets import V4_6

    from rife import checkpoints

    model = Rife(replace(V4_6, widths=(8, 8, 8, 8)))
    for block in model.blocks:
        for parameter in block.head.parameters():
            torch.nn.init.zeros_(parameter)
    last = model.blocks[-1]  # which works at full size; its head gives 2x2 pixels of each channel
    values = torch.tensor([-FLOW[0], -FLOW[1], *FLOW, 0, 0]).repeat_interleave(4)
    with torch.no_grad():
        last.head[0].bias.copy_(values / last.style.shrink)
    path = tmp_path_factory.mktemp("weights") / "moving.safetensors"
    checkpoints.save(model, path, {})
    return path


@pytest.fixture
def run(moving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*args, code=0):
        options = ["--weights", str(moving), "--device", "cpu", "--json"]
        result = CliRunner().invoke(flow_command, [*map(str, args), *options])
        assert result.exit_code == code, result.output
        assert not list(tmp_path.rglob(".part-*"))
        return json.loads(result.stdout) if code == 0 else result.stderr.strip().splitlines()[-1]

    return call


@pytest.fixture
def two_images(tmp_path):
    rng = np.random.default_rng(0)
    names = [tmp_path / "a.png", tmp_path / "b.png"]
    for name in names:
        write_image(name, rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    return names


@pytest.mark.parametrize(("field", "factor"), [("motion", 2), ("to-b", 1), ("to-a", -1)])
def test_the_flow_of_two_images(run, two_images, tmp_path, field, factor):
    made = run(*two_images, "--field", field, "-o", "flow.flo")
    expected = torch.tensor(FLOW).view(2, 1, 1).expand(2, 40, 48) * factor
    torch.testing.assert_close(read_flo(tmp_path / "flow.flo"), expected, atol=1e-5, rtol=1e-5)
    assert made["longest"] == pytest.approx(abs(factor) * math.hypot(*FLOW))


def test_its_picture_and_that_of_its_file_are_one(run, two_images, tmp_path):
    made = run(*two_images, "--max", 10)
    assert made["output"].endswith("a_flow.png")
    picture = read_image(tmp_path / "a_flow.png")
    assert picture.shape == (40, 48, 3)
    expected = color_of(2 * FLOW[0], 2 * FLOW[1], 10.0) * 255
    np.testing.assert_allclose(picture, np.broadcast_to(expected, picture.shape), atol=0.51)
    run(*two_images, "-o", "flow.flo")
    run("flow.flo", "--max", 10, "-o", "again.png")
    np.testing.assert_array_equal(read_image(tmp_path / "again.png"), picture)


def test_a_sheet_shows_frames_flows_and_mask(run, two_images, tmp_path):
    run(*two_images, "--sheet", "-o", "sheet.png")
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (80, 144, 3)
    parts = [[sheet[y : y + 40, x : x + 48] for x in (0, 48, 96)] for y in (0, 40)]
    lower = slice(20, None)  # below the labels
    np.testing.assert_array_equal(parts[0][0][lower], read_image(two_images[0])[lower])
    np.testing.assert_array_equal(parts[0][2][lower], read_image(two_images[1])[lower])
    assert not np.array_equal(parts[0][0][:14], read_image(two_images[0])[:14])  # its label
    assert (parts[1][1][lower] == 128).all()  # an even mask
    assert (parts[1][0][lower] == np.rint(255 * color_of(*(-x for x in FLOW), math.hypot(*FLOW)).numpy())).all()
    assert (parts[1][2][lower] == np.rint(255 * color_of(*FLOW, math.hypot(*FLOW)).numpy())).all()
    a, b = (
        np.roll(read_image(path).astype(float), (round(way * FLOW[1]), round(way * FLOW[0])), (0, 1))
        for path, way in ((two_images[0], 1), (two_images[1], -1))
    )
    middle = slice(20, 36), slice(8, 40)
    np.testing.assert_allclose(parts[0][1][middle], ((a + b) / 2)[middle], atol=1)


def test_a_video_keeps_its_size_and_times(run, tmp_path):
    source = make_clip(tmp_path / "in.mp4", 5, pts=[0, 10, 30, 40, 50], options={"bf": "0"}, aspect=Fraction(4, 3))
    made = run(source, "--max", 10)
    frames = frames_of(tmp_path / "in_flow.mp4")
    assert made["pictures"] == len(frames) == 6  # 0.24 s
    assert (frames[0].frame.width, frames[0].frame.height) == (64, 48)
    assert made["notes"] == []
    with VideoReader(tmp_path / "in_flow.mp4") as reader:
        assert reader.info.sample_aspect_ratio == Fraction(4, 3)
    picture = frames[2].frame.to_ndarray(format="rgb24")[24, 32] / 255
    np.testing.assert_allclose(picture, color_of(2 * FLOW[0], 2 * FLOW[1], 10.0), atol=0.05)


def test_a_folder_gives_a_picture_for_each_pair(run, two_images, tmp_path):
    (tmp_path / "frames").mkdir()
    for path in two_images:
        path.rename(tmp_path / "frames" / path.name)
    made = run(tmp_path / "frames")
    assert [p.name for p in (tmp_path / "frames_flow").iterdir()] == ["00000000.png"]
    # In a sequence the scale is fixed: a 20th of the width.
    expected = color_of(2 * FLOW[0], 2 * FLOW[1], 48 / 20) * 255
    np.testing.assert_allclose(read_image(tmp_path / "frames_flow/00000000.png")[0, 0], expected, atol=0.51)
    assert made["pictures"] == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a.png"], "is one image"),
        (["a.png", "c.png"], "one size, got 48x40 and 8x8"),
        (["a.png", "b.png", "-o", "a.png"], "is the input itself"),
        (["a.png", "b.png", "-o", "b.png"], "is the input itself"),
        (["a.png", "b.png", "-o", "c.png"], "pass -y"),
        (["a.png", "b.png", "--sheet", "-o", "x.flo"], "cannot hold a sheet"),
        (["a.png", "b.png", "-o", "x.gif"], "cannot write x.gif"),
        (["one.mp4"], "single frame"),
        (["missing.mp4"], "no such file"),
    ],
)
def test_refusals(run, two_images, tmp_path, args, said):
    write_image(tmp_path / "c.png", np.zeros((8, 8, 3), np.uint8))
    make_clip(tmp_path / "one.mp4", 1)
    before = sorted(p.name for p in tmp_path.iterdir())
    line = run(*args, code=1)
    assert line.startswith("Error: ")
    assert said in line
    assert sorted(p.name for p in tmp_path.iterdir()) == before
