"""Several processes, on one machine or more, that train one model: torchrun starts them.

`torchrun --nproc-per-node 2 program.py` starts a program twice. Within `joined`, `train` of both
shares each batch: each takes its rows, PyTorch's DistributedDataParallel sums the gradients, and
both make the same step. What is to be done once is done by the first.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from vae_lib.noise import Share

PATIENCE = timedelta(minutes=30)  # how long a process waits for the others


def share() -> Share:
    """Return which of the processes that train together this one is; alone, the first of one.

    Example:
        >>> share()
        Share(rank=0, of=1)
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return Share()
    return Share(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def joined(device: str = "cpu") -> Iterator[Share]:
    """Join the processes that torchrun started, for a while; without torchrun, do nothing.

    Arguments:
        device: What the model is trained on. Of "cuda" each process takes a GPU of its own and
            sends by NCCL, of others by gloo.

    Example:
        >>> with joined() as ours:
        ...     ours
        Share(rank=0, of=1)
    """
    if not distributed.is_torchelastic_launched():
        yield Share()
        return
    cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(distributed.get_node_local_rank())
    store, rank, of = next(distributed.rendezvous("env://", timeout=PATIENCE))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        # torchrun keeps the store when it starts the processes again, and the quicker ones would
        # look for the others where they were before. Several machines count restarts apart.
        store = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    options = {"store": store, "rank": rank, "world_size": of, "timeout": PATIENCE}
    distributed.init_process_group("nccl" if cuda else "gloo", **options)
    try:
        yield share()
    finally:
        distributed.destroy_process_group()


def from_first(make: Callable[[], Any]) -> Any:
    """Call a function in the first process alone, and return what it returned in all of them.

    Arguments:
        make: Returns something that can be pickled. It may write files.

    Example:
        >>> from_first(lambda: 2 + 2)
        4
    """
    ours = share()
    if ours.of == 1:
        return make()
    made = [make() if ours.rank == 0 else None]
    distributed.broadcast_object_list(made)
    return made[0]
