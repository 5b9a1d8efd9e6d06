"""Are the steps of networks in integers exact, and the tables what they say?"""

import decimal
import math
import random
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_lib import exact
from vae_lib.exact import ONE, RANGE, TOTAL, UNIT, Affine, Chain, Cumulative, between, shares


def integers(seed, *shape, low=-4096, high=4096):
    """Draw integers, in 64-bit floats as the steps want them."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.float64)


# Products


def affine(seed, outputs, inputs, shift=7, largest=2**15):
    weight = integers(seed, outputs, inputs, low=1 - largest, high=largest).astype(np.int32)
    bias = integers(seed + 1, outputs, low=-(2**30), high=2**30).astype(np.int64)
    return weight, bias, Affine(weight, bias, shift)


@pytest.mark.parametrize("shift", [-3, 0, 7, 20])
def test_a_product_is_that_of_whole_numbers(shift):
    """Each number against Python's integers, of any size."""
    weight, bias, layer = affine(0, 5, 300, shift)
    x = integers(2, 3, 300, low=-(2**17), high=2**17)
    found = layer(x)
    for row in range(3):
        for output in range(5):
            terms = zip(x[row].astype(int).tolist(), weight[output].tolist(), strict=True)
            total = sum(a * w for a, w in terms) + int(bias[output])
            expected = total >> shift if shift >= 0 else total << -shift
            assert int(found[row, output]) == expected
    assert np.abs(found).max() <= layer.bound(2**17)


def test_a_product_is_exact_up_to_its_bound():
    """The largest that is allowed, whose last digit a float of 53 bits still holds."""
    weight = np.array([[2**22 - 1] * 256, [1, -1] * 128])
    layer = Affine(weight, np.array([12345, 1]), 0)
    largest = 2**23 - 1
    assert 2**52 < layer.bound(largest) < 2**53
    x = np.full((300, 256), float(largest))
    x[1] -= 1
    for row, value in enumerate((largest, largest - 1)):
        found = [int(number) for number in layer(x)[row]]
        assert found == [256 * (2**22 - 1) * value + 12345, 1]


def test_a_bound_is_reached_and_no_higher():
    """But for the one more, for what is rounded down."""
    for weight, bias, x, largest in (([3, -5], 7, [10, -10], 87), ([1, 1], -100, [-10, -10], 120)):
        layer = Affine(np.array([weight]), np.array([bias]), 0)
        assert abs(layer(np.array([x], dtype=float))[0, 0]) == largest
        assert layer.bound(10) == largest + 1


def test_some_outputs_of_some_inputs_are_those_of_zeros_elsewhere():
    _, _, layer = affine(0, 6, 9)
    x = integers(1, 4, 9)
    x[:, 5:] = 0
    assert np.array_equal(layer(x[:, :5], slice(2, 4)), layer(x)[:, 2:4])
    assert np.array_equal(layer(x[:, :0], slice(2, 4)), layer(0 * x)[:, 2:4])


def test_what_might_be_inexact_is_refused():
    layer = Affine(np.array([[2**30, 2**30]]), np.array([0]), 0)
    assert layer.bound(2**21) == 2**52 + 1
    with pytest.raises(
        ValueError, match=r"model: expected integers below 2\^53, got a layer whose"
    ):
        layer.bound(2**22)
    with pytest.raises(ValueError, match="expected integers below"):
        Affine(np.array([[1]]), np.array([2**53]), 10).bound(1)
    arrays = {"w": np.array([[2**20]]), "b": np.array([0]), "c": np.array([2**52])}
    step = ["affine", "w", "b", 0]
    assert Chain([step, step], arrays).bound(1) == (2**20 + 1) * 2**20 + 1
    with pytest.raises(ValueError, match="expected integers below"):
        Chain([step, step, step], arrays).bound(1)
    with pytest.raises(ValueError, match="expected integers below"):
        Chain([["residual", [["add", "c"]]]], arrays).bound(2**51)
    with pytest.raises(ValueError, match="expected integers below"):
        Chain([["fold", [2, 2], [1, 1], [0, 0], [1, 1]]], arrays).bound(2**51)
    assert Chain([step, step, ["table", "tanh"], step], arrays).bound(1) == 2**32 + 1
    with pytest.raises(ValueError, match="expected integers below"):
        Chain([], arrays).bound(2**53)


# Convolutions


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 2, 2), (2, 1, 0)]
)
def test_a_convolution_is_that_of_torch(kernel, stride, padding):
    x, weight = integers(0, 2, 4, 7, 9), integers(1, 3, 4, kernel, kernel)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), None, stride, padding
    ).numpy()
    arrays = {"w": weight.transpose(0, 2, 3, 1).reshape(3, -1), "b": np.zeros(3)}
    unfold = ["unfold", [kernel] * 2, [stride] * 2, [padding] * 2]
    chain = Chain([unfold, ["affine", "w", "b", 0]], arrays)
    assert np.array_equal(chain(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), expected)


