"""Distributions: a density and a sample each, and between two Gaussians the divergence.

They are ours rather than `torch.distributions` because the divergence is what the book is
about, and because randomness is passed in as a `torch.Generator`.

The last axis of a shape (..., d) is the event: latents or pixels. Every density and divergence
sums over it and returns one value per example, in nats. The axes before it are an example's
place in a batch and in a set of samples; they broadcast, so that x of shape (batch, d) meets
parameters of shape (samples, batch, d).

Parameters of 16 bits are widened to 32 before anything is computed. Parameters that are NaN or
infinite, and results too large for a float, come out as NaN or infinity, which training and
evaluation refuse.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_lib.arguments import must, tensor, whole
from vae_lib.noise import Source, normal, uniform


class DiagonalGaussian:
    r"""A normal distribution with independent components, :math:`N(\mu, \sigma^2)`.

    Arguments:
        mean: :math:`\mu`, shape (..., d).
        log_std: :math:`\log \sigma`, the logarithm of the standard deviation (not of the
            variance), shape (..., d).

    Raises:
        ValueError: The two shapes differ, or are no (..., d), or not of floats.

    Example:
        >>> standard = DiagonalGaussian(torch.zeros(2), torch.zeros(2))
        >>> print(f"{standard.log_prob(torch.zeros(2)):.4f}")  # -log(2 pi)
        -1.8379
    """

    def __init__(self, mean: Tensor, log_std: Tensor):
        self.mean = _parameter("mean", mean)
        self.log_std = _parameter("log_std", log_std)
        if mean.shape != log_std.shape:
            raise ValueError(
                f"log_std: expected the shape of mean, {tuple(mean.shape)}, "
                f"got {tuple(log_std.shape)}."
            )

    @property
    def std(self) -> Tensor:
        """The standard deviation, shape (..., d)."""
        return self.log_std.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        r"""Return the log density of each example.

        .. math:: \log N(z; \mu, \sigma^2) = -\tfrac12 \sum_j \left[
            \left(\frac{z_j - \mu_j}{\sigma_j}\right)^2 + 2 \log\sigma_j + \log 2\pi \right]

        Arguments:
            z: Shape (..., d), broadcast against the parameters.

        Returns:
            Nats, shape (...); of either sign, since a density may exceed one.

        Raises:
            ValueError: Rows of another length, or batches that do not broadcast.
        """
        _check_rows("z", z, self.mean.shape)
        steep, rest = _inverse(self.log_std)
        standard = (z - self.mean) * steep * rest
        return -0.5 * (standard**2 + 2 * self.log_std + math.log(2 * math.pi)).sum(-1)

    def rsample(self, samples: int | None = None, *, generator: Source = None) -> Tensor:
        r"""Draw :math:`\mu + \sigma \varepsilon` with :math:`\varepsilon \sim N(0, I)`.

        The draw is differentiable in :math:`\mu` and :math:`\log\sigma` (the
        reparameterisation of Kingma and Welling, 2014).

        Arguments:
            samples: How many draws per example; None for one without an axis of its own.
            generator: The source of the noise; None takes PyTorch's global one.

        Returns:
            Shape (..., d), or (samples, ..., d).

        Raises:
            ValueError: `samples` below 0.
        """
        _check_samples(samples)
        shape = self.mean.shape if samples is None else (samples, *self.mean.shape)
        noise = normal(shape, generator, like=self.mean)
        return self.mean + self.std * noise

    def sample(self, samples: int | None = None, *, generator: Source = None) -> Tensor:
        """Draw as `rsample` does, without a gradient."""
        with torch.no_grad():
            return self.rsample(samples, generator=generator)

    def detach(self) -> "DiagonalGaussian":
        """The same distribution, through whose parameters no gradient flows."""
        return DiagonalGaussian(self.mean.detach(), self.log_std.detach())

    def kl(self, other: "DiagonalGaussian") -> Tensor:
        r"""Return the Kullback-Leibler divergence from this distribution to another.

        .. math:: KL(q \| p) = \tfrac12 \sum_j \left[ \frac{\sigma_j^2 + (\mu_j - m_j)^2}{s_j^2}
            - 1 - 2 \log \frac{\sigma_j}{s_j} \right]

        with :math:`q = N(\mu, \sigma^2)` this distribution and :math:`p = N(m, s^2)` the other.
        For a standard normal p it is appendix B of Kingma and Welling (2014).

        Arguments:
            other: p, broadcast against q.

        Returns:
            Nats, shape (...); zero where the two are equal and positive elsewhere, but for
            rounding (about 1e-7 in 32-bit floats).

        Raises:
            ValueError: Rows of another length, or batches that do not broadcast.
        """
        _check_rows("other.mean", other.mean, self.mean.shape)
        log_ratio = self.log_std - other.log_std
        steep, rest = _inverse(other.log_std)
        shift = (self.mean - other.mean) * steep * rest
        return 0.5 * (torch.exp(2 * log_ratio) + shift**2 - 1 - 2 * log_ratio).sum(-1)


class Bernoulli:
    r"""Independent coin tosses, one a pixel, given by their logits.

    The logit of a probability p is :math:`\log p/(1 - p)`. Logits rather than probabilities,
    because the probability of a pixel that the network is sure of rounds to 0 or 1, whose
    logarithm is infinite, and an epsilon added to keep it finite changes the loss.

    Arguments:
        logits: Any real numbers, shape (..., d).

    Raises:
        ValueError: Another shape, or no floats.

    Example:
        >>> coins = Bernoulli(torch.tensor([0.0, 0.0, 0.0]))
        >>> print(f"{coins.log_prob(torch.tensor([1.0, 0.0, 1.0])):.4f}")  # 3 log(1/2)
        -2.0794
    """

    def __init__(self, logits: Tensor):
        self.logits = _parameter("logits", logits)

    @property
    def mean(self) -> Tensor:
        """The probability that a pixel is one, shape (..., d)."""
        return torch.sigmoid(self.logits)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Return the log probability of each image.

        .. math:: \log p(x) = \sum_i \left[ x_i \log p_i + (1 - x_i) \log (1 - p_i) \right]

        Arguments:
            x: Zeros and ones, shape (..., d), broadcast against the logits.

        Returns:
            Nats, shape (...); never positive.

        Raises:
            ValueError: Another number of pixels, batches that do not broadcast, or values that
                are not zeros and ones. Grey levels would give a number, but not the
                probability of a grey image.
        """
        _check_rows("x", x, self.logits.shape)
        must(
            ((x == 0) | (x == 1)).all(),
            lambda: (
                f"x: expected zeros and ones, got values from {x.min():g} to {x.max():g}. "
                "Make them with vae_lib.data.binarize."
            ),
        )
        logits, target = torch.broadcast_tensors(self.logits, x.to(self.logits.dtype))
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return -loss.sum(-1)

    def sample(self, *, generator: Source = None) -> Tensor:
        """Toss each coin once: zeros and ones, of the shape of the logits."""
        p = self.mean.detach()
        return (_uniform_like(p, generator) < p).to(p) + 0 * p  # NaN shows, rather than paper


