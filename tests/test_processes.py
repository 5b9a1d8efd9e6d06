"""Do several processes train as one does?"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.surroundings import ROOT
from tests.together import PLANTED, TRAININGS
from vae_lib.noise import Share
from vae_lib.processes import from_first, share

TOGETHER = [name for name in TRAININGS if name != "killed"]
SAME = list(TRAININGS)[: list(TRAININGS).index("all options") + 1]


def together(out, names, processes=2, *options):
    """Let so many processes do trainings together."""
    return launched(["tests.together", str(out), *names], processes, *options)


def launched(module, processes=1, *options):
    """Run a module in so many processes of one thread each, and return what was said."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *([*run, *options] if processes > 1 else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [*command, "-m", *module],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where one process, two and three have left their trainings."""
    folder = tmp_path_factory.mktemp("together")
    together(folder, [*SAME, "an epoch", "refused"], 1)
    together(folder, TOGETHER, 2)
    together(folder, ["elbo", "a row for one", "in two halves"], 3)
    return folder


def found(folder, name, rank=0, of=1):
    return torch.load(folder / f"{name} {rank} of {of}.pt")


def numbers(thing):
    """Return all numbers in nested dictionaries and lists as one row of 64 bits."""
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list):
        return torch.cat([numbers(one) for one in thing])
    return torch.as_tensor(thing, dtype=torch.float64).flatten()


@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one(out, name):
    one, first, second = (
        numbers(found(out, name)),
        numbers(found(out, name, 0, 2)),
        numbers(found(out, name, 1, 2)),
    )
    assert torch.equal(first, second)
    assert len(one) > 200
    torch.testing.assert_close(first, one, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["elbo", "a row for one"])
def test_three_processes_train_as_one(out, name):
    three = [numbers(found(out, name, rank, 3)) for rank in range(3)]
    assert torch.equal(three[0], three[1])
    assert torch.equal(three[0], three[2])
    torch.testing.assert_close(three[0], numbers(found(out, name)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("what", PLANTED)
def test_an_error_put_in_on_purpose_is_seen(out, what):
    spoiled = numbers(found(out, f"planted {what}", 0, 2))
    assert (spoiled - numbers(found(out, "elbo"))).abs().max() > 1e-4


def test_after_an_epoch_in_32_bits_they_score_alike(out):
    one, two = (found(out, "an epoch", 0, n)["held out"] for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-4)
    assert one > -400  # something was learned: fair coins cost 543


@pytest.mark.parametrize("of", [2, 3])
def test_going_on_is_exact_to_the_bit(out, of):
    for rank in range(of):
        halves = found(out, "in two halves", rank, of)
        assert torch.equal(numbers(halves["straight"]), numbers(halves["weights"]))


def test_parameters_that_take_no_part_are_refused(out):
    for rank in range(2):
        assert "Freeze these with requires_grad_" in found(out, "left out", rank, 2)["error"]


def test_data_that_one_process_refuses_stop_all(out):
    alone = found(out, "refused")
    assert "x: expected zeros and ones" in alone["error"]
    one, other = found(out, "refused", 0, 2), found(out, "refused", 1, 2)
    assert "another process refuses its images" in one["error"]
    assert "x: expected zeros and ones, got values from 0 to 1" in other["error"]
    for said in (alone, one, other):
        assert "epoch 1, step 2. The model keeps its parameters from before" in said["error"]
        assert said["kept"]


def test_each_process_takes_its_own_rows_of_a_file(out):
    assert [found(out, "mapped", rank, 2)["rows"] for rank in range(2)] == [2048, 2048]


def test_a_process_that_was_killed_is_started_again(tmp_path):
    said = together(tmp_path, ["killed"], 2, "--max-restarts", "1")
    assert "exitcode" in said or "failed" in said  # torchrun tells of it
    together(tmp_path, ["elbo"], 2)
    first, second = (found(tmp_path, "killed", rank, 2) for rank in range(2))
    straight = found(tmp_path, "elbo", 0, 2)["weights"]
    for end in (first, second):
        assert end["steps"] < 24  # not from the beginning
        assert torch.equal(numbers(end["weights"]), numbers(straight))


def test_the_command_line_trains_in_two_processes(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        grey = generator.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(grey).save(tmp_path / "pictures" / f"{number:02}.png")
    settings = ["--batch-size", "12", "--width", "4", "--latents", "2", "--size", "8"]
    rows = []
    for processes in (1, 2):
        run = ["-o", str(tmp_path / str(processes)), "--epochs", "3", *settings]
        said = launched(["vae_lib", "train", str(tmp_path / "pictures"), *run], processes)
        assert said.count("epoch 3 of 3") == 1  # the first alone speaks
        lines = (tmp_path / str(processes) / "history.csv").read_text(encoding="utf-8").split()
        rows.append([float(number) for line in lines[1:] for number in line.split(",")[1:3]])
    assert rows[1] == pytest.approx(rows[0], rel=1e-4)
    # What two began, one goes on with.
    run = ["-o", str(tmp_path / "2"), "--epochs", "4"]
    assert "which has 3 of 4" in launched(["vae_lib", "train", str(tmp_path / "pictures"), *run])


def test_alone_there_is_nothing_to_share():
    assert share() == Share(0, 1)
    assert from_first(lambda: [1]) == [1]
