"""The command line: `vae`, or `python -m vae_lib`. It reads arguments and says what came."""

import argparse
import errno
import io
import os
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from vae_lib import archives, checkpoints
from vae_lib.processes import from_first, joined
from vae_lib.recipes import DEFAULTS, DEFAULTS_MNIST, LIKELIHOODS, MNIST, described, table
from vae_lib.runs import Run, device

MOST_COLUMNS = 12  # of a sheet
LISTED = 10  # pictures that were skipped, and worst ones

OVERVIEW = """\
Train a variational autoencoder on your own pictures, and use it.

  vae train ~/pictures                       # into runs/pictures
  vae score runs/pictures
  vae sample runs/pictures -o samples.png
"""
TRAIN = """\
Train on a folder or a zip of pictures, or on mnist. The same command again goes on where it
stopped; a greater --epochs prolongs a run that is complete. Settings that are left out are those
that the run was begun with.

  vae train ~/pictures                       # into runs/pictures
  vae train photos.zip -o runs/photos --size 64 --epochs 50
  vae train icons --channels 4               # keep what is transparent
  vae train scans --channels 1 --likelihood bits   # black and white
  vae train mnist                            # the network of the chapter *code*

Two processes that share each batch, on a machine of two processors or more:
  torchrun --standalone --nproc-per-node 2 -m vae_lib train ~/pictures

The run folder holds weights.safetensors, recipe.json, state.safetensors, history.csv,
pictures.csv, curve.png, samples.png and reconstructions.png.
"""
SCORE = """\
Score pictures: the ELBO, an importance-sampled log-likelihood, and bits per dimension, each with
its standard error. Without SOURCE, the pictures that the run held out. The worst ones are drawn
on a sheet, above what comes back.

  vae score runs/pictures
  vae score runs/pictures ~/others --csv scores.csv
  vae score runs/mnist --samples 1000
"""
SAMPLE = """\
Draw pictures from the prior.

  vae sample runs/pictures -n 64 -o samples.png
  vae sample runs/pictures -o smooth.png --mean    # the decoder's mean, without its noise
"""
RECONSTRUCT = """\
Send pictures of any size through a trained network. The sheet has each above what comes back.

  vae reconstruct runs/pictures cat.png dog.jpg -o back.png
"""
WALK = """\
Go from one picture to another in a straight line between their latents.

  vae walk runs/pictures cat.png dog.png -o walk.png --steps 12
"""
ENCODE = """\
Write the latents of pictures: mean and log standard deviation of q(z given x), with name and
label (the subfolder). An .npz holds the arrays mean, log_std, names, labels and classes.

  vae encode runs/pictures ~/pictures -o latents.npz
  vae encode runs/pictures ~/pictures -o latents.csv
"""

