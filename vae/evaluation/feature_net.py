"""A small classifier whose penultimate features are used for the Frechet distance, precision and recall.

Such scores compare models of one data set. They carry the name of the net; none is called plain FID.
"""

import hashlib
import io
import logging
import math
import time
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from vae.errors import InputError
from vae.evaluation.metrics import gather_chunks
from vae.files import replace
from vae.noise import derive

log = logging.getLogger(__name__)

FEATURES = 64
CHANNELS = (16, 32)
BATCH = 100
LR = 2e-3
IMAGES_SEEN = 20_000  # small sets are repeated until the net has seen about this many ...
EPOCHS = (2, 30)  # ... within these bounds

# Part of every net's name, so that scores of two recipes never meet. The first entry counts code changes.
RECIPE = (1, FEATURES, CHANNELS, BATCH, LR, IMAGES_SEEN, EPOCHS)


class FeatureNet(nn.Module):
    """Two strided convolutions and a linear layer: images (N, C, H, W) in [0, 1] -> 64 features -> logits.

    Batch norm before each ReLU: without it half the features were 0 on every image. Images smaller than 4 x 4
    raise InputError.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        c, h, w = image_shape
        if min(h, w) < 4:
            raise InputError(f"images of {h} x {w} pixels: the feature net needs 4 x 4; use larger images")
        flat = CHANNELS[1] * math.ceil(h / 4) * math.ceil(w / 4)
        self.body = nn.Sequential(
            *_block(nn.Conv2d(c, CHANNELS[0], 5, stride=2, padding=2), nn.BatchNorm2d(CHANNELS[0])),
            *_block(nn.Conv2d(*CHANNELS, 5, stride=2, padding=2), nn.BatchNorm2d(CHANNELS[1])),
            nn.Flatten(),
            *_block(nn.Linear(flat, FEATURES), nn.BatchNorm1d(FEATURES)),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) in [0, 1] -> (N, 64), non-negative."""
        return self.body(x.contiguous(memory_format=torch.channels_last))  # a third faster on CPU

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _block(layer: nn.Module, norm: nn.Module) -> tuple[nn.Module, ...]:
    return layer, norm, nn.ReLU()


def train_feature_net(
    images: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    epochs: int | None = None,
) -> FeatureNet:
    """Classifier of uint8 images (N, C, H, W) with labels (N,), trained on the CPU; frozen, in eval mode.

    Deterministic on one machine with one number of threads; by default 2 epochs on a large set, up to 30 on a small
    one. Works under no_grad and inference_mode. Raises ValueError for fewer than two images.
    """
    x, y = images.cpu(), labels.cpu().long()
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"{len(x)} images, {len(y)} labels: equally many are needed, two or more")
    passes = epochs or min(max(math.ceil(IMAGES_SEEN / len(x)), EPOCHS[0]), EPOCHS[1])
    with torch.inference_mode(False), torch.enable_grad():
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also reseed GPUs, which nobody restores
            torch.default_generator.manual_seed(derive(seed, "feature net weights"))
            net = FeatureNet(_shape(x), classes)
        _fit(net, x, y, passes, torch.Generator().manual_seed(derive(seed, "feature net order")))
    return net.eval().requires_grad_(False)


def _fit(net: FeatureNet, x: Tensor, y: Tensor, epochs: int, order: torch.Generator) -> None:
    batches = max(1, len(x) // BATCH)  # equal up to one image: batch norm cannot take a rest of 1
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).tensor_split(batches):
            loss = F.cross_entropy(net(_unit(x[rows])), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()


def feature_net(
    cache_dir: Path, images: Tensor, labels: Tensor, classes: int, data_md5: str, seed: int = 0
) -> tuple[FeatureNet, str]:
    """The net of a data set, cached in `cache_dir`, and its name `convnet-<hash8>`.

    The hash covers recipe, data_md5, image count and shape, classes and seed. Simultaneous callers wait for the first.
    A warning is logged if the cache cannot be written.
    """
    key = repr((RECIPE, data_md5, tuple(images.shape), classes, seed))
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    path, net = cache_dir / f"features-{digest}.pt", None
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            net = _load(path, images, classes)
            if net is None:
                start = time.perf_counter()
                net = train_feature_net(images, labels, classes, seed)
                log.info("feature net convnet-%s trained in %.1f s", digest, time.perf_counter() - start)
                content = io.BytesIO()
                torch.save(net.state_dict(), content)
                replace(path, content.getbuffer())
    except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
        log.warning("%s: the feature net cannot be kept there (%s)", cache_dir, error)
    return net or train_feature_net(images, labels, classes, seed), f"convnet-{digest}"


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """Of what the classifier sees: the split, its seed and the binarisation are all in it."""
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _load(path: Path, images: Tensor, classes: int) -> FeatureNet | None:
    """The net with the weights of `path`; None without such a file or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    with torch.random.fork_rng(devices=[]):
        net = FeatureNet(_shape(images), classes)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load lets flipped bits pass
        if broken is not None:
            raise zipfile.BadZipFile(f"bad checksum of {broken}")
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # bytes can be damaged in any way, and the remedy is always the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("%s is damaged (%s): the feature net is trained again", path, reason)
        return None
    return net.eval().requires_grad_(False)


@torch.inference_mode()
def embed(net: FeatureNet, images: Tensor, batch: int = 1000) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), uint8 or float in [0, 1] -> features (N, 64), predictions (N,); both on the CPU.

    Computed on the net's device; leaves the net in eval mode.
    """
    device = next(net.eval().parameters()).device
    features = gather_chunks((net.features(_unit(x.to(device))) for x in images.split(batch)), len(images))
    return features, net.head(features.to(device)).argmax(1).cpu()


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _shape(images: Tensor) -> tuple[int, int, int]:
    _, c, h, w = images.shape
    return c, h, w
