import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.memory import Largest
from vae_lib.data import (
    MNIST,
    MNIST_SHA256,
    Batches,
    binarize,
    hold_out,
    idx_bytes,
    load_mnist,
    quantize,
    seeded,
)
from vae_lib.model import dense_vae
from vae_lib.noise import Share
from vae_lib.training import train


@pytest.fixture(scope="module")
def mnist():
    return load_mnist()


# -- the data set


@pytest.mark.parametrize(
    ("name", "size"),
    [("x_train", 47_040_016), ("y_train", 60_008), ("x_test", 7_840_016), ("y_test", 10_008)],
)
def test_the_file_rebuilds_the_published_idx_files(name, size):
    with np.load(MNIST) as archive:
        content = idx_bytes(archive[name])
    assert len(content) == size
    assert hashlib.sha256(content).hexdigest() == MNIST_SHA256[name]


def test_the_checked_sums_are_the_published_ones():
    # From the IDX files that were first published; written out here a second time on purpose.
    assert MNIST_SHA256 == {
        "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }


def test_images_are_rows_in_grey_and_labels_fit_them(mnist):
    assert mnist.train_images.shape == (60_000, 784)
    assert mnist.test_images.shape == (10_000, 784)
    assert mnist.train_images.dtype == mnist.train_labels.dtype == torch.uint8
    assert mnist.train_labels.bincount().tolist()[:3] == [5923, 6742, 5958]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    # The first held-out digit is a seven: ink in the bar at the top, none at the bottom left.
    seven = mnist.test_images[0].view(28, 28)
    assert seven[7:9, 6:12].float().mean() > 100
    assert seven[20:, :6].max() == 0


def test_labels_belong_to_their_images(mnist):
    # In the order in which the data set was published; LeCun, Bottou, Bengio and Haffner (1998).
    assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.train_labels[-5:].tolist() == [8, 3, 5, 6, 8]
    assert mnist.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # The class whose mean image is nearest is right for 82 % of images, by chance for 10 %.
    train, test = mnist.train_images.float(), mnist.test_images.float()
    means = torch.stack([train[mnist.train_labels == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(test, means).argmin(1)
    assert (nearest == mnist.test_labels).float().mean() > 0.8


def test_no_image_is_both_learned_from_and_held_out(mnist):
    def keys(images):
        return {row.tobytes() for row in images.numpy()}

    assert not keys(mnist.train_images) & keys(mnist.test_images)


def test_loading_takes_less_than_a_second():
    # Of the processor's own time, and the best of three, because the machine may be busy.
    times = []
    for _ in range(3):
        start = time.process_time()
        load_mnist()
        times.append(time.process_time() - start)
    assert min(times) < 1


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found nothing at .*nowhere\.npz.*install"):
        load_mnist(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("kind", ["truncated", "text", "foreign"])
def test_a_file_that_is_no_mnist_says_so(tmp_path, kind):
    file = tmp_path / "mnist.npz"
    if kind == "truncated":
        file.write_bytes(MNIST.read_bytes()[:1_000_000])
    elif kind == "text":
        file.write_text("404: Not Found", encoding="utf-8")
    else:
        np.savez(file, images=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected an .npz .*Replace the file"):
        load_mnist(file)


def test_one_changed_pixel_is_noticed(tmp_path):
    with np.load(MNIST) as archive:
        arrays = dict(archive)
    arrays["x_test"] = arrays["x_test"].copy()
    arrays["x_test"][5, 14, 14] ^= 1
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(ValueError, match=r"x_test .*sha256 .*expected the x_test of MNIST"):
        load_mnist(tmp_path / "mnist.npz")


# -- zeros and ones


def test_threshold_on_bytes_is_at_128_and_on_floats_above_one_half():
    levels = torch.arange(256, dtype=torch.uint8)
    expected = (levels >= 128).float()
    assert torch.equal(binarize(levels, "threshold"), expected)
    assert torch.equal(binarize(levels.float() / 255, "threshold"), expected)
    assert binarize(torch.tensor([0.5]), "threshold").item() == 0


def test_static_is_one_draw_for_ever():
    grey = torch.full((100, 784), 64, dtype=torch.uint8)
    first, again = binarize(grey, "static"), binarize(grey, "static")
    assert torch.equal(first, again)
    assert not torch.equal(first, binarize(grey, "static", seed=1))


def test_static_draws_are_those_of_their_stream():
    grey = torch.linspace(0, 1, 1000)
    for seed in (0, 1):
        uniform = torch.rand(1000, generator=seeded(seed, stream="static"))
        assert torch.equal(binarize(grey, "static", seed=seed), (uniform < grey).float())


def test_static_draws_are_not_the_first_weights():
    # Both were the first even numbers of the bare seed once, and correlated by 0.9999999.
    half = torch.full((100, 784), 0.5)
    drawn = binarize(half, "static").flatten()
    weights = dense_vae(hidden=100, seed=0).encoder.network.trunk[0][0].weight.flatten()
    correlation = torch.corrcoef(torch.stack([drawn, weights.detach()]))[0, 1]
    assert abs(correlation) < 5 / len(drawn) ** 0.5


def test_draws_are_made_where_their_generator_is_and_end_where_the_images_are():
    # Images on the device "meta" have no numbers, so nothing can be drawn there.
    grey = torch.zeros(3, 4, dtype=torch.uint8, device="meta")
    assert binarize(grey, "static").device.type == "meta"
    assert binarize(grey, "dynamic", generator=torch.Generator()).device.type == "meta"


def test_draws_do_not_depend_on_the_default_precision():
    grey = torch.full((100,), 0.5)
    usual = binarize(grey, "static")
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(binarize(grey, "static"), usual)
    finally:
        torch.set_default_dtype(torch.float32)


def test_dynamic_is_a_new_draw_each_time_from_the_generator_given():
    grey = torch.full((100, 784), 64, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    first = binarize(grey, "dynamic", generator=generator)
    second = binarize(grey, "dynamic", generator=generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, binarize(grey, "dynamic", generator=generator.manual_seed(0)))


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_draws_have_the_grey_as_their_mean(method):
    levels = torch.tensor([0, 51, 128, 204, 255], dtype=torch.uint8)
    n = 40_000
    draws = binarize(levels.expand(n, 5), method, generator=torch.Generator().manual_seed(1))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    grey = levels.double() / 255
    error = (grey * (1 - grey) / n).sqrt()
    assert ((draws.double().mean(0) - grey).abs() <= 5 * error).all()


@pytest.mark.parametrize(
    ("images", "method", "message"),
    [
        (torch.zeros(3), "median", r'method: expected "threshold".*\'median\''),
        (torch.zeros(3), "dynamic", r"generator: .*got None"),
        (torch.tensor([0.0, 255.0]), "threshold", r"from 0 to 255.*Divide bytes by 255"),
        (torch.tensor([-1.0, 1.0]), "static", r"from -1 to 1"),
        (torch.tensor([float("nan")]), "threshold", r"floats from 0 to 1"),
        (torch.tensor([0, 1]), "threshold", r"expected uint8 greys .*got torch.int64"),
    ],
)
def test_binarize_refuses(images, method, message):
    with pytest.raises(ValueError, match=message):
        binarize(images, method)


# -- splits and batches


def test_hold_out_splits_images_and_labels_alike(mnist):
    rest, validation = hold_out(mnist.train_images)
    rest_labels, validation_labels = hold_out(mnist.train_labels)
    assert len(rest) == 50_000
    assert len(validation) == 10_000
    index = torch.arange(60_000)
    rest_rows, validation_rows = hold_out(index)
    assert torch.equal(torch.cat([rest_rows, validation_rows]).sort().values, index)
    assert torch.equal(rest, mnist.train_images[rest_rows])
    assert torch.equal(validation_labels, mnist.train_labels[validation_rows])
    assert torch.equal(rest_labels, mnist.train_labels[rest_rows])
    assert not torch.equal(validation_rows, torch.arange(10_000))
    assert not torch.equal(validation_rows, hold_out(index, seed=1)[1])


@pytest.mark.parametrize("count", [0, 10, -1])
def test_hold_out_refuses(count):
    with pytest.raises(ValueError, match=r"count: expected 1 to 9 of 10"):
        hold_out(torch.arange(10), count)


def test_every_epoch_brings_each_image_once_in_a_new_order():
    batches = Batches(torch.arange(1050), batch_size=100, seed=3)
    epochs = [torch.cat(list(batches.epoch(number))) for number in (1, 2)]
    assert len(batches) == len(list(batches.epoch(1))) == 11
    for rows in epochs:
        assert torch.equal(rows.sort().values, torch.arange(1050))
        assert (rows[1:] - rows[:-1] == 1).float().mean() < 0.05
    assert not torch.equal(*epochs)


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    images = torch.arange(1000)
    reference = torch.cat(list(Batches(images, seed=3).epoch(2)))
    torch.manual_seed(99)
    batches = Batches(images, seed=3)
    for number in (5, 1):
        list(batches.epoch(number))
    assert torch.equal(torch.cat(list(batches.epoch(2))), reference)
    assert torch.equal(torch.cat(list(Batches(images, batch_size=7, seed=3).epoch(2))), reference)
    assert not torch.equal(torch.cat(list(Batches(images, seed=4).epoch(2))), reference)


def test_the_order_is_the_same_in_another_process():
    code = (
        "import torch; from vae_lib.data import Batches;"
        "print(torch.cat(list(Batches(torch.arange(9), seed=3).epoch(2))).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == str(
        torch.cat(list(Batches(torch.arange(9), seed=3).epoch(2))).tolist()
    )


def test_without_shuffling_the_order_is_the_images_own():
    batches = Batches(torch.arange(10), batch_size=4, shuffle=False)
    assert [b.tolist() for b in batches.epoch(7)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_dynamic_binarisation_of_batches_is_new_in_each_epoch_and_repeatable():
    grey = torch.full((20, 784), 128, dtype=torch.uint8)
    batches = Batches(
        grey, 10, shuffle=False, transform=lambda x, g: binarize(x, "dynamic", generator=g)
    )
    first, second = next(batches.epoch(1)), next(batches.epoch(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, next(batches.epoch(1)))
    assert not torch.equal(*list(batches.epoch(1)))


def test_batches_refuse():
    with pytest.raises(ValueError, match="images: expected at least one row"):
        Batches(torch.zeros(0, 784))
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        Batches(torch.zeros(3, 784), batch_size=0)


def test_batches_and_data_sets_are_equal_to_themselves_alone(mnist):
    batches = Batches(torch.zeros(3, 784))
    assert batches == batches
    assert batches != Batches(torch.zeros(3, 784))
    assert mnist != load_mnist()
    assert len({batches, mnist}) == 2


def test_streams_are_independent():
    draws = [
        torch.rand(3, generator=seeded(seed, epoch, stream=stream)).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
        for stream in ("order", "noise")
    ]
    assert len({tuple(draw) for draw in draws}) == 8


# -- grey levels


@pytest.mark.parametrize("levels", [2, 3, 8, 16, 255, 256])
def test_quantising_gives_each_level_an_equal_share_of_the_bytes(levels):
    grey = quantize(torch.arange(256, dtype=torch.uint8), levels)
    level, counts = grey.unique(return_counts=True)
    torch.testing.assert_close(level, torch.linspace(0, 1, levels))
    assert counts.max() - counts.min() <= 1
    assert (grey.diff() >= 0).all()


def test_two_levels_are_the_threshold_and_all_of_them_the_image(mnist):
    images = mnist.test_images[:100]
    assert torch.equal(quantize(images, 2), binarize(images, "threshold"))
    assert torch.equal(quantize(images, 256), images / 255)


@pytest.mark.parametrize(
    ("images", "levels", "message"),
    [
        (torch.zeros(3), 4, "images: expected uint8 greys 0 to 255, got torch.float32"),
        (torch.zeros(3, dtype=torch.uint8), 1, "levels: expected 2 to 256, got 1"),
        (torch.zeros(3, dtype=torch.uint8), 257, "levels: expected 2 to 256, got 257"),
    ],
)
def test_what_cannot_be_quantised_is_refused(images, levels, message):
    with pytest.raises(ValueError, match=message):
        quantize(images, levels)


def test_of_a_file_larger_than_the_memory_only_rows_are_read(tmp_path):
    rows = np.random.default_rng(0).integers(0, 2, (3000, 64), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    images = torch.from_numpy(np.load(tmp_path / "rows.npy", mmap_mode="c"))
    batches = Batches(images, 50, seed=2, transform=lambda x, _: x.float())
    with Largest() as largest:
        train(dense_vae(pixels=64, hidden=8, latents=2), batches, epochs=1)
    assert largest.numbers < 2 * 50 * 64 < images.numel() / 20
    inside = Batches(torch.from_numpy(rows), 50, seed=2, transform=lambda x, _: x.float())
    for one, other in zip(batches.epoch(1), inside.epoch(1), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shuffle", [False, True])
def test_shares_of_a_batch_are_the_batch(shuffle):
    batches = Batches(torch.arange(23).unsqueeze(1), 5, shuffle=shuffle)
    parts = [batches.epoch(3, Share(rank, 3)) for rank in range(3)]
    for step, whole in enumerate(batches.epoch(3)):
        assert len(whole) == batches.size(step)
        assert torch.equal(torch.cat([next(part) for part in parts]), whole)


def test_a_transform_draws_for_its_share_what_it_would_for_the_batch():
    grey = torch.rand(23, 4, generator=torch.Generator().manual_seed(0))
    batches = Batches(grey, 5, transform=lambda x, g: binarize(x, "dynamic", generator=g))
    parts = [batches.epoch(1, Share(rank, 2)) for rank in range(2)]
    for whole in batches.epoch(1):
        assert torch.equal(torch.cat([next(part) for part in parts]), whole)
