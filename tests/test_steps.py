"""What a step does where the device is not waited for, and where it computes in 16 bits."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.test_training import images, small, spoiled, weights
from vae_lib import steps
from vae_lib.convolutional import conv_vae
from vae_lib.data import Batches
from vae_lib.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    DiscretizedLogistic,
    Mixture,
)
from vae_lib.objectives import elbo
from vae_lib.states import State
from vae_lib.training import train


@pytest.fixture(params=[4, 50])
def behind(request, monkeypatch):
    """Look at what was found as seldom as on a device that is not waited for."""
    monkeypatch.setitem(steps.READ_EVERY, "cpu", request.param)
    return request.param


class Waits(TorchDispatchMode):
    """Count how often a number is fetched from where it was computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select")
        self.count += func.overloadpacket.__name__ in names
        return func(*args, **(kwargs or {}))


def options(**more):
    return {"epochs": 2, "clip": 3.0, "average": 0.9, "learning_rate": 1e-2, **more}


def test_a_device_is_waited_for_only_when_it_is_read(behind):
    # What an epoch fetches besides, in its own check of the weights, does not grow with its steps.
    counts = []
    for n in (240, 480):
        with Waits() as waits:
            train(small(), Batches(images(n), 5), **options(epochs=1))
        counts.append(waits.count)
    assert counts[0] == counts[1]
    with Waits() as waits:
        assert not torch.zeros(1) > 0
    assert waits.count == 1  # it does count


def test_reading_seldom_changes_no_bit(behind):
    def ended():
        model, state = small(), State()
        history = train(model, Batches(images(110), 20), state=state, **options())
        return weights(model), weights(state.averaged), history

    seldom = ended()
    steps.READ_EVERY["cpu"] = 1
    always = ended()
    assert torch.equal(seldom[0], always[0])
    assert torch.equal(seldom[1], always[1])
    assert seldom[2] == always[2]


@pytest.mark.parametrize("what", ["objective", "gradient"])
def test_an_error_that_is_read_late_names_its_step_and_nothing_came_after_it(behind, what):
    objective, calls = spoiled([4, 6], what)
    model, state = small(), State()
    with pytest.raises(FloatingPointError, match=rf"^{what}: .* at epoch 1, step 4\. The model"):
        train(model, Batches(images(200), 20), objective, state=state, **options())
    assert torch.equal(weights(model), calls[3])
    assert (state.step, state.steps) == (3, 3)
    # It goes on as if it had been stopped there.
    train(model, Batches(images(200), 20), state=state, **options())
    straight, whole = small(), State()
    train(straight, Batches(images(200), 20), state=whole, **options())
    assert torch.equal(weights(model), weights(straight))
    assert torch.equal(weights(state.averaged), weights(whole.averaged))
    assert [row["objective"] for row in state.history] == [
        row["objective"] for row in whole.history
    ]


@pytest.mark.parametrize("what", ["objective", "gradient"])
def test_skipped_steps_are_counted_when_they_are_read(behind, what):
    objective, calls = spoiled([2, 4, 5], what)
    model, state = small(), State()
    history = train(model, Batches(images(60), 20), objective, skip=True, state=state, epochs=2)
    assert [row["skipped"] for row in state.history] == [1, 2]
    assert torch.equal(calls[1], calls[2])
    assert torch.equal(calls[3], calls[5])
    assert not torch.equal(calls[2], calls[3])
    assert all(math.isfinite(value) for value in history)


def test_ten_in_a_row_end_it_whenever_they_are_read(behind):
    objective, calls = spoiled(range(4, 14), "objective")
    model = small()
    with pytest.raises(FloatingPointError, match="epoch 1, step 13 and in the 9 steps before"):
        train(model, Batches(images(300), 20), objective, epochs=1, skip=True)
    assert torch.equal(weights(model), calls[3])


def test_images_that_are_none_are_refused_at_their_step(behind):
    x = images(200)
    x[65] = 0.5
    model, before = small(), []

    def objective(model, x, generator):
        before.append(weights(model))
        return elbo(model, x, generator)

    with pytest.raises(ValueError, match=r"x: expected zeros and ones.*Found at epoch 1, step 4\."):
        train(model, Batches(x, 20, shuffle=False), objective, epochs=1, skip=True)
    assert torch.equal(weights(model), before[3])