class Categorical:
    r"""Independent grey levels, one a pixel, each level with a probability of its own.

    The level l of a pixel is the grey :math:`l / (L - 1)`, so 0 is paper and 1 is full ink.
    No level is nearer to its neighbour than to any other: the order is left to be learned.

    Arguments:
        logits: Any real numbers, shape (..., d, L); a softmax over the last axis gives the
            probabilities of the L levels, of which there are at least two.

    Raises:
        ValueError: Another shape, fewer than two levels, or no floats.

    Example:
        >>> even = Categorical(torch.zeros(2, 16))
        >>> print(f"{even.log_prob(torch.tensor([0.0, 1.0])):.4f}")  # -2 log 16
        -5.5452
    """

    def __init__(self, logits: Tensor):
        self.logits = _parameter("logits", logits, axes="(..., d, L)")
        if logits.shape[-1] < 2:
            raise ValueError(
                f"logits: expected at least 2 levels, got shape {tuple(logits.shape)}."
            )

    @property
    def mean(self) -> Tensor:
        """The expected grey of each pixel, from 0 to 1, shape (..., d)."""
        levels = self.logits.shape[-1]
        grey = torch.linspace(0, 1, levels, dtype=self.logits.dtype, device=self.logits.device)
        return torch.softmax(self.logits, -1) @ grey

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Return the log probability of each image.

        .. math:: \log p(x) = \sum_i \log p_{i, l_i}, \quad l_i = (L - 1) \, x_i

        Arguments:
            x: Greys that are multiples of 1 / (L - 1), shape (..., d), broadcast against the
                parameters.

        Returns:
            Nats, shape (...); never positive.

        Raises:
            ValueError: Another number of pixels, batches that do not broadcast, or greys
                between the levels, as those of 16 bits are.
        """
        levels = self.logits.shape[-1]
        level = _levels(x, self.logits.shape[:-1], levels)
        shape = torch.broadcast_shapes(level.shape, self.logits.shape[:-1])
        level = level.expand(shape).unsqueeze(-1)
        log_p = torch.log_softmax(self.logits, -1).expand(*shape, levels)
        return log_p.gather(-1, level).squeeze(-1).sum(-1)

    def sample(self, *, generator: Source = None) -> Tensor:
        """Draw the grey of each pixel once, shape (..., d)."""
        rows = _probabilities(self.logits).flatten(0, -2)
        level = torch.multinomial(rows, 1, generator=generator)
        return level.view(self.logits.shape[:-1]).to(rows) / (self.logits.shape[-1] - 1)


class DiscretizedLogistic:
    r"""Independent grey levels, one a pixel, each the bin that a logistic variable falls in.

    Bins have width :math:`1 / (L - 1)` and are centred on the levels; the first and the last
    reach to infinity, so the probabilities of the L levels sum to one. These are the bins of
    PixelCNN++ (Salimans, Karpathy, Chen and Kingma, 2017), with one logistic variable for each
    pixel. Unlike a density it cannot exceed one.

    Arguments:
        location: Centre of the logistic variable, shape (..., d).
        log_scale: Logarithm of its scale s, whose standard deviation is
            :math:`\pi s / \sqrt 3`; of the same shape.
        levels: L, at least 2.

    Raises:
        ValueError: The two shapes differ, or are no (..., d), or not of floats; fewer than two
            levels.

    Example:
        >>> wide = DiscretizedLogistic(torch.tensor([0.5]), torch.tensor([0.0]), levels=2)
        >>> print(f"{wide.log_prob(torch.tensor([1.0])):.4f}")  # -log 2
        -0.6931
    """

    def __init__(self, location: Tensor, log_scale: Tensor, levels: int = 256):
        self.location = _parameter("location", location)
        self.log_scale = _parameter("log_scale", log_scale)
        if location.shape != log_scale.shape:
            raise ValueError(
                f"log_scale: expected the shape of location, {tuple(location.shape)}, "
                f"got {tuple(log_scale.shape)}."
            )
        self.levels = whole("levels", levels, 2)

    @property
    def mean(self) -> Tensor:
        """The expected grey of each pixel, from 0 to 1, shape (..., d)."""
        # The mean over the L - 1 borders of the probability to lie above, for some pixels at a
        # time: all pixels of a thousand images times 255 borders would take a gigabyte.
        alike = {"dtype": self.location.dtype, "device": self.location.device}
        border = (torch.arange(self.levels - 1, **alike) + 0.5) / (self.levels - 1)
        some = max(1, 2**20 // (self.levels - 1))
        pixels = zip(
            self.location.reshape(-1, 1).split(some),
            self.log_scale.reshape(-1, 1).split(some),
            strict=True,
        )
        above = []
        for location, log_scale in pixels:
            steep, rest = _inverse(log_scale)
            above.append(torch.sigmoid((location - border) * steep * rest).mean(-1))
        return torch.cat(above).view(self.location.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Return the log probability of each image.

        .. math:: \log p(x) = \sum_i \log \left[ F(b_i) - F(a_i) \right], \quad
            F(t) = \frac{1}{1 + \exp(-(t - \mu_i) / s_i)}

        with a and b the borders of the bin of the pixel's level.

        Arguments:
            x: Greys that are multiples of 1 / (L - 1), shape (..., d), broadcast against the
                parameters.

        Returns:
            Nats, shape (...); never positive, but for rounding.

        Raises:
            ValueError: Another number of pixels, batches that do not broadcast, or greys
                between the levels, as those of 16 bits are.
        """
        level = _levels(x, self.location.shape, self.levels)
        x = _wide(x)
        steep, rest = _inverse(self.log_scale)
        half = 0.5 / (self.levels - 1)
        below = F.logsigmoid((x + half - self.location) * steep * rest)
        above = F.logsigmoid((self.location - x + half) * steep * rest)
        # log(F(b) - F(a)) as log F(b) + log(1 - F(a)) + log(1 - exp(-(b - a) / s)): no two
        # numbers of nearly the same size are subtracted. An open bin lacks the other terms.
        # Where s is huge the last is log((b - a) / s), from which rest comes off.
        width = torch.log(-torch.expm1(-2 * half * steep)) - _beyond(self.log_scale).clamp(min=0)
        inner = below + above + width
        log_p = torch.where(level == 0, below, torch.where(level == self.levels - 1, above, inner))
        return log_p.sum(-1)

    def sample(self, *, generator: Source = None) -> Tensor:
        """Draw the grey of each pixel once, shape (..., d)."""
        uniform = _uniform_like(self.location, generator)
        scale = torch.exp(self.log_scale - _beyond(self.log_scale))  # no 0 times infinity
        grey = self.location + scale * torch.logit(uniform)
        return torch.round(grey.clamp(0, 1) * (self.levels - 1)) / (self.levels - 1)


