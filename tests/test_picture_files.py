"""One file of each kind, made by Pillow: does it come out as what it shows?"""

import os
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from vae_lib.picture_files import TURNS, Decoder, Unread, opened, size_of

WHITE = (255, 255, 255)


def scene(width=12, height=8):
    """Return a smooth picture whose four corners all differ."""
    y, x = np.mgrid[:height, :width]
    rgb = [255 * x / (width - 1), 255 * y / (height - 1), 40 + 100 * x / (width - 1)]
    return np.stack(rgb, -1).astype(np.uint8)


def files(source):
    with opened(source) as (found, _):
        return found


def decoded(path, channels=3, height=8, width=12, background=WHITE):
    pixels = Decoder(height, width, channels, background)(files([path])[0])
    assert (pixels.dtype, pixels.shape) == (np.uint8, (channels, height, width))
    return pixels.transpose(1, 2, 0).astype(int)


def save(path, array, **options):
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(path, **options)
    return path


# ------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("ending", "options", "most"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tif", {"compression": "tiff_deflate"}, 0),
        ("webp", {"lossless": True}, 0),
        ("jpg", {"quality": 95, "subsampling": 0}, 6),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}, 6),
    ],
)
def test_colour_comes_out_as_it_is(tmp_path, ending, options, most):
    path = save(tmp_path / f"a.{ending}", scene(), **options)
    assert abs(decoded(path) - scene()).max() <= most
    assert size_of(files([path])[0]) == (8, 12)


def test_the_ending_of_a_name_means_nothing(tmp_path):
    save(tmp_path / "a.png", scene()).rename(tmp_path / "a.jpg")
    assert (decoded(tmp_path / "a.jpg") == scene()).all()


