"""The library behind the VAE book: small enough to read in an evening.

The core is what the chapters teach. Its modules import one another in one direction, in this
order: `arguments`, `noise`, `data`, `distributions`, `networks`, `model`, `objectives`,
`checkpoints`, `processes`, `states`, `steps`, `training`, `evaluation`. `import vae_lib` brings
them all.

Around the core stand rooms to enter when they are needed: `figures` and `results` (pictures and
tables of a page), `fingerprints` (what a figure drew), `records` (what a long run leaves),
`recorded` (the scripts of the long runs), `images` (folders of pictures), `picture_files` (how one
of their files is read), `convolutional` (networks for pictures), `autoregressive` (pixels and
latents that depend on those before them), `residual` (the network that has both), `local_levels`
(the same for greys), `priors` (those that are learned), `hierarchy` (latents above latents),
`quantized` (latents that are codes, greys that are levels), `looks` (how sharp pictures are, and
how like real ones), `losses` (what those of other people amount to), `exact` (networks in
integers), `masses` (what a codec asks of a model) and `integers` (which makes one of a trained
model), `coding` (images in fewer bytes, without loss), `recipes` and `runs` (a run folder),
`archives` (a folder of pictures in one file) and `__main__` (the command line). The core imports
none of them.
"""

from vae_lib import (
    arguments,
    checkpoints,
    data,
    distributions,
    evaluation,
    model,
    networks,
    noise,
    objectives,
    processes,
    states,
    steps,
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
    "noise",
    "objectives",
    "processes",
    "states",
    "steps",
    "training",
]