class Mixture:
    r"""A weighted sum of K diagonal Gaussians, :math:`\sum_k \pi_k N(m_k, s_k^2)`.

    No closed form of its divergence is known, and the draw here has no gradient.

    Arguments:
        logits: Any real numbers, shape (K,); a softmax gives the weights :math:`\pi`.
        components: The K Gaussians, with parameters of shape (K, d).

    Raises:
        ValueError: Parameters of another shape.

    Example:
        >>> two = DiagonalGaussian(torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1))
        >>> print(f"{Mixture(torch.zeros(2), two).log_prob(torch.zeros(1)):.4f}")
        -1.4189
    """

    def __init__(self, logits: Tensor, components: DiagonalGaussian):
        if components.mean.ndim != 2 or tensor("logits", logits).shape != components.mean.shape[:1]:
            raise ValueError(
                f"logits: expected shape (K,) beside components of shape (K, d), got "
                f"{tuple(logits.shape)} beside {tuple(components.mean.shape)}."
            )
        self.logits = _wide(logits)
        self.components = components

    def log_prob(self, z: Tensor) -> Tensor:
        r"""Return the log density :math:`\log \sum_k \pi_k N(z; m_k, s_k^2)` of each example.

        Arguments:
            z: Shape (..., d).

        Returns:
            Nats, shape (...), of either sign.

        Raises:
            ValueError: Rows of another length.
        """
        _check_rows("z", z, self.components.mean.shape[-1:])
        each = self.components.log_prob(z.unsqueeze(-2))
        return torch.logsumexp(torch.log_softmax(self.logits, 0) + each, -1)

    def sample(self, samples: int, *, generator: Source = None) -> Tensor:
        """Draw `samples` examples, at least 0, shape (samples, d), without a gradient."""
        weights = _probabilities(self.logits.detach())
        _check_samples(samples)
        which = weights.multinomial(max(1, samples), replacement=True, generator=generator)
        which = which[:samples]  # `multinomial` cannot draw none
        chosen = DiagonalGaussian(self.components.mean[which], self.components.log_std[which])
        return chosen.sample(generator=generator)


