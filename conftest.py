"""Plain `pytest` runs the notebooks too; see tests/notebook_plugin.py."""

import pytest

pytest_plugins = ["tests.notebook_plugin"]
collect_ignore = ["tests/contenders_jax.py"]  # run by an environment of its own


def pytest_runtest_setup(item):
    """Examples of what needs an optional package are skipped without it."""
    if item.nodeid.startswith("vae_lib/coding.py"):
        pytest.importorskip("constriction")
