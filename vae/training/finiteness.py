"""Losses that are not finite stop a run before its weights take them in."""

import math

import torch
from torch import Tensor

from vae.objectives import Terms


class NonFiniteWatch:
    """For an accelerator: which terms were ever not finite, and the last finite loss before, kept on the device.

    To read them waits for the device, so a step only adds to them.
    """

    def __init__(self) -> None:
        self.bad: Tensor | None = None  # (3,)
        self.last: Tensor | None = None  # (2,): loss, step

    @torch.no_grad()
    def add(self, terms: Terms, step: int) -> None:
        parts = torch.stack([terms.loss, -terms.log_px.mean(), terms.kl.sum(-1).mean()]).detach()
        bad = ~parts.isfinite() & ~parts[0].isfinite()  # a term that is not in the loss, as IWAE's KL, may be anything
        self.bad = bad if self.bad is None else self.bad | bad
        now = torch.stack([parts[0], parts.new_full((), step)])
        before = torch.full_like(now, math.nan) if self.last is None else self.last
        self.last = torch.where(self.bad.any(), before, now)

    @property
    def broken(self) -> Tensor:
        assert self.bad is not None
        return self.bad.any()

    def words(self) -> str:
        assert self.bad is not None
        assert self.last is not None
        names = [n for n, bad in zip(("loss", "reconstruction", "kl"), self.bad.tolist(), strict=True) if bad]
        loss, step = self.last.tolist()
        last = "no step before it was finite" if math.isnan(loss) else f"last finite loss {loss:.6g} at step {step:.0f}"
        return f"{' and '.join(names)} not finite; {last}"
