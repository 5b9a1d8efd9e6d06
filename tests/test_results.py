"""The helper that prints results, and how the notebook tests compare what it prints."""

import math
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests import run_chapters
from tests.notebook_outputs import differences
from vae_lib import results
from vae_lib.evaluation import Estimate


def printed(capsys, columns, **options):
    assert results.table(columns, **options) is None
    return capsys.readouterr().out.splitlines()


def test_words_stand_left_and_numbers_right(capsys):
    columns = {
        "network": ["post", "put right"],
        "ELBO": [Estimate(torch.tensor([-90.0, -100.0, -110.0])), "none"],
        "images": [60_000, 7],
        "share": [0.12345, 1234.5],
        "holds": [True, False],
    }
    assert printed(capsys, columns, caption="nats per image") == [
        "nats per image",
        "network              ELBO  images     share  holds",
        "post       -100.00 ± 5.77  60,000      0.12  True",
        "put right            none       7  1,234.50  False",
    ]


def test_digits_for_all_and_for_some(capsys):
    columns = {"a": [math.pi], "b": [math.e]}
    assert printed(capsys, columns)[1] == "3.14  2.72"
    assert printed(capsys, columns, digits=1)[1] == "  3.1  2.7".strip()
    assert printed(capsys, columns, digits={"b": 4})[1] == "3.14  2.7183"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-0.0, "0.00"),
        (-0.001, "0.00"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.float32(0.5), "0.50"),
        (np.int64(60_000), "60,000"),
        (torch.tensor(2.5), "2.50"),
        (torch.tensor(3), "3"),
        (" two\n  lines ", "two lines"),
    ],
)
def test_values(capsys, value, shown):
    assert printed(capsys, {"value": [value]})[1].strip() == shown


def test_a_tensor_is_a_column(capsys):
    assert printed(capsys, {"x": torch.tensor([1.0, 10.0])}) == ["    x", " 1.00", "10.00"]


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({}, {}, r"columns: expected at least one .*, got none"),
        ({"a": []}, {}, r"columns: expected one length of at least 1, got \{'a': 0\}"),
        ({"a": [1], "b": [1, 2]}, {}, r"columns: .*got \{'a': 1, 'b': 2\}"),
        ({"a": [1.0]}, {"digits": 0}, r"digits: expected an integer from 1 to 12, got 0"),
        ({"a": [1.0]}, {"digits": 13}, r"digits: .* got 13"),
        ({"a": [1.0]}, {"digits": True}, r"digits: .* got True"),
        ({"a": [1.0]}, {"digits": {"a": 2.5}}, r"digits: .* got 2\.5"),
        ({"a": [1.0]}, {"digits": {"b": 2}}, r"digits: expected names of columns \(a\), got b"),
        ({"a": [object()]}, {}, r"columns\['a'\]: .* got object"),
        ({"a": [torch.ones(2)]}, {}, r"columns\['a'\]: .* got Tensor"),
    ],
)
def test_what_cannot_be_shown_is_refused(columns, options, words):
    with pytest.raises(ValueError, match=words):
        results.table(columns, **options)


def test_without_matplotlib_and_without_ipython():
    code = "import sys; from vae_lib import results; results.table({'a': [1.5]}); "
    code += "assert not {'matplotlib', 'IPython'} & set(sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert run.stdout.split() == ["a", "1.50"]


# ---------------------------------------------------------------------------- in a notebook


def shown(monkeypatch, columns, **options):
    """Return the outputs that a notebook would store."""
    bundles = []
    monkeypatch.setattr(results, "_display", lambda bundle: bundles.append(bundle) or True)
    results.table(columns, **options)
    marked = {"vae_book": {"table": True}}
    return [new_output("display_data", data=bundles[0], metadata=marked)]


def test_the_page_gets_a_table_without_a_script(monkeypatch):
    columns = {"<i>": ["a & b"], "n": [1]}
    html = shown(monkeypatch, columns, caption="nats")[0].data["text/html"]
    assert html.splitlines() == [
        '<table class="dataframe">',
        "<caption>nats</caption>",
        '<thead><tr><th style="text-align: left">&lt;i&gt;</th>'
        '<th style="text-align: right">n</th></tr></thead>',
        "<tbody>",
        '<tr><td style="text-align: left">a &amp; b</td><td style="text-align: right">1</td></tr>',
        "</tbody>",
        "</table>",
    ]


STORED = {"network": ["a", "b"], "ELBO": [-99.99, 5.0], "images": [10_000, 3]}


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, 0),
        ({"ELBO": [-100.02, 5.0]}, 0),  # another width in every line
        ({"ELBO": [-100.2, 5.0]}, 2),  # in the text and in the HTML
        ({"ELBO": [5.0, -99.99]}, 4),
        ({"ELBO": [-99.99, math.nan]}, 2),
        ({"images": [10_001, 3]}, 2),
        ({"network": ["a", "c"]}, 2),
        ({"network": ["b", "a"]}, 2),
        ({"network": ["a", "b", "b"], "ELBO": [-99.99, 5.0, 5.0], "images": [10_000, 3, 3]}, 2),
    ],
)
def test_tables_are_compared_cell_by_cell(monkeypatch, change, problems):
    stored, now = shown(monkeypatch, STORED), shown(monkeypatch, STORED | change)
    assert len(differences(stored, now)) == problems
    assert len(differences(now, stored)) == problems


def test_a_name_and_a_caption_are_compared(monkeypatch):
    stored = shown(monkeypatch, {"a": [1.5]}, caption="nats")
    assert len(differences(stored, shown(monkeypatch, {"b": [1.5]}, caption="nats"))) == 2
    assert len(differences(stored, shown(monkeypatch, {"a": [1.5]}, caption="bits"))) == 2
    assert len(differences(stored, shown(monkeypatch, {"a": [1.5]}))) == 2


def test_the_bounds_of_cells_are_compared():
    def output(text):
        data, marked = {"text/plain": text}, {"vae_book": {"table": True}}
        return [new_output("display_data", data=data, metadata=marked)]

    assert differences(output("a   1.50"), output("a 1.50"))
    assert differences(output("a  b"), output("a b"))
    assert differences(output("a    b"), output("a  b")) == []


def test_other_outputs_keep_their_padding(monkeypatch):
    stored, now = shown(monkeypatch, STORED), shown(monkeypatch, STORED | {"ELBO": [-100.02, 5.0]})
    for outputs in (stored, now):
        outputs[0].metadata = {}
    assert differences(stored, now)
    streams = [[new_output("stream", text=text)] for text in ("a    b\n", "a  b\n")]
    assert differences(*streams)


def test_a_notebook_stores_one_output(tmp_path):
    path = tmp_path / "table.ipynb"
    source = "from vae_lib import results\n"
    source += "results.table({'network': ['a'], 'ELBO': [-99.99]}, caption='nats')"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    assert run_chapters.main([str(path)]) == 0
    (output,) = nbformat.read(path, as_version=4).cells[0].outputs
    assert set(output.data) == {"text/plain", "text/html"}
    assert output.data["text/plain"] == "nats\nnetwork    ELBO\na        -99.99"
    assert output.metadata == {"vae_book": {"table": True}}
