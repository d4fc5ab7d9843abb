"""The weight beta of the KL as a function of the step; a learning-rate schedule of two of torch's classes."""

from typing import Annotated

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from vae.types import Count, NotNegative, Portion

# keys that several schedules share
Start = Annotated[NotNegative, "weight of the KL at the start"]
End = Annotated[NotNegative, "weight of the KL after the rise"]


def constant(step: int, value: Annotated[NotNegative, "weight of the KL"] = 1.0) -> float:
    return value


def linear(
    step: int, start: Start = 0.0, end: End = 1.0, steps: Annotated[Count, "length of the rise, in steps"] = 10_000
) -> float:
    """Warm-up: from `start` to `end` in `steps` steps, then `end` (Bowman et al. 2016; Sonderby et al. 2016)."""
    return start + (end - start) * min(step / steps, 1.0)


def cyclic(
    step: int,
    start: Start = 0.0,
    end: End = 1.0,
    period: Annotated[Count, "steps from one rise to the next"] = 10_000,
    ramp: Annotated[Portion, "share of a period in which beta rises"] = 0.5,
) -> float:
    """In every `period`: a rise for the share `ramp` of it, then `end` (Fu et al. 2019, eq. 6)."""
    return linear(step % period, start, end, max(1, round(ramp * period)))


def warmup_cosine(
    optimizer: Optimizer,
    warmup: Annotated[Count, "epochs of rising rate"],
    epochs: Annotated[Count, "length of the schedule in epochs"],
    start_factor: Annotated[Portion, "first rate divided by the highest"] = 0.01,
) -> LRScheduler:
    """Linear warm-up over `warmup` epochs, then half a cosine to 0 at `epochs` (Loshchilov and Hutter 2017)."""
    rise = LinearLR(optimizer, start_factor=start_factor, total_iters=warmup)
    fall = CosineAnnealingLR(optimizer, T_max=max(1, epochs - warmup))
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])
