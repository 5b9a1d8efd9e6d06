"""One step of training: the objective, its gradient, the change of the weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from vae_lib.arguments import noted
from vae_lib.noise import Rows, Share
from vae_lib.states import State

Objective = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
MOST_SKIPPED = 10  # steps in a row
# After how many steps it is read what a device found. To wait for the processor costs nothing.
READ_EVERY = {"cpu": 1}
SELDOM = 20


class Step:
    """A step of `vae_lib.training.train`, called with each batch.

    Nothing in it waits for the device: whether objective, gradient and data are as they must be is
    found out there, and a step that cannot be taken changes nothing there. `read` looks at what
    was found. From the first step that must raise on, the device takes none, so the parameters
    that the error finds are those from before that step.

    Arguments:
        model: In training mode, on the device of the batches.
        objective: As `train` takes it.
        state: Already started; its optimiser is a fused Adam.
        rate: The learning rate of each step.
        decay: That of the average of the weights of each step, if the state has one.
        clip: The gradient's greatest length, or None.
        skip: Whether a step that cannot be taken is left out.
        fast: Whether to compute the networks in bfloat16.
        stopped: A list that is not empty once a person asked to stop.
        share: Which of several processes this one is.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        state: State,
        *,
        rate: Callable[[int], float],
        decay: Callable[[int], float],
        clip: float | None,
        skip: bool,
        fast: bool,
        stopped: list,
        share: Share,
    ):
        self.model, self.state, self.share = model, state, share
        self.rate, self.decay, self.clip, self.skip = rate, decay, clip, skip
        self.stopped, self.all_stop = stopped, False
        self.most = MOST_SKIPPED if skip else 1
        self.weights = list(model.parameters())
        device = self.weights[0].device
        self.read_every = READ_EVERY.get(device.type, SELDOM)
        self.fast = fast
        self.objective = _Objective(model, objective)
        if share.of > 1:
            self.objective = DistributedDataParallel(self.objective)
            # After its first gradient it lays out anew what it sends, and so sums in another order.
            # Let that be over before the first step, or going on would not give the same bits.
            self.objective(None, None).backward()
        _lay_out(state._optimizer)
        self.unread: list[tuple] = []
        self.in_a_row = torch.tensor(state._in_a_row, device=device)
        self.ended = torch.tensor(False, device=device)

    def __call__(self, x: Tensor, noise: torch.Generator, total: int) -> None:
        """Take a step.

        Arguments:
            x: The images of this process.
            noise: Of the whole batch.
            total: How many images the whole batch has.
        """
        state, optimizer = self.state, self.state._optimizer
        before = noise.get_state()
        own = noise if self.share.of == 1 else Rows(noise, total, self.share.rows(total))
        with _products_in_sixteen_bits(self.fast), noted() as asked:
            with _networks_in_sixteen_bits(self.fast, self.model, x.device):
                values = self.objective(x, own)
            if values.shape != x.shape[:1]:
                raise ValueError(
                    f"objective: expected one value per example, shape ({len(x)},), got "
                    f"{tuple(values.shape)}. Sum over pixels and latents; leave the mean to the "
                    "loop."
                )
            # DistributedDataParallel takes the mean over the processes.
            mean = values.sum() / (total / self.share.of)
            optimizer.zero_grad()
            (-mean).backward()
        gradients = [w.grad for w in self.weights if w.grad is not None]
        if self.share.of > 1 and len(gradients) < sum(w.requires_grad for w in self.weights):
            raise ValueError(
                "objective: expected all parameters to take part where processes share a batch, "
                "but some got no gradient. Freeze these with requires_grad_(False)."
            )
        # One number that is finite only if all are; their greatest would take twenty times as long.
        whole = torch.stack([gradient.sum() for gradient in gradients]).sum()
        found = self._agreed(mean.detach(), asked)
        usable = found[0].isfinite() & whole.isfinite() & (found[1] == 0)
        self.in_a_row = torch.where(usable, 0, self.in_a_row + 1)
        self.ended = self.ended | (found[1] > 0) | (self.in_a_row >= self.most)
        usable = usable & ~self.ended
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.clip)
        state._whole = False
        for group in optimizer.param_groups:
            group["lr"] = self.rate(state.steps)
        optimizer.found_inf = (~usable).float()  # where it is one, Adam leaves all as it is
        optimizer.step()
        if state._average is not None:
            kept = self.decay(state.steps) if state.steps else 0.0  # the first is copied
            _average_in(state._average, self.model, torch.where(usable, 1 - kept, 0.0))
        self.unread.append((torch.stack([*found, whole.to(found)]), total, before, asked))
        state._noise = noise.get_state()
        state.step += 1
        state.steps += 1
        if state.step % self.read_every == 0:  # so all processes look after the same steps
            self.read()

    def asked_to_stop(self) -> bool:
        """Whether somebody asked one of the processes to stop, as far as it has been read."""
        return bool(self.stopped) if self.share.of == 1 else self.all_stop

    def _agreed(self, mean: Tensor, asked: list) -> Tensor:
        """Return the mean over all processes, how many refuse data, and how many would stop."""
        refused = sum((~fulfilled for fulfilled, _ in asked), torch.zeros_like(mean))
        found = torch.stack([mean, refused, torch.full_like(mean, len(self.stopped))])
        if self.share.of > 1:
            distributed.all_reduce(found)
            found[0] /= self.share.of
        return found

    def read(self) -> None:
        """Wait for the device, and look at what it found in the steps since the last time.

        Raises:
            ValueError: Data outside of the support of a distribution.
            FloatingPointError: An objective or a gradient that is not finite; unless such steps
                are skipped, and they were not too many in a row.
        """
        state, unread = self.state, self.unread
        self.unread, state._whole = [], True
        rows = torch.stack([found for found, *_ in unread]).tolist() if unread else []
        for number, (value, refused, stop, whole) in enumerate(rows):
            _, total, before, asked = unread[number]
            usable = math.isfinite(value) and math.isfinite(whole) and not refused
            if refused or (not usable and state._in_a_row + 1 >= self.most):
                state.step -= len(rows) - number
                state.steps -= len(rows) - number
                state._noise = before
                self._refuse(asked if refused else None, value, whole)
            if usable:
                state._total += value * total
                state._seen += total
            state._skipped += not usable
            state._in_a_row = 0 if usable else state._in_a_row + 1
            self.all_stop = self.all_stop or stop > 0

    def _refuse(self, asked: list | None, value: float, whole: float) -> None:
        """Raise for the step after those that the state tells of."""
        where = f"epoch {self.state.epoch + 1}, step {self.state.step + 1}"
        kept = "The model keeps its parameters from before this step."
        if asked is not None:
            texts = [say() for fulfilled, say in asked if not fulfilled]
            why = texts[0] if texts else "x: another process refuses its images; see its message."
            raise ValueError(f"{why} Found at {where}. {kept}")
        finite = math.isfinite(value)
        what, found = ("gradient", whole) if finite else ("objective", value)
        many = f" and in the {MOST_SKIPPED - 1} steps before" if self.skip else ""
        raise FloatingPointError(
            f"{what}: expected a finite number, got {found} at {where}{many}. {kept} Lower the "
            "learning rate, or look for a logarithm of zero or an exponential without bound."
        )


