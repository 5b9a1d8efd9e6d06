"""What lies around a checkout reaches no test and no page: other libraries, settings, folders."""

import os
import py_compile
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests import surroundings
from tests.notebook_plugin import KERNEL, Kernel, kernel_options
from tests.surroundings import ROOT, clean
from tests.test_notebook_plugin import run_pytest


def checkout(folder):
    """Copy what a test of a notebook needs, without the data and what was compiled."""
    junk = shutil.ignore_patterns("__pycache__", "assets", "_static", "test_*.py")
    for name in ("book", "tests", "vae_lib"):
        shutil.copytree(ROOT / name, folder / name, ignore=junk)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "chapters").mkdir()
    return folder


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def chapter(folder, cells):
    """Write a notebook of (source, what it prints) into a checkout."""
    nb = new_notebook(
        cells=[
            new_code_cell(
                source,
                execution_count=number,
                outputs=[new_output("stream", name="stdout", text=f"{text}\n")] if text else [],
            )
            for number, (source, text) in enumerate(cells, start=1)
        ]
    )
    nbformat.write(nb, folder / "chapters" / "01-here.ipynb")


def python(*arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200, **options)


# ------------------------------------------------------------------------------------ the library

RATE = """
import torch
from vae_lib.distributions import DiagonalGaussian
q, prior = (DiagonalGaussian(torch.full((1, 4), mean), torch.zeros(1, 4)) for mean in (1.0, 0.0))
print("rate", q.kl(prior).item())
"""
# Another sign, and as many bytes as it takes to keep the length of the file.
PLANTED = "DiagonalGaussian.kl = lambda q, p, kl=DiagonalGaussian.kl: -kl(q, p)\n"


