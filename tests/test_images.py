import errno
import json
import os
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from book import emoji
from vae_lib import images
from vae_lib.images import EMOJI, Pictures, load_images, near_duplicates, save_sheet, split_groups


def noise(seed, width=12, height=8, channels=3):
    array = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return array[..., 0] if channels == 1 else array


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Return a folder of three pictures in two subfolders, a text, and a truncated picture."""
    for seed, name in enumerate(["cats/b.png", "cats/a.png", "dogs/ü ß.png"]):
        save(tmp_path / "folder" / name, noise(seed))
    (tmp_path / "folder" / "notes.txt").write_text("a note", encoding="utf-8")
    whole = save(tmp_path / "whole.png", noise(9, 64, 64)).read_bytes()
    (tmp_path / "folder" / "dogs" / "half.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "folder"


def rows(array):
    return torch.from_numpy(array.transpose(2, 0, 1).reshape(-1))


# ------------------------------------------------------------------------------------ loading


def test_a_folder_becomes_rows_names_and_labels(folder):
    pictures = load_images(folder, size=(8, 12))
    assert pictures.names == ["cats/a.png", "cats/b.png", "dogs/ü ß.png"]
    assert (pictures.shape, len(pictures), pictures.images.dtype) == ((3, 8, 12), 3, torch.uint8)
    for image, seed in zip(pictures.images, (1, 0, 2), strict=True):
        assert torch.equal(image, rows(noise(seed)))
    assert (pictures.classes, pictures.labels.tolist()) == (["cats", "dogs"], [0, 0, 1])
    (half, damaged), (notes, none) = pictures.skipped
    assert (half, notes) == ("dogs/half.png", "notes.txt")
    assert damaged.startswith("damaged: ")
    assert none.startswith("no picture in PNG")


def test_a_zip_and_a_list_give_what_the_folder_gives(folder, tmp_path):
    expected = load_images(folder, size=8)
    files = [folder / name for name in expected.names]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ["dogs/half.png", "notes.txt", *expected.names]:
            archive.write(folder / name, f"folder/{name}")
    for source in (str(tmp_path / "all.zip"), files):
        found = load_images(source, size=8)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
        assert found.classes == expected.classes
        assert [name.removeprefix("folder/") for name in found.names] == expected.names
    assert load_images(files[::-1], size=8).names == expected.names[::-1]


def test_some_rows_are_pictures_too(folder):
    pictures = load_images(folder, size=8)
    for chosen in (pictures[torch.tensor([2, 0])], pictures[0:3:2][torch.tensor([1, 0])]):
        assert torch.equal(chosen.images, pictures.images[[2, 0]])
        assert chosen.names == ["dogs/ü ß.png", "cats/a.png"]
        assert chosen.labels.tolist() == [1, 0]
        assert (chosen.shape, chosen.classes) == (pictures.shape, pictures.classes)


def test_grey_is_one_channel_if_all_is_grey(tmp_path):
    save(tmp_path / "a.png", noise(0, channels=1))
    save(tmp_path / "b.png", np.repeat(noise(1, channels=1)[..., None], 3, -1))  # grey as colour
    pictures = load_images(tmp_path)
    assert pictures.shape == (1, 8, 12)
    assert torch.equal(pictures.images[1], torch.from_numpy(noise(1, channels=1).reshape(-1)))
    assert load_images(tmp_path, channels=3).shape == (3, 8, 12)
    save(tmp_path / "c.png", noise(2))
    assert load_images(tmp_path).shape == (3, 8, 12)
    assert load_images(tmp_path, channels=1).shape == (1, 8, 12)


def test_a_background_in_colour_counts_as_colour(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.png", np.zeros((8, 12, 4), np.uint8))
    assert load_images(tmp_path).images.unique().tolist() == [255]
    found = load_images(tmp_path, background="#ff8000")
    assert found.images.reshape(2, 3, -1)[0, :, 0].tolist() == [255, 128, 0]
    again = load_images(tmp_path, background=(255, 128, 0))
    assert torch.equal(found.images, again.images)
    assert load_images(tmp_path, channels=4, background="red").images.unique().tolist() == [0]


def test_labels_begin_where_folders_differ(tmp_path):
    def classes(*names):
        for name in names:
            save(tmp_path / names[0] / name, noise(0))
        return load_images(tmp_path / names[0]).classes

    assert classes("a.png", "b.png") == [""]
    assert classes("c/a.png", "b.png") == ["", "c"]
    assert classes("d/x/a.png", "d/y/z/b.png") == ["x", "y"]
    assert classes("e/x/a.png", "e/b.png") == ["", "x"]


def test_one_thread_or_many_give_the_same(tmp_path):
    for seed in range(40):
        save(tmp_path / f"{seed}.png", noise(seed, 40, 30))
    one, many = (load_images(tmp_path, size=16, threads=threads) for threads in (1, 8))
    assert torch.equal(one.images, many.images)
    assert one.names == many.names


# ------------------------------------------------------------------------------------ refusals


def test_sizes_that_differ_are_named(tmp_path):
    for number, (width, height) in enumerate([(12, 8), (12, 8), (9, 7)]):
        save(tmp_path / f"{number}.png", noise(0, width, height))
    with pytest.raises(ValueError, match=r"0.png of 8 x 12 and 2.png of 7 x 9; 2 of 3.*size=64"):
        load_images(tmp_path)


@pytest.mark.parametrize("names", [[], ["a.txt", "b.txt", "c.txt", "d.txt"]])
def test_nothing_to_learn_from_is_refused_with_the_reasons(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("text", encoding="utf-8")
    reasons = r"4 skipped \(a.txt: no picture.*c.txt.*, and so on\)" if names else "Give a folder"
    with pytest.raises(ValueError, match=rf"at least 2 pictures, got 0 in .*{reasons}"):
        load_images(tmp_path)


def test_one_picture_is_refused_unless_it_is_meant(tmp_path):
    path = save(tmp_path / "a.png", noise(0))
    for source in (tmp_path, [path]):
        with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
            load_images(source)
        assert len(load_images(source, least=1)) == 1


def test_pictures_that_are_all_damaged_are_refused(folder):
    half = (folder / "dogs" / "half.png").read_bytes()
    for name in ("cats/b.png", "cats/a.png", "dogs/ü ß.png"):
        (folder / name).write_bytes(half)
    for cache in (None, folder.parent / "cache"):
        with pytest.raises(ValueError, match=r"got 0 in .*cats/a.png: damaged: "):
            load_images(folder, cache=cache)


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    for name in "ab":
        save(tmp_path / f"{name}.png", noise(0, 30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match=r"a.png has too many pixels"):
        load_images(tmp_path, size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, r"channels: expected 1, 3, 4 or None, got 2\."),
        ({"size": 0}, "size: expected at least 1"),
        ({"size": "64"}, "size: expected a whole number"),
        ({"size": (8, 8, 3)}, r"size: expected a number or \(height, width\)"),
        ({"background": "whitish"}, "background: expected a colour"),
        ({"background": (0, 0, 256)}, "background: expected a colour"),
        ({"background": 3}, "background: expected a colour"),
        ({"least": 0}, "least: expected at least 1"),
        ({"threads": -1}, "threads: expected at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_images(folder, **{"size": 8, **arguments})


# ------------------------------------------------------------------------------------ the cache


def kept(cache):
    return sorted(path.name.split(".")[-1] for path in cache.iterdir())


def test_the_cache_is_read_when_nothing_changed(folder, tmp_path, monkeypatch):
    cache = tmp_path / "new" / "cache"
    plain = load_images(folder, size=8)
    first = load_images(folder, size=8, cache=cache)
    monkeypatch.setattr(images, "_decoded", None)  # nothing is decoded again
    second = load_images(str(folder), size=8, cache=str(cache))
    for found in (first, second):
        assert torch.equal(found.images, plain.images)
        assert (found.names, found.shape, found.classes) == (
            plain.names,
            plain.shape,
            plain.classes,
        )
        assert found.skipped == plain.skipped
    assert kept(cache) == ["json", "pixels"]
    second.images[:] = 0  # what is done to the array does not reach the file
    assert torch.equal(load_images(folder, size=8, cache=cache).images, plain.images)


@pytest.mark.parametrize("change", ["byte", "name", "size", "channels", "background", "one more"])
def test_what_changed_is_decoded_again(folder, tmp_path, change):
    cache, settings = tmp_path / "cache", {"size": 8}
    load_images(folder, cache=cache, **settings)
    first = folder / "cats" / "a.png"
    if change == "byte":
        size, then = first.stat().st_size, first.stat().st_mtime
        array = noise(1)
        array[0, 0, 0] ^= 255
        save(first, array)
        with first.open("ab") as stream:
            stream.write(bytes(max(0, size - first.stat().st_size)))
        os.utime(first, (then, then))
    elif change == "name":
        first.rename(folder / "cats" / "c.png")
    elif change == "one more":
        save(folder / "cats" / "d.png", noise(5))
    else:
        settings |= {change: {"size": 9, "channels": 4, "background": "black"}[change]}
    again = load_images(folder, cache=cache, **settings)
    expected = load_images(folder, **settings)
    assert torch.equal(again.images, expected.images)
    assert again.names == expected.names
    assert kept(cache) == ["json", "json", "pixels", "pixels"]


def test_grey_pictures_take_a_third_of_the_cache(tmp_path):
    for seed in range(3):
        save(tmp_path / "grey" / f"{seed}.png", noise(seed, channels=1))
    found = load_images(tmp_path / "grey", cache=tmp_path / "cache")
    assert torch.equal(found.images, load_images(tmp_path / "grey").images)
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    assert pixels.stat().st_size == 3 * 96


def test_what_fills_the_memory_goes_to_the_users_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert torch.equal(
        load_images(folder, size=8, in_memory=100).images, load_images(folder, size=8).images
    )
    assert kept(tmp_path / "caches" / "vae-book") == ["json", "pixels"]


@pytest.mark.parametrize("damage", ["shorter", "no description"])
def test_half_a_cache_is_made_anew(folder, tmp_path, damage):
    cache = tmp_path / "cache"
    load_images(folder, size=8, cache=cache)
    (pixels,), (described,) = cache.glob("*.pixels"), cache.glob("*.json")
    if damage == "shorter":
        os.truncate(pixels, 5)
    else:
        described.unlink()
    again = load_images(folder, size=8, cache=cache)
    assert torch.equal(again.images, load_images(folder, size=8).images)
    assert len(json.loads(described.read_text(encoding="utf-8"))["names"]) == 3


def test_a_full_disk_is_named_and_nothing_stays(folder, tmp_path, monkeypatch):
    def full(stream, size):
        stream.write(bytes(size // 2))
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = tmp_path / "cache"
    monkeypatch.setattr(images, "_reserve", full)
    with pytest.raises(OSError, match=r"cache: 0.0 MB cannot be written to .*: No space left"):
        load_images(folder, size=8, cache=cache)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named(folder):
    with pytest.raises(OSError, match=r"cache: .* cannot be written to .*notes.txt"):
        load_images(folder, size=8, cache=folder / "notes.txt")


def test_a_folder_that_cannot_be_written_can_be_read(folder):
    before = sorted(path for path in folder.rglob("*"))
    folder.chmod(0o500)
    try:
        assert len(load_images(folder, size=8)) == 3
        assert sorted(path for path in folder.rglob("*")) == before
    finally:
        folder.chmod(0o700)


def test_what_a_killed_process_left_goes_after_a_day(folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, hours in ((".old.1.partial", 25), (".new.2.partial", 1)):
        (cache / name).write_bytes(b"half")
        os.utime(cache / name, (time.time() - 3600 * hours,) * 2)
    load_images(folder, size=8, cache=cache)
    assert [path.name for path in cache.glob(".*")] == [".new.2.partial"]


# ------------------------------------------------------------------------------------ groups


def pictures_of(arrays):
    stacked = torch.from_numpy(np.stack(arrays))
    n, height, width, channels = stacked.shape
    images = stacked.permute(0, 3, 1, 2).reshape(n, -1)
    names = [f"{number}.png" for number in range(n)]
    labels = torch.zeros(n, dtype=torch.int64)
    return Pictures(images, (channels, height, width), names, labels, [""], [])


def blobs(seed, side=48):
    """Return a picture of smooth patches in colour, as photographs are."""
    small = Image.fromarray(noise(seed, 6, 6))
    return np.array(small.resize((side, side), Image.Resampling.BICUBIC))


def test_copies_are_found_and_others_are_not(tmp_path):
    arrays = [blobs(seed) for seed in range(30)]
    originals = list(arrays)
    for number, array in enumerate(originals):
        Image.fromarray(array).save(tmp_path / "a.jpg", quality=70)
        small = Image.fromarray(array).resize((30, 30), Image.Resampling.LANCZOS)
        arrays += [
            np.array(Image.open(tmp_path / "a.jpg")),
            np.array(small.resize((48, 48), Image.Resampling.LANCZOS)),
            (array * 0.95).astype(np.uint8),
        ]
        assert len(arrays) == 30 + 3 * (number + 1)
    groups = near_duplicates(pictures_of(arrays))
    assert groups.dtype == torch.int64
    assert groups[:30].tolist() == list(range(30))
    assert groups[30:].tolist() == [number for number in range(30) for _ in range(3)]


def test_pictures_of_one_colour_are_alike_by_their_colour():
    colours = [(0, 0, 0), (90, 90, 90), (250, 0, 0), (0, 0, 250), (92, 91, 90)]
    arrays = [np.full((16, 16, 3), colour, np.uint8) for colour in colours]
    assert near_duplicates(pictures_of(arrays)).tolist() == [0, 1, 2, 3, 1]


def test_what_is_transparent_is_compared_on_white():
    clear = np.zeros((16, 16, 4), np.uint8)
    coloured = np.full((16, 16, 4), (200, 0, 0, 0), np.uint8)
    white, black = (np.full((16, 16, 4), (x, x, x, 255), np.uint8) for x in (255, 0))
    groups = near_duplicates(pictures_of([clear, coloured, white, black]))
    assert groups.tolist() == [0, 0, 0, 1]


def test_a_chain_of_near_ones_is_one_group():
    """Each is as near to the next as it may be, the first is not to the last."""
    arrays = [np.full((16, 16, 3), level, np.uint8) for level in (100, 130, 115, 145)]
    assert near_duplicates(pictures_of(arrays)).tolist() == [0, 0, 0, 0]
    assert near_duplicates(pictures_of([arrays[0], arrays[3]])).tolist() == [0, 1]
    assert near_duplicates(pictures_of(arrays), levels=14).tolist() == [0, 1, 2, 3]


def test_many_pictures_are_compared_in_parts():
    """Copies stand 300 apart, in other parts of the work; one picture is tiny and grey."""
    arrays = [blobs(seed, 12) for seed in range(300)] * 2
    groups = near_duplicates(pictures_of(arrays))
    assert torch.equal(groups[:300], groups[300:])
    assert len(groups.unique()) > 290
    assert near_duplicates(pictures_of([np.zeros((1, 1, 1), np.uint8)])).tolist() == [0]
    with pytest.raises(ValueError, match=r"pictures: expected Pictures, got torch.Tensor"):
        near_duplicates(torch.zeros(3, 4))


def test_no_group_is_on_both_sides():
    groups = torch.randint(0, 40, (500,), generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        rest, held_out = split_groups(groups, 0.2, seed=seed)
        assert sorted([*rest.tolist(), *held_out.tolist()]) == list(range(500))
        assert not set(groups[rest].tolist()) & set(groups[held_out].tolist())
        assert 80 <= len(held_out) <= 120
        assert rest.tolist() == sorted(rest.tolist())
        assert held_out.tolist() == sorted(held_out.tolist())
    assert len({tuple(split_groups(groups, seed=seed)[1].tolist()) for seed in range(5)}) == 5
    assert torch.equal(split_groups(groups)[1], split_groups(groups)[1])


def test_texts_split_as_numbers_do():
    numbers = torch.tensor([0, 2, 1, 0, 1, 2, 3])
    texts = ["abcd"[number] for number in numbers]
    for first, second in zip(split_groups(numbers, 0.5), split_groups(texts, 0.5), strict=True):
        assert torch.equal(first, second)


def test_each_side_keeps_a_group():
    assert [len(side) for side in split_groups([0] * 99 + [1], 0.01)] in ([99, 1], [1, 99])
    for seed in range(5):
        assert all(len(side) for side in split_groups([0, 1, 2], 0.99, seed=seed))
        assert all(len(side) for side in split_groups([0, 1, 2], 0.01, seed=seed))


@pytest.mark.parametrize("groups", [[], [1, 1, 1], [[1, 2], [3, 4]]])
def test_what_cannot_be_split_is_refused(groups):
    with pytest.raises(ValueError, match="groups: expected a number or a text for each picture"):
        split_groups(groups)


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="share: expected a number above 0 and below 1"):
        split_groups([0, 1], share)


# ------------------------------------------------------------------------------------ the sheet


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_sheet_shows_each_picture_in_its_place(tmp_path, channels):
    rows = torch.randint(0, 256, (5, channels * 6), dtype=torch.uint8)
    path = save_sheet(tmp_path / "new" / "a.png", rows, (channels, 2, 3), columns=3, zoom=2)
    found = np.array(Image.open(path)).reshape(2 * 4 + 2, 3 * 6 + 2 * 2, channels)
    fourth = found[6:10:2, 0:6:2].transpose(2, 0, 1)
    assert (fourth.reshape(-1) == rows[3].numpy()).all()
    assert (found[7, 1] == found[6, 0]).all()
    assert (found[:, 6:8] == (0 if channels == 4 else 255)).all()
    assert (found[6:, 16:] == (0 if channels == 4 else 255)).all()
    again = save_sheet(tmp_path / "b.png", rows.float() / 255, (channels, 2, 3), 3, zoom=2)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        (torch.zeros(0, 4), (1, 2, 2), "images: expected rows"),
        (torch.zeros(3, 4), (2, 2, 1), "images: expected rows"),
        (torch.zeros(3, 4), (1, 2, 3), "shape: expected channels x height x width to be 4"),
        (torch.full((3, 4), 2.0), (1, 2, 2), "images: expected uint8 or floats from 0 to 1"),
        (torch.full((3, 4), torch.nan), (1, 2, 2), "images: expected uint8 or floats from 0 to 1"),
        (torch.zeros(3, 4, dtype=torch.int64), (1, 2, 2), "images: expected uint8 or floats"),
    ],
)
def test_what_fits_no_sheet_is_refused(tmp_path, rows, shape, message):
    with pytest.raises(ValueError, match=message):
        save_sheet(tmp_path / "a.png", rows, shape)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ the emoji


def test_the_emoji_are_whole_small_and_licensed():
    pictures = load_images(EMOJI, channels=4)
    assert (len(pictures), pictures.shape, pictures.skipped) == (2430, (4, 32, 32), [])
    assert len({name.split(".")[0] for name in pictures.names}) == 555
    assert len(pictures.classes) == 32
    assert EMOJI.stat().st_size <= 5_000_000
    licence = EMOJI.with_name("LICENSE-emoji").read_text(encoding="utf-8")
    assert "Noto Emoji" in licence
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in licence


def test_emoji_are_made_the_same_each_time(tmp_path):
    """A package of two faces, one of them in two tones, and a flag, which is left out."""
    package = tmp_path / "package"
    tones = {
        key: {"image": f"{key}.png", "has_img_google": key != "1F3FF"}
        for key in ("1F3FB", "1F3FD-1F3FB", "1F3FF")
    }
    entries = [
        ("People & Body", "person", "baby", tones),
        ("Smileys & Emotion", "face-hat", "cowboy", {}),
        ("Flags", "flag", "chequered", {}),
    ]
    listed = [
        {
            "category": category,
            "subcategory": kind,
            "short_name": name,
            "image": f"{name}.png",
            "has_img_google": True,
            "skin_variations": variations,
        }
        for category, kind, name, variations in entries
    ]
    pixels = package / "img" / "google" / "64"
    for seed, stem in enumerate(["baby", "cowboy", "1F3FB", "1F3FD-1F3FB"]):
        save(pixels / f"{stem}.png", noise(seed, 64, 64, 4))
    (package / "emoji.json").write_text(json.dumps(listed), encoding="utf-8")
    for name in ("a.zip", "b.zip"):
        emoji.pack(package, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    pictures = load_images(tmp_path / "a.zip", channels=4)
    assert pictures.names == [
        "face-hat/cowboy.webp",
        "person/baby.light.webp",
        "person/baby.medium.light.webp",
        "person/baby.webp",
    ]
    assert torch.equal(
        pictures.images, load_images(pixels, size=32, channels=4).images[[3, 0, 1, 2]]
    )
