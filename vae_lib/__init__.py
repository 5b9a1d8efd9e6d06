"""The library behind the VAE book: small enough to read in an evening.

Imports run one way, in this order: `data`, `distributions`, `networks`, `model`,
`objectives`, `training`, `checkpoints`, `evaluation`, `figures`. The last of them needs
matplotlib and is therefore imported only by who asks for it.
"""

from vae_lib import (
    checkpoints,
    data,
    distributions,
    evaluation,
    model,
    networks,
    objectives,
    training,
)

__all__ = [
    "checkpoints",
    "data",
    "distributions",
    "evaluation",
    "model",
    "networks",
    "objectives",
    "training",
]
