"""What `make bench` compares does the same: the same learning, the same arithmetic."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import bench
from tests.contenders import CONTENDERS, multiply, prepared, seen
from vae_lib.objectives import elbo

DENSE = bench.Workload("dense", 50, 1000)
CONVOLUTIONAL = bench.Workload("convolutional", 50, 250)
both = pytest.mark.parametrize("workload", [DENSE, CONVOLUTIONAL], ids=str)


def bound(command, workload, rounds):
    """Let a contender take turns in a process of its own; return what it has learned."""
    with bench.Contender(command, workload, threads=1, processors=1) as contender:
        assert contender.heard() == {"ready": True}
        for _ in range(rounds):
            contender.take_turn()
    assert all(a_round["wall"] > 0 < a_round["processor"] for a_round in contender.rounds)
    return contender.rounds[-1]["bound"]


def here(name, workload, rounds):
    """The same in this process, the round to warm up included."""
    torch.manual_seed(0)
    a_round = CONTENDERS[name](workload)
    return [a_round(bench.Watch()) for _ in range(rounds + 1)][-1]


@both
def test_our_loop_and_the_usual_one_learn_the_same(workload):
    bench.check_bounds({name: here(name, workload, 3) for name in ("ours", "usual")}, alike=0.02)


def test_a_contender_learns_in_its_process_what_it_learns_here():
    command = bench.commands()[bench.OURS]
    assert bound(command, DENSE, 2) == pytest.approx(here("ours", DENSE, 2), rel=1e-4)


@pytest.mark.skipif(not bench.JAX.exists(), reason="JAX is not installed")
def test_jax_learns_the_same():  # the convolutions take minutes; `make bench` looks at them
    theirs = bound(bench.commands()["JAX"], DENSE, 3)
    bench.check_bounds({"ours": here("ours", DENSE, 3), "JAX": theirs}, alike=0.05)


@both
def test_the_bare_products_are_those_of_a_step(workload):
    model, images = prepared(workload)
    x = images[: workload.batch]
    maps = seen(model, x)
    with FlopCounterMode(display=False) as bare:
        multiply(maps)
    found = {
        name: weight.grad.shape for name, weight in model.named_parameters() if "weight" in name
    }
    model.zero_grad()
    with FlopCounterMode(display=False) as step:
        elbo(model, x, torch.Generator().manual_seed(0)).mean().backward()
    assert bare.get_total_flops() == step.get_total_flops()
    assert found == {name: w.grad.shape for name, w in model.named_parameters() if "weight" in name}


def test_contenders_that_learned_otherwise_are_refused():
    bench.check_bounds({"ours": -100.0, "theirs": -104.0, "products": None})
    with pytest.raises(RuntimeError, match="not trained the same"):
        bench.check_bounds({"ours": -100.0, "theirs": -111.0})
    with pytest.raises(RuntimeError, match="not trained the same"):
        bench.check_bounds({"ours": -100.0, "theirs": float("nan")})


def test_ratios_are_taken_round_by_round():
    assert bench.ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == (2.0, 1.0, 3.0)


def test_who_declines_is_left_out_and_who_fails_ends_it(capfd):
    answer = json.dumps({"ready": False, "why": "no bfloat16 here"})
    command = [sys.executable, "-c", f"print('[Gloo] connected'); print('{answer}')"]
    with bench.Contender(command, DENSE, 1, 1) as contender:
        assert contender.heard()["why"] == "no bfloat16 here"
        with pytest.raises(RuntimeError, match="ended with 0"):
            contender.heard()


def test_it_says_what_it_takes():
    command = [sys.executable, "-m", "tests.bench", "--help"]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    assert "--rounds" in shown
    assert "--threads" in shown
