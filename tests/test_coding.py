"""Does what is compressed come back, is it as short as it should be, and is damage refused?"""

import dataclasses
import hashlib
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_lib import coding
from vae_lib.coding import CHANCES, Archive, BigStack, Lengths, Stack, code_lengths
from vae_lib.convolutional import conv_vae
from vae_lib.integers import integer_model
from vae_lib.model import dense_vae
from vae_lib.priors import GaussianMixture
from vae_lib.residual import residual_vae

pytest.importorskip("constriction")


class Masses:
    """A table of cumulative masses as what is coded by."""

    def __init__(self, look_up, total):
        self.look_up, self.total = look_up, total

    def __call__(self, edges):
        return self.look_up(edges)


class Toy:
    """A model of the form that is coded, whose integers are random; pixels see those before."""

    def __init__(self, shape=(1, 3, 4), levels=2, latents=3, cells=16, seed=0, chained=True):
        self.shape, self.levels, self.latents, self.cells = shape, levels, latents, cells
        self.pixels, self.chained = math.prod(shape), chained
        self.random = np.random.default_rng(seed)
        self.sha256 = hashlib.sha256(f"{seed} {shape} {levels}".encode()).hexdigest()
        order = np.arange(self.pixels)
        self.pixel_blocks = [order[::2], order[1::2]] if chained else [order]
        one_by_one = [slice(j, j + 1) for j in range(latents)]
        self.prior_blocks = one_by_one if chained else [slice(0, latents)]
        self.q = self.masses(64, latents, cells)
        self.p = self.masses(64, latents, cells)
        self.x = self.masses(64, self.pixels, levels)

    def masses(self, contexts, places, symbols):
        """Return cumulative masses by context, place and edge: each symbol has some."""
        steep, least = self.random.exponential(1, (contexts, places, symbols)) ** 3, 2**18
        share = steep / steep.sum(-1, keepdims=True)
        mass = least + (share * (2**30 - least * symbols)).astype(np.int64)
        edges = np.zeros((contexts, places, symbols + 1), np.int64)
        edges[..., 1:] = mass.cumsum(-1)
        edges[..., -1] = 2**30
        return edges

    @staticmethod
    def look_up(table, contexts, places):
        return Masses(lambda edges: table[contexts % 64, places, edges], 2**30)

    def posterior(self, images):
        context = images @ np.arange(self.pixels)
        return self.look_up(self.q, context[:, None], np.arange(self.latents))

    def prior(self, cells, block):
        seen = self.chained * (cells.cumsum(1) - cells)  # those before each
        return self.look_up(self.p, seen[:, block], np.arange(self.latents)[block])

    def likelihood(self, cells):
        return cells @ np.arange(1, self.latents + 1)

    def pixel(self, state, images, block):
        seen = self.chained * images[:, ::2].sum(1)[:, None] * (block % 2)  # the first block
        return self.look_up(self.x, state[:, None] + seen, block)

    def draw(self, count, seed=1):
        rows = np.random.default_rng(seed).integers(0, self.levels, (count, self.pixels))
        return torch.from_numpy(rows)


