"""What is rounded: latents to the nearest vector of a book, and greys to the nearest level.

A VAE whose latents are codes has an encoder that is sure: its q gives the codes that it chose the
probability one. So its rate is what a prior charges for these codes, and objectives and evaluation
take it as they take any VAE.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lib.arguments import source, tensor, whole
from vae_lib.distributions import DiagonalGaussian
from vae_lib.model import VAE
from vae_lib.networks import linear

UNUSED = 1.0  # a vector that fewer rows chose, on a moving average of the steps, is drawn anew


class Codebook(nn.Module):
    r"""K vectors of length d; what is looked up is the nearest of them.

    The vectors are no parameters. Each follows the mean of the rows that chose it, by moving
    averages of their number and of their sum (van den Oord, Vinyals and Kavukcuoglu, 2017,
    appendix A.1):

    .. math:: N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \quad
        m_k \leftarrow \gamma m_k + (1 - \gamma) \sum_{i: c_i = k} h_i, \quad e_k = m_k / N_k

    A vector that hardly any row chooses becomes one of the rows, drawn at random; at first all do.

    Arguments:
        codes: K, at least 1.
        length: d, at least 1.
        decay: :math:`\gamma`, from 0 to below 1.

    Example:
        >>> book = Codebook(codes=16, length=8)
        >>> book(torch.zeros(5, 49, 8)).shape
        torch.Size([5, 49])
    """

    def __init__(self, codes: int, length: int, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        size = whole("codes", codes), whole("length", length)
        self.register_buffer("vectors", torch.zeros(size))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(size))

    def forward(self, h: Tensor) -> Tensor:
        """Return the code of the vector nearest to each row of h (..., d), shape (...)."""
        # Without the square of h, which is the same for all vectors.
        far = self.vectors.square().sum(-1) - 2 * h @ self.vectors.T
        return far.argmin(-1)

    @torch.no_grad()
    def learn(self, h: Tensor, generator: torch.Generator | None = None) -> None:
        """Let the vectors follow rows h (..., d), which are those of one step."""
        rows = h.reshape(-1, h.shape[-1])
        chosen = F.one_hot(self(rows), len(self.counts)).to(rows)
        self.counts.lerp_(chosen.sum(0), 1 - self.decay)
        self.sums.lerp_(chosen.T @ rows, 1 - self.decay)
        unused = self.counts < UNUSED
        where = rows.device if generator is None else source(generator).device
        drawn = torch.randint(len(rows), self.counts.shape, generator=generator, device=where).to(
            rows.device
        )
        self.counts[unused] = UNUSED
        self.sums[unused] = UNUSED * rows[drawn][unused]
        self.vectors.copy_(self.sums / self.counts.unsqueeze(-1))


class Codes:
    """The q of an encoder that is sure: the codes that it chose have the probability one.

    Arguments:
        codes: Whole numbers, shape (..., places).

    Example:
        >>> q = Codes(torch.tensor([3, 1]))
        >>> q.rsample(), q.log_prob(torch.tensor([3, 1])).item()
        (tensor([3, 1]), 0.0)
    """

    def __init__(self, codes: Tensor):
        self.codes = tensor("codes", codes)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return 0 where z is what was chosen and minus infinity elsewhere, shape (...)."""
        same = (z == self.codes).all(-1)
        return torch.zeros(same.shape, device=same.device).masked_fill(~same, -math.inf)

    def rsample(self, samples: int | None = None, *, generator=None) -> Tensor:
        """Return the codes, or so many copies of them; nothing is drawn."""
        return self.codes if samples is None else self.codes.expand(samples, *self.codes.shape)


class CodeEncoder(nn.Module):
    """An encoder that gives codes.

    Arguments:
        network: A map from images (..., pixels) to vectors (..., places, d).
        book: Of the vectors; the decoder has the same.
    """

    def __init__(self, network: nn.Module, book: Codebook):
        super().__init__()
        self.network = network
        self.book = book

    def forward(self, x: Tensor) -> Codes:
        """Return q(z given x) of images x, shape (..., pixels)."""
        return Codes(self.book(self.network(x)))


