"""Sums over the images of an epoch."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from vae.objectives import Terms

ROWS = 1000  # batches whose sums wait on the device


class Meter:
    """Sums over images, in float64 on the CPU: an accelerator may have no such numbers, and is waited for rarely."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []  # of each batch since: loss, log p(x|z), then KL (D,) or (1,)
        self.earlier: Tensor | None = None  # (2 + D,): the sum of the batches before
        self.images = 0
        self.terms: Terms | None = None  # of an evaluation's last batch
        self.beta = math.nan

    @torch.no_grad()
    def add(self, terms: Terms) -> None:
        images = terms.log_px.shape[0]
        self.rows.append(torch.cat([terms.loss.view(1) * images, terms.log_px.sum(0, keepdim=True), terms.kl.sum(0)]))
        if len(self.rows) == ROWS:
            _ = self.sums
        self.images += images
        self.beta = terms.beta
        # in training it would keep the graph alive
        self.terms = None if terms.loss.requires_grad else replace(terms, p=None)

    @property
    def sums(self) -> Tensor | None:
        if self.rows:
            rows = torch.stack(self.rows).cpu().double()
            rows = rows if self.earlier is None else torch.cat([self.earlier[None], rows])
            self.earlier, self.rows = (
                rows.cumsum(0)[-1],
                [],
            )  # in order, as a resumed run adds them
        return self.earlier

    @property
    def totals(self) -> Tensor | None:
        """(3 + D,) as checkpoints hold them and ranks add them up: loss, reconstruction, images, KL of each latent."""
        if self.sums is None:
            return None
        return torch.cat([self.sums[:1], -self.sums[1:2], self.sums.new_full((1,), self.images), self.sums[2:]])

    @totals.setter
    def totals(self, value: Tensor | None) -> None:
        self.rows, self.earlier = [], None if value is None else torch.cat([value[:1], -value[1:2], value[3:]])
        self.images = 0 if value is None else int(value[2])

    def kl_per_latent(self) -> Tensor:
        """(D,), nats per image; (1,) where the prior or the posterior ties the latents together."""
        assert self.sums is not None
        return self.sums[2:] / self.images

    def means(self, split: str, normalised: bool) -> dict[str, float]:
        """Nats per image; the ELBO is never weighted and absent where the likelihood is not normalised."""
        assert self.sums is not None
        sums = self.sums / self.images
        loss, reconstruction, kl = sums[0], -sums[1], sums[2:]
        if self.terms is not None:  # in training the loss is the mean over batches, which is what is optimised
            loss = self.terms.epoch_loss(reconstruction, kl, loss)
        means = {"loss": loss.item(), "reconstruction": reconstruction.item(), "kl": kl.sum().item()}
        means["neg_elbo" if normalised else "unweighted_loss"] = means["reconstruction"] + means["kl"]
        if normalised:
            means["elbo"] = -means["reconstruction"] - means["kl"]
        return {f"{split}/{name}": value for name, value in {**means, "beta": self.beta}.items()}
