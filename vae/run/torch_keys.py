"""What torch's optimizers and schedulers do not say of their own parameters: range, meaning, what goes together.

By the name of the parameter, for every class of torch.optim that takes it. Imports no torch.
"""

from collections.abc import Callable
from typing import Annotated, Any

from annotated_types import Len, MinLen

from vae.errors import InputError
from vae.types import Choices, Count, CountOrZero, Fraction, NotNegative, Positive, Rate

KEYS: dict[str, dict[str, Any]] = {
    "optimizer": {
        "lr": Annotated[Positive, "learning rate"],
        "weight_decay": Annotated[NotNegative, "coupled, as in the report; adamw: decoupled"],
        "betas": Annotated[list[Rate], Len(2, 2), "decay of the two moments"],
        "eps": Annotated[Positive, "added to the root of the second moment"],
        "fused": Annotated[bool | None, "one kernel for all weights"],
        "alpha": Annotated[Rate, "decay of the second moment"],
        "momentum": Annotated[Rate, "momentum of the gradient"],
        "nesterov": Annotated[bool, "Nesterov momentum"],
        "lr_decay": Annotated[NotNegative, "decay of the learning rate"],
    },
    "scheduler": {
        "T_max": Annotated[Count, "epochs to the lowest rate"],
        "eta_min": Annotated[NotNegative, "lowest rate"],
        "epochs": Annotated[Count, "length of the schedule in epochs"],
        "max_lr": Annotated[Positive, "highest rate"],
        "pct_start": Annotated[Fraction, "share of the steps in which the rate rises"],
        "div_factor": Annotated[Positive, "highest rate divided by the first"],
        "final_div_factor": Annotated[Positive, "first rate divided by the last"],
        "cycle_momentum": Annotated[bool, "lower the momentum while the rate rises"],
        "step_size": Annotated[Count, "epochs between two drops"],
        "milestones": Annotated[list[Count], MinLen(1), "epochs at which the rate drops"],
        "gamma": Annotated[Positive, "factor of a drop"],
        "factor": Annotated[Fraction, "factor of a drop"],
        "patience": Annotated[CountOrZero, "epochs without a better metric before a drop"],
        "min_lr": Annotated[NotNegative, "lowest rate"],
    },
}


def sgd(chosen: Choices) -> None:
    if chosen["optimizer.nesterov"] and not chosen["optimizer.momentum"]:
        raise InputError("optimizer.nesterov=true: needs momentum above 0; for example optimizer.momentum=0.9")


def one_cycle(chosen: Choices) -> None:
    epochs, length = chosen["trainer.max_epochs"], chosen["scheduler.epochs"]
    if length is not None and length < epochs:
        raise InputError(
            f"trainer.max_epochs={epochs}: scheduler=one_cycle ends after scheduler.epochs={length}; take "
            f"scheduler.epochs={epochs} in a new run_dir, or no more than {length} epochs"
        )


# by class, what `requires` says of a part of the project's or a person's own
RULES: dict[str, Callable[[Choices], None]] = {
    "torch.optim.sgd.SGD": sgd,
    "torch.optim.lr_scheduler.OneCycleLR": one_cycle,
}
