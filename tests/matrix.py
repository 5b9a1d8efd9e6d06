"""Run the chapters and the unit tests on other arithmetic, and print who failed where.

    make matrix

Three instruction sets (the oldest that PyTorch has, AVX2, AVX-512) times one thread and two:
under each, every chapter once and the unit tests five times. A processor without AVX-512 leaves
that row out. What has passed is kept in outputs/matrix.json, by a hash of all that it depends
on, and is not run again: stop at any time, and start again with the same command.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import torch

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "outputs" / "matrix.json"
# What PyTorch, oneDNN, MKL and NumPy's OpenBLAS are asked to use. MKL listens on processors by
# Intel only.
ARITHMETIC = {
    "default": ("default", "SSE41", "SSE4_2", "Prescott"),
    "avx2": ("avx2", "AVX2", "AVX2", "Haswell"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512", "SkylakeX"),
}
THREADS = (1, 2)
REPETITIONS = 5
CHAPTERS = sorted(path.relative_to(ROOT) for path in (ROOT / "chapters").glob("*.ipynb"))
# The tests of the pages and of what is stored do no arithmetic.
UNITS = [
    f"tests/test_{name}.py"
    for name in (
        "archives",
        "autoregressive",
        "checkpoints",
        "coding",
        "convolutional",
        "data",
        "distributions",
        "evaluation",
        "exact",
        "figures",
        "hierarchy",
        "integers",
        "looks",
        "losses",
        "masses",
        "model",
        "networks",
        "noise",
        "objectives",
        "priors",
        "properties",
        "protocol",
        "quantized",
        "recorded",
        "residual",
        "results",
        "states",
        "steps",
        "training",
    )
]


def digest(paths):
    """One hash of the contents of files."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def tasks():
    """Yield each run as (instruction set, threads, name, repetition, files to test, hash)."""
    plugin = [*(ROOT / "tests").glob("notebook_*.py"), ROOT / "tests" / "surroundings.py"]
    library = digest([*(ROOT / "vae_lib").rglob("*.py"), ROOT / "tests" / "kernel.py", *plugin])
    helpers = [ROOT / "tests" / f"{name}.py" for name in ("independent", "oracles")]
    units = digest([ROOT / path for path in UNITS] + helpers)
    sets = [name for name in ARITHMETIC if name != "avx512" or has_avx512()]
    for repetition in range(1, REPETITIONS + 1):
        for name in sets:
            for threads in THREADS:
                yield name, threads, "units", repetition, UNITS, library + units
    for name in sets:
        for threads in THREADS:
            for chapter in CHAPTERS:
                yield name, threads, chapter.stem, 1, [str(chapter)], library + digest([chapter])


def label(task):
    """The name under which a run is kept."""
    return " ".join(map(str, task[:4]))


def has_avx512():
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def environment(name, threads):
    aten, onednn, mkl, openblas = ARITHMETIC[name]
    return {
        **os.environ,
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "OPENBLAS_CORETYPE": openblas,
        "OMP_NUM_THREADS": str(threads),
        # Two threads that wait by spinning take the core from whoever has work.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def run(name, threads, files):
    """Test files under one arithmetic; return whether all passed, and the end of the report."""
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    # How long a cell takes is not what is asked here, and the oldest instructions are slow.
    command += ["--nbval-cell-timeout=3000", *files]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(name, threads), capture_output=True, encoding="utf-8"
    )
    return done.returncode == 0, "\n".join(done.stdout.splitlines()[-15:])


def table(kept):
    """Print passed, failed and missing runs for each arithmetic."""
    columns = ["units", *(path.stem for path in CHAPTERS)]
    found = Counter()
    missing = Counter()
    for task in tasks():
        name, threads, what, _, _, key = task
        state = kept.get(label(task), {})
        if state.get("key") != key:
            missing[name, threads, what] += 1
        else:
            found[name, threads, what, state["passed"]] += 1
    print(f"{'':18}" + "".join(f"{column[:12]:>14}" for column in columns))
    for name in ARITHMETIC:
        for threads in THREADS:
            cells = []
            for what in columns:
                passed, failed = (found[name, threads, what, state] for state in (True, False))
                open_ = missing[name, threads, what]
                text = f"{passed} passed" if passed else ""
                text += f" {failed} FAILED" if failed else ""
                cells.append(text or ("to do" if open_ else "-"))
            row = f"{name}, {threads} thread" + "s" * (threads > 1)
            print(f"{row:18}" + "".join(f"{cell:>14}" for cell in cells))
    return not any(key[-1] is False and count for key, count in found.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="start nothing after these")
    parser.add_argument("--jobs", type=int, default=2, help="cores to use")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="units, or chapters by stem")
    asked = parser.parse_args()
    KEPT.parent.mkdir(exist_ok=True)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    lock = Lock()
    end = time.monotonic() + 60 * asked.minutes
    # Runs of one thread share the cores; one of two threads has them to itself.
    for threads in THREADS:
        todo = [
            task
            for task in tasks()
            if task[1] == threads
            and (not asked.only or task[2] in asked.only)
            and kept.get(label(task)) != {"key": task[5], "passed": True}
        ]

        def one(task):
            name, threads, _, _, files, key = task
            if time.monotonic() > end:
                return
            passed, report = run(name, threads, files)
            with lock:
                kept[label(task)] = {"key": key, "passed": passed}
                whole = KEPT.with_suffix(".partial")
                whole.write_text(json.dumps(kept, indent=1), encoding="utf-8")
                os.replace(whole, KEPT)
            print(label(task), "passed" if passed else f"FAILED\n{report}", flush=True)

        with ThreadPoolExecutor(max(1, asked.jobs // threads)) as pool:
            list(pool.map(one, todo))
    sys.exit(not table(kept))


if __name__ == "__main__":
    main()