COMPRESS = """\
Compress a folder or a zip of pictures into one file, without loss. All must be PNG of the size and
the channels that the run was trained on, and of modes 1, L, RGB or RGBA; what would not come back
exactly is refused. Pixels, names, order and modes come back, nothing else that a PNG holds.

  vae compress ~/pictures -o pictures.vae --model runs/pictures

The run's folder is needed to decompress. The first time, the model in integers is written there.
"""
DECOMPRESS = """\
Decompress what vae compress wrote, into a new folder, whole or not at all. RUN is the folder that
it was compressed with, or a copy.

  vae decompress pictures.vae -o pictures --model runs/pictures
"""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message):
        """Say it and leave."""
        self.exit(2, f"vae: error: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Arguments:
        arguments: What follows the name of the program; None takes those of the process.

    Returns:
        The exit status: 0; 2 after wrong use; 130 after Ctrl-C.

    Example:
        >>> main(["score", "no/such/run"])
        2
    """
    try:
        chosen = parser().parse_args(arguments)
    except SystemExit as left:  # argparse has said why
        return left.code
    mpl.use("agg")  # no window
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        if chosen.threads is not None:
            torch.set_num_threads(chosen.threads)
        chosen.command(chosen)
        sys.stdout.flush()  # while its faults can be answered
    except KeyboardInterrupt:
        again = " The same command goes on from there." if chosen.command is train else ""
        return _complain(f"stopped.{again}", 130)
    except BrokenPipeError:  # whoever read what is printed has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        return _complain(f"error: {_reason(error)}", 2)
    return 0


def _complain(text: str, status: int) -> int:
    """Say one line to the person, and return the status to leave with."""
    print("vae: " + " ".join(text.split()), file=sys.stderr)
    return status


def _reason(error: Exception) -> str:
    """Say what went wrong and what to do; raise again what is a fault of this program."""
    name = Path(getattr(error, "filename", None) or "")
    if name.suffix == ".partial":  # what a file is called until it is whole
        name = name.with_name(name.stem.removeprefix("."))
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {name}" if name.name else ""
        return f"the disk is full{where}. Free some space; the same command goes on."
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{name}: " if name.name else ""
        return f"{where}{error.strerror}. Give another path, or change its permissions."
    if isinstance(error, MemoryError | RuntimeError):
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise error
        return "not enough memory. Try a smaller --size, --width or --batch-size."
    return str(error)


# ---------------------------------------------------------------------------------- the commands


def train(chosen) -> None:
    """Begin a run or go on with one, in one process or together with others."""
    folder = Path(chosen.output or Path("runs") / _name(chosen.source))
    with joined(getattr(chosen, "device", None) or "cpu") as ours:
        if ours.rank == 0:
            _train(chosen, folder)
        else:
            from_first(bool)  # wait until the first has begun the run
            Run.open(folder).train(chosen.epochs)


def _train(chosen, folder: Path) -> None:
    """Begin a run or go on with one, and tell of it."""
    names = [name for name in DEFAULTS if hasattr(chosen, name)]
    settings = {name: getattr(chosen, name) for name in names}
    new = not (folder / "recipe.json").is_file()
    if not new:
        run = Run.open(folder)
        run.agree(chosen.source, **settings)
    else:
        run = Run.create(folder, chosen.source, **settings)
    from_first(bool)  # the others may open it
    pictures = run.data.pictures
    print(run.data)
    _list_skipped(pictures.skipped)
    if new and chosen.size is None and chosen.source != MNIST:
        print(f"each brought to {run.size}; --size chooses another size")
    seen, wanted = run.epochs, chosen.epochs or run.recipe.epochs
    if seen == wanted:
        print(f"{folder} has all its {seen} epochs; a greater --epochs prolongs it")
    elif 0 < seen < wanted:
        print(f"going on with {folder}, which has {seen} of {wanted}")
    if seen < wanted:
        print("the ELBO is in nats, the higher the better; of bits, the fewer", flush=True)
    run.train(chosen.epochs, report=lambda row: _print_epoch(row, run.recipe.epochs))
    print(f"the run is in {folder}. Look at its curve.png, at samples.png (drawn from the prior,")
    print("without noise) and reconstructions.png (held-out pictures, below each what comes back)")


def _name(source: str) -> str:
    """Return what a run is called after."""
    path = Path(source).expanduser().resolve()
    return (path.stem if path.suffix.lower() == ".zip" else path.name) or "pictures"


def _list_skipped(skipped: list[tuple[str, str]]) -> None:
    """Name what was left out, as far as a screen holds it."""
    for name, why in skipped[:LISTED]:
        print(f"skipped {name}: {why}")
    if len(skipped) > LISTED:
        print(f"and {len(skipped) - LISTED:,} more were skipped")


def _print_epoch(row: dict, epochs: int) -> None:
    """Print one line about an epoch."""
    line = f"epoch {row['epoch']} of {epochs}: learnt from {row['objective']:.1f}, held out "
    line += f"{row['held_out']:.1f} ± {row['standard_error']:.1f} nats"
    if "bits" in row:
        line += f", {row['bits']:.3f} bits per dimension"
    print(f"{line}, {row['seconds']:.0f} s", flush=True)


def score(chosen) -> None:
    """Score pictures, and draw the worst."""
    run = _opened(chosen)
    pictures = run.held_out if chosen.source is None else run.pictures(chosen.source)
    found = run.score(pictures, samples=chosen.samples)
    where = "held out" if chosen.source is None else f"of {chosen.source}"
    print(f"{described(pictures)}, {where}")
    _list_skipped([] if chosen.source is None else pictures.skipped)
    print(f"ELBO                {found.elbo} nats")
    print(f"log-likelihood      {found.likelihood} nats, from {chosen.samples} samples each")
    if found.bits is None:
        print("a density: its nats may be above zero, and it has no bits per dimension of a file")
    else:
        bits = found.bits
        print(f"bits per dimension  {bits.mean:.4f} ± {bits.standard_error:.4f}, by the ELBO")
    if chosen.csv:
        checkpoints.write({chosen.csv: _scores(pictures, found)})
    worst = pictures[found.elbo.values.argsort()[:LISTED].cpu()]
    sheet = chosen.worst or run.folder / "worst.png"
    run.compare(sheet, worst)
    print(f"wrote {sheet}: the worst, below each what comes back: {', '.join(worst.names)}")


def _scores(pictures, found) -> bytes:
    """List the score of each picture as CSV."""
    columns = {"elbo_nats": found.elbo, "log_likelihood_nats": found.likelihood}
    columns |= {"bits_per_dimension": found.bits} if found.bits else {}
    values = [[f"{v:.6g}" for v in column.values.tolist()] for column in columns.values()]
    return table(["name", *columns], zip(pictures.names, *values, strict=True))


def sample(chosen) -> None:
    """Draw from the prior."""
    run = _opened(chosen)
    rows = run.sample(chosen.number, mean=chosen.mean, seed=chosen.seed)
    run.sheet(chosen.output, rows)
    kind = "the decoder's means" if chosen.mean else "with each pixel's noise (--mean is without)"
    print(f"wrote {chosen.output}: {len(rows)} drawn from the prior, {kind}")


def reconstruct(chosen) -> None:
    """Send pictures through the network, and say what they cost."""
    run = _opened(chosen)
    run.check_output(chosen.output, *chosen.pictures)
    pictures = _own(run, chosen.pictures)
    elbos, bits = run.costs(pictures)
    for row, name in enumerate(pictures.names):
        line = f"{name}: ELBO {elbos[row]:.2f} nats"
        print(line + (f", {bits[row]:.4f} bits per dimension" if bits is not None else ""))
    run.compare(chosen.output, pictures)
    print(f"wrote {chosen.output}: below each picture what comes back")


def walk(chosen) -> None:
    """Walk from one picture to another."""
    run = _opened(chosen)
    run.check_output(chosen.output, chosen.first, chosen.last)
    ends = _own(run, [chosen.first, chosen.last])
    run.sheet(chosen.output, run.walk(ends, chosen.steps), min(chosen.steps + 2, MOST_COLUMNS))
    print(f"wrote {chosen.output}: first and last the pictures, between them {chosen.steps} steps")


def encode(chosen) -> None:
    """Write latents."""
    run = _opened(chosen)
    pictures = run.pictures(chosen.source, least=1)
    means, log_stds = run.encode(pictures)
    pack = _latents_table if chosen.output.suffix == ".csv" else _latents_arrays
    checkpoints.write({chosen.output: pack(pictures, means, log_stds)})
    _list_skipped(pictures.skipped)
    print(f"wrote {chosen.output}: {described(pictures)}; {means.shape[1]} latents each")


def _latents_table(pictures, means, log_stds) -> bytes:
    """Return latents as CSV."""
    header = ["name", "label"]
    header += [f"{kind}_{j}" for kind in ("mean", "log_std") for j in range(means.shape[1])]
    labels = [pictures.classes[label] for label in pictures.labels.tolist()]
    rows = zip(pictures.names, labels, means.tolist(), log_stds.tolist(), strict=True)
    return table(header, [(name, label, *mean, *spread) for name, label, mean, spread in rows])


def _latents_arrays(pictures, means, log_stds) -> bytes:
    """Return latents as an .npz that numpy reads without pickle."""
    arrays = {"mean": means.numpy(), "log_std": log_stds.numpy()}
    arrays |= {"names": np.array(pictures.names), "labels": pictures.labels.numpy()}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays, classes=np.array(pictures.classes))
    return stream.getvalue()


def compress(chosen) -> None:
    """Compress pictures."""
    size = archives.compress(chosen.source, chosen.output, Run.open(chosen.model))
    print(f"wrote {chosen.output}: {size}")


def decompress(chosen) -> None:
    """Decompress pictures."""
    size = archives.decompress(chosen.file, chosen.output, Run.open(chosen.model))
    print(f"wrote {chosen.output}: {size}")


def _opened(chosen) -> Run:
    """Open the run, with its model: a damaged one is refused before anything else is done."""
    run = Run.open(chosen.run, where=chosen.device)
    run.model  # noqa: B018
    return run


def _own(run: Run, files: list[str]):
    """Load pictures that a person named; each of them must be one."""
    pictures = run.pictures(files, least=1)
    if pictures.skipped:
        name, why = pictures.skipped[0]
        raise ValueError(f"{name}: {why}. Give another picture.")
    return pictures


# --------------------------------------------------------------------------------- the arguments


def parser() -> Parser:
    """Make the parser of all commands."""
    top = _parser(Parser, OVERVIEW, prog="vae")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command, text, add in (
        (train, TRAIN, _add_train),
        (score, SCORE, _add_score),
        (sample, SAMPLE, _add_sample),
        (reconstruct, RECONSTRUCT, _add_reconstruct),
        (walk, WALK, _add_walk),
        (encode, ENCODE, _add_encode),
        (compress, COMPRESS, _add_compress),
        (decompress, DECOMPRESS, _add_decompress),
    ):
        first = text.partition(".")[0].partition(":")[0]
        one = _parser(commands.add_parser, text, name=command.__name__, help=first.lower())
        one.set_defaults(command=command)
        if command not in (train, compress, decompress):
            one.add_argument("run", metavar="RUN", type=Path, help="what vae train wrote")
        add(one)
        if command not in (compress, decompress):
            one.add_argument("--device", type=device_name, help="default: cpu; cuda, where it is")
        one.add_argument("--threads", type=whole, help="default: torch's; 1 is steady on a laptop")
    return top


def _parser(make, text: str, **options):
    """Make a parser whose help keeps its line ends."""
    form = argparse.RawDescriptionHelpFormatter
    return make(description=text, formatter_class=form, allow_abbrev=False, **options)


def _add_train(one) -> None:
    """Add the options of `train`, with their defaults in words."""
    own, digits = DEFAULTS, DEFAULTS_MNIST

    def option(name, text, both=False, **options):
        key = name.strip("-").replace("-", "_")
        default = f"{own[key]:g}" if isinstance(own[key], float) else own[key]
        mnist = f"; mnist {digits[key]}" if both else ""
        one.add_argument(name, help=f"{text} (default: {default}{mnist})", **options)

    one.add_argument("source", metavar="SOURCE", help="a folder, a .zip, or mnist")
    one.add_argument("-o", "--output", metavar="RUN", help="default: runs/ and the source's name")
    text = "how often to go through the pictures in all (default: what makes 2,000 steps, but 20 "
    text += f"to 60; mnist {digits['epochs']})"
    one.add_argument("--epochs", type=whole, help=text)
    option("--size", "32, or 24x48: height x width, 8 to 128 each", type=sides)
    help_ = "1 grey, 3 colour, 4 with alpha (default: 1 if all are grey, else 3)"
    one.add_argument("--channels", type=int, choices=(1, 3, 4), help=help_)
    option("--background", "what transparency is laid on: a name or #rrggbb")
    option("--latents", "the length of z", True, type=whole)
    option("--width", "channels of the first convolution; hidden units of mnist", True, type=whole)
    kinds = "a probability on 256 levels; of black and white; a density with one learned spread"
    option("--likelihood", kinds, choices=LIKELIHOODS)
    option("--batch-size", "pictures in a step", True, type=whole)
    option("--learning-rate", "Adam's step size", True, type=float)
    option("--clip", "the gradient's greatest length", type=float)
    option("--held-out", "the share to score by", type=float)
    option("--seed", "of the split, the first weights, the order and the noise", type=natural)


def _add_score(one) -> None:
    one.add_argument("source", metavar="SOURCE", nargs="?", help="default: the pictures held out")
    text = "latents a picture for the log-likelihood (default: 100)"
    one.add_argument("--samples", type=whole, default=100, help=text)
    one.add_argument("--csv", metavar="FILE", type=Path, help="write the score of each picture")
    text = "the sheet of the worst (default: worst.png in RUN)"
    one.add_argument("--worst", metavar="FILE", type=png, help=text)


def _add_sample(one) -> None:
    _add_sheet(one, "samples.png")
    one.add_argument("-n", "--number", type=whole, default=64, help="how many (default: 64)")
    one.add_argument("--mean", action="store_true", help="the decoder's mean, not a draw from it")
    one.add_argument("--seed", type=natural, default=0, help="of the draws (default: 0)")


def _add_reconstruct(one) -> None:
    one.add_argument("pictures", metavar="PICTURE", nargs="+")
    _add_sheet(one, "reconstructions.png")


def _add_walk(one) -> None:
    one.add_argument("first", metavar="FROM")
    one.add_argument("last", metavar="TO")
    _add_sheet(one, "walk.png")
    text = "pictures on the way, both ends included (default: 10)"
    one.add_argument("--steps", type=several, default=10, help=text)


def _add_encode(one) -> None:
    one.add_argument("source", metavar="SOURCE", help="a folder, a .zip, or mnist")
    text, default = "an .npz or .csv (default: latents.npz)", Path("latents.npz")
    one.add_argument("-o", "--output", metavar="FILE", type=latents, default=default, help=text)


def _add_compress(one) -> None:
    one.add_argument("source", metavar="SOURCE", help="a folder or a .zip")
    _add_archive(one, "the file to write, which is new; its name ends in .vae", archive)


def _add_decompress(one) -> None:
    one.add_argument("file", metavar="FILE", type=archive, help="what vae compress wrote")
    _add_archive(one, "the folder to write, which is new or empty", Path)


def _add_archive(one, text: str, kind) -> None:
    one.add_argument("-o", "--output", metavar="OUTPUT", type=kind, required=True, help=text)
    text = "what vae train wrote; no model comes with the program yet"
    one.add_argument("--model", metavar="RUN", type=Path, required=True, help=text)


def _add_sheet(one, name: str) -> None:
    text = f"the sheet to write (default: {name})"
    one.add_argument("-o", "--output", metavar="FILE", type=png, default=Path(name), help=text)


def _ending(text: str, *endings: str) -> Path:
    """Return a path to write to, which must have one of some endings."""
    if Path(text).suffix not in endings:
        raise argparse.ArgumentTypeError(f"expected a name in {' or '.join(endings)}, got {text}")
    return Path(text)


def png(text: str) -> Path:
    """Read the name of a sheet."""
    return _ending(text, ".png")


def latents(text: str) -> Path:
    """Read the name of a file of latents."""
    return _ending(text, ".npz", ".csv")


def archive(text: str) -> Path:
    """Read the name of a compressed file."""
    return _ending(text, ".vae")


def natural(text: str, least: int = 0) -> int:
    """Read a whole number from zero on."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text}")
    return int(text)


def whole(text: str) -> int:
    """Read a whole number from one on."""
    return natural(text, 1)


def several(text: str) -> int:
    """Read a whole number from two on."""
    return natural(text, 2)


def sides(text: str) -> tuple[int, int]:
    """Read a size: one number, or height x width."""
    numbers = text.split("x")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"expected a size such as 32 or 24x48, got {text}")
    return int(numbers[0]), int(numbers[-1])


def device_name(text: str) -> str:
    """Read the name of a device that this machine has."""
    try:
        device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("device: ")) from error
    return text


if __name__ == "__main__":
    sys.exit(main())
