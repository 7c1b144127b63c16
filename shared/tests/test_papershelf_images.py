"""Images through real files: every sample as it was, and one line for what cannot be read or held."""

import subprocess
import sys

import numpy as np
import OpenEXR
import pytest
from papershelf.errors import UserError
from papershelf.images import WRITABLE, read_image, write_image
from PIL import Image

LOSSLESS = [
    (suffix, dtype, channels)
    for suffix, (dtypes, counts) in WRITABLE.items()
    if suffix not in (".jpg", ".jpeg")
    for dtype in dtypes
    for channels in counts
]


def noise(dtype="uint8", channels=3, h=13, w=17, seed=0):
    """[H, W, C] over the whole range of ``dtype``; floats go beyond [0, 1]."""
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.normal(0.5, 2, (h, w, channels)).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max, (h, w, channels), dtype, endpoint=True)


def ramp(channels=3, h=32, w=48):
    """A smooth uint8 picture, which JPEG hardly changes, different in each channel."""
    y, x = np.mgrid[:h, :w]
    return np.stack([y * 4, x * 4, 255 - y * 4, x + y], axis=-1)[..., :channels].astype(np.uint8)


@pytest.mark.parametrize(("suffix", "dtype", "channels"), LOSSLESS)
def test_what_is_written_is_read(tmp_path, suffix, dtype, channels):
    image = noise(dtype, channels)
    write_image(tmp_path / f"image{suffix}", image)
    again = read_image(tmp_path / f"image{suffix}")
    assert again.dtype == image.dtype
    np.testing.assert_array_equal(again, image)
    assert [p.name for p in tmp_path.iterdir()] == [f"image{suffix}"]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close_and_obeys_the_quality(tmp_path, suffix, channels):
    path, sizes = tmp_path / f"image{suffix}", []
    for quality in (20, 95):
        write_image(path, ramp(channels), quality=quality)
        sizes.append(path.stat().st_size)
    again = read_image(path)
    assert again.shape == (32, 48, channels)
    assert np.abs(again.astype(int) - ramp(channels)).max() <= 6
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_red_is_first_as_others_write_it(tmp_path, suffix):
    path = tmp_path / f"other{suffix}"
    Image.fromarray(ramp()).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(path), ramp())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_red_is_first_as_others_read_it(tmp_path, suffix):
    for channels in (3, 4):
        write_image(tmp_path / f"ours{suffix}", ramp(channels))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"ours{suffix}")), ramp(channels))


def test_a_png_of_few_colours_or_bits_is_spread_over_8(tmp_path):
    two = Image.fromarray(ramp(1)[..., 0]).convert("1")
    two.save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}
    palette = Image.fromarray(ramp()).convert("P")
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "transparent.png", transparency=0)
    assert read_image(tmp_path / "transparent.png").shape == (32, 48, 4)


@pytest.mark.parametrize(("suffix", "turned"), [(".jpg", True), (".tif", True), (".png", False), (".webp", False)])
def test_the_orientation_of_photographs(tmp_path, suffix, turned):
    tag = Image.Exif()
    tag[0x0112] = 6  # the camera was held a quarter turn to the right
    Image.fromarray(ramp()).save(tmp_path / f"turned{suffix}", exif=tag)
    image = read_image(tmp_path / f"turned{suffix}")
    assert image.shape == ((48, 32, 3) if turned else (32, 48, 3))
    if suffix == ".tif":
        np.testing.assert_array_equal(image, np.rot90(ramp(), -1))


def test_the_content_decides_and_not_the_name(tmp_path):
    write_image(tmp_path / "a.png", ramp())
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), ramp())


@pytest.mark.parametrize("suffix", WRITABLE)
def test_names_as_people_have_them(tmp_path, suffix):
    folder = tmp_path / "Fotos & Vídeos 日本"
    folder.mkdir()
    image = noise("float32") if suffix == ".exr" else ramp()
    write_image(folder / f"ä b{suffix}", image)
    assert read_image(str(folder / f"ä b{suffix}")).shape == image.shape