def questions(count, seed=0):
    """Return chances, some of them extreme, and answers that were drawn by them."""
    random = np.random.default_rng(seed)
    chances = random.integers(1, CHANCES, count)
    chances[: count // 4] = random.choice([1, 2, CHANCES - 2, CHANCES - 1], count // 4)
    return random.integers(0, CHANCES, count) < chances, chances


def carried(answers, chances):
    """Return the bits that answers carry."""
    return -np.log2(np.where(answers, chances, CHANCES - chances) / CHANCES).sum()


# -------------------------------------------------------------------------------- the stacks


@pytest.mark.parametrize("make", [BigStack, Stack])
def test_what_is_pushed_is_popped(make):
    answers, chances = questions(40_000)
    stack = make()
    stack.push(answers, chances)
    # The first answers lie in a number that is too small to have all remainders.
    assert 0 < stack.bits - carried(answers, chances) < 24 + 1e-4 * stack.bits
    first = stack.pop(chances[:20_000])
    assert np.array_equal(np.concatenate([first, stack.pop(chances[20_000:])]), answers)
    assert stack.bits == 0


@pytest.mark.parametrize("make", [BigStack, Stack])
def test_a_pop_is_undone_by_a_push(make):
    answers, chances = questions(400)
    stack = make()
    stack.push(answers, chances)
    before, others = stack.bits, questions(3000, seed=1)[1]
    popped = stack.pop(others)  # far below the bottom
    stack.push(popped, others)
    assert stack.bits == before
    assert np.array_equal(stack.pop(chances), answers)


def test_both_stacks_have_the_same_answers_and_shapes():
    answers, chances = questions(60)
    shape = (5, 12)
    for stack in (BigStack(), Stack()):
        stack.push(answers.reshape(shape), chances.reshape(shape))
        assert np.array_equal(stack.pop(chances.reshape(shape)), answers.reshape(shape))


def test_the_words_are_those_of_the_definition():
    """A file must be read by every version of constriction: this is what it says, in full."""
    answers, chances = questions(3000, seed=2)
    words, top = [], 0
    for yes, chance in zip(answers[::-1].tolist(), chances[::-1].tolist(), strict=True):
        yes_wide = chance * 2**24 // CHANCES
        start, width = (2**24 - yes_wide, yes_wide) if yes else (0, 2**24 - yes_wide)
        if top >= width << 40:
            words.append(top % 2**32)
            top >>= 32
        top = (top // width << 24) + start + top % width
    stack = Stack()
    stack.push(answers, chances)
    assert stack.words.tolist() == [*words, top % 2**32, top >> 32]


def test_without_constriction_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(ValueError, match="Install it with pip install constriction"):
        Stack()


@settings(derandomize=True, database=None, deadline=None, max_examples=50)
@given(st.data())
def test_symbols_come_back(data):
    count = 2 ** data.draw(st.integers(1, 10))
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    masses = 1 + (random.random((*shape, count)) ** 20 * 2**18).astype(np.int64)
    masses[..., 0] += 2**30 - masses.sum(-1)
    edges = np.concatenate([np.zeros((*shape, 1), np.int64), masses.cumsum(-1)], -1)
    symbols = random.integers(0, count, shape)

    def look_up(at):
        return np.take_along_axis(edges, at[..., None], -1)[..., 0]

    cumulative = Masses(look_up, 2**30)

    for stack in (BigStack(), Stack()):
        coding.push(stack, cumulative, symbols, count)
        assert np.array_equal(coding.pop(stack, cumulative, shape, count), symbols)
        assert stack.bits == 0
    # Symbols that are drawn cost what they should; those of a mass that no chance of 20 bits can
    # say are cheaper, and never come.
    drawn = (random.integers(0, 2**30, shape)[..., None] >= edges[..., 1:]).sum(-1)
    tally = coding._Tally(shape[0])
    coding.push(tally, cumulative, drawn, count)
    mass = np.take_along_axis(masses, drawn[..., None], -1)[..., 0]
    assert tally.bits == pytest.approx(-np.log2(mass / 2**30).sum(1), abs=0.02 * shape[1])


# --------------------------------------------------------------------------------- the chain


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("count", [1, 2, 700])
def test_images_come_back(levels, chained, count):
    toy = Toy(levels=levels, chained=chained)
    images = toy.draw(count)
    data = coding.compress(images, toy, note=b"a note")
    back = coding.decompress(data, toy)
    assert back.dtype == torch.uint8
    assert torch.equal(back, images.to(torch.uint8))
    assert Archive.unpack(data).note == b"a note"


def shaken(model, amount=0.3):
    """Move all weights, so that no part of a model is what it begins as."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(amount * torch.randn(weight.shape, generator=generator))
    return model


@pytest.mark.parametrize("kind", ["residual", "mixture", "levels"])
def test_images_come_back_by_models_in_integers(kind):
    """Latents one by one and pixels by waves; a mixture; levels: each as long as it says."""
    model = {
        "residual": lambda: residual_vae((8, 12), 4, widths=(4, 6), features=5),
        "mixture": lambda: dense_vae(64, 16, 3),
        "levels": lambda: conv_vae((3, 8, 8), 4, width=4, likelihood="levels"),
    }[kind]()
    if kind == "mixture":
        model.prior = GaussianMixture(3, 4)
    model = integer_model(shaken(model))
    random = torch.Generator().manual_seed(1)
    images = torch.randint(model.levels, (60, model.pixels), generator=random)
    data = coding.compress(images, model)
    assert torch.equal(coding.decompress(data, model), images.to(torch.uint8))
    archive, lengths = Archive.unpack(data), code_lengths(images, model)
    expected = lengths.net.sum() + 32 * archive.initial
    assert 32 * len(archive.words) == pytest.approx(expected, rel=2e-3, abs=64)


def test_the_file_is_as_long_as_its_images_cost():
    toy = Toy(levels=256, latents=4)
    images = toy.draw(1500)
    data = coding.compress(images, toy)
    archive, lengths = Archive.unpack(data), code_lengths(images, toy)
    assert isinstance(lengths, Lengths)
    assert lengths.net.shape == (1500,)
    ideal = lengths.net.sum() + 32 * archive.initial
    assert 32 * len(archive.words) == pytest.approx(ideal, rel=1e-3)
    assert len(data) == 52 + 2 * len(archive.sizes) + 4 * len(archive.words) + 16
    assert max(archive.sizes) == coding.MOST_AT_ONCE
    assert archive.sizes[0] == 1


def test_lengths_are_those_of_the_tables():
    """With one pixel block and one of latents, every part is read off the toy's own tables."""
    toy = Toy(levels=256, chained=False)
    images = toy.draw(40)
    numbers = images.numpy()
    cells = []
    stack = Stack(coding._begun(numbers, toy))
    for _, found in coding._encoded(stack, numbers, toy):
        cells.append(found)
    cells, lengths = np.concatenate(cells), code_lengths(images, toy)

    def bits(cumulative, symbols):
        return -np.log2((cumulative(symbols + 1) - cumulative(symbols)) / 2**30).sum(1)

    expected = bits(toy.pixel(toy.likelihood(cells), numbers, np.arange(12)), numbers)
    assert lengths.pixels == pytest.approx(expected, rel=1e-3)
    assert lengths.latents == pytest.approx(bits(toy.prior(cells, slice(0, 3)), cells), rel=1e-3)
    assert lengths.back == pytest.approx(bits(toy.posterior(numbers), cells), rel=1e-3)


def test_the_popped_latents_are_draws_of_the_posterior():
    toy = Toy(latents=1, cells=4, chained=False)
    images = toy.draw(1).expand(4000, -1)  # one image, again and again
    numbers = images.numpy()
    stack = Stack(coding._begun(numbers, toy))
    cells = np.concatenate([found for _, found in coding._encoded(stack, numbers, toy)])
    mass = np.diff(toy.posterior(numbers[:1])(np.arange(5)[None]))[0] / 2**30
    share = np.bincount(cells[:, 0], minlength=4) / 4000
    assert np.abs(share - mass).max() < 4 * 0.5 / math.sqrt(4000)


def test_large_images_come_in_small_batches():
    toy = Toy(shape=(1, 64, 128), latents=1)
    data = coding.compress(toy.draw(150), toy)
    assert max(Archive.unpack(data).sizes) == 2**20 // (64 * 128)
    assert torch.equal(coding.decompress(data, toy), toy.draw(150).to(torch.uint8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 12), "whole numbers from 0 to 1, got torch.float32"),
        (torch.zeros(2, 11, dtype=torch.uint8), r"shape \(n, 12\), at least one, got \(2, 11\)"),
        (torch.zeros(0, 12, dtype=torch.uint8), r"at least one, got \(0, 12\)"),
        (torch.full((1, 12), 2), "from 0 to 1, got 2 to 2"),
        (torch.full((1, 12), -1), "from 0 to 1, got -1 to -1"),
        (np.zeros((1, 12)), "expected a torch.Tensor, got numpy.ndarray"),
    ],
)
def test_other_images_are_refused(images, message):
    for use in (coding.compress, code_lengths):
        with pytest.raises(ValueError, match=f"images: .*{message}"):
            use(images, Toy())