def test_a_copy_is_tested_with_its_own_library(tmp_path):
    """The original is on the path; a compiled file claims to be that of the changed source."""
    copy = checkout(tmp_path / "copy")
    chapter(copy, [(RATE, "rate 2.0")])
    source = copy / "vae_lib" / "distributions.py"
    py_compile.compile(source, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    source.write_text(source.read_text(encoding="utf-8") + PLANTED, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = python("-m", "pytest", "-q", "chapters", cwd=copy, env=env)
    assert "is now -2.0" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1


def test_tests_may_be_started_from_elsewhere(tmp_path):
    copy = checkout(tmp_path / "copy")
    write(copy / "tests" / "test_where.py", WHERE)
    link = tmp_path / "link"
    link.symlink_to(copy)
    arguments = [link / "tests" / "test_where.py", link / "vae_lib" / "networks.py"]
    done = python("-m", "pytest", "-q", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


WHERE = """
import subprocess, sys
from pathlib import Path
import vae_lib

def test_where():
    here = Path(__file__).resolve().parents[1]
    assert Path(vae_lib.__file__).resolve().parents[1] == here
    code = "import vae_lib; print(vae_lib.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert Path(done.stdout.strip()).resolve().parents[1] == here
"""


def test_another_library_is_refused():
    surroundings.check_library("Python", str(ROOT / "vae_lib" / "__init__.py"))
    for file in (None, "/elsewhere/vae_lib/__init__.py"):
        with pytest.raises(RuntimeError, match="nothing here would be tested: use another kernel"):
            surroundings.check_library("The kernel theirs", file)


def test_another_package_of_tests_is_not_met(tmp_path):
    folder = checkout(tmp_path / "book")
    chapter(folder, [("import tests\nprint(tests.__file__ is not None)", "True")])
    for name in ("tests", "book"):  # some packages install one of their own
        write(tmp_path / "site" / name / "__init__.py", "raise RuntimeError('not this one')")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = python("-P", "-m", "pytest", "-q", folder / "chapters", cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stripped_assertions_are_refused(tmp_path):
    write(tmp_path / "test_false.py", "def test_false(): assert False")
    env = os.environ | {"PYTHONOPTIMIZE": "1"}
    done = python("-m", "pytest", "-p", "tests.notebook_plugin", tmp_path, cwd=ROOT, env=env)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "unset PYTHONOPTIMIZE" in done.stderr


def test_the_plugin_is_there(pytestconfig):
    """Without it, `pytest` would be green and have run no chapter."""
    assert pytestconfig.pluginmanager.has_plugin("tests.notebook_plugin")


# ------------------------------------------------------------------------------------ settings

CELLS = [
    ("import torch\nprint(torch.get_default_dtype())", "torch.float32"),
    ("import vae_lib\nprint(hasattr(vae_lib, 'another'))", "False"),
    ("'one value of two is shown'\n[1][0];", ""),
    ("print('configured' in globals(), 'started' in globals())", "False False"),
    ("import matplotlib as mpl\nprint(mpl.rcParams['savefig.transparent'])", "False"),
    ("print(mpl.rcParams['figure.titlesize'])", "large"),
    ("print(mpl.get_backend()[-6:])", "inline"),
    ("import os\nprint(os.environ['ATEN_CPU_CAPABILITY'])", "default"),
]


@pytest.fixture
def hostile(tmp_path):
    """Write settings of every kind and return an environment with them."""
    home = tmp_path / "home"
    profile = home / ".ipython" / "profile_default"
    write(profile / "startup" / "0.py", "import torch\ntorch.set_default_dtype(torch.float64)")
    setting = "c.InteractiveShellApp.exec_lines = ['configured = 1']\n"
    setting += "c.InteractiveShell.ast_node_interactivity = 'all'\n"
    write(profile / "ipython_config.py", setting)
    write(home / ".config" / "matplotlib" / "matplotlibrc", "savefig.transparent: True\n")
    write(tmp_path / "path" / "vae_lib" / "__init__.py", "another = True\n")
    variables = {
        "HOME": home,
        "IPYTHONDIR": home / ".ipython",
        "MPLBACKEND": "svg",
        "PYTHONPATH": tmp_path / "path",
        "PYTHONSTARTUP": write(tmp_path / "started.py", "started = 1\n"),
        "XDG_CONFIG_HOME": home / ".config",
        "ATEN_CPU_CAPABILITY": "default",
    }
    return os.environ | {name: str(value) for name, value in variables.items()}


def test_settings_reach_no_cell(tmp_path, hostile):
    copy = checkout(tmp_path / "copy")
    chapter(copy, CELLS)
    command = ["-m", "pytest", "-q", "--all-cells", "chapters"]
    done = python(*command, cwd=copy, env=hostile)
    assert f"{len(CELLS) + 1} passed" in done.stdout, done.stdout + done.stderr
    # matplotlib takes the first file that it finds.
    write(copy / "chapters" / "matplotlibrc", "figure.titlesize: 33\n")
    done = python("-m", "tests.run_chapters", "chapters/01-here.ipynb", cwd=copy, env=hostile)
    assert "no cells have changed" in done.stdout, done.stdout + done.stderr


STARTED = """
import torch
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_grad_enabled(False)
torch.set_float32_matmul_precision("medium")
torch.use_deterministic_algorithms(True)
torch.set_printoptions(precision=1)
"""
TORCH_STATE = """
import torch
state = [torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()]
state += [torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()]
state += [torch.tensor(0.12345)]
"""
AS_IT_COMES = "[torch.float32, device(type='cpu'), True, 'highest', False, tensor(0.1235)]"


def test_what_python_runs_at_its_start_leaves_torch_as_it_comes(tmp_path):
    copy = checkout(tmp_path / "copy")
    write(tmp_path / "site" / "sitecustomize.py", STARTED)
    state = f"{TORCH_STATE}assert str(state) == {AS_IT_COMES!r}, state"
    write(copy / "tests" / "test_state.py", f"def test_state():{state}".replace("\n", "\n    "))
    chapter(copy, [(TORCH_STATE + "print(state)", AS_IT_COMES)])
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = python("-m", "pytest", "-q", "chapters", "tests/test_state.py", cwd=copy, env=env)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_a_kernel_reads_no_configuration(tmp_path, hostile):
    """Not even the machine's, for which that of the user stands here."""
    hostile = {k: v for k, v in hostile.items() if k != "PYTHONPATH"}
    kernel = Kernel(KERNEL, 60, kernel_options(tmp_path) | {"env": hostile})
    try:
        reply = kernel.kc.execute_interactive("configured", silent=True, timeout=60)
        assert reply["content"]["ename"] == "NameError"
        reply = kernel.kc.execute_interactive("torch", silent=True, timeout=60)
        assert reply["content"]["ename"] == "NameError"
    finally:
        kernel.stop()


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        ("OMP_NUM_THREADS", True),
        ("MKL_ENABLE_INSTRUCTIONS", True),
        ("ONEDNN_MAX_CPU_ISA", True),
        ("LD_LIBRARY_PATH", True),
        ("MPLCONFIGDIR", True),
        ("PYTHONHASHSEED", False),
        ("PYTHONOPTIMIZE", False),
        ("PYTHONWARNINGS", False),
        ("PYTHONSAFEPATH", False),
        ("TQDM_ASCII", False),
        ("TORCH_LOGS", False),
        ("MAKEFLAGS", False),
        ("GIT_DIR", False),
        ("FORCE_COLOR", True),
    ],
)
def test_what_stays_in_the_environment(name, stays):
    assert (clean({name: "1"}).get(name) == "1") is stays


NESTED = """
import os, subprocess, sys
def test_nested(tmp_path):
    (tmp_path / "test_one.py").write_text("def test_one(): pass", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd="/")
    assert "1 passed in" in done.stdout and "\\033" not in done.stdout, done.stdout + done.stderr
"""


def test_how_pytest_was_called_is_not_passed_on(tmp_path):
    copy = checkout(tmp_path / "copy")
    write(copy / "tests" / "test_nested.py", NESTED)
    theirs = {"FORCE_COLOR": "1", "COLUMNS": "20", "PYTEST_ADDOPTS": "-vv"}
    theirs["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = python("-m", "pytest", "tests/test_nested.py", cwd=copy, env=os.environ | theirs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\033[32mPASSED" in done.stdout  # here it is all used


def test_this_checkout_comes_first_and_packages_last():
    path = os.pathsep.join(["", "/theirs", str(ROOT), "relative"])
    found = clean({"PYTHONPATH": path}, ["/users"])["PYTHONPATH"].split(os.pathsep)
    assert found == [str(ROOT), "/theirs", str(Path("relative").absolute()), "/users"]


@pytest.mark.parametrize("asked", [None, 1, 2])
def test_threads_are_as_many_as_asked_for_in_products_too(asked):
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    environment |= {"OMP_NUM_THREADS": str(asked)} if asked else {}
    program = "from tests.surroundings import prepare; prepare(); import torch; "
    program += "print(torch.__config__.parallel_info())"
    done = python("-c", program, cwd=ROOT, env=environment)
    # PyTorch's own loops, OpenMP, and where it is there MKL, which multiplies matrices.
    names = ("at::get_num_threads", "omp_get_max_threads", "mkl_get_max_threads")
    lines = [line for line in done.stdout.splitlines() if line.strip().startswith(names)]
    assert {int(line.split(":")[-1]) for line in lines} == {asked or 1}


def test_a_home_is_not_needed(tmp_path):
    copy = checkout(tmp_path / "copy")
    chapter(copy, [("print(1)", "1"), CELLS[4]])
    folders = ("IPYTHON", "JUPYTER", "MPLCONFIGDIR", "XDG")
    env = {name: value for name, value in os.environ.items() if not name.startswith(folders)}
    env["HOME"] = "/proc/nowhere"
    done = python("-m", "pytest", "-q", "chapters", cwd=copy, env=env)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


# ------------------------------------------------------------------------------------ warnings

WARNS = """
import warnings, pytest
@pytest.mark.parametrize("module", ["vae_lib.data", "tests.oracles", "vae_library", "numpy"])
def test_warns(module):
    warnings.warn_explicit("careful", UserWarning, "file.py", 1, module=module)
"""
WARNS_IN_A_CELL = """
import warnings
warnings.warn_explicit("careful", UserWarning, "file.py", 1, module="{}")
print(1)
"""


@pytest.mark.parametrize("strict", [True, False])
def test_warnings_of_others_are_errors_in_the_pinned_run_only(tmp_path, strict):
    write(tmp_path / "test_warns.py", WARNS)
    (tmp_path / "chapters").mkdir()
    chapter(tmp_path, [(WARNS_IN_A_CELL.format(name), "1") for name in ("numpy", "vae_lib.data")])
    # In the pinned run this line stands in the Makefile.
    results = run_pytest(tmp_path, "--all-cells", *(["-W", "error"] if strict else []))
    passed = [name.rpartition(", ")[2] for name, result in results.items() if result[0] == "passed"]
    theirs = [] if strict else ["Cell 1", "test_warns[vae_library]", "test_warns[numpy]"]
    assert sorted(passed) == sorted(["stored outputs", *theirs])


# --------------------------------------------------------------------------- a read-only checkout

WRITES = (
    "from pathlib import Path\nPath('../outputs').mkdir()\nPath('../outputs/a').touch()\nprint(1.5)"
)


# Root may write to what is read-only, but for a root without its powers.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
needs_powerless = pytest.mark.skipif(
    os.name != "posix" or (os.geteuid() == 0 and not shutil.which("setpriv")),
    reason="nothing can be made read-only for this user",
)


def powerless(command, **options):
    """Run a command as a user who cannot write to what is read-only."""
    command = [*(POWERLESS if os.geteuid() == 0 else []), *map(str, command)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, **streams, encoding="utf-8", timeout=200, **options)


@contextmanager
def read_only(folder):
    """Let nobody write to a folder and those in it."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    yield
    for path in folders:
        path.chmod(0o755)


@needs_powerless
def test_a_checkout_that_cannot_be_written_is_tested(tmp_path):
    folder = checkout(tmp_path / "book")
    chapter(folder, [(WRITES, "1.5")])
    for name in ("_toc.yml", "_config.yml"):
        shutil.copy(ROOT / name, folder)
    output = tmp_path / "output"
    output.mkdir()
    build = "from pathlib import Path; from book import build; build.copy_sources(Path('s'), '')"
    here = os.environ | {"PYTHONPATH": str(folder), "HOME": "/nonexistent"}
    with read_only(folder):
        command = [sys.executable, "-m", "pytest", "-q", folder / "chapters"]
        done = powerless(command, cwd=folder, env=here)
        assert done.returncode == 0, done.stdout
        done = powerless([sys.executable, "-c", build], cwd=output, env=here)
        assert done.returncode == 0, done.stdout
    assert not [p for p in folder.rglob("*") if p.name in ("outputs", "__pycache__", ".cache")]
    (output / "s" / "book" / "_static").mkdir(exist_ok=True)
    (output / "s" / "book" / "new").touch()
    assert (output / "s" / "book").stat().st_mode & 0o200