def _uniform_like(x: Tensor, generator: Source) -> Tensor:
    """Draw even numbers from 0 to 1, of the shape, device and precision of x."""
    return uniform(x.shape, generator, like=x)


def _wide(values: Tensor) -> Tensor:
    """Return values in at least 32 bits: 16 hold neither a rare event nor a sum of pixels."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _parameter(name: str, value: Tensor, axes: str = "(..., d)") -> Tensor:
    """Return a parameter in at least 32 bits, refusing what can be none."""
    if tensor(name, value).ndim < axes.count(",") or not value.is_floating_point():
        raise ValueError(
            f"{name}: expected floats of shape {axes}, got {value.dtype} {tuple(value.shape)}."
        )
    return _wide(value)


def _beyond(log_scale: Tensor) -> Tensor:
    """Say how far a logarithm lies beyond those whose exponential is a float: mostly 0."""
    log_scale, limit = log_scale.detach(), _limit(log_scale)
    return log_scale - log_scale.clamp(-limit, limit)


def _limit(log_scale: Tensor) -> float:
    """Return a logarithm whose exponential a float holds, with room for a factor."""
    return 0.9 * math.log(torch.finfo(log_scale.dtype).max)


def _inverse(log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return two factors of exp(-log_scale), which alone might be no float; the second is mostly 1.

    Multiply by one after the other. The gradient flows through the first.
    """
    beyond, limit = _beyond(log_scale), _limit(log_scale)
    return torch.exp(beyond - log_scale), torch.exp(-beyond.clamp(-limit, limit))


