"""Plain `pytest` runs the notebooks too; see tests/notebook_plugin.py."""

pytest_plugins = ["tests.notebook_plugin"]