@pytest.mark.parametrize(("stride", "crop"), [((2, 2), 0), ((2, 1), 0), ((2, 2), 1)])
def test_a_transposed_convolution_is_that_of_torch(stride, crop):
    kernel = tuple(2 + s for s in stride)
    x, weight = integers(0, 2, 4, 3, 5), integers(1, 4, 3, *kernel)
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x), torch.from_numpy(weight), None, stride, 1
    ).numpy()
    height, width = (side - crop for side in expected.shape[2:])
    arrays = {
        "w": weight.transpose(2, 3, 1, 0).reshape(-1, 4),
        "b": np.zeros(3 * math.prod(kernel)),
    }
    fold = ["fold", kernel, stride, [1, 1], [height, width]]
    chain = Chain([["affine", "w", "b", 0], fold], arrays)
    found = chain(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(found, expected[..., :height, :width])


@pytest.mark.parametrize(
    ("kernel", "stride", "meet"), [((4, 3), (2, 1), 6), ((3, 3), (2, 2), 4), ((2, 5), (3, 2), 3)]
)
def test_the_bound_of_a_fold_is_reached(kernel, stride, meet):
    fold = exact.Fold(kernel, stride, (0, 0), (11, 13))
    assert fold(np.ones((1, 4, 5, math.prod(kernel)))).max() == fold.bound(1) == meet


def test_a_chain_says_how_much_there_is_at_a_time():
    arrays = {"w": np.ones((2, 18)), "b": np.zeros(2)}
    inner = [["unfold", [3, 3], [1, 1], [1, 1]], ["affine", "w", "b", 0]]
    chain = Chain([["residual", inner]], arrays)
    assert chain.widest(np.zeros((1, 4, 4, 2))) == 9 * 32


# Tables


def true(name, x):
    """A nonlinearity of a Decimal, to the precision of the context."""
    sigmoid = 1 / (1 + (-x).exp())
    return {
        "sigmoid": lambda: sigmoid,
        "silu": lambda: x * sigmoid,
        "tanh": lambda: 2 / (1 + (-2 * x).exp()) - 1,
        "relu": lambda: max(x, Decimal(0)),
    }[name]()


@pytest.mark.parametrize("name", ["silu", "tanh", "sigmoid", "relu"])
def test_a_nonlinearity_is_rounded_to_the_nearest(name):
    table = exact.Table(name)
    chosen = random.Random(0).sample(range(-RANGE * ONE, RANGE * ONE + 1), 500)
    chosen += [*range(-3, 4), -RANGE * ONE, RANGE * ONE]
    with decimal.localcontext(prec=40):
        for i in chosen:
            expected = true(name, Decimal(i) / ONE) * ONE
            found = table(np.array([float(i)]))[0]
            assert abs(Decimal(found) - expected) <= Decimal("0.5")
    assert len(table.values) == 2 * RANGE * ONE + 1
    assert np.array_equal(table.values, np.floor(table.values))


def test_a_nonlinearity_clips():
    silu = exact.Table("silu")
    assert silu(np.array([1e15, -1e15])).tolist() == [RANGE * ONE, 0]
    assert silu.bound(2**50) == RANGE * ONE


def test_the_logistic_is_rounded_to_the_nearest():
    table = exact.logistic()
    with decimal.localcontext(prec=40):
        for i in range(-24 * 256, 24 * 256 + 1, 37):
            expected = true("sigmoid", Decimal(i) / 256) * TOTAL
            assert abs(table[i + 24 * 256] - expected) <= Decimal("0.51")


def normal_below(x):
    """The standard normal's distribution function of a Decimal above 0, by its series."""
    term = total = x
    for n in range(1, 400):
        term = term * x * x / (2 * n + 1)
        total += term
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    return Decimal("0.5") + total * (-x * x / 2).exp() / (2 * pi).sqrt()


def test_the_normal_is_within_a_unit_of_the_truth():
    table = exact.normal()
    assert len(table) == 2 * 8 * 256 + 1
    assert table[8 * 256] == TOTAL // 2
    with decimal.localcontext(prec=60):
        for i in range(1, 8 * 256 + 1, 23):
            expected = normal_below(Decimal(i) / 256) * TOTAL
            assert abs(table[8 * 256 + i] - expected) <= 1
            assert abs(table[8 * 256 - i] - (TOTAL - expected)) <= 1


def test_decays_are_rounded_to_the_nearest():
    table = exact.decays()
    with decimal.localcontext(prec=40):
        for i in range(0, 24 * 256, 29):
            assert abs(table[24 * 256 + i] - (-Decimal(i) / 256).exp() * TOTAL) <= Decimal("0.51")


def test_tables_do_not_depend_on_the_context_of_decimals():
    functions = [exact.nonlinearity, exact.logistic, exact.normal, exact.decays]
    arguments = [("tanh",), (), (), ()]
    made = [f.__wrapped__(*a) for f, a in zip(functions, arguments, strict=True)]
    with decimal.localcontext(prec=3, rounding=decimal.ROUND_UP, traps=[decimal.Inexact]):
        for f, a, before in zip(functions, arguments, made, strict=True):
            assert np.array_equal(f.__wrapped__(*a), before)


@pytest.mark.parametrize("name", ["logistic", "normal"])
def test_between_entries_a_table_is_a_line_that_does_not_fall(name):
    table = getattr(exact, name)()
    assert (np.diff(table) >= 0).all()
    middle = len(table) // 2
    at = np.arange(-3, 3) * 4096
    assert np.array_equal(between(table, at), table[middle - 3 : middle + 3])
    assert between(table, at[:1] + 2048)[0] == (table[middle - 3] + table[middle - 2]) // 2
    u = np.sort(np.random.default_rng(0).integers(-(2**25), 2**25, 10_000))
    assert (np.diff(between(table, u)) >= 0).all()
    assert between(table, np.array([-(2**60), 2**60])).tolist() == [table[0], table[-1]]


def test_shares_are_a_softmax_that_sums_to_all():
    logits = np.random.default_rng(0).integers(-4 * ONE, 4 * ONE, (50, 7))
    found = shares(logits)
    assert (found.sum(-1) == 2**24).all()
    assert (found >= 0).all()
    expected = torch.softmax(torch.from_numpy(logits / ONE), -1).numpy()
    assert np.abs(found / 2**24 - expected).max() < 1e-5
    assert shares(np.array([[0, 2**40]])).tolist() == [[0, 2**24]]
    assert shares(np.array([[-5]])).tolist() == [[2**24]]


# Masses


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_masses_rise_at_every_edge_from_nothing_to_all(data):
    """Whatever the mean and the scale: each symbol can be coded."""
    name = data.draw(st.sampled_from(["logistic", "normal"]))
    symbols = data.draw(st.sampled_from([2, 3, 256, 512]))
    parts = data.draw(st.integers(1, 4))
    number = st.integers(-(2**24), 2**24)
    mean = np.array([data.draw(st.lists(number, min_size=parts, max_size=parts))])
    scale = st.integers(1, 2**35)
    inverse = np.array([data.draw(st.lists(scale, min_size=parts, max_size=parts))])
    weights = shares(np.array([data.draw(st.lists(number, min_size=parts, max_size=parts))]))
    first, step = data.draw(st.integers(-(2**15), 0)), data.draw(st.integers(1, ONE))
    mean = mean.repeat(symbols + 1, 0)
    masses = Cumulative(getattr(exact, name)(), mean, inverse, symbols, first, step, weights)
    below = masses(np.arange(symbols + 1))
    assert below[0] == 0
    assert below[-1] == masses.total
    assert np.diff(below).min() >= 1


def test_masses_are_those_of_the_distribution():
    mean, inverse = np.array([[[300], [-5000]]]), np.array([[[UNIT // 2], [3 * UNIT]]])
    masses = Cumulative(exact.normal(), mean, inverse, 512, -8 * ONE, ONE // 32)
    assert masses.shape == (1, 2)
    edges = torch.arange(1, 512).double() / 32 - 8
    for j, (location, scale) in enumerate([(300 / ONE, 2.0), (-5000 / ONE, 1 / 3)]):
        expected = torch.special.ndtr((edges - location) / scale).numpy()
        found = [masses(edge)[0, j] / TOTAL for edge in range(1, 512)]
        assert np.abs(found - expected).max() < 1e-5


def test_a_mixture_is_weighted():
    mean, inverse = np.array([[-8 * ONE, 8 * ONE]]), np.array([UNIT])
    weights = np.array([[2**22, 3 * 2**22]])
    masses = Cumulative(exact.logistic(), mean, inverse, 2, -ONE, ONE, weights)
    assert masses(1)[0] / TOTAL == pytest.approx(0.25, abs=1e-3)


def test_edges_broadcast():
    masses = Cumulative(
        exact.normal(), np.zeros((3, 2, 1), int), np.array([UNIT]), 4, -2 * ONE, ONE
    )
    assert masses(2).shape == (3, 2)
    assert masses(np.full((3, 2), 2, dtype=np.uint8)).tolist() == [[TOTAL // 2] * 2] * 3


def test_a_scale_that_would_overflow_is_refused():
    mean = np.zeros((1, 1), int)
    Cumulative(exact.normal(), mean, np.array([2**35]), 512, -8 * ONE, ONE // 32)
    with pytest.raises(ValueError, match=r"inverse: expected products below 2\^63, got a scale"):
        Cumulative(exact.normal(), mean, np.array([2**39]), 512, -8 * ONE, ONE // 32)
