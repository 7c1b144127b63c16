"""The page holds the result itself, whole, and nothing from elsewhere."""

import base64
import re

import numpy as np
from papershelf.images import decode_image
from psfcn.relight_page import LARGEST, srgb, write_page


def pictures(path):
    text = path.read_text()
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    return text, [decode_image(base64.b64decode(content), path) for content in found]


def test_a_page_holds_normals_and_colours_of_the_object(tmp_path):
    mask = np.zeros((12, 16), bool)
    mask[2:8, 5:11] = True
    mask[2, 5] = False
    normals = np.zeros((12, 16, 3))
    normals[mask] = [0.6, 0, 0.8]
    albedo = np.full((12, 16, 3), [0.4, 0.2, 0.1])
    write_page(tmp_path / "a.html", normals, albedo, mask, "cup <1> & co")
    text, (first, second) = pictures(tmp_path / "a.html")
    assert "<title>cup &lt;1&gt; &amp; co</title>" in text
    assert not re.search(r"(https?:)?//[a-z]+\.|@[A-Z]+@", text)
    assert first.shape == (6, 6, 3)  # cut to the mask
    np.testing.assert_array_equal(first[3, 3], [204, 128, 230])
    np.testing.assert_array_equal(second[..., 3] > 0, mask[2:8, 5:11])
    np.testing.assert_array_equal(second[3, 3, :3], np.round(255 * srgb(np.array([0.9, 0.45, 0.225]))))


def test_large_results_are_made_smaller(tmp_path):
    mask = np.ones((1000, 2000), bool)
    write_page(tmp_path / "a.html", np.broadcast_to([0, 0, 1.0], (1000, 2000, 3)), np.ones((1000, 2000, 3)), mask, "a")
    _, (first, second) = pictures(tmp_path / "a.html")
    assert first.shape[:2] == second.shape[:2]
    assert 0.95 * LARGEST < first.shape[0] * first.shape[1] <= LARGEST


def test_an_empty_mask_gives_a_page_all_the_same(tmp_path):
    write_page(tmp_path / "a.html", np.zeros((4, 4, 3)), np.zeros((4, 4, 3)), np.zeros((4, 4), bool), "a")
    assert not pictures(tmp_path / "a.html")[1][1][..., 3].any()