def test_levels_that_are_none_are_no_index():
    x = torch.full((40, 64), 0.3)
    model = conv_vae((1, 8, 8), 2, width=2)
    with pytest.raises(ValueError, match=r"multiples of 1/255.*Found at epoch 1, step 1\."):
        train(model, Batches(x, 20), epochs=1)


# ------------------------------------------------------------------------------------- 16 bits


@pytest.fixture
def has_it(monkeypatch):
    """Pretend that this processor has instructions for bfloat16; PyTorch does without, slowly."""
    monkeypatch.setattr(steps, "has_bfloat16", lambda device: True)


def pictures():
    return images(96).repeat(1, 4)  # 8 x 8


def convolutional():
    return conv_vae((1, 8, 8), 2, width=4, likelihood="bits")


def test_fast_changes_nothing_where_a_processor_has_no_instructions_for_it(monkeypatch):
    monkeypatch.setattr(steps, "has_bfloat16", lambda device: False)
    ends = []
    for fast in (False, True):
        model = convolutional()
        train(model, Batches(pictures(), 20), fast=fast, **options())
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_fast_networks_compute_in_16_bits_and_the_rest_in_32(has_it):
    seen = []

    def objective(model, x, generator):
        q = model.encoder(x)
        z = q.rsample(generator=generator)
        logits = model.decoder.network(z)
        p = model.decoder(z)
        values = p.log_prob(x) - q.kl(model.prior())
        seen.append([logits.dtype, q.mean.dtype, z.dtype, p.logits.dtype, values.dtype])
        return values

    model, state = convolutional(), State()
    train(model, Batches(pictures(), 20), objective, fast=True, state=state, **options())
    wide = [torch.float32] * 4
    assert all(found == [torch.bfloat16, *wide] for found in seen)
    assert {w.dtype for w in model.parameters()} == {torch.float32}
    assert all(w.is_contiguous() for w in model.parameters())  # channels last only meanwhile
    assert torch.get_float32_matmul_precision() == "highest"


def test_fast_learns_about_the_same(has_it):
    ends = []
    for fast in (False, True):
        history = train(
            convolutional(), Batches(pictures(), 8), epochs=8, learning_rate=1e-2, fast=fast
        )
        ends.append(history[-1])
    assert ends[0] != ends[1]  # it did something
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


def test_a_fast_training_goes_on_with_the_same_bits(has_it, tmp_path):
    ends = []
    for stops in ([4], [2, 4], [1, 2, 3, 4]):
        file = tmp_path / str(len(stops))
        for epochs in stops:
            model = convolutional()
            batches = Batches(pictures(), 20)
            train(model, batches, fast=True, state=file, **options(epochs=epochs))
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def densities(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    a, b, z = (torch.randn(5, 6, generator=generator, dtype=dtype) for _ in range(3))
    logits = torch.randn(5, 6, 4, generator=generator, dtype=dtype)
    bits, levels = (z > 0).to(dtype), (z.clamp(-1, 1) * 1.5 + 1.5).round() / 3
    q, p = DiagonalGaussian(a, b), DiagonalGaussian(b, a)
    return {
        "gaussian": lambda: q.log_prob(z),
        "divergence": lambda: q.kl(p),
        "draw": lambda: q.rsample(generator=torch.Generator().manual_seed(1)),
        "bernoulli": lambda: Bernoulli(a).log_prob(bits),
        "categorical": lambda: Categorical(logits).log_prob(levels),
        "logistic": lambda: DiscretizedLogistic(a, b, 4).log_prob(levels),
        "mixture": lambda: Mixture(a[:, 0], q).log_prob(z[0]),
    }


@pytest.mark.parametrize("name", densities())
def test_densities_are_the_same_bits_among_16_bit_networks(name):
    alone = densities()[name]()
    with torch.autocast("cpu", torch.bfloat16):
        among = densities()[name]()
    assert among.dtype == torch.float32
    assert torch.equal(among, alone)