def _probabilities(logits: Tensor) -> Tensor:
    """Return the softmax over the last axis, refusing what nothing can be drawn from."""
    p = torch.softmax(logits, -1)
    if not p.isfinite().all():
        raise ValueError(
            "logits: expected real numbers, got NaN or infinity. Look at what made them, perhaps "
            "a training that diverged."
        )
    return p


def _check_samples(samples: int | None) -> None:
    """Refuse fewer draws than none."""
    if samples is not None:
        whole("samples", samples, 0)


def _check_rows(name: str, x: Tensor, shape: torch.Size) -> None:
    """Refuse rows of another length than that of parameters of a shape, and pictures."""
    # A picture has an axis of its own for each direction, and so have its parameters.
    if tensor(name, x).shape[-1:] != shape[-1:] or min(x.ndim, len(shape)) > 3:
        raise ValueError(
            f"{name}: expected rows of {shape[-1]} numbers, got shape {tuple(x.shape)}. "
            f"Flatten pictures with {name}.flatten(1)."
        )
    if x.shape != shape:
        try:
            torch.broadcast_shapes(x.shape, shape)
        except RuntimeError as error:
            raise ValueError(
                f"{name}: expected a shape that broadcasts against {tuple(shape)}, got "
                f"{tuple(x.shape)}. Give one row for each example."
            ) from error


def _levels(x: Tensor, shape: torch.Size, levels: int) -> Tensor:
    """Return the level of each grey, refusing what is none."""
    _check_rows("x", x, shape)
    if not x.is_floating_point():
        raise ValueError(
            f"x: expected greys as floats from 0 to 1, got {x.dtype}. "
            "Make them with vae_lib.data.quantize."
        )
    exact = _wide(x) * (levels - 1)
    level = exact.round()
    near = (exact - level).abs() < 1e-3
    must(
        (near & (level >= 0) & (level < levels)).all(),
        lambda: (
            f"x: expected greys that are multiples of 1/{levels - 1} from 0 to 1, got others, "
            f"from {x.min():g} to {x.max():g}. Make them with vae_lib.data.quantize."
        ),
    )
    return level.long().clamp(0, levels - 1)  # an index, even if they are refused later
