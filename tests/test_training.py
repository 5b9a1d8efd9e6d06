import pytest
import torch
from torch import nn

from tests.oracles import best_probabilistic_pca, probabilistic_pca
from vae_lib.data import Batches
from vae_lib.distributions import DiagonalGaussian
from vae_lib.model import VAE, GaussianDecoder, StandardNormal, dense_vae
from vae_lib.networks import linear
from vae_lib.objectives import elbo, log_weights
from vae_lib.training import train, watched


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

    batches = Batches(x, batch_size=50)
    for rate in (3e-2, 3e-3):
        history = train(model, batches, exact_elbo, epochs=1000, learning_rate=rate)
    assert history[-1] == pytest.approx(wanted, abs=1e-5)
    assert model.decoder.log_std.exp().item() == pytest.approx(std, rel=1e-3)
    found, _ = torch.linalg.qr(model.decoder.network.weight.detach())
    cosines = torch.linalg.svdvals(found.T @ basis)
    assert torch.rad2deg(torch.acos(cosines.clamp(max=1))).max() < 0.1
    # Sampled, the bound is the same number: every draw of q at the optimum is exact.
    for seed in range(3):
        draws = log_weights(model, x, 1, torch.Generator().manual_seed(seed))
        assert draws.mean().item() == pytest.approx(wanted, abs=0.02)
