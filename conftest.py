"""Plain `pytest` runs the notebooks too; see tests/notebook_plugin.py."""

pytest_plugins = ["tests.notebook_plugin"]
collect_ignore = ["tests/contenders_jax.py"]  # run by an environment of its own