def test_a_view_of_a_larger_array(tmp_path):
    image = noise("uint16", 4)[::2, ::-1, :3]
    write_image(tmp_path / "view.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "view.png"), image)
    write_image(tmp_path / "view.exr", noise("float32", 4)[:, 1:, :3])
    np.testing.assert_array_equal(read_image(tmp_path / "view.exr"), noise("float32", 4)[:, 1:, :3])


def test_exr_keeps_what_no_other_format_holds(tmp_path):
    image = noise("float32")
    image[0, :3, 0] = np.inf, -np.inf, np.nan
    write_image(tmp_path / "wild.exr", image)
    np.testing.assert_array_equal(read_image(tmp_path / "wild.exr"), image)


def exr_of(path, **channels):
    header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
    header |= channels.pop("header", {})
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def test_exr_in_half_precision_in_tiles_and_from_the_bottom(tmp_path):
    half = noise("float32").astype(np.float16)
    tiles = {"type": OpenEXR.tiledimage, "tiles": OpenEXR.TileDescription()}
    for name, header in [("half", {}), ("tiles", tiles), ("bottom", {"lineOrder": OpenEXR.DECREASING_Y})]:
        exr_of(tmp_path / f"{name}.exr", RGB=half, header=header)
        again = read_image(tmp_path / f"{name}.exr")
        assert again.dtype == np.float32
        np.testing.assert_array_equal(again, half)


def test_exr_with_other_channels_or_a_part_of_the_picture(tmp_path):
    exr_of(tmp_path / "depth.exr", Z=noise("float32")[..., 0].copy())
    with pytest.raises(UserError, match="expected channels RGBA, RGB or Y, got Z"):
        read_image(tmp_path / "depth.exr")
    window = (np.array([0, 0], np.int32), np.array([99, 99], np.int32))
    exr_of(tmp_path / "part.exr", RGB=noise("float32"), header={"displayWindow": window})
    with pytest.raises(UserError, match="do not fill the picture"):
        read_image(tmp_path / "part.exr")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.exr", "a.bmp", "a.webp"])
def test_a_cut_off_file_is_one_line(tmp_path, capfd, name):
    path = tmp_path / name
    if path.suffix in WRITABLE:
        write_image(path, noise("float32" if name == "a.exr" else "uint8", h=64, w=64))
    else:
        Image.fromarray(noise(h=64, w=64)).save(path)
    whole = path.read_bytes()
    for kept in (0, 3, 8, 20, len(whole) // 3, len(whole) - len(whole) // 20):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError) as error:
            read_image(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # and nothing from the decoders


def test_a_damaged_png_is_found_at_any_byte(tmp_path, capfd):
    path = tmp_path / "a.png"
    write_image(path, ramp(h=8, w=8))
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(UserError):
            read_image(path)
    assert capfd.readouterr() == ("", "")


def test_a_png_with_a_broken_profile_is_read_in_silence(tmp_path, capfd):
    Image.fromarray(ramp()).save(tmp_path / "a.png", icc_profile=b"no profile")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), ramp())
    assert capfd.readouterr() == ("", "")


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for path, says in [("none.png", "No such file"), (".", "is a folder"), ("text.png", "no image")]:
        with pytest.raises(UserError, match=says):
            read_image(tmp_path / path)


def test_samples_that_do_not_fit_the_contract(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.int32), "I").save(tmp_path / "int32.tif")
    with pytest.raises(UserError, match="1 channels of int32; expected"):
        read_image(tmp_path / "int32.tif")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.png", noise("float32")),
        ("a.jpg", noise("uint16")),
        ("a.jpg", noise(channels=4)),
        ("a.exr", noise("uint8")),
        ("a.tif", noise(channels=2)),
        ("a.png", noise()[..., 0]),
        ("a.png", noise(h=0)),
    ],
)
def test_what_a_format_cannot_hold(tmp_path, name, image):
    with pytest.raises(UserError, match=r"holds \[H, W, C\]") as error:
        write_image(tmp_path / name, image)
    assert str(list(image.shape)) in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.bmp", "a.webp", "a", "a.gif"])
def test_a_name_nobody_can_write(tmp_path, name):
    with pytest.raises(UserError, match=r"ends in one of \.png, \.jpg"):
        write_image(tmp_path / name, noise())


def test_importing_it_is_light():
    heavy = "import sys, papershelf.images; print({'torch', 'cv2', 'OpenEXR', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
