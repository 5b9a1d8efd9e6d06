"""How pictures look: how grey they are, how sharp their edges, how far they are from real digits.

None of it is a likelihood. A model that had learned its images by heart would score best in all
three.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lib.arguments import tensor, whole
from vae_lib.convolutional import convolution
from vae_lib.data import seeded
from vae_lib.model import switched
from vae_lib.networks import check_rows, linear

SIDE = 28
FEATURES = 64
HOW = "Make greys of bytes by dividing them by 255"


def grey(pictures: Tensor) -> Tensor:
    r"""Count the grey of pictures: what is neither paper nor ink.

    .. math:: \sum_i 4 \, p_i (1 - p_i)

    A pixel of one half counts one, paper and ink count nothing (chapter *issues*).

    Arguments:
        pictures: From 0 to 1, shape (..., pixels).

    Returns:
        Pixels' worth of grey, shape (...).

    Example:
        >>> grey(torch.tensor([0.0, 0.5, 1.0])).item()
        1.0
    """
    return (4 * tensor("pictures", pictures) * (1 - pictures)).sum(-1)


def edges(pictures: Tensor) -> Tensor:
    r"""Measure the edges of pictures: the squared differences of neighbours, summed.

    .. math:: \sum_{r, c} (x_{r + 1, c} - x_{rc})^2 + (x_{r, c + 1} - x_{rc})^2

    Of zeros and ones it is the length of the border between ink and paper, in sides of pixels. An
    edge that is spread over n steps counts one n-th of a sharp one. Speckle counts too: more is not
    better, as much as real digits have is.

    Arguments:
        pictures: Rows of 28 x 28 pixels, shape (..., 784).

    Returns:
        Shape (...).

    Raises:
        ValueError: Rows of another length.

    Example:
        >>> dot = torch.zeros(28, 28)
        >>> dot[5, 5] = 1
        >>> edges(dot.flatten()).item()
        4.0
    """
    _check(pictures)
    squares = pictures.unflatten(-1, (SIDE, SIDE))
    return (squares.diff(dim=-1) ** 2).sum((-1, -2)) + (squares.diff(dim=-2) ** 2).sum((-1, -2))


class DigitClassifier(nn.Module):
    """A small network that tells digits apart, for what it sees on the way.

    Three convolutions, each with a stride of 2, to 512 numbers, then a dense layer to 64
    *features*, and from these ten logits; after all but the last a SiLU.

    Arguments:
        seed: Of the initial weights, from the stream "digit classifier"; see
            `vae_lib.data.seeded`.

    Example:
        >>> network = DigitClassifier()
        >>> network(torch.zeros(5, 784)).shape, network.features(torch.zeros(5, 784)).shape
        (torch.Size([5, 10]), torch.Size([5, 64]))
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = seeded(seed, stream="digit classifier")
        with torch.device(generator.device):
            sizes = ((1, 16, 5), (16, 32, 3), (32, 32, 3))
            self.steps = nn.ModuleList(convolution(*size, 2, generator) for size in sizes)
            self.dense = linear(4 * 4 * 32, FEATURES, generator)
            self.last = linear(FEATURES, 10, generator)

    def features(self, x: Tensor) -> Tensor:
        """Map pictures (n, 784), from 0 to 1, to their features (n, 64)."""
        check_rows("x", x, SIDE**2, self.dense.weight, HOW)
        h = (2 * x - 1).reshape(-1, 1, SIDE, SIDE)
        for step in self.steps:
            h = F.silu(step(h))
        return F.silu(self.dense(h.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (n, 784), from 0 to 1, to the logits of ten digits (n, 10)."""
        return self.last(self.features(x))


def seen_features(classifier: DigitClassifier, pictures: Tensor, batch_size: int = 1000) -> Tensor:
    """Return the features of pictures (n, 784), shape (n, 64), without a gradient."""
    _check(pictures)
    parts = pictures.split(whole("batch_size", batch_size))
    with torch.no_grad(), switched(classifier, training=False):
        return torch.cat([classifier.features(x) for x in parts])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Return the Fréchet distance of two sets of features, each read as a Gaussian.

    .. math:: |m_a - m_b|^2 + \operatorname{tr}\left( C_a + C_b - 2 (C_a C_b)^{1/2} \right)

    with the means m and the covariances C of the two sets. It is the squared 2-Wasserstein distance
    of two Gaussians. Heusel et al. (2017) take it of the features of a network that was trained on
    photographs, and call it FID; with other features its size is another. It is zero if mean and
    covariance agree, whatever else does not. Of finitely many rows it comes out too large, so it
    compares sets of the same number only.

    Arguments:
        a: Shape (n, features), n at least 2.
        b: Shape (m, features), m at least 2.

    Returns:
        Not negative, but for rounding; in squares of the features' unit.

    Raises:
        ValueError: Sets of another shape.

    Example:
        >>> a = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> print(f"{abs(frechet_distance(a, a)):.4f} {frechet_distance(a, a + 2):.4f}")
        0.0000 12.0000
    """
    for name, rows in (("a", a), ("b", b)):
        if tensor(name, rows).ndim != 2 or len(rows) < 2 or rows.shape[1] != a.shape[1]:
            raise ValueError(
                f"{name}: expected features of shape (n, {a.shape[-1]}) with n at least 2, got "
                f"{tuple(rows.shape)}. Make them with vae_lib.looks.seen_features."
            )
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    # The eigenvalues of C_a C_b are those of a symmetric matrix: R C_b R with R the root of C_a.
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    both = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    gap = (mean_a - mean_b).square().sum()
    return (gap + cov_a.trace() + cov_b.trace() - 2 * both).item()


def frechet_error(
    a: Tensor, b: Tensor, generator: torch.Generator | None = None, *, draws: int = 50
) -> float:
    """Return how much a Fréchet distance varies between draws of the first set: its bootstrap.

    Arguments:
        a: The set whose chance is asked for, such as samples of a model, shape (n, features). Its
            rows are drawn anew, with replacement, again and again.
        b: The other, which is kept, shape (m, features).
        generator: The source of the draws; None takes PyTorch's global one.
        draws: How many, at least 2.

    Returns:
        The standard deviation of the distances.

    Example:
        >>> a = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> 0 < frechet_error(a, a, torch.Generator().manual_seed(0)) < 1
        True
    """
    found = [
        frechet_distance(a[torch.randint(len(a), (len(a),), generator=generator)], b)
        for _ in range(whole("draws", draws, 2))
    ]
    return torch.tensor(found, dtype=torch.float64).std().item()


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance, in 64 bits on the CPU."""
    rows = rows.detach().cpu().double()
    return rows.mean(0), torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1])


def _check(pictures: Tensor) -> None:
    """Refuse what are no rows of 28 x 28 pixels."""
    if tensor("pictures", pictures).shape[-1:] != (SIDE**2,):
        raise ValueError(
            f"pictures: expected rows of {SIDE**2} numbers, got shape {tuple(pictures.shape)}. "
            "Flatten pictures with pictures.flatten(1)."
        )
