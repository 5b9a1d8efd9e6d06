"""Where tests and chapters run: with the `vae_lib` beside them, and without the user's settings.

`prepare` makes the environment of this process, which kernels and all other processes that it
starts inherit. What decides on arithmetic stays in it, since it may be what is tested: the number
of threads, the instruction set. What says where packages lie stays too, after this checkout.
"""

import importlib.util
import os
import site
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# One thread a process, and none that spins: several processes share the processors.
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# Settings of Python, IPython, matplotlib, tqdm and PyTorch begin with these, and those of make and
# git, which a make or a git that has called us sets for those that it calls.
SETTINGS = ("PYTHON", "IPYTHON", "MPL", "MATPLOTLIB", "TQDM_", "TORCH", "PYTORCH", "NVIDIA_TF32_")
SETTINGS += ("MAKE", "MFLAGS", "GIT_")
# What the terminal is like, and how pytest was called, is for this pytest alone.
THIS_CALL = ("FORCE_COLOR", "NO_COLOR", "PY_COLORS", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS")
THIS_CALL += ("LINES", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
# What only says where files lie.
HARMLESS = {
    "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
    "MPLCONFIGDIR",  # its fonts are used, its matplotlibrc is not
    "TORCH_HOME",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",  # without it some environments cannot import torch
}


def clean(environment, packages=()):
    """Return an environment without the user's settings, in which this checkout comes first.

    Arguments:
        environment: a dictionary like `os.environ`.
        packages: more folders of packages, which come last.
    """
    others = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    folders = dict.fromkeys(map(os.path.abspath, [ROOT, *others, *packages]))
    kept = {
        name: value
        for name, value in environment.items()
        if name in HARMLESS or not name.startswith(SETTINGS)
    }
    return kept | {
        "PYTHONPATH": os.pathsep.join(folders),
        "PYTHONNOUSERSITE": "1",  # it would run usercustomize
        "PYTHONUTF8": "1",
        "MATPLOTLIBRC": os.devnull,
        "MPLBACKEND": "agg",
        "VAE_LIB_PROGRESS": "0",
    }


def prepare():
    """Give this process and those that it starts what they work with, before torch is imported.

    Raises:
        RuntimeError: if Python strips assertions, or has another `vae_lib`.
    """
    if not __debug__:
        raise RuntimeError(
            "Python strips the assertions, which are half of what is tested: unset PYTHONOPTIMIZE, "
            "or run it without -O"
        )
    folders = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    environment = THREADS | clean(os.environ, folders)
    os.environ.clear()
    os.environ.update(environment)
    found = importlib.util.find_spec("vae_lib")
    check_library("Python", found and found.origin)
    _drop_compiled()
    reset_torch()


def reset_torch():
    """Undo what a start-up file, such as sitecustomize.py, has set in PyTorch if it loaded it."""
    if torch := sys.modules.get("torch"):
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_float32_matmul_precision("highest")
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)
        torch.set_printoptions(profile="default")


def forget_this_call():
    """Keep from other processes what pytest was told in the environment, and has read by now."""
    for name in THIS_CALL:
        os.environ.pop(name, None)


def check_library(who, file):
    """Raise RuntimeError if the `vae_lib/__init__.py` that someone imports is not the one here."""
    if not file or Path(file).resolve() != (ROOT / "vae_lib" / "__init__.py").resolve():
        where = f"from {Path(file).parents[1]}" if file else "from nowhere"
        raise RuntimeError(
            f"{who} imports vae_lib {where}, not from {ROOT}, so nothing here would be tested: "
            "use another kernel, or remove that vae_lib from its path"
        )


def _drop_compiled():
    """Have the library compiled anew: Python trusts what is as old and as long as the source."""
    for source in (ROOT / "vae_lib").rglob("*.py"):
        try:
            Path(importlib.util.cache_from_source(source)).unlink(missing_ok=True)
        except OSError:
            return  # a read-only checkout is taken as it is
