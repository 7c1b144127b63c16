"""Lights from balls: mirror and matt ones drawn by formula, found in masks and by their outline, and the real ones."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from psfcn.angles import degrees
from psfcn.balls import Ball, ball_normals, find_balls, see_ball
from psfcn.calibration import from_chrome_balls, from_matt_balls, shared_light
from psfcn.calibration_run import Options, angles_to, calibrate
from psfcn.captures import read
from psfcn.classical import solve
from scipy import ndimage

DATA = os.environ.get("PAPERSHELF_DATA")
BALL, SIZE = Ball(80.3, 70.6, 60.0), (140, 160)


def direction(lean, turn):
    lean, turn = np.radians(lean), np.radians(turn)
    return np.array([np.sin(lean) * np.cos(turn), np.sin(lean) * np.sin(turn), np.cos(lean)])


def mirror(light, ball=BALL, size=SIZE, sharp=400, room=0.05):
    """A chrome ball that reflects one round lamp: its brightness, averaged over the area of each pixel."""
    fine = 4
    large = Ball(ball.x * fine, ball.y * fine, ball.radius * fine)
    normals, inside = ball_normals(large, (size[0] * fine, size[1] * fine))
    reflected = 2 * normals[..., 2:] * normals - [0, 0, 1]
    picture = (np.exp(sharp * (reflected @ light - 1)) + room) * inside
    return picture.reshape(size[0], fine, size[1], fine).mean((1, 3))


def matt(light, colour, ball=BALL, size=SIZE):
    normals, inside = ball_normals(ball, size)
    return np.clip(normals @ light, 0, None)[..., None] * colour * inside[..., None]


def one(picture, balls=(BALL,), steady=None):
    return from_chrome_balls([picture], balls, ["a.png"], steady).directions[0]


LIGHTS = np.array([direction(lean, turn) for lean, turn in [(5, 0), (30, 80), (45, 200), (60, 300), (20, 140)]])


@settings(max_examples=30, deadline=None)
@given(lean=st.floats(0, 80), turn=st.floats(0, 360), x=st.floats(65, 95), y=st.floats(64, 76))
def test_the_light_is_where_its_reflection_says(lean, turn, x, y):
    light = direction(lean, turn)
    ball = Ball(x, y, 60)
    mask = ball_normals(ball, SIZE)[1]
    assert degrees(one(mirror(light, ball), find_balls(mask)), light) < 0.5


def test_wide_lamps_blur_and_clipping_move_nothing():
    light = direction(40, 30)
    picture = mirror(light)
    assert degrees(one(mirror(light, sharp=40)), light) < 0.5
    assert degrees(one(np.minimum(picture, 0.3)), light) < 0.5
    assert degrees(one(ndimage.gaussian_filter(picture, 2)), light) < 0.7
    hot = picture.copy()
    hot[90, 40] = 1.0
    assert degrees(one(hot), light) < 0.5


def test_what_all_photographs_share_is_no_lamp():
    window = mirror(direction(70, 180), sharp=60)  # larger than the lamp, and as bright
    pictures = [np.clip(mirror(light) + window, 0, 1) for light in LIGHTS]
    _, least = shared_light(pictures)
    found = from_chrome_balls(pictures, [BALL], list("abcde"), least)
    assert degrees(found.directions, LIGHTS).max() < 0.5
    assert degrees(from_chrome_balls(pictures, [BALL], list("abcde")).directions, LIGHTS).max() > 50
    same = [mirror(LIGHTS[2])] * 3  # one lamp throughout is not taken off
    found = from_chrome_balls(same, [BALL], list("abc"), shared_light(same)[1])
    assert degrees(found.directions, LIGHTS[2]).max() < 0.5


def test_several_balls_give_their_mean_and_say_how_far_apart_they_are():
    size = (140, 330)
    balls = [Ball(80, 70, 60), Ball(240, 70, 50)]
    left, right = direction(30, 10), direction(36, 10)
    picture = mirror(left, balls[0], size) + mirror(right, balls[1], size)
    mask = ball_normals(balls[0], size)[1] | ball_normals(balls[1], size)[1]
    mask[5, 325] = True  # a crumb
    found_balls = find_balls(mask)
    assert [round(ball.radius) for ball in found_balls] == [60, 50]
    found = from_chrome_balls([picture], found_balls, ["a.png"])
    assert degrees(found.directions[0], direction(33, 10)) < 0.5
    assert found.spread[0] == pytest.approx(3, abs=0.4)
    assert found.marks.shape == (1, 2, 2)
    assert not found.notes
    far = mirror(left, balls[0], size) + mirror(direction(50, 10), balls[1], size)
    assert "off their mean" in from_chrome_balls([far], found_balls, ["a.png"]).notes[0]


def test_two_lamps_and_lamps_behind_are_told():
    both = np.maximum(mirror(direction(20, 0), sharp=200), mirror(direction(40, 200)))
    found = from_chrome_balls([both], [BALL], ["a.png"])
    assert degrees(found.directions[0], direction(20, 0)) < 0.5
    assert "a.png: two highlights" in from_chrome_balls([both], [BALL], ["a.png"]).notes[0]
    assert "behind the ball" in from_chrome_balls([mirror(direction(105, 0))], [BALL], ["a.png"]).notes[0]


def test_photographs_without_a_highlight_are_refused():
    inside = ball_normals(BALL, SIZE)[1]
    with pytest.raises(UserError, match=r"a.png: the chrome ball is black"):
        one(np.zeros(SIZE))
    with pytest.raises(UserError, match=r"no highlight.*--mode matt"):
        one(matt(direction(20, 0), 1.0)[..., 0])
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="no highlight"):
        one(rng.integers(0, 3, SIZE) / 255.0)
    pictures = [mirror(light) for light in LIGHTS]
    pictures[3] = 0.02 * mirror(direction(50, 20)) * inside  # what is left when a lamp did not fire
    with pytest.raises(UserError, match=r"d: no highlight on the ball .*leave the photograph out"):
        from_chrome_balls(pictures, [BALL], list("abcde"))


def test_balls_in_masks_are_measured_in_fractions_of_a_pixel():
    for ball in (BALL, Ball(70.9, 66.2, 33.4)):
        found = find_balls(ball_normals(ball, SIZE)[1])[0]
        assert np.hypot(found.x - ball.x, found.y - ball.y) < 0.15
        assert found.radius == pytest.approx(ball.radius, abs=0.15)
    mask = ball_normals(BALL, SIZE)[1]
    mask[122:] = False  # a stand, or the picture's edge
    found = find_balls(mask)[0]
    assert np.hypot(found.x - BALL.x, found.y - BALL.y) < 0.6
    cut = find_balls(ball_normals(BALL, SIZE)[1][:, 30:])[0]  # the picture ends within the ball
    assert cut.x == pytest.approx(BALL.x - 30, abs=0.2)


@pytest.mark.parametrize("shape", ["square", "ellipse", "half", "ball and square"])
def test_what_is_no_disc_is_refused(shape):
    y, x = np.mgrid[:140, :160]
    mask = {
        "square": (abs(x - 80) < 40) & (abs(y - 70) < 40),
        "ellipse": ((x - 80) / 60) ** 2 + ((y - 70) / 45) ** 2 < 1,
        "half": ball_normals(BALL, SIZE)[1] & (y < 70),
        "ball and square": ball_normals(Ball(50, 60, 40), SIZE)[1] | ((x > 110) & (y > 100)),
    }[shape]
    with pytest.raises(UserError, match="no disc"):
        find_balls(mask)
    with pytest.raises(UserError, match="empty"):
        find_balls(np.zeros((9, 9), bool))


def scene(ball, size, rng):
    """A dim ball that shows the room, before a brighter wall with a table's edge, and noise."""
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.where(y < 0.7 * size[0], 0.20, 0.04) + 0.01 * np.sin(x / 9)
    normals, inside = ball_normals(ball, size)
    room = 0.05 + 0.05 * (normals[..., 1] > 0.3) + mirror(direction(30, 60), ball, size)
    return np.where(inside, room, picture) + rng.normal(0, 0.002, size)