def test_the_first_frame_of_several_is_taken(tmp_path):
    frames = [Image.new("RGB", (12, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        path = tmp_path / name
        lossless = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
        assert (decoded(path) == (255, 0, 0)).all(), name


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, ending):
    grey = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
    found = decoded(save(tmp_path / f"a.{ending}", grey), channels=1)[..., 0]
    assert (found == np.round(grey / 257)).all()
    assert (found[0, 0], found[-1, -1]) == (0, 255)


def test_sixteen_bits_of_colour_keep_the_upper_eight(tmp_path):
    rows = b"".join(
        b"\0" + (scene().astype(">u2")[y] * 257).astype(">u2").tobytes() for y in range(8)
    )

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 12, 8, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert (decoded(tmp_path / "a.png") == scene()).all()


def test_thirty_two_bits_say_no_range_and_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.full((8, 12), 0.5, np.float32))
    for use in (size_of, Decoder(8, 12, 1, WHITE)):
        with pytest.raises(Unread, match="pixels of a kind that is not read"):
            use(files([path])[0])


def test_black_and_white_is_grey(tmp_path):
    bits = np.indices((8, 12)).sum(0) % 2 == 0
    path = save(tmp_path / "a.png", Image.fromarray(bits.astype(np.uint8) * 255).convert("1"))
    assert (decoded(path, channels=1)[..., 0] == bits * 255).all()


def test_cmyk_is_neither_inverted_nor_left(tmp_path):
    picture = Image.fromarray(scene(60, 40)).convert("CMYK")
    path = save(tmp_path / "a.jpg", picture, quality=95)
    assert abs(decoded(path, height=40, width=60) - scene(60, 40)).mean() < 6


# ------------------------------------------------------------------------------------ transparency


def test_a_palette_with_transparency_lies_on_the_background(tmp_path):
    picture = Image.new("P", (12, 8), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (0, 0, 6, 8))
    for name in ("a.png", "a.gif"):
        found = decoded(save(tmp_path / name, picture, transparency=0), background=(0, 255, 0))
        assert (found[:, :6] == (0, 0, 255)).all(), name
        assert (found[:, 6:] == (0, 255, 0)).all(), name


def test_a_palette_with_many_alphas(tmp_path):
    picture = Image.new("P", (12, 8), 0)
    picture.putpalette([0, 0, 0, 0, 0, 0])
    picture.paste(1, (0, 0, 6, 8))
    path = save(tmp_path / "a.png", picture, transparency=bytes([128, 255]))
    assert (decoded(path)[:, :6] == 0).all()
    assert abs(decoded(path)[:, 6:] - 127).max() <= 1
    assert decoded(path, channels=4)[0, 11].tolist() == [0, 0, 0, 128]


def test_a_colour_that_stands_for_transparent(tmp_path):
    array = np.full((8, 12, 3), 9, np.uint8)
    array[:4] = (1, 2, 3)
    path = save(tmp_path / "a.png", array, transparency=(1, 2, 3))
    assert (decoded(path)[:4] == 255).all()
    assert (decoded(path)[4:] == 9).all()


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_grey_with_alpha(tmp_path, ending):
    array = np.full((8, 12, 2), 100, np.uint8)
    array[..., 1] = np.linspace(0, 255, 12)
    array[:4, :, 1] = 255
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    path = save(tmp_path / f"a.{ending}", Image.fromarray(array), **options)
    expected = 100 * (array[..., 1] / 255) + 255 * (1 - array[..., 1] / 255)
    assert abs(decoded(path, channels=1)[..., 0] - expected).max() <= 1
    kept = decoded(path, channels=4)
    assert (kept[..., 3] == array[..., 1]).all()
    assert (kept[4:, 0] == 0).all(), "what nobody sees has no colour"
    assert (kept[:4] == (100, 100, 100, 255)).all()


def test_what_has_no_alpha_is_opaque(tmp_path):
    assert (decoded(save(tmp_path / "a.png", scene()), channels=4)[..., 3] == 255).all()


def test_transparent_pixels_lend_no_colour_when_shrunk(tmp_path):
    array = np.zeros((16, 24, 4), np.uint8)
    array[...] = (0, 255, 0, 0)  # green that nobody sees
    array[3:13, 3:21] = (255, 0, 0, 255)
    path = save(tmp_path / "a.png", array)
    kept = decoded(path, channels=4)
    edge = (kept[..., 3] > 40) & (kept[..., 3] < 255)
    assert edge.any()
    assert kept[kept[..., 3] > 0][:, 1].max() <= 2
    assert decoded(path, background=(0, 0, 0))[..., 1].max() <= 2


# ------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("orientation", [1, *TURNS])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_a_picture_is_turned_as_its_exif_says(tmp_path, ending, orientation):
    upright = Image.fromarray(scene(48, 32))
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = back.get(orientation, TURNS.get(orientation))
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if ending == "webp" else {}
    path = save(tmp_path / f"a.{ending}", stored, exif=exif, **lossless)
    assert size_of(files([path])[0]) == (32, 48)
    assert abs(decoded(path, height=32, width=48) - scene(48, 32)).mean() < 3


def test_an_odd_exif_is_passed_over(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 99
    assert (decoded(save(tmp_path / "a.png", scene(), exif=exif)) == scene()).all()
    path = save(tmp_path / "a.jpg", scene(), quality=95, exif=b"Exif\0\0no such thing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decoded(path).shape == (8, 12, 3)


def test_the_middle_is_cropped_and_shrunk_by_all_its_pixels(tmp_path):
    array = np.zeros((40, 80, 3), np.uint8)
    array[:, :20], array[:, 60:] = (255, 0, 0), (0, 0, 255)  # both sides go
    array[::2, 20:60] = 255  # lines of one pixel make grey, not white and not black
    found = decoded(save(tmp_path / "a.png", array), height=10, width=10)
    assert abs(found[2:-2, 2:-2] - 127.5).max() < 3


@pytest.mark.parametrize("quality", [60, 95])
def test_a_large_photo_decoded_small_is_what_it_is(tmp_path, quality):
    photo = scene(1200, 800)
    found = decoded(save(tmp_path / "a.jpg", photo, quality=quality), height=8, width=12)
    exact = Image.fromarray(photo).resize((12, 8), Image.Resampling.LANCZOS)
    assert abs(found - np.array(exact).astype(int)).max() <= 3


def test_a_small_picture_is_enlarged(tmp_path):
    path = save(tmp_path / "a.png", np.full((2, 3, 3), 77, np.uint8))
    assert (decoded(path) == 77).all()


# ------------------------------------------------------------------------------------ what is none


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "tif"])
def test_a_truncated_file_is_damaged(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{ending}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(Unread, match=r"^damaged: .|^no picture"):
        decoded(path, height=64, width=64)


def test_a_flipped_byte_of_a_png_is_damage(tmp_path):
    path = save(
        tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(Unread, match=r"^damaged: "):
        decoded(path, height=64, width=64)


@pytest.mark.parametrize(
    "content", [b"", b"just text\n", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF"]
)
def test_what_is_no_picture_says_so(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Unread, match=r"^no picture in PNG"):
        size_of(files([tmp_path / "a.png"])[0])


def test_a_vanished_file_says_so(tmp_path):
    (file,) = files([save(tmp_path / "a.png", scene())])
    (tmp_path / "a.png").unlink()
    with pytest.raises(Unread, match=r"^cannot be read: No such file"):
        size_of(file)


def test_too_many_pixels_are_an_error_that_names_the_file(tmp_path, monkeypatch):
    path = save(tmp_path / "large one.png", scene(30, 30))
    for most in (500, 300):  # Pillow warns above the limit, and refuses above twice it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"large one.png has too many.*900.*Remove it"):
                size_of(files([path])[0])


# ------------------------------------------------------------------------------------ where it is


def test_a_folder_is_walked_in_the_order_of_names(tmp_path):
    for name in ("b.png", "a/z.png", "a b/ü ß.png", ".hidden.png", ".git/c.png", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, scene())
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    with opened(str(tmp_path)) as (found, skipped):
        assert [file.name for file in found] == ["a b/ü ß.png", "a/z.png", "b.png"]
        assert skipped == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    save(tmp_path / "outside.png", scene())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "outside.png")
    (folder / "circle").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe")
    with opened(folder) as (found, skipped):
        assert [file.name for file in found] == ["a.png"]
        assert sorted(skipped) == [
            ("circle", "a link to a folder"),
            ("gone.png", "there is no such file"),
            ("pipe", "not a file"),
        ]


def zipped(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return path


def test_a_zip_is_read_without_its_junk(tmp_path):
    names = ["b/z.png", "a.png", "__MACOSX/._a.png", ".DS_Store", "b/", "b/.x.png"]
    with opened(zipped(tmp_path / "a.zip", names)) as (found, skipped):
        assert [file.name for file in found] == ["a.png", "b/z.png"]
        with found[0].open() as stream:
            assert stream.read() == b"content"
        assert skipped == []


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/evil.png", "C:/evil.png"])
def test_a_name_that_leaves_the_zip_is_refused(tmp_path, name):
    path = zipped(tmp_path / "a.zip", ["good.png", name])
    with pytest.raises(ValueError, match=r"source: expected names that stay inside .*evil.png"):
        files(path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", ["a.png"])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag in the directory of the zip
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.png in .* is encrypted\. Unpack it"):
        files(path)


def test_a_list_keeps_its_order_and_what_paths_share_is_no_name(tmp_path):
    for name in ("x/b.png", "y/a.png"):
        (tmp_path / name).parent.mkdir()
        save(tmp_path / name, scene())
    paths = [tmp_path / "y" / "a.png", str(tmp_path / "x" / "b.png"), tmp_path / "x" / "c.png"]
    with opened(paths) as (found, skipped):
        assert [file.name for file in found] == ["y/a.png", "x/b.png"]
        assert skipped == [("x/c.png", "there is no such file")]
    assert [file.name for file in files(paths[1:2])] == ["b.png"]


def test_another_source_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source: expected a folder.*Correct the path"):
        files(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"got the file .*a.png, which is no zip"):
        files(save(tmp_path / "a.png", scene()))
    with pytest.raises(ValueError, match=r"source: expected a folder.*got int"):
        files(3)
