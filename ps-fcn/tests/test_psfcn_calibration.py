"""Lights from a chrome ball: balls drawn by the mirror's own law, and the real one."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from papershelf.errors import UserError
from psfcn.calibration import Ball, ball_normals, find_ball, from_chrome_ball
from psfcn.captures import ReadOptions, read
from psfcn.classical import solve
from psfcn.light_files import read_lights

DATA = os.environ.get("PAPERSHELF_DATA")


def degrees(a, b):
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def mirror(light, ball, size):
    """A chrome ball that reflects one small lamp."""
    normals, inside = ball_normals(ball, size)
    reflected = 2 * normals[..., 2:] * normals - [0, 0, 1]
    lamp = np.exp(200 * (reflected @ light - 1)) * inside
    return np.repeat((lamp + 0.05 * inside)[..., None], 3, 2), inside


@settings(max_examples=25, deadline=None)
@given(
    lean=st.floats(0, 65), turn=st.floats(0, 360), x=st.floats(58, 62), y=st.floats(48, 52), radius=st.floats(35, 45)
)
def test_the_light_is_where_its_reflection_says(lean, turn, x, y, radius):
    lean, turn = np.radians(lean), np.radians(turn)
    light = np.array([np.sin(lean) * np.cos(turn), np.sin(lean) * np.sin(turn), np.cos(lean)])
    image, mask = mirror(light, Ball(x, y, radius), (100, 120))
    # The outline is known to half a pixel, which is 1.6 degrees at the smallest radius.
    assert degrees(from_chrome_ball(image[None], mask)[0], light) < 3


def test_a_ball_is_found_from_its_mask():
    ball = find_ball(ball_normals(Ball(40.0, 30.0, 20.0), (64, 80))[1])
    assert abs(ball.x - 40) <= 0.5
    assert abs(ball.y - 30) <= 0.5
    assert abs(ball.radius - 20) <= 0.75


def test_what_is_no_ball_is_refused():
    mask = np.zeros((40, 40), bool)
    with pytest.raises(UserError, match="empty"):
        find_ball(mask)
    mask[5:35, 5:35] = True
    with pytest.raises(UserError, match="no disc"):
        find_ball(mask)


def test_balls_without_a_highlight_are_refused():
    _, mask = mirror(np.array([0, 0, 1.0]), Ball(20, 20, 15), (40, 40))
    with pytest.raises(UserError, match=r"dark.png: the chrome ball is black"):
        from_chrome_ball(np.zeros((1, 40, 40, 3)), mask, ("dark.png",))
    with pytest.raises(UserError, match="no highlight"):
        from_chrome_ball(np.ones((1, 40, 40, 3)), mask)


@pytest.mark.skipif(not DATA, reason="PAPERSHELF_DATA is not set: real photographs are not at hand")
def test_the_real_chrome_ball_agrees_with_its_light_file_and_gives_a_round_gray_ball():
    folder = Path(DATA or "") / "photometric_stereo" / "uw"
    chrome = read(folder / "chrome.txt", ReadOptions(lights=folder / "lights.txt"))
    lights = from_chrome_ball(chrome.images, chrome.mask, chrome.names)
    apart = degrees(lights, read_lights(folder / "lights.txt").directions)
    assert apart.max() < 9  # its first two lights are off
    assert np.median(apart) < 2.5
    gray = read(folder / "gray.txt", ReadOptions(lights=folder / "lights.txt"))
    normals, inside = ball_normals(find_ball(gray.mask), gray.mask.shape)
    error = degrees(solve(gray.images, lights, gray.mask, "sbl").normals, normals)[gray.mask & inside]
    assert error.mean() < 6.5