@pytest.mark.parametrize("ball", [Ball(150, 90, 62), Ball(70.5, 100.2, 41)])
def test_a_ball_is_seen_by_its_outline(ball):
    found = see_ball(scene(ball, (200, 260), np.random.default_rng(1)))
    assert np.hypot(found.x - ball.x, found.y - ball.y) < 1
    assert found.radius == pytest.approx(ball.radius, abs=1)


def test_no_ball_is_seen_where_there_is_none():
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.random((150, 200)), 4)
    y, x = np.mgrid[:150, :200]
    box = 0.2 + 0.5 * ((abs(x - 90) < 40) & (abs(y - 70) < 35)) + rng.normal(0, 0.004, (150, 200))
    for picture in (noise, box, np.zeros((150, 200)), np.ones((150, 200)), np.ones((4, 5))):
        with pytest.raises(UserError, match=r"no ball is seen.*--mask"):
            see_ball(picture)


def test_a_matt_ball_tells_directions_and_intensities():
    strengths = np.array([[0.2, 0.3, 0.4], [0.6, 0.5, 0.4], [0.3, 0.3, 0.3], [0.9, 0.9, 0.8], [0.5, 0.7, 0.6]])
    rng = np.random.default_rng(0)
    images = [
        (matt(light, e) + rng.normal(0, 0.004, (*SIZE, 3))).clip(0) for light, e in zip(LIGHTS, strengths, strict=True)
    ]
    for image, light in zip(images, LIGHTS, strict=True):
        image += 0.3 * mirror(light, room=0)[..., None]  # a gloss
    found = from_matt_balls(images, [BALL], list("abcde"))
    assert degrees(found.directions, LIGHTS).max() < 0.5
    np.testing.assert_allclose(found.intensities, strengths / strengths.mean(), rtol=0.02)
    known = from_matt_balls(images, [BALL], list("abcde"), LIGHTS)
    np.testing.assert_array_equal(known.directions, LIGHTS)
    np.testing.assert_allclose(known.intensities, strengths / strengths.mean(), rtol=0.01)


