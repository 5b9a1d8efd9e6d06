"""The residual network and its log p(x) once more, in NumPy and in 64 bits, to judge the first.

Nothing here is imported from the library, and nothing is done the same way: a convolution is a
sum over shifted pictures with their channels last; which pixel sees which, and which latent, is
decided by their numbers; and latents are drawn from a wider Gaussian than the encoder's, so that
the weights are others.
"""

import numpy as np

WIDER = 1.1  # times the encoder's standard deviation


def arrays(model):
    """Return the weights of a model by their names, in 64 bits."""
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def silu(h):
    return h / (1 + np.exp(-h))


def convolved(h, w, name, stride=1):
    """Sum over the shifts of pictures (n, height, width, channels) times their weights."""
    kernel, (_, height, width, _) = w[f"{name}.weight"], h.shape
    size = kernel.shape[-1]
    framed = np.pad(h, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    out = w[f"{name}.bias"]
    for down in range(size):
        for right in range(size):
            seen = framed[:, down : down + height : stride, right : right + width : stride]
            rows = seen.reshape(-1, seen.shape[-1]) @ kernel[:, :, down, right].T
            out = out + rows.reshape(*seen.shape[:-1], -1)
    return out


def affine(h, w, name):
    return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def blocks(w, prefix):
    """List what stands in a chain of steps, in order: a name and what it is."""
    numbers = sorted({int(name[len(prefix) :].split(".")[0]) for name in w if prefix in name})
    kinds = [("first" if f"{prefix}{n}.first.weight" in w else "other") for n in numbers]
    return [(f"{prefix}{n}", kind == "first") for n, kind in zip(numbers, kinds, strict=True)]


def residual(h, w, name):
    return h + convolved(silu(convolved(silu(h), w, f"{name}.first")), w, f"{name}.second")


def encoded(x, shape, w):
    """Return mean and log standard deviation of q(z given x)."""
    prefix = "encoder.network.trunk.steps."
    h = (2.0 * x - 1).reshape(-1, *shape, 1)
    for number, (name, is_block) in enumerate(blocks(w, prefix)):
        if is_block:
            h = residual(h, w, name)
        else:
            h = convolved(silu(h) if number else h, w, name, stride=2)
    h = silu(h).reshape(len(x), -1)
    return affine(h, w, "encoder.network.first"), affine(h, w, "encoder.network.second")


def features(z, shape, w):
    """Return the features (n, height, width, features) that latents (n, d) give."""
    height, width = shape
    h = affine(z, w, "decoder.network.first").reshape(len(z), height // 4, width // 4, -1)
    for name, is_block in blocks(w, "decoder.network.steps."):
        if is_block:
            h = residual(h, w, name)
            continue
        four = affine(silu(h), w, f"{name}.four")
        n, rows, columns, _ = four.shape
        h = np.empty((n, 2 * rows, 2 * columns, four.shape[-1] // 4))
        for corner, part in enumerate(np.split(four, 4, -1)):
            h[:, corner // 2 :: 2, corner % 2 :: 2] = part
    return h


def log_p_of_pixels(x, z, shape, w):
    """Return log p(x given z) of images (n, pixels), each with its latents (n, d)."""
    height, width = shape
    h, kernel = features(z, shape, w), w["decoder.head.weight"]
    reach = kernel.shape[1] - 1
    for row in range(height):
        for column in range(width):
            places, weights = [], []
            for up in range(reach + 1):
                for side in range(-reach, reach + 1):
                    other, beside = row - up, column + side
                    inside = other >= 0 and 0 <= beside < width
                    if inside and other * width + beside < row * width + column:
                        places.append(other * width + beside)
                        weights.append(kernel[:, reach - up, reach + side])
            if places:
                h[:, row, column] += x[:, places] @ np.array(weights)
    for number in range(sum(name.startswith("decoder.head.layers.") for name in w) // 2):
        h = h + affine(silu(h), w, f"decoder.head.layers.{number}")
    logits = affine(silu(h), w, "decoder.head.last").reshape(len(x), -1)
    return -np.logaddexp(0, np.where(x == 1, -logits, logits)).sum(-1)


def log_p_of_latents(z, w):
    """Return log p(z) of latents (n, d): one latent at a time, from those before it alone."""
    d, total = z.shape[1], 0
    for j in range(d):
        # What comes from j on is put to NaN: were it used, it would show.
        known = np.where(np.arange(d) < j, z, np.nan)
        logits, means, raw = np.split(_conditional(known, j, d, w), 3, -1)
        log_std = 6 * np.tanh(raw / 6)
        each = logits - _logsumexp(logits)[:, None] - log_std - 0.5 * np.log(2 * np.pi)
        total = total + _logsumexp(each - 0.5 * ((z[:, j, None] - means) / np.exp(log_std)) ** 2)
    return total


def _conditional(known, j, d, w):
    """Return the numbers of latent j, computed by the units that see no later one."""
    prefix = "prior.network."
    hidden = len(w[f"{prefix}first.affine.bias"])
    place = np.arange(hidden) % max(1, d - 1)
    h = np.zeros((len(known), hidden))
    for p in range(j):  # the units of one place, from the latents up to it
        units, name = place == p, f"{prefix}first.affine"
        h[:, units] = known[:, : p + 1] @ w[f"{name}.weight"][units, : p + 1].T
        h[:, units] += w[f"{name}.bias"][units]
    for number in range(sum(name.startswith(f"{prefix}layers.") for name in w) // 2):
        name, before, h = f"{prefix}layers.{number}.affine", silu(h), h.copy()
        for p in range(j):
            units, seen = place == p, place <= p
            h[:, units] += before[:, seen] @ w[f"{name}.weight"][units][:, seen].T
            h[:, units] += w[f"{name}.bias"][units]
    used = place < j
    outputs = len(w[f"{prefix}last.affine.bias"]) // d
    rows = slice(j * outputs, (j + 1) * outputs)
    weight, bias = w[f"{prefix}last.affine.weight"][rows], w[f"{prefix}last.affine.bias"][rows]
    return silu(h[:, used]) @ weight[:, used].T + bias


def _logsumexp(values):
    top = values.max(-1, keepdims=True)
    return np.log(np.exp(values - top).sum(-1)) + top[..., 0]


def log_likelihood(x, shape, w, samples, rng):
    """Estimate log p(x) of images (n, pixels) by importance sampling from a wider Gaussian.

    Returns the estimates and their standard errors, shape (n,) each.
    """
    mean, log_std = encoded(x, shape, w)
    noise = rng.standard_normal((samples, *mean.shape))
    z = mean + WIDER * np.exp(log_std) * noise
    log_q = (-0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - np.log(WIDER) - log_std).sum(-1)
    rows = z.reshape(-1, z.shape[-1])
    log_p = log_p_of_latents(rows, w)
    some = range(50, len(rows), 50)  # so many at a time, for the memory's sake
    pairs = zip(np.split(np.tile(x, (samples, 1)), some), np.split(rows, some), strict=True)
    log_p = log_p + np.concatenate([log_p_of_pixels(*pair, shape, w) for pair in pairs])
    log_w = log_p.reshape(samples, -1) - log_q
    total = _logsumexp(log_w.T)
    effective = np.exp(2 * total - _logsumexp(2 * log_w.T))
    return total - np.log(samples), np.sqrt(1 / effective - 1 / samples)
