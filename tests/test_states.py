import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import weakref

import pytest
import torch

from vae_lib import checkpoints
from vae_lib.data import Batches, binarize
from vae_lib.evaluation import held_out_elbo
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo
from vae_lib.states import State
from vae_lib.training import Interrupted, cosine, train

GREY = torch.rand(110, 16, generator=torch.Generator().manual_seed(0))
HELD_OUT = binarize(GREY, "threshold")


def drawn(x, generator):
    return binarize(x, "dynamic", generator=generator)


def small(seed=0):
    return dense_vae(pixels=16, hidden=8, latents=2, seed=seed)


def go(model, epochs, state, objective=elbo, batch_size=20, **changes):
    """A training with everything on: six steps an epoch, the last of them short."""
    options = {
        "learning_rate": cosine(1e-2, 24, warm_up=3),
        "seed": 3,
        "clip": 5.0,
        "average": 0.9,
        "validate": lambda judged: held_out_elbo(judged, HELD_OUT).elbo.mean,
        "after_epoch": lambda epoch: {"square": epoch**2},
    }
    batches = Batches(GREY, batch_size, seed=2, transform=drawn)
    return train(model, batches, objective, epochs=epochs, state=state, **options | changes)


def digest(model, state):
    """One hash of everything that a training leaves."""
    parts = {"model": model.state_dict(), "best": state.best["weights"]}
    parts["average"] = state.averaged.state_dict()
    found = hashlib.sha256(json.dumps([state.history, state.best["epoch"]]).encode())
    for part, weights in parts.items():
        for name, value in sorted(weights.items()):
            found.update(f"{part}.{name}".encode() + value.numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def straight():
    """What four epochs leave that nothing interrupted."""
    model, state = small(), State()
    history = go(model, 4, state)
    return digest(model, state), history


@pytest.fixture
def at_a_terminal():
    """Let Ctrl-C arrive, as it does not in a process that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_two_epochs_and_two_more_are_four(straight):
    model, state = small(), State()
    first = go(model, 2, state)
    assert (len(first), state.epoch, state.step, state.steps) == (2, 2, 0, 12)
    history = go(model, 4, state)
    assert (digest(model, state), history) == straight
    assert history[:2] == first


def test_two_epochs_and_two_more_in_another_process_are_four(tmp_path, straight):
    go(small(), 2, tmp_path / "state")
    model, state = small(seed=9), State(tmp_path / "state")  # the weights come from the file
    history = go(model, 4, state)
    assert (digest(model, state), history) == straight
    # Once more: there is nothing left to do, and everything is there again.
    model, state = small(seed=9), State(tmp_path / "state")
    assert go(model, 4, state) == history
    assert digest(model, state) == straight[0]


@pytest.mark.parametrize("step", [1, 6, 7, 17])  # the first, the last of an epoch, in between
def test_ctrl_c_keeps_everything_and_says_how_to_go_on(step, straight, at_a_terminal):
    model = small()
    calls = []

    def interrupted(model, x, generator):
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return elbo(model, x, generator)

    with pytest.raises(Interrupted, match=r"To go on, call train .* state=State.of") as stopped:
        go(model, 4, State(), interrupted)
    state = State.of(model)
    assert state.steps == step
    assert len(state.history) == state.epoch == (step - 1) // 6
    assert f"in epoch {(step - 1) // 6 + 1}, after step {(step - 1) % 6 + 1} of 6" in str(
        stopped.value
    )
    assert issubclass(Interrupted, KeyboardInterrupt)
    history = go(model, 4, state)
    assert (digest(model, state), history) == straight
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_writes_the_file(tmp_path, straight, at_a_terminal):
    def interrupted(model, x, generator):
        signal.raise_signal(signal.SIGINT)
        return elbo(model, x, generator)

    with pytest.raises(Interrupted, match=r"the same state, which is in .*state"):
        go(small(), 4, tmp_path / "state", interrupted)
    model, state = small(), State(tmp_path / "state")
    history = go(model, 4, state)
    assert (digest(model, state), history) == straight


def test_a_second_ctrl_c_does_not_wait(straight, at_a_terminal):
    model = small()

    def interrupted(model, x, generator):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it waited")

    with pytest.raises(KeyboardInterrupt) as stopped:
        go(model, 4, State(), interrupted)
    assert not isinstance(stopped.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state = State.of(model)
    history = go(model, 4, state)
    assert (digest(model, state), history) == straight


def test_an_error_in_the_middle_loses_no_step(straight):
    model, state = small(), State()
    calls = []

    def failing(model, x, generator):
        calls.append(1)
        values = elbo(model, x, generator)  # the noise is drawn, and must be drawn again
        if len(calls) == 9:
            raise OSError("the disk is gone")
        return values

    with pytest.raises(OSError, match="the disk is gone"):
        go(model, 4, state, failing)
    assert state.steps == 8
    history = go(model, 4, state)
    assert (digest(model, state), history) == straight


# A process that trains is forked and killed, again and again, until it is through: by the clock,
# and by itself in the middle of a writing. What it needs is imported only once.
KILLED = """
import os, random, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # it imports for seconds, once
from tests.test_states import State, digest, go, small

def run(file):
    model, state = small(), State(file, every=0)
    go(model, 4, state)
    return digest(model, state)

def die_in_a_write(count, seed):
    # The new file is cut somewhere, or whole and not yet in its place, or just there.
    calls, random_ = [], random.Random(seed)
    fsync, replace = os.fsync, Path.replace
    def cut(descriptor):
        calls.append(1)
        if len(calls) == count:
            os.ftruncate(descriptor, random_.randrange(os.fstat(descriptor).st_size))
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
    def place(self, target):
        if len(calls) == count - 1 and random_.random() < 0.5:
            if random_.random() < 0.5:
                replace(self, target)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)
    os.fsync, Path.replace = cut, place

