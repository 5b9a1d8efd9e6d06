"""A kernel without configuration, for the tests and `make run`: `python tests/kernel.py -f FILE`.

A start-up file or a setting of the user's or the machine's could change a dtype, a style, a seed,
and with them what a page shows.
"""

import os
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not the folder of this file

    from ipykernel.kernelapp import IPKernelApp

    from tests.surroundings import reset_torch

    class Kernel(IPKernelApp):
        """IPython's kernel, but for what it reads at its start."""

        def load_config_file(self, *_, **__):
            pass

        def _run_startup_files(self):
            pass

    if os.environ.get("VAE_BOOK_WARNINGS") == "ours":
        warnings.filterwarnings("ignore", module=r"(?!(__main__|vae_lib)\b)")
    if os.path.exists("matplotlibrc"):  # matplotlib reads it before any other
        import matplotlib

        matplotlib.rcdefaults()
    reset_torch()
    Kernel.launch_instance()