class CodeDecoder(nn.Module):
    """A decoder of codes: looks their vectors up, and gives them to another decoder.

    Arguments:
        book: Of the vectors.
        decoder: A module from rows (..., places x d) to a distribution p(x given z).
    """

    def __init__(self, book: Codebook, decoder: nn.Module):
        super().__init__()
        self.book = book
        self.decoder = decoder

    def forward(self, z: Tensor):
        """Return p(x given z) of codes z, shape (..., places)."""
        return self.decoder(self.book.vectors[z].flatten(-2))


def straight_through(h: Tensor, vectors: Tensor) -> Tensor:
    """Return the vectors, with a gradient as if they were h."""
    return h + (vectors - h).detach()


def quantized_objective(
    model: VAE, x: Tensor, generator: torch.Generator | None = None, *, commitment: float = 0.25
) -> Tensor:
    r"""Return what encoder and decoder maximise, and let the book of a model in training follow.

    .. math:: \log p(x | e_c) - \beta \sum_i |h_i - e_{c_i}|^2

    Equation 3 of van den Oord, Vinyals and Kavukcuoglu (2017), without the term of the book, which
    follows by moving averages. The gradient passes straight through the rounding. It is no bound
    on anything: the prior of the codes is not in it, and is learned afterwards.

    Arguments:
        model: A VAE of a `CodeEncoder` and a `CodeDecoder` with the same book.
        x: Images, shape (batch, pixels).
        generator: Of the rows that unused vectors become; None takes PyTorch's global one.
        commitment: :math:`\beta`, what it costs to be far from the vectors.

    Returns:
        Shape (batch,); larger is better.
    """
    h, book = model.encoder.network(x), model.encoder.book
    vectors = book.vectors[book(h)]
    log_p = model.decoder.decoder(straight_through(h, vectors).flatten(-2)).log_prob(x)
    far = (h - vectors).square().sum((-1, -2))
    if model.training:
        book.learn(h.detach(), generator)
    return log_p - commitment * far


class CodeSequence:
    r"""Codes laid out in rows, each with probabilities that depend on those before it.

    .. math:: p(c) = \prod_i p(c_i | c_{<i})

    Arguments:
        network: A `CodePrior`.
    """

    def __init__(self, network: "CodePrior"):
        self.network = network

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log probability of codes z (..., places), in nats, shape (...)."""
        log_p = torch.log_softmax(self.network.logits(z.reshape(-1, z.shape[-1])), -1)
        return log_p.gather(-1, z.reshape(*log_p.shape[:-1], 1)).sum((-1, -2)).view(z.shape[:-1])

    def sample(self, samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `samples` rows of codes, place by place, shape (samples, places)."""
        network, hidden = self.network, None
        z = torch.zeros(samples, network.places, dtype=torch.long, device=network.place.device)
        with torch.no_grad():
            for i in range(network.places):
                # What is not drawn yet is seen by none.
                h, hidden = network.gru(network.inputs(z)[:, i : i + 1], hidden)
                p = torch.softmax(network.last(h[:, 0]), -1)
                z[:, i] = torch.multinomial(p, 1, generator=source(generator)).squeeze(-1)
        return z


