import math

import pytest
import torch

from vae_lib.networks import TwoHeads, dense, linear


def seeded_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_linear_starts_with_glorot_weights_and_zero_biases():
    layer = linear(784, 500, seeded_generator())
    bound = math.sqrt(6 / (784 + 500))
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.999 * bound
    # A uniform distribution on plus or minus b has the standard deviation b / sqrt(3).
    assert abs(layer.weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.01
    assert torch.equal(layer.bias, torch.zeros(500))


def test_weights_depend_on_the_generator_alone():
    first = linear(20, 10, seeded_generator()).weight
    torch.manual_seed(5)
    assert torch.equal(first, linear(20, 10, seeded_generator()).weight)
    assert not torch.equal(first, linear(20, 10, seeded_generator(1)).weight)


def test_dense_is_affine_tanh_affine():
    net = dense(4, 3, 2, generator=seeded_generator())
    x = torch.linspace(-2, 2, 8).view(2, 4)
    first, last = net[0], net[2]
    expected = torch.tanh(x @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(net(x), expected)
    assert len(net) == 3


def test_dense_needs_an_input_and_an_output():
    with pytest.raises(ValueError, match=r"widths: expected at least an input .* got \(5,\)"):
        dense(5)


def test_the_two_heads_stand_side_by_side_on_one_trunk():
    net = TwoHeads(torch.nn.Tanh(), 4, 2, seeded_generator())
    x = torch.linspace(-2, 2, 8).view(2, 4)
    first, second = net(x)
    torch.testing.assert_close(first, net.first(torch.tanh(x)))
    torch.testing.assert_close(second, net.second(torch.tanh(x)))
    assert not torch.equal(net.first.weight, net.second.weight)


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 1024), ()])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"x: expected rows of 784 numbers, got shape .*flatten"):
        linear(784, 5)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64, torch.bfloat16])
def test_images_of_another_type_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"x: expected torch.float32, .*got {dtype}.*binarize"):
        linear(784, 5)(torch.zeros(3, 784, dtype=dtype))
    with pytest.raises(ValueError, match=r"x: expected torch.float64, .*got torch.float32"):
        linear(784, 5).double()(torch.zeros(3, 784))


def test_autocast_brings_layers_and_images_to_one_type():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dense(784, 5, 2)(torch.zeros(3, 784)).dtype == torch.bfloat16
