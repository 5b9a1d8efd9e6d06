"""The three forms that one line of public code has had, against what a divergence must be."""

import math
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "book" / "history.md"
LAST_TERM = {
    r"-2\log\sigma": lambda log_std: -2 * log_std,
    r"+2\log\sigma": lambda log_std: 2 * log_std,
    r"+(\log\sigma)^2": lambda log_std: log_std**2,
}
RIGHT = r"-2\log\sigma"
LOG_STD = torch.linspace(-4, 1, 5001, dtype=torch.float64)
EACH = pytest.mark.parametrize("term", LAST_TERM)


def form(term, mean, log_std):
    return 0.5 * (torch.exp(2 * log_std) + mean**2 - 1 + LAST_TERM[term](log_std))


@EACH
def test_a_divergence_is_never_negative(term):
    never_negative = bool((form(term, 0.0, LOG_STD) > -1e-12).all())
    assert never_negative == (term == RIGHT)


@EACH
def test_a_divergence_is_flat_where_the_two_agree(term):
    log_std = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(form(term, 0.0, log_std), log_std)
    assert (slope.item() == 0) == (term == RIGHT)


@EACH
def test_a_divergence_is_the_mean_of_a_log_ratio(term):
    mean, log_std = torch.tensor(0.7), torch.tensor(-1.2)
    noise = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    z = mean + log_std.exp() * noise
    ratio = 0.5 * (z**2 - noise**2) - log_std  # log q(z) - log p(z)
    five_errors = 5 * ratio.std() / math.sqrt(len(noise))
    assert bool((form(term, mean, log_std) - ratio.mean()).abs() < five_errors) == (term == RIGHT)


def test_the_page_gives_the_smallest_value_of_each_form():
    rows = re.findall(
        r"^\| \d{4}-.*?\| \$(.*?)\$ \| (.*?) \| (\w+)", PAGE.read_text(encoding="utf-8"), re.M
    )
    assert len(rows) == 7
    for term, smallest, verdict in rows:
        values = form(term, 0.0, LOG_STD)
        inside = 0 < values.argmin() < len(values) - 1
        computed = f"{values.min().item():.3f}".replace("-", "−").replace("0.000", "0")
        assert smallest == (computed if inside else "none")
        assert (verdict == "right") == (term == RIGHT)