def forked(file, in_a_write, seed):
    child = os.fork()
    if child:
        return child
    try:
        if in_a_write:
            die_in_a_write(1 + seed % 4, seed)
        Path(f"{file}.digest").write_text(run(file))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

folder, moments = Path(sys.argv[1]), random.Random(0)
killed, attempt, run_number = {"clock": 0, "write": 0}, 0, 0
while min(killed.values()) < 10:
    file, status = folder / f"state{run_number}", None
    run_number += 1
    while status != 0:
        attempt += 1
        in_a_write = attempt % 2
        child = forked(file, in_a_write, attempt)
        if not in_a_write:
            time.sleep(moments.uniform(0.0, 0.05))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) and status:
            sys.exit("a training failed")
        killed["write" if in_a_write else "clock"] += status != 0
        if attempt > 500:
            sys.exit("no end")
    print(Path(f"{file}.digest").read_text())
print(*killed.values())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked by the hundred")
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path, straight):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    *digests, by_the_clock, in_a_write = done.stdout.split()
    assert set(digests) == {straight[0]}
    assert min(int(by_the_clock), int(in_a_write)) >= 10


def test_training_twice_without_a_state_says_that_it_starts_anew():
    model = small()
    options = {"average": None, "validate": None}
    go(model, 1, None, **options)
    with pytest.warns(UserWarning, match="starts anew.*state=State.of.*state=State()") as said:
        go(model, 1, None, **options)
    assert "test_states" in said[0].filename
    go(model, 1, State(), **options)  # it is meant
    go(small(), 1, None, **options)  # another model


