"""YUV and RGB: exact round trips, published code values, chroma where the stream says it lies."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from papershelf.errors import UserError
from rife.color import ColorSpec, Tags
from video_clips import planes, random_frame

from rife import chroma, color

FORMATS = [
    "yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "yuvj420p", "yuvj422p", "yuvj444p",
    "yuv420p9le", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv422p12le", "yuv444p12le",
    "yuv444p16le", "nv12", "nv21", "nv16", "nv24", "p010le", "p012le", "p016le", "p210le", "gray", "gray10le",
    "gray12le", "gray16le", "ya8", "ya16le", "rgb24", "bgr24", "gbrp", "gbrp10le", "gbrp12le", "gbrp16le", "rgb48le",
    "rgba", "bgra", "argb", "rgba64le", "gbrap", "yuva420p", "yuva444p", "yuva422p10le", "yuyv422", "uyvy422",
    "y210le", "y212le",
]  # fmt: skip


def plane_of(values: np.ndarray, pix_fmt: str = "yuv444p10le", **tags: int) -> av.VideoFrame:
    frame = av.VideoFrame(values.shape[2], values.shape[1], pix_fmt)
    for name, value in tags.items():
        setattr(frame, name, value)
    for plane, codes in zip(planes(frame), values, strict=True):
        plane[...] = codes
    return frame


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_to_rgb_and_back_returns_every_code(pix_fmt):
    for width, height in ((18, 14), (230, 6), (6, 230), (17, 13), (5, 3), (1, 1)):
        if pix_fmt.startswith(("yuyv", "uyvy", "y21")) and width % 2:
            continue  # packed 4:2:2 comes in pairs
        for matrix, value_range in ((1, 1), (6, 2), (9, 0), (2, 1)):
            frame = random_frame(pix_fmt, width, height, colorspace=matrix, color_range=value_range)
            again = color.from_rgb(color.to_rgb(frame), frame, color.alpha_of(frame))
            assert again.format.name == pix_fmt
            for before, after in zip(planes(frame), planes(again), strict=True):
                np.testing.assert_array_equal(before, after, err_msg=f"{width}x{height} {matrix} {value_range}")
            assert (again.colorspace, again.color_range) == (matrix, value_range)


@pytest.mark.parametrize(
    ("pix_fmt", "matrix", "value_range", "rgb", "expected"),
    [
        # 100% colour bars as printed in the references of BT.601 and BT.709; BT.2020 by hand.
        ("yuv444p", 6, 1, (1, 0, 0), (81, 90, 240)),
        ("yuv444p", 6, 1, (0, 1, 0), (145, 54, 34)),
        ("yuv444p", 6, 1, (0, 0, 1), (41, 240, 110)),
        ("yuv444p", 1, 1, (1, 0, 0), (63, 102, 240)),
        ("yuv444p", 1, 1, (0, 1, 0), (173, 42, 26)),
        ("yuv444p", 1, 1, (0, 0, 1), (32, 240, 118)),
        ("yuv444p", 1, 1, (1, 1, 1), (235, 128, 128)),
        ("yuv444p", 1, 1, (0, 0, 0), (16, 128, 128)),
        ("yuvj444p", 6, 2, (1, 0, 0), (76, 85, 255)),
        ("yuv444p10le", 9, 1, (1, 1, 1), (940, 512, 512)),
        ("yuv444p10le", 9, 1, (1, 0, 0), (294, 387, 960)),
        ("yuv444p12le", 9, 1, (0, 0, 1), (464, 3840, 1904)),
    ],
)
def test_primaries_have_their_published_codes(pix_fmt, matrix, value_range, rgb, expected):
    like = random_frame(pix_fmt, 4, 4, colorspace=matrix, color_range=value_range)
    frame = color.from_rgb(torch.tensor(rgb, dtype=torch.float32)[:, None, None].expand(3, 4, 4), like)
    assert tuple(int(plane[1, 1]) for plane in planes(frame)) == expected
    back = color.to_rgb(frame)[:, 1, 1]
    torch.testing.assert_close(back, torch.tensor(rgb, dtype=torch.float32), atol=0.008, rtol=0)


def test_codes_beyond_white_and_black_survive():
    frame = plane_of(np.array([[[4, 16, 235, 254]], [[128] * 4], [[128] * 4]]), "yuv444p", color_range=1)
    rgb = color.to_rgb(frame)
    torch.testing.assert_close(rgb[0, 0, 1:3], torch.tensor([0.0, 1.0]))
    assert rgb[0, 0, 0] < -0.05
    assert rgb[0, 0, 3] > 1.08
    assert planes(color.from_rgb(rgb, frame))[0].tolist() == [[4, 16, 235, 254]]
    clipped = planes(color.from_rgb(rgb * 3, frame))[0]
    assert (clipped.min(), clipped.max()) == (0, 255)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "gray", "rgb24", "nv12"])
def test_values_are_rounded_and_grey_keeps_its_level(pix_fmt):
    like = random_frame(pix_fmt, 64, 64, color_range=1, colorspace=1)
    ramp = torch.linspace(0, 1, 4096).reshape(64, 64)
    frame = color.from_rgb(ramp.expand(3, 64, 64), like)
    spec = ColorSpec.of(like)
    scale = 219 * 2 ** (spec.bits - 8)
    exact = 16 * 2 ** (spec.bits - 8) + ramp.numpy() * scale
    error = planes(frame)[0][:, ::3].reshape(64, -1)[:, :64] - exact if pix_fmt == "rgb24" else planes(frame)[0] - exact
    assert np.abs(error).max() <= 0.5 + 1e-3
    assert abs(error.mean()) < 0.02  # truncation would give -0.5
    # Chroma of grey is exactly the neutral code.
    assert all((plane == 2 ** (spec.bits - 1)).all() for plane in planes(frame)[1:])


def test_the_mean_of_two_grey_frames_keeps_the_level():
    first, second = (plane_of(np.stack([np.full((6, 8), y), np.full((6, 8), 512), np.full((6, 8), 512)]), color_range=1)
                     for y in (301, 305))  # fmt: skip
    between = color.from_rgb((color.to_rgb(first) + color.to_rgb(second)) / 2, first)
    assert abs(planes(between)[0].mean() - 303) < 0.1
    assert (planes(between)[1] == 512).all()


@pytest.mark.parametrize("siting", chroma.SITINGS)
@pytest.mark.parametrize("subsampling", [(1, 1), (1, 0), (2, 0), (0, 1), (2, 2)])
def test_upsampling_puts_chroma_where_it_lies(siting, subsampling):
    # A plane whose value is its position stays so: bilinear interpolation is exact for straight lines.
    size = (23, 30)
    (fx, fy) = (1 << s for s in subsampling)
    x0 = 0 if "left" in siting else (fx - 1) / 2
    y0 = 0 if "top" in siting else fy - 1 if "bottom" in siting else (fy - 1) / 2
    h, w = -(-size[0] // fy), -(-size[1] // fx)
    y, x = torch.meshgrid(torch.arange(h) * fy + float(y0), torch.arange(w) * fx + float(x0), indexing="ij")
    up = chroma.upsample(torch.stack([x, y]).float(), size, subsampling, siting)
    assert up.shape == (2, *size)
    inner_y, inner_x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    inside = (slice(fy, size[0] - 2 * fy), slice(fx, size[1] - 2 * fx))
    torch.testing.assert_close(up[0][inside], inner_x.float()[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(up[1][inside], inner_y.float()[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("siting", ["left", "center", "topleft", "bottom"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 10), (11, 245), (246, 9), (193, 8)])
def test_downsampling_is_the_least_squares_inverse(siting, size):
    torch.manual_seed(0)
    plane = torch.randn(1, *size)
    h, w = -(-size[0] // 2), -(-size[1] // 2)
    basis = torch.eye(h * w).reshape(h * w, h, w)
    up = chroma.upsample(basis, size, (1, 1), siting).reshape(h * w, -1).T.double().numpy()
    best = np.linalg.lstsq(up, plane.reshape(-1).double().numpy(), rcond=None)[0].reshape(h, w)
    ours = chroma.downsample(plane, (1, 1), siting, bits=16)[0].numpy()
    np.testing.assert_allclose(ours, best, atol=3e-5)


def test_downsampling_keeps_constants_and_does_not_soften():
    for siting in chroma.SITINGS:
        flat = chroma.downsample(torch.full((1, 300, 310), 0.7), (1, 1), siting, bits=8)
        torch.testing.assert_close(flat, torch.full((1, 150, 155), 0.7), atol=1e-6, rtol=0)
        detail = torch.randn(1, 150, 155, generator=torch.Generator().manual_seed(1))
        again = chroma.downsample(chroma.upsample(detail, (300, 310), (1, 1), siting), (1, 1), siting, bits=10)
        torch.testing.assert_close(again, detail, atol=2e-4, rtol=0)


def test_siting_of_the_spec_moves_chroma():
    frame = random_frame("yuv420p", 32, 32, colorspace=1, color_range=1)
    left, top = (ColorSpec.of(frame, siting) for siting in ("left", "topleft"))
    assert (color.to_rgb(frame, left) - color.to_rgb(frame, top)).abs().max() > 0.05
    again = color.from_rgb(color.to_rgb(frame, top), top)
    assert all(np.array_equal(a, b) for a, b in zip(planes(frame), planes(again), strict=True))


@pytest.mark.parametrize(
    ("pix_fmt", "height", "tags", "expected"),
    [
        ("yuv420p", 480, Tags(), ("bt601", False, 8, "left")),
        ("yuv420p", 720, Tags(), ("bt709", False, 8, "left")),
        ("yuv420p", 480, Tags(matrix=1, range=2), ("bt709", True, 8, "left")),
        ("yuv420p10le", 2160, Tags(matrix=9, range=1), ("bt2020", False, 10, "left")),
        ("yuvj420p", 480, Tags(), ("bt601", True, 8, "center")),
        ("yuv420p", 720, Tags(matrix=8), ("bt709", False, 8, "left")),
        ("rgb24", 480, Tags(), ("rgb", True, 8, "left")),
        ("gbrp12le", 480, Tags(range=1), ("rgb", False, 12, "left")),
        ("gray", 480, Tags(), ("gray", True, 8, "left")),
        ("gray10le", 480, Tags(range=1), ("gray", False, 10, "left")),
        ("yuv444p", 576, Tags(matrix=7), ("smpte240m", False, 8, "left")),
    ],
)
def test_what_is_assumed_of_tags(pix_fmt, height, tags, expected):
    spec = ColorSpec.from_tags(pix_fmt, tags, height)
    assert (spec.matrix, spec.full_range, spec.bits, spec.siting) == expected
    assert spec.tags == tags


def test_alpha_is_read_and_written():
    frame = random_frame("rgba", 9, 7)
    alpha = color.alpha_of(frame)
    assert alpha.shape == (1, 7, 9)
    np.testing.assert_array_equal(np.rint(alpha[0].numpy() * 255), planes(frame)[0][:, 3::4])
    opaque = color.from_rgb(color.to_rgb(frame), frame)
    assert (planes(opaque)[0][:, 3::4] == 255).all()
    assert color.alpha_of(random_frame("yuv420p", 4, 4)) is None


@pytest.mark.parametrize(("before", "after"), [("nv12", "yuv420p"), ("p010le", "yuv420p10le"),
                                               ("rgb24", "gbrp"), ("yuyv422", "yuv422p"),
                                               ("y210le", "yuv422p10le"), ("bgra", "rgba")])  # fmt: skip
def test_formats_of_the_same_codes_convert_without_loss(before, after):
    frame = random_frame(before, 20, 12, color_range=1, colorspace=1)
    there = color.convert(frame, ColorSpec.of(frame).stored_as(after, 12))
    assert there.format.name == after
    back = color.convert(there, ColorSpec.of(frame))
    assert all(np.array_equal(a, b) for a, b in zip(planes(frame), planes(back), strict=True))


def test_more_bits_and_finer_chroma_hold_the_same_codes():
    frame = random_frame("yuv420p", 20, 12, color_range=1, colorspace=6)
    spec = ColorSpec.of(frame)
    deeper = color.convert(frame, spec.stored_as("yuv420p10le", 12))
    assert all(np.array_equal(a.astype(int) * 4, b) for a, b in zip(planes(frame), planes(deeper), strict=True))
    finer = color.convert(frame, spec.stored_as("yuv444p10le", 12))
    again = color.convert(finer, spec)
    assert all(np.array_equal(a, b) for a, b in zip(planes(frame), planes(again), strict=True))
    assert color.convert(frame, spec) is frame


def test_rgb_into_yuv_is_tagged_with_what_was_chosen():
    spec = ColorSpec.of(random_frame("rgb24", 8, 8)).stored_as("yuv420p", 480)
    assert (spec.matrix, spec.full_range, spec.tags.matrix, spec.tags.range) == ("bt601", False, 6, 1)
    kept = ColorSpec.from_tags("yuvj420p", Tags(), 480).stored_as("yuv420p", 480)
    assert (kept.full_range, kept.tags.range, kept.siting) == (True, 2, "center")
    grey = ColorSpec.from_tags("gray", Tags(), 480).stored_as("yuv420p", 480)
    assert (grey.full_range, grey.tags) == (True, Tags(matrix=6, range=2))


@pytest.mark.parametrize(("odd", "plain"), [("yuv420p10be", "yuv420p10le"), ("pal8", "rgba"), ("rgb565le", "rgb24"),
                                            ("x2rgb10le", "gbrp10le"), ("monob", "gray"),
                                            ("gbrpf32le", "gbrp16le"), ("vuya", "yuva444p")])  # fmt: skip
def test_odd_formats_have_a_plain_one(odd, plain):
    assert color.working_format(odd) == plain


@pytest.mark.parametrize(("odd", "plain"), [("yuv422p10be", "yuv422p10le"),
                                            ("x2rgb10le", "gbrp10le"), ("rgb48be", "rgb48le")])  # fmt: skip
def test_odd_formats_are_read_without_loss(odd, plain):
    frame = random_frame(plain, 16, 10, color_range=1 if plain.startswith("yuv") else 2, colorspace=1)
    strange = frame.reformat(format=odd)
    torch.testing.assert_close(color.to_rgb(strange), color.to_rgb(frame), atol=0, rtol=0)
    again = color.from_rgb(color.to_rgb(strange), strange)
    assert again.format.name == plain
    assert all(np.array_equal(a, b) for a, b in zip(planes(frame), planes(again), strict=True))


def test_a_palette_is_looked_up():
    frame = av.VideoFrame(4, 1, "pal8")
    np.frombuffer(frame.planes[0], np.uint8)[:4] = [0, 1, 2, 1]
    np.frombuffer(frame.planes[1], np.uint32)[:3] = [0xFF000000, 0xFFFF0000, 0x800000FF]
    assert color.to_rgb(frame)[:, 0].T.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    torch.testing.assert_close(color.alpha_of(frame)[0, 0], torch.tensor([1, 1, 128 / 255, 1]))


def test_a_mosaic_is_refused():
    with pytest.raises(UserError, match="bayer_rggb8 is not supported: convert"):
        color.to_rgb(av.VideoFrame(8, 8, "bayer_rggb8"))


def test_frames_stored_bottom_up_are_read_top_down():
    frame = random_frame("yuv420p", 16, 12, colorspace=1, color_range=1)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=16, height=12, format=frame.format, time_base=Fraction(1, 25))
    flip = graph.add("vflip")
    source.link_to(flip)
    flip.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    flipped = graph.pull()
    assert flipped.planes[0].line_size < 0
    spec = ColorSpec.of(frame)  # chroma at half height is symmetric, so flipping commutes with upsampling
    torch.testing.assert_close(color.to_rgb(flipped, spec), color.to_rgb(frame).flip(1), atol=1e-6, rtol=0)
