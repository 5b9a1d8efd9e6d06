"""Plain `pytest` runs the notebooks too; see tests/notebook_plugin.py."""

import os

import pytest

pytest_plugins = ["tests.notebook_plugin"]
collect_ignore = ["tests/contenders_jax.py"]  # run by an environment of its own


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages."""
    from tests import book_pages  # the pages' packages are none of who runs the notebooks alone

    return book_pages.build(tmp_path_factory)


@pytest.fixture(scope="session")
def chromium_program():
    """What starts Chromium; without one a test is skipped, and where CI runs it fails."""
    from tests import browser

    program = browser.find()
    if program is None:
        assert "CI" not in os.environ, "no Chromium to test the pages with"
        pytest.skip("no Chromium found")
    return program


@pytest.fixture(scope="module")
def chromium(chromium_program, tmp_path_factory):
    """A browser with one page."""
    from tests import browser

    with browser.Browser(chromium_program, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def pytest_runtest_setup(item):
    """Examples of what needs an optional package are skipped without it."""
    if item.nodeid.startswith("vae_lib/coding.py"):
        pytest.importorskip("constriction")