def test_a_state_knows_its_model_and_lets_go_of_it():
    model, state = small(), State()
    with pytest.raises(ValueError, match="model: expected one that `train` has trained"):
        State.of(model)
    go(model, 1, state)
    assert State.of(model) is state
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "its training had seed 3, got 4"),
        ({"learning_rate": 1e-3}, "its training had learning rate None, got 0.001"),
        ({"clip": None}, "its training had clip 5.0, got None"),
        ({"average": 0.8}, "its training had average 0.9, got 0.8"),
        ({"batch_size": 10}, "its training had batch size 20, got 10"),
        ({"epochs": 1}, "epochs: expected at least the 2 that the state has seen, got 1"),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_another_training_is_refused_and_nothing_lost(tmp_path, change, message, stored, straight):
    model, state = small(), State(tmp_path / "state")
    go(model, 2, state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if stored:
        state = State(tmp_path / "state")
    with pytest.raises(ValueError, match=message):
        go(model, **{"epochs": 4, "state": state, **change})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model, state = small(), State(tmp_path / "state")
    history = go(model, 4, state)
    assert (digest(model, state), history) == straight


def test_other_images_and_another_order_are_refused():
    model, state = small(), State()
    train(model, Batches(HELD_OUT, 20), epochs=1, state=state)
    for batches, message in [
        (Batches(1 - HELD_OUT, 20), r"its training had images \(110, 16\) .*, got \(110, 16\)"),
        (Batches(HELD_OUT[:100], 20), r"its training had images \(110, 16\) .*, got \(100, 16\)"),
        (Batches(HELD_OUT, 20, seed=1), "its training had order 0, got 1"),
        (Batches(HELD_OUT, 20, shuffle=False), "its training had order 0, got as it is"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(model, batches, epochs=2, state=state)


def test_the_state_of_another_model_is_refused(tmp_path):
    state = State()
    go(small(), 1, state)
    with pytest.raises(ValueError, match="state: it belongs to the training of another model"):
        go(small(), 2, state)
    go(small(), 1, tmp_path / "state")
    wide = dense_vae(pixels=16, hidden=9, latents=2)
    before = wide.encoder.network.first.weight.clone()
    with pytest.raises(ValueError, match=r"model: .*state does not fit it in"):
        go(wide, 2, tmp_path / "state")
    assert torch.equal(wide.encoder.network.first.weight, before)


def test_a_state_that_broke_off_in_a_step_is_refused(monkeypatch):
    model, state = small(), State()

    def broken(*_, **__):
        raise MemoryError("in the middle of the step")

    monkeypatch.setattr(torch.optim.Adam, "step", broken)
    with pytest.raises(MemoryError):
        go(model, 2, state)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="broke off in the middle of a step"):
        go(model, 2, state)


def test_a_damaged_or_foreign_file_is_refused_and_kept(tmp_path):
    file = tmp_path / "state"
    go(small(), 1, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="truncated, changed"):
        go(small(), 2, file)
    assert file.read_bytes() == whole[:-100]
    file.unlink()
    checkpoints.save(file, small())
    with pytest.raises(ValueError, match=r'expected .* to be a "vae_lib training state 1"'):
        go(small(), 2, tmp_path / "state.safetensors")


def test_it_writes_as_often_as_asked(tmp_path, monkeypatch):
    times = []
    write = checkpoints.write
    monkeypatch.setattr(checkpoints, "write", lambda contents: (times.append(1), write(contents)))
    go(small(), 2, State(tmp_path / "each", every=0))
    assert len(times) == 13  # after each of twelve steps, and at the end
    times.clear()
    go(small(), 2, State(tmp_path / "seldom", every=1000))
    assert len(times) == 1
    with pytest.raises(ValueError, match="every: expected a number of seconds not below zero"):
        State(every=-1)


def test_the_time_is_counted_over_interruptions(tmp_path):
    go(small(), 1, tmp_path / "state")
    state = State(tmp_path / "state")
    go(small(), 2, state)
    first = checkpoints.unpack(tmp_path / "state", "vae_lib training state 1")[1]
    assert 0 < first["cpu_seconds"] == state.cpu_seconds
    go(small(), 3, (later := State(tmp_path / "state")))
    assert later.cpu_seconds > state.cpu_seconds
    assert later.wall_seconds > state.wall_seconds > 0
