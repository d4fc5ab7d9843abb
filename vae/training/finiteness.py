"""Losses that are not finite stop a run before its weights take them in."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vae.errors import RunFailed
from vae.objectives import Terms


class NonFiniteWatch:
    """Looks at the loss of every step and remembers the last finite one.

    The CPU's loss is read at once. Reading an accelerator's loss waits for the device, so there a step only notes its
    terms on the device, and the caller asks `failed` now and then.
    """

    def __init__(self) -> None:
        self.last_finite = (math.nan, -1)  # loss, step
        self.noted: Tensor | None = None  # (4,): loss, reconstruction, KL, step; of the first broken step, or the last
        self.before: Tensor | None = None  # (2,): loss and step of the last finite step before the noted one

    def add(self, terms: Terms, step: int) -> None:
        if terms.loss.device.type == "cpu" and math.isfinite(loss := terms.loss.item()):
            self.last_finite = (loss, step)
        else:
            self.note(terms, step)

    @torch.no_grad()
    def note(self, terms: Terms, step: int) -> None:
        """Keeps a step's terms on their device, unless a step before it was already broken."""
        parts = torch.stack([terms.loss, -terms.log_px.mean(), terms.kl.sum(-1).mean()]).double()
        row = torch.cat([parts, parts.new_full((1,), step)])
        if self.noted is None or self.before is None:
            self.noted, self.before = row, row.new_full((2,), math.nan)
            return
        self.before = torch.where(self.broken, self.before, self.noted[::3])
        self.noted = torch.where(self.broken, self.noted, row)

    @property
    def broken(self) -> Tensor:
        """(): whether a noted loss was not finite."""
        assert self.noted is not None
        return ~self.noted[0].isfinite()

    def protect(self, parameters: Iterable[nn.Parameter]) -> None:
        """Zeroes the gradients of every step from a broken one on, so that no weight takes them in."""
        if self.noted is not None:
            for p in parameters:
                if p.grad is not None:
                    p.grad = torch.where(self.broken, 0, p.grad)

    def failed(self) -> bool:
        """Whether any loss was not finite; waits for the device."""
        if self.noted is None or self.before is None:
            return False
        broken = bool(self.broken)
        loss, step = (self.before if broken else self.noted[::3]).tolist()
        if not math.isnan(loss):
            self.last_finite = (loss, int(step))
        return broken

    def describe(self, epoch: int) -> str:
        """The broken step and those of its terms that are not finite."""
        assert self.noted is not None
        loss, reconstruction, kl, step = self.noted.tolist()
        terms = {"reconstruction": reconstruction, "kl": kl}
        bad = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
        return f"the loss is {loss} at step {step:.0f} (epoch {epoch}): {' and '.join(bad) or 'the weighted sum'}"

    def failure(self, what: str, lr: float) -> RunFailed:
        """The one message of every run that diverges."""
        loss, step = self.last_finite
        last = f"last finite loss {loss:.6g} at step {step}" if step >= 0 else "no step before it was finite"
        return RunFailed(
            f"{what} is not finite; {last}; lower optimizer.lr={lr:g} or set trainer.gradient_clip_val=1; "
            "the last good checkpoint is kept"
        )