# ---------------------------------------------------------------------------------- the file


@pytest.fixture(scope="module")
def small():
    toy = Toy()
    return toy, coding.compress(toy.draw(5), toy, note=b"note")


def signed(content):
    """Return a file with a checksum that fits, as an attacker would."""
    return content + hashlib.sha256(content).digest()[:16]


def test_every_damaged_byte_is_noticed(small):
    toy, data = small
    for place in range(len(data)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= change
            with pytest.raises(ValueError, match="data: expected"):
                coding.decompress(bytes(damaged), toy)


def test_every_truncation_is_noticed(small):
    toy, data = small
    for length in range(len(data)):
        with pytest.raises(ValueError, match="data: expected"):
            coding.decompress(data[:length], toy)
    with pytest.raises(ValueError, match="checksum does not fit"):
        coding.decompress(data + b"\0", toy)


@pytest.mark.parametrize("data", [b"", b"PK\3\4" * 100, b"\x89PNG\r\n\x1a\n" * 20])
def test_another_file_is_refused(data):
    with pytest.raises(ValueError, match="expected a file that vae compress wrote"):
        coding.decompress(data, Toy())


def test_another_model_is_refused(small):
    _, data = small
    with pytest.raises(ValueError, match="expected the one with sha256"):
        coding.decompress(data, Toy(seed=1))


def test_other_numbers_are_noticed(small):
    """A model that gives other integers here than there, under the same hash."""
    toy, data = small
    other = Toy(seed=3)
    other.sha256 = toy.sha256
    with pytest.raises(ValueError, match="the model gives other numbers here than there"):
        coding.decompress(data, other)


def test_one_other_number_is_noticed():
    toy = Toy(latents=1, cells=4, chained=False)
    images = toy.draw(200)
    data = coding.compress(images, toy)
    context, place = int(toy.likelihood(np.array([[2]]))[0] % 64), 5
    toy.x[context, place, 1] += 2**12  # a chance that is a little different
    with pytest.raises(ValueError, match="other numbers here than there"):
        coding.decompress(data, toy)


def claims(data, **changes):
    """Return a file with other numbers in its header and a checksum that fits."""
    names = ["magic", "version", "model", "channels", "height", "width", "levels", "count"]
    names += ["batches", "initial", "note"]
    layout = struct.Struct("<8sH16s3HHQIHI")
    values = dict(zip(names, layout.unpack_from(data), strict=True)) | changes
    return signed(layout.pack(*values.values()) + data[layout.size : -16])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "expected version 1 of the format, got 2"),
        ({"count": 2**60}, "a claim of 1,152,921,504,606,846,976 images"),
        ({"count": 0}, "a claim of 0 images"),
        ({"count": 6}, "a claim of 6 images in"),
        ({"batches": 2**32 - 1}, "a claim of 4,294,967,295 batches"),
        ({"note": 2**32 - 1}, "a note of 4,294,967,295 bytes"),
        ({"batches": 0}, "a claim of"),
        ({"height": 65535, "width": 65535, "channels": 65535}, "a claim of 5 images of"),
        ({"width": 5}, "a claim of images of"),
        ({"levels": 256}, "a claim of images of"),
        ({"model": bytes(16)}, "expected the one with sha256 000"),
        ({"initial": 0}, "expected to be left with"),
        ({"initial": 65535}, "expected to be left with"),
    ],
)
def test_false_claims_with_a_checksum_that_fits_are_refused(small, changes, message):
    toy, data = small
    assert coding.decompress(claims(data), toy).shape == (5, 12)
    with pytest.raises(ValueError, match=message):
        coding.decompress(claims(data, **changes), toy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (0, 1, 4)}, "5 images in 3 batches of odd sizes"),
        ({"sizes": (513,), "count": 513}, "513 images in 1 batches of odd sizes"),
        ({"sizes": (5,)}, "expected to be left with"),
        ({"words": np.array([1, 0], np.uint32)}, "a stack without a top"),
        ({"words": np.array([], np.uint32)}, "a stack without a top"),
        ({"words": np.arange(1, 100, dtype=np.uint32)}, "expected to be left with"),
    ],
)
def test_false_parts_with_a_checksum_that_fits_are_refused(small, changes, message):
    toy, data = small
    false = dataclasses.replace(Archive.unpack(data), **changes).pack()
    with pytest.raises(ValueError, match=message):
        coding.decompress(false, toy)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(content=st.binary(max_size=300), head=st.integers(0, 200))
def test_whatever_the_bytes_are_no_image_comes(small, content, head):
    """Bytes that nobody thought of, after a beginning that is right, with a checksum that fits."""
    toy, data = small
    made = data[:head] + content
    if made == data[:-16]:
        return
    for file in (content, signed(made)):
        with pytest.raises(ValueError, match=r"data: expected|model: expected"):
            coding.decompress(file, toy)