@torch.no_grad()
def _average_in(average: AveragedModel, model: nn.Module, weight: Tensor) -> None:
    """Move the average of a model's weights towards these, by a number on their device.

    `AveragedModel.update_parameters` would wait for the device.
    """
    kept = list(average.module.parameters())
    torch._foreach_lerp_(kept, list(model.parameters()), [weight.to(one) for one in kept])
    for buffer, new in zip(average.module.buffers(), model.buffers(), strict=True):
        buffer.copy_(new)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Lay the moments out as the weights are, since the fused Adam takes them as they lie."""
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                moments[name] = torch.empty_like(weight).copy_(value)


class _Objective(nn.Module):
    """An objective with its model as a module, since that is what is shared among processes."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor | None, noise: torch.Generator | Rows | None) -> Tensor:
        if x is None:  # anything that all parameters take part in
            return torch.stack([w.sum() for w in self.model.parameters()]).sum()
        return self.objective(self.model, x, noise)


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has instructions for bfloat16, floats of 16 bits with the range of 32.

    Example:
        >>> has_bfloat16("meta")
        False
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return kind == "cpu" and any(known.get(n) for n in ("avx512_bf16", "amx_bf16", "bf16"))


def _convolutional(model: nn.Module) -> bool:
    """Whether a model has convolutions over pictures."""
    return any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())


@contextmanager
def _products_in_sixteen_bits(fast: bool) -> Iterator[None]:
    """Let matrix products of 32 bits be made of 16, by a setting of PyTorch, for a while."""
    before = torch.get_float32_matmul_precision()
    if fast:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _networks_in_sixteen_bits(fast: bool, model: nn.Module, device: torch.device):
    """Compute linear maps and convolutions in bfloat16.

    Of a dense network on a processor the setting above does that, and no weight is converted.
    """
    on = fast and (device.type != "cpu" or _convolutional(model))
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


@contextmanager
def made_fast(model: nn.Module, fast: bool) -> Iterator[bool]:
    """Prepare a model for 16 bits for a while, if its device has instructions for them.

    The channels of a convolution's weights then lie side by side. What is yielded is whether the
    device has them.
    """
    fast = fast and has_bfloat16(next(model.parameters()).device)
    turned = fast and _convolutional(model)
    if turned:
        model.to(memory_format=torch.channels_last)
    try:
        yield fast
    finally:
        if turned:
            model.to(memory_format=torch.contiguous_format)
