"""The bounds of pyproject.toml, as `make elsewhere` reads them."""

from tests import elsewhere


def test_the_bounds_are_read():
    wanted = elsewhere.needed()
    assert not [line for line in wanted if line.startswith("torch")]
    assert {"numpy>=1.26", "nbval==0.11.0"} <= set(wanted)
    assert all(">=" in line or "==" in line for line in wanted)
