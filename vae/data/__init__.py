"""Images: where they come from, how they are split, in which order they are met."""

from vae.data.batches import Images
from vae.data.module import ImageDataModule

__all__ = ["ImageDataModule", "Images"]
