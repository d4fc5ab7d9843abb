"""Images: where they come from, how they are split, in which order they are met."""

from vae.data.arrays import Arrays, Folder
from vae.data.batches import Images
from vae.data.module import ImageDataModule, RawSet
from vae.data.sets import CIFAR10, EMNIST, KMNIST, MNIST, SVHN, Digits, FashionMNIST, Omniglot
from vae.data.sprites import Sprites

__all__ = [
    "CIFAR10",
    "EMNIST",
    "KMNIST",
    "MNIST",
    "SVHN",
    "Arrays",
    "Digits",
    "FashionMNIST",
    "Folder",
    "ImageDataModule",
    "Images",
    "Omniglot",
    "RawSet",
    "Sprites",
]
