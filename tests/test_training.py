import math

import pytest
import torch
from torch import nn

from tests.oracles import best_probabilistic_pca, probabilistic_pca
from vae_lib.data import Batches, hold_out
from vae_lib.distributions import DiagonalGaussian
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import VAE, GaussianDecoder, StandardNormal, dense_vae
from vae_lib.networks import linear
from vae_lib.objectives import elbo, log_weights
from vae_lib.priors import GaussianMixture
from vae_lib.states import State
from vae_lib.training import cosine, train, watched


def images(n=300):
    """Two patterns with a little noise: something to learn within a few steps."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.tensor([[1.0, 0.0] * 8, [0.0, 1.0] * 8])
    chosen = patterns[torch.randint(2, (n,), generator=generator)]
    flips = torch.rand(n, 16, generator=generator) < 0.05
    return torch.where(flips, 1 - chosen, chosen)


def small(seed=0):
    return dense_vae(pixels=16, hidden=8, latents=2, seed=seed)


def weights(model):
    return torch.cat([w.flatten() for w in model.parameters()]).detach().clone()


def test_training_raises_the_objective():
    history = train(small(), Batches(images(), 20), epochs=15, learning_rate=1e-2)
    assert len(history) == 15
    assert history[0] < -11  # 16 fair coins cost 11.09 nats
    # Two patterns cost log 2, and each noisy pixel 0.2 nats: about 3.9 nats in all.
    assert -6.5 < history[-1] < -3.5


def test_the_loop_is_adam_on_minus_the_batch_mean():
    model, reference = small(), small()
    batches = Batches(images(60), 20, shuffle=False)

    def objective(model, x, generator):
        q = model.encoder(x)
        return model.decoder(q.mean).log_prob(x) - q.kl(model.prior())

    train(model, batches, objective, epochs=2, learning_rate=3e-3)
    optimizer = torch.optim.Adam(reference.parameters(), lr=3e-3)
    for _ in range(2):
        for x in images(60).split(20):
            optimizer.zero_grad()
            (-objective(reference, x, None)).mean().backward()
            optimizer.step()
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-4, atol=1e-6)


def test_history_is_the_mean_over_examples_even_with_a_short_last_batch():
    data = torch.arange(5.0).unsqueeze(1)
    model = torch.nn.Linear(1, 1)
    history = train(
        model,
        Batches(data, 2, shuffle=False),
        lambda model, x, generator: x.squeeze(1) + 0 * model(x).squeeze(1),
        epochs=1,
    )
    assert history == [2.0]


def test_the_same_seeds_give_the_same_weights_whatever_the_global_seed():
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        model = small()
        train(model, Batches(images(), 50), epochs=2)
        runs.append(weights(model))
    assert torch.equal(*runs)


def test_the_noise_depends_on_its_seed():
    runs = []
    for seed in (0, 1):
        model = small()
        train(model, Batches(images(), 50), epochs=1, seed=seed)
        runs.append(weights(model))
    assert not torch.equal(*runs)


def test_after_epoch_is_called_with_each_number():
    seen = []
    train(small(), Batches(images(), 100), epochs=3, after_epoch=seen.append)
    assert seen == [1, 2, 3]


def test_nan_stops_training_and_keeps_the_last_good_weights():
    model = small()
    calls = []

    def objective(model, x, generator):
        calls.append(weights(model))
        values = elbo(model, x, generator)
        return values * float("nan") if len(calls) == 5 else values

    with pytest.raises(FloatingPointError, match=r"got nan at epoch 2, step 2.*learning rate"):
        train(model, Batches(images(60), 20), objective, epochs=3)
    assert torch.equal(weights(model), calls[4])
    assert torch.isfinite(weights(model)).all()


def test_a_loss_without_bound_is_stopped_too():
    def objective(model, x, generator):
        return elbo(model, x, generator) + float("inf")

    with pytest.raises(FloatingPointError, match="got inf at epoch 1, step 1"):
        train(small(), Batches(images(), 50), objective, epochs=1)


@pytest.mark.parametrize(
    "reduce", [lambda v: v.mean(), lambda v: v.sum().view(1), lambda v: v.unsqueeze(1)]
)
def test_an_objective_must_give_one_value_per_example(reduce):
    def objective(model, x, generator):
        return reduce(elbo(model, x, generator))

    with pytest.raises(ValueError, match=r"one value per example, shape \(50,\), got"):
        train(small(), Batches(images(), 50), objective, epochs=1)


def test_no_epochs_are_refused():
    with pytest.raises(ValueError, match="epochs: expected at least 1, got 0"):
        train(small(), Batches(images()), epochs=0)


def test_the_bar_is_shown_to_a_person_only(monkeypatch, capsys):
    for name in ("VAE_LIB_PROGRESS", "JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    assert not watched()  # no terminal while tests run
    train(small(), Batches(images(), 50), epochs=1)
    assert capsys.readouterr() == ("", "")

    monkeypatch.setenv("JPY_SESSION_NAME", "chapters/04-code.ipynb")
    assert watched()
    monkeypatch.setenv("VAE_LIB_PROGRESS", "0")
    assert not watched()
    monkeypatch.setenv("VAE_LIB_PROGRESS", "1")
    train(small(), Batches(images(6000), 50), epochs=1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "objective -" in shown.err


def test_a_linear_vae_trains_to_the_optimum_of_probabilistic_pca():
    # Lucas, Tucker, Grosse and Norouzi (2019): with linear maps the ELBO has no other stable
    # optimum, and there it equals log p(x).
    _, x, _ = probabilistic_pca(latents=2, pixels=6, std=0.5)
    wanted, basis, std = best_probabilistic_pca(x, latents=2)
    centre = x.mean(0)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = linear(6, 2, torch.Generator().manual_seed(1))
            self.log_std = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            mean = self.mean(x - centre)
            return DiagonalGaussian(mean, self.log_std.expand_as(mean))

    decoder = GaussianDecoder(linear(2, 6, torch.Generator().manual_seed(2)))
    model = VAE(Encoder(), StandardNormal(2), decoder).double()

    def exact_elbo(model, x, generator):
        """E_q of the squared error is known for a linear decoder, so nothing is sampled."""
        q, likelihood = model.encoder(x), model.decoder(model.encoder(x).mean)
        spread = (q.std**2 * (model.decoder.network.weight**2).sum(0)).sum(-1)
        excess = 0.5 * spread / model.decoder.log_std.exp() ** 2
        return likelihood.log_prob(x) - excess - q.kl(model.prior())

    batches = Batches(x, batch_size=len(x))
    for rate in (3e-2, 3e-3):
        history = train(model, batches, exact_elbo, epochs=1000, learning_rate=rate, state=State())
    assert history[-1] == pytest.approx(wanted, abs=1e-5)
    assert model.decoder.log_std.exp().item() == pytest.approx(std, rel=1e-3)
    found, _ = torch.linalg.qr(model.decoder.network.weight.detach())
    cosines = torch.linalg.svdvals(found.T @ basis)
    assert torch.rad2deg(torch.acos(cosines.clamp(max=1))).max() < 0.1
    # Sampled, the bound is the same number: every draw of q at the optimum is exact.
    for seed in range(3):
        draws = log_weights(model, x, 1, torch.Generator().manual_seed(seed))
        assert draws.mean().item() == pytest.approx(wanted, abs=0.02)


# ------------------------------------------------------- what is on only when it is asked for


def spoiled(at, what):
    """The ELBO, but for the steps named: there its value or only its gradient is no number."""
    calls = []

    def objective(model, x, generator):
        values = elbo(model, x, generator)
        calls.append(weights(model))
        if len(calls) not in at:
            return values
        if what == "objective":
            return values * float("nan")
        # Finite, and its slope is infinite: the root of zero.
        return values + (0 * model.decoder.network[0].bias).square().sum().sqrt()

    return objective, calls


@pytest.mark.parametrize(("what", "found"), [("objective", "nan"), ("gradient", "nan")])
def test_no_step_is_taken_on_what_is_no_number(what, found):
    objective, calls = spoiled([6], what)  # the last step of all: nothing comes after it
    model = small()
    with pytest.raises(FloatingPointError, match=rf"^{what}: .*got {found} at epoch 2, step 3\."):
        train(model, Batches(images(60), 20), objective, epochs=2)
    assert torch.equal(weights(model), calls[5])
    assert torch.isfinite(weights(model)).all()


@pytest.mark.parametrize("what", ["objective", "gradient"])
def test_a_step_is_skipped_if_asked_and_counted(what):
    objective, calls = spoiled([2, 4, 5], what)
    model, state = small(), State()
    history = train(model, Batches(images(60), 20), objective, epochs=2, skip=True, state=state)
    assert [row["skipped"] for row in state.history] == [1, 2]
    assert torch.equal(calls[1], calls[2])  # nothing happened in the second step
    assert torch.equal(calls[3], calls[5])
    assert not torch.equal(calls[2], calls[3])
    assert all(math.isfinite(value) for value in history)


def test_ten_skipped_steps_in_a_row_are_too_many():
    objective, _ = spoiled(range(4, 13), "gradient")
    train(small(), Batches(images(60), 20), objective, epochs=5, skip=True)  # nine are not
    objective, calls = spoiled(range(4, 99), "gradient")
    model = small()
    with pytest.raises(FloatingPointError, match="epoch 5, step 1 and in the 9 steps before"):
        train(model, Batches(images(60), 20), objective, epochs=9, skip=True)
    assert torch.equal(weights(model), calls[3])


def test_huge_gradients_are_numbers():
    # The sum of their squares is not one in 32 bits.
    def objective(model, x, generator):
        return elbo(model, x, generator) * 1e22

    train(small(), Batches(images(60), 20), objective, epochs=1)


def test_weights_without_bound_are_noticed_at_the_end_of_an_epoch():
    with pytest.raises(FloatingPointError, match=r"model: .*holds NaN or infinity after epoch 1"):
        train(small(), Batches(images(20), 20), epochs=1, learning_rate=1e39)


def test_a_learning_rate_may_depend_on_the_step_and_a_gradient_be_clipped():
    model, reference = small(), small()

    def objective(model, x, generator):
        q = model.encoder(x)
        return model.decoder(q.mean).log_prob(x) - q.kl(model.prior())

    rates = [1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4]
    train(
        model,
        Batches(images(60), 20, shuffle=False),
        objective,
        epochs=2,
        learning_rate=lambda step: rates[step],
        clip=0.5,
    )
    optimizer = torch.optim.Adam(reference.parameters(), lr=1.0)
    for step in range(6):
        optimizer.zero_grad()
        (-objective(reference, images(60).split(20)[step % 3], None)).mean().backward()
        length = torch.cat([w.grad.flatten() for w in reference.parameters()]).norm()
        assert length > 0.5
        for w in reference.parameters():
            w.grad *= 0.5 / length
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-4, atol=1e-6)


def test_cosine_rises_and_falls():
    rate = cosine(2.0, 24, warm_up=4)
    assert [rate(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert rate(4) == 2.0
    assert rate(14) == pytest.approx(1.0)
    assert rate(24) == pytest.approx(0.0)
    for peak, steps, warm_up in [(0, 10, 0), (1, 10, 10), (1, 10, -1)]:
        with pytest.raises(ValueError, match="peak, steps: expected"):
            cosine(peak, steps, warm_up=warm_up)


def test_the_average_of_the_weights_is_kept_beside_them():
    model, state, seen = small(), State(), []
    batches = Batches(images(60), 20)

    def objective(model, x, generator):
        seen.append(weights(model))
        return elbo(model, x, generator)

    train(model, batches, objective, epochs=2, average=0.8, state=state)
    seen.append(weights(model))
    expected = seen[1]  # after the first step
    for new in seen[2:]:
        expected = 0.8 * expected + 0.2 * new
    torch.testing.assert_close(weights(state.averaged), expected, rtol=1e-5, atol=1e-6)
    without = small()
    train(without, batches, epochs=2)
    assert torch.equal(weights(model), weights(without))  # the training is not touched by it


def test_the_best_is_kept_apart_from_the_last():
    model, state, seen = small(), State(), []
    scores = iter([1.0, 3.0, 2.0, 3.0])

    def validate(judged):
        assert judged is model
        seen.append(weights(judged))
        return next(scores)

    train(model, Batches(images(60), 20), epochs=4, validate=validate, state=state)
    assert [row["validation"] for row in state.history] == [1.0, 3.0, 2.0, 3.0]
    assert (state.best["epoch"], state.best["validation"]) == (2, 3.0)
    best = small()
    best.load_state_dict(state.best["weights"])
    assert torch.equal(weights(best), seen[1])
    assert torch.equal(weights(model), seen[3])


def test_the_decay_of_an_average_may_change_with_the_step():
    def after(decay):
        model, state = small(), State()
        train(model, Batches(images(60), 20), epochs=2, state=state, average=decay)
        return weights(model), weights(state.averaged)

    asked = []
    last, kept = after(lambda step: asked.append(step) or 0.0)
    assert torch.equal(kept, last)
    assert asked == list(range(6))  # before the first step, whose weights are copied, and after
    assert torch.equal(after(lambda step: 0.9)[1], after(0.9)[1])
    assert not torch.equal(after(0.9)[1], last)


def test_validation_judges_the_average_if_there_is_one():
    state, judged = State(), []
    options = {"validate": lambda model: judged.append(model) or 0.0, "average": 0.9}
    train(small(), Batches(images(60), 20), epochs=1, state=state, **options)
    assert judged == [state.averaged]


def test_what_after_epoch_returns_is_in_the_history():
    state = State()
    options = {"epochs": 2, "after_epoch": lambda epoch: {"half": epoch / 2}}
    history = train(small(), Batches(images(60), 20), state=state, **options)
    assert [(row["epoch"], row["half"]) for row in state.history] == [(1, 0.5), (2, 1.0)]
    assert [row["objective"] for row in state.history] == history


def test_training_is_in_training_mode_and_leaves_the_mode_as_it_was():
    model, modes = small().eval(), []

    def objective(model, x, generator):
        modes.append(model.decoder.training)
        return elbo(model, x, generator)

    options = {"validate": lambda model: modes.append(model.training) or 0.0}
    train(model, Batches(images(20), 20), objective, epochs=1, **options)
    assert modes == [True, False]
    assert not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0}, "clip: expected a number above zero or None, got 0"),
        ({"average": 1.0}, "average: expected a decay from 0 to below 1 or None, got 1.0"),
        ({"batches": images()}, "batches: expected vae_lib.data.Batches, got Tensor. Wrap"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train(small(), **{"batches": Batches(images()), "epochs": 1, **change})


def test_another_default_device_changes_nothing():
    """The device "meta" has no numbers, so that whatever is made on it by mistake fails."""

    x = images(80)

    def result():
        model = small()
        model.prior = GaussianMixture(2, 3)
        seen, held_out = hold_out(x, 20)
        return train(model, Batches(seen, 20), epochs=2), held_out_elbo(model, held_out).elbo.mean

    with torch.device("meta"):
        found = result()
    assert found == result()
