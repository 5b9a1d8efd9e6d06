"""Time training beside the usual loop, JAX and the bare matrix products: `make bench`.

Every contender trains the same network on the same images, in a process of its own that waits for
its turn. A round is a turn of each, so that a slow minute of the machine hits all of them, and
ratios are taken within a round. With one thread the clock is the processor's, which neighbours
do not lengthen; with two it is the one on the wall. That all have learned the same is checked.
JAX is installed apart from the project; without it that contender is left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from tests.surroundings import ROOT, clean

ROUNDS = 5
JAX = ROOT / ".venv-jax" / "bin" / "python"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
OURS, PRODUCTS = "train", "bare products"
# By which share of themselves bounds may differ at the end. Of the convolutional network, the
# seed of the first weights alone makes 0.05.
ALIKE = 0.1


@dataclass(frozen=True)
class Workload:
    """What is trained: a network, the images of a batch and those of a round."""

    network: str
    batch: int
    images: int

    def __str__(self):
        return f"{self.network}, batches of {self.batch}, {self.images} images a round"


WORKLOADS = [
    Workload("dense", 100, 20_000),
    Workload("dense", 1000, 20_000),
    Workload("convolutional", 100, 2_000),
]


def thresholded(count):
    """Return the first training images as float32 zeros and ones, shape (count, 784)."""
    with np.load(ROOT / "vae_lib" / "assets" / "mnist.npz") as archive:
        return (archive["x_train"][:count].reshape(-1, 784) >= 128).astype(np.float32)


class Watch:
    """Adds up what is done within it: seconds on the wall and of the processor."""

    def __init__(self):
        self.wall = self.processor = 0.0

    def __enter__(self):
        self.began = time.perf_counter(), time.process_time()

    def __exit__(self, *_):
        self.wall += time.perf_counter() - self.began[0]
        self.processor += time.process_time() - self.began[1]


def asked():
    """Wait for a line of the input; False at its end."""
    return bool(sys.stdin.readline())


def serve(a_round, more=asked):
    """Warm up by a round, then run one whenever asked, and say what each took and has learned."""
    a_round(Watch())
    _answer(ready=True)
    while more():
        watch = Watch()
        bound = a_round(watch)
        _answer(wall=watch.wall, processor=watch.processor, bound=bound)


def decline(why):
    """Say why a contender does not take part."""
    _answer(ready=False, why=why)


def _answer(**what):
    print(json.dumps(what), flush=True)


class Contender:
    """A process that waits for its turn, on so many processors."""

    def __init__(self, command, workload, threads, processors):
        environment = clean(os.environ) | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        command = [*command, json.dumps(asdict(workload))]
        with confined(processors):
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
        self.rounds = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def heard(self):
        """Return its next answer; what else it prints, as Gloo does, is passed over."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args[-3:]} ended with {self.process.wait()}")

    def take_turn(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.rounds.append(self.heard())

    def seconds(self, clock):
        return [a_round[clock] for a_round in self.rounds]


@contextmanager
def confined(count):
    """Confine processes that are started meanwhile to so many processors, where that can be."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def commands():
    """Return how each contender is started, by its name; ours is the first."""
    torch = [sys.executable, "-m", "tests.contenders"]
    found = {
        OURS: [*torch, "ours"],
        "train, fast": [*torch, "fast"],
        "DataLoader loop": [*torch, "usual"],
        "JAX": [str(JAX), "-m", "tests.contenders_jax"],
        PRODUCTS: [*torch, "products"],
    }
    if not JAX.exists():
        del found["JAX"]
    return found


def take_turns(contenders, rounds):
    """Let contenders, by their names, take turns; those that decline are taken out.

    Returns:
        Why, by the name of each that declined.
    """
    answers = {name: contender.heard() for name, contender in contenders.items()}
    declined = {name: answer["why"] for name, answer in answers.items() if not answer["ready"]}
    for name in declined:
        del contenders[name]
    for _ in range(rounds):
        for contender in contenders.values():
            contender.take_turn()
    check_bounds({name: contender.rounds[-1]["bound"] for name, contender in contenders.items()})
    return declined


def check_bounds(bounds, alike=ALIKE):
    """Refuse contenders that have not learned the same; the products learn nothing."""
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    first = next(iter(bounds.values()))
    if not all(abs(bound - first) <= alike * abs(first) for bound in bounds.values()):
        raise RuntimeError(f"the contenders have not trained the same: their bounds are {bounds}")


def ratios(times, base):
    """Return median, least and greatest of times over others, round by round."""
    each = [a / b for a, b in zip(times, base, strict=True)]
    return statistics.median(each), min(each), max(each)


def compare(workload, threads, rounds):
    """Print how one workload went with so many threads."""
    clock = "processor" if threads == 1 else "wall"
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(Contender(command, workload, threads, threads))
            for name, command in commands().items()
        }
        declined = take_turns(contenders, rounds)
    times = {name: contender.seconds(clock) for name, contender in contenders.items()}
    print(f"\n{workload}, {threads} thread(s), {rounds} rounds", flush=True)
    print(f"  {'':16} images/s   time over {OURS}'s        share of the bare products' rate")
    for name, seconds in times.items():
        rate = workload.images / statistics.median(seconds)
        middle, low, high = ratios(seconds, times[OURS])
        share = ratios(times[PRODUCTS], seconds)[0]
        print(f"  {name:16} {rate:8,.0f}   {middle:.2f} ({low:.2f} to {high:.2f})   {share:.2f}")
    for name, why in declined.items():
        print(f"  {name:16} {why}")


def scale(batch, rounds):
    """Print what a second process, started by torchrun, is worth: one thread each."""
    workload = Workload("dense", batch, 20_000)
    one = [sys.executable, "-m", "tests.contenders", "ours"]
    two = [sys.executable, *TORCHRUN, *one[1:]]
    with Contender(one, workload, 1, 1) as alone, Contender(two, workload, 1, 2) as both:
        take_turns({"one process": alone, "two processes": both}, rounds)
    middle, low, high = ratios(alone.seconds("wall"), both.seconds("wall"))
    spent = ratios(both.seconds("processor"), alone.seconds("processor"))[0]
    print(
        f"  {workload}: {middle:.2f} times as fast ({low:.2f} to {high:.2f}); each of the two "
        f"spends {spent:.2f} of the processor's time that the one does",
        flush=True,
    )


def main():
    from vae_lib.records import processor

    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contender")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    rounds, threads = vars(parser.parse_args()).values()
    if not JAX.exists():
        print("JAX is not installed in .venv-jax; `make bench` does it. Leaving it out.")
    print(f"{processor()}, {os.cpu_count()} processors")
    for count in threads:
        for workload in WORKLOADS:
            compare(workload, count, rounds)
    if max(threads) > 1:
        print("\nTwo processes with one thread each, beside one, by the clock on the wall:")
        for batch in (100, 1000):
            scale(batch, rounds)


if __name__ == "__main__":
    main()
