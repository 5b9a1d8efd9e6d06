"""The library behind the VAE book: small enough to read in an evening.

The core is what the chapters teach. Its modules import one another in one direction, in this
order: `arguments`, `data`, `distributions`, `networks`, `model`, `objectives`, `checkpoints`,
`states`, `training`, `evaluation`, `figures`, `results`. `import vae_lib` brings all but the last
two, which are for pages; `figures` needs matplotlib.

Around the core stand rooms to enter when they are needed: `fingerprints` (what a figure drew),
`records` (what a long run leaves), `recorded` (the scripts of the long runs), `images` (folders of
pictures), `picture_files` (how one of their files is read), `convolutional` (networks for
pictures), `priors` (those that are learned), `hierarchy` (latents above latents), `losses` (what
those of other people amount to), `recipes` and `runs` (a run folder) and `__main__` (the command
line). The core imports none of them, but for `figures`, which stores its fingerprints.
"""

from vae_lib import (
    arguments,
    checkpoints,
    data,
    distributions,
    evaluation,
    model,
    networks,
    objectives,
    states,
    training,
)

__all__ = [
    "arguments",
    "checkpoints",
    "data",
    "distributions",
    "evaluation",
    "model",
    "networks",
    "objectives",
    "states",
    "training",
]
