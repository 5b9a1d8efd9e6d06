import json
import os

import pytest
import torch

from vae_lib.data import Batches
from vae_lib.model import dense_vae
from vae_lib.objectives import elbo
from vae_lib.records import Record, checksums, code
from vae_lib.states import State
from vae_lib.training import train

SCRIPT = '''"""What it does."""
import math

SEEDS = 3  # of them


def measure(choice, folder):
    """Measure it."""
    return {"text": "# no comment", "root": math.sqrt(choice["seed"])}
'''


def measure(choice, folder):
    """Train for twelve steps; be killed at the eighth, if so chosen, unless it goes on."""
    state = State(folder / "training.state", every=0)
    goes_on = state.path.exists()
    if choice["what"] == "fails":
        raise ValueError("it cannot be measured")

    def objective(model, x, generator):
        if choice["what"] == "killed" and not goes_on and state.steps == 7:
            os._exit(9)  # without a farewell, like a process that is killed
        return elbo(model, x, generator)

    model = dense_vae(pixels=4, hidden=3, latents=2)
    history = train(model, Batches(torch.eye(4).repeat(6, 1), 4), objective, epochs=2, state=state)
    return {"history": history, "goes_on": goes_on, "threads_used": torch.get_num_threads()}


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "some_run.py"
    file.write_text(SCRIPT, encoding="utf-8")
    return file


def record(script):
    folders = {"folder": script.parent / "recorded", "kept": script.parent / "kept"}
    return Record(script, recipe="a recipe", unit="nats", data=[], **folders)


def test_runs_are_recorded_resumed_and_not_repeated(script, capsys):
    whole, killed, fails = ({"what": what} for what in ("whole", "killed", "fails"))
    with pytest.raises(RuntimeError, match="1 of 2 runs failed") as failed:
        record(script).run(measure, [fails, whole])
    assert "it cannot be measured" in str(failed.value.__cause__)
    assert [run["what"] for run in record(script).runs()] == ["whole"]

    with pytest.raises(RuntimeError, match="1 of 1 runs failed"):
        record(script).run(measure, [whole, killed])
    record(script).run(measure, [whole, killed], workers=2)
    first, second = record(script).runs()
    assert (first["goes_on"], second["goes_on"]) == (False, True)
    assert first["history"] == second["history"]
    assert first["threads_used"] == first["threads"] == 1
    assert {"processor", "python", "torch", "numpy", "wall_seconds", "cpu_seconds"} <= set(second)
    assert not any(path.is_file() for path in (script.parent / "kept").rglob("*.state"))
    assert capsys.readouterr().out.count("some-run: ") == 2

    file = script.parent / "recorded" / "some-run.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert (stored["recipe"], stored["unit"]) == ("a recipe", "nats")
    before = file.read_bytes()
    record(script).run(measure, [whole, killed])
    assert file.read_bytes() == before


def test_a_record_belongs_to_the_code_that_made_it(script):
    made = record(script)
    made._add({"seed": 1}, {"wall_seconds": 1})
    script.write_text(
        SCRIPT.replace("of them", "words").replace("Measure it.", "Or not."), encoding="utf-8"
    )
    assert record(script).runs() == [{"seed": 1, "wall_seconds": 1}]
    script.write_text(SCRIPT.replace("SEEDS = 3", "SEEDS = 4"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"some-run.json: it was made by other code .* Delete it"):
        record(script)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# of them", "# of others", True),
        ("  # of them", "", True),
        ('"""What it does."""', '"""What it does,\n\nand why."""', True),
        ('    """Measure it."""\n', "", True),
        ("import math\n", "import math\n\n\n", True),
        ("SEEDS = 3", "SEEDS = 4", False),
        ("# no comment", "# a comment", False),
        ("math.sqrt", "math.exp", False),
    ],
)
def test_code_is_what_is_left_without_comments_and_docstrings(script, old, new, same):
    assert old in SCRIPT
    before = checksums([script])
    script.write_text(SCRIPT.replace(old, new), encoding="utf-8")
    assert (checksums([script]) == before) is same


def test_data_is_taken_as_it_is(tmp_path):
    data = tmp_path / "data.npz"
    data.write_bytes(b"# one")
    before = checksums([data])
    data.write_bytes(b"# two")
    assert checksums([data]) != before


def test_code_of_a_class_and_of_what_has_only_a_docstring():
    source = 'class A:\n    """A."""\n\n    def f(self):\n        """F."""\n\n    async def g():\n'
    assert code(source + '        """G."""\n') == code(source + '        """H."""\n')
    assert "class A:" in code(source + "        pass")