def test_balls_that_are_not_matt_are_refused():
    with pytest.raises(UserError, match=r"no matt shading.*--mode chrome"):
        from_matt_balls([np.repeat(mirror(LIGHTS[1])[..., None], 3, 2)], [BALL], ["a"])
    with pytest.raises(UserError, match="black"):
        from_matt_balls([np.zeros((*SIZE, 3))], [BALL], ["a"])
    with pytest.raises(UserError, match="overexposed"):
        from_matt_balls([np.ones((*SIZE, 3))], [BALL], ["a"])
    with pytest.raises(UserError, match="does not reach"):
        from_matt_balls([matt(LIGHTS[0], 0.5)], [BALL], ["a"], np.array([[0, 0, -1.0]]))


@pytest.mark.skipif(not DATA, reason="PAPERSHELF_DATA is not set: real photographs are not at hand")
def test_the_real_balls_agree_with_each_other_and_all_but_two_lights_with_their_file(tmp_path):
    folder = Path(DATA or "") / "photometric_stereo" / "uw"
    drawn = calibrate(Options(folder / "chrome.txt"))
    (tmp_path / "chrome").mkdir()
    for k in range(12):
        (tmp_path / "chrome" / f"chrome.{k}.tga").symlink_to((folder / "chrome" / f"chrome.{k}.tga").resolve())
    seen = calibrate(Options(tmp_path / "chrome"))  # without the mask
    for chrome in (drawn, seen):
        apart = angles_to(chrome, folder / "lights.txt")
        assert apart[:2].min() > 5  # the file's first two lights are off
        assert apart[2:].max() < 5
        assert np.median(apart[2:]) < 2.5
    assert degrees(drawn.found.directions, seen.found.directions).max() < 2
    gray = calibrate(Options(folder / "gray.txt", "matt"))
    to_chrome = degrees(gray.found.directions, seen.found.directions)
    assert to_chrome[:2].mean() < angles_to(gray, folder / "lights.txt")[:2].mean()
    assert np.median(to_chrome) < 3.5
    capture = read(folder / "gray.txt")
    true, inside = ball_normals(find_balls(capture.mask)[0], capture.mask.shape)
    found = solve(capture.images, seen.found.directions, capture.mask, "sbl").normals
    assert degrees(found, true)[capture.mask & inside].mean() < 5.9