class CodePrior(nn.Module):
    """A prior of codes that lie in a rectangle: a recurrent network reads them row by row.

    At each place it is told the code before it and the code above it, and remembers what it was
    told earlier.

    Arguments:
        shape: Rows and columns of the codes.
        codes: How many different ones there are.
        hidden: Units of the network, a GRU (Cho et al., 2014).
        generator: The source of the weights; None takes PyTorch's global one.

    Example:
        >>> prior = CodePrior((7, 7), codes=16)()
        >>> prior.log_prob(prior.sample(5)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: Sequence[int],
        codes: int,
        hidden: int = 96,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.columns, self.places, self.codes = shape[1], math.prod(shape), whole("codes", codes)
        # One more vector for "there is none".
        sizes = {"before": codes + 1, "above": codes + 1, "place": self.places}
        for name, count in sizes.items():
            drawn = torch.randn(count, hidden, generator=source(generator))
            setattr(self, name, nn.Parameter(drawn / math.sqrt(len(sizes))))
        empty = nn.GRU(hidden, hidden, batch_first=True, device="meta")  # draws no weights
        self.gru = empty.to_empty(device=self.place.device)
        for weight in self.gru.parameters():
            nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5, generator=generator)
        self.last = linear(hidden, codes, generator)

    def inputs(self, z: Tensor) -> Tensor:
        """Return what is told at each place, shape (n, places, hidden)."""
        before = F.pad(z, (1, 0), value=self.codes)[:, :-1]
        above = F.pad(z, (self.columns, 0), value=self.codes)[:, : self.places]
        return self.before[before] + self.above[above] + self.place

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits of each place's code given those before it, (n, places, codes)."""
        return self.last(self.gru(self.inputs(z))[0])

    def forward(self) -> CodeSequence:
        """Return p(z), of event shape (places,)."""
        return CodeSequence(self)


class RoundedGaussian:
    r"""Grey levels, each the one that a normal variable is nearest to; beyond the ends, the end.

    .. math:: P(x) = \prod_i \left[ \Phi\!\left(\tfrac{b_i - \mu_i}{\sigma_i}\right) -
        \Phi\!\left(\tfrac{a_i - \mu_i}{\sigma_i}\right) \right]

    with a and b half a step below and above the level; minus and plus infinity at paper and at full
    ink. It says of a Gaussian decoder what it says of pictures, whose pixels have levels: unlike a
    density it cannot exceed one, and it may be compared with other distributions of levels.

    Arguments:
        gaussian: Of the pixels, with parameters of shape (..., d).
        levels: L, at least 2.

    Example:
        >>> narrow = DiagonalGaussian(torch.tensor([0.5]), torch.tensor([-9.0]))
        >>> RoundedGaussian(narrow, levels=3).log_prob(torch.tensor([0.5])).item()
        0.0
    """

    def __init__(self, gaussian: DiagonalGaussian, levels: int = 256):
        self.gaussian = gaussian
        self.levels = whole("levels", levels, 2)

    @property
    def mean(self) -> Tensor:
        """The centre of each pixel, brought between 0 and 1, shape (..., d)."""
        return self.gaussian.mean.clamp(0, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log probability of greys x (..., d), in nats, shape (...)."""
        mean, std = self.gaussian.mean, self.gaussian.std
        half = 0.5 / (self.levels - 1)
        low, high = (x - half - mean) / std, (x + half - mean) / std
        # The same bin seen from the other side where it lies above the centre: its ends are then
        # small numbers, whose difference is precise.
        above = low + high > 0
        low, high = torch.where(above, -high, low), torch.where(above, -low, high)
        ends = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
        inner = ends[1] + torch.log(-torch.expm1((ends[0] - ends[1]).clamp(max=-1e-30)))
        paper = torch.special.log_ndtr((x + half - mean) / std)
        ink = torch.special.log_ndtr((mean - x + half) / std)
        return torch.where(x < half, paper, torch.where(x > 1 - half, ink, inner)).sum(-1)

    def sample(self, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the grey of each pixel once, shape (..., d)."""
        drawn = self.gaussian.sample(generator=generator).clamp(0, 1)
        return torch.round(drawn * (self.levels - 1)) / (self.levels - 1)


class RoundedDecoder(nn.Module):
    """A decoder of grey levels made of one that gives Gaussians; see `RoundedGaussian`.

    Arguments:
        decoder: A module from latents z (..., latents) to a `DiagonalGaussian`.
        levels: L.
    """

    def __init__(self, decoder: nn.Module, levels: int = 256):
        super().__init__()
        self.decoder = decoder
        self.levels = levels

    def forward(self, z: Tensor) -> RoundedGaussian:
        """Return p(x given z) of latents z, shape (..., latents)."""
        return RoundedGaussian(self.decoder(z), self.levels)
