"""Metrics as pure functions of NumPy or torch arrays, which return NumPy arrays and plain numbers.

Wrong shapes raise ValueError, since they are mistakes in code, not in a configuration.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from vae.errors import RunFailed

Array = np.ndarray | Tensor


def _numpy(values: Array) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def mean_and_error(values: Array) -> tuple[float, float]:
    """Mean of (N,) independent values and its standard error, std (ddof 1) / sqrt(N); NaN for a single value.

    Raises ValueError for no values.
    """
    v = _numpy(values).astype(np.float64)  # (N,)
    if v.ndim != 1 or not len(v):
        raise ValueError(f"values of shape {v.shape}: a vector of at least one value is needed")
    error = v.std(ddof=1) / math.sqrt(len(v)) if len(v) > 1 else math.nan
    return float(v.mean()), float(error)


def active_units(mu: Array, threshold: float = 0.01) -> np.ndarray:
    """(N, D) posterior means -> bool (D,): Var_x(E[z_d | x]) > threshold (Burda et al. 2015, section 5.2)."""
    return _numpy(mu).astype(np.float64).var(axis=0) > threshold


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """Nats per image (a negative log-likelihood) in bits per pixel and channel."""
    return nats / (dimensions * math.log(2))


def knn_accuracy(train_mu: Array, train_labels: Array, mu: Array, labels: Array, k: int = 5) -> float:
    """Accuracy on mu (N, D) of a vote of the k nearest in train_mu (M, D); ties go to the lowest label.

    Coordinates are not rescaled, since the prior sets their scale.
    """
    from sklearn.neighbors import KNeighborsClassifier

    # brute force: from about 15 dimensions on, a tree takes ten times as long
    knn = KNeighborsClassifier(min(k, len(train_mu)), algorithm="brute")
    knn.fit(_numpy(train_mu), _numpy(train_labels))
    return float(knn.score(_numpy(mu), _numpy(labels)))


def linear_probe_accuracy(train_mu: Array, train_labels: Array, mu: Array, labels: Array) -> float:
    """Accuracy on mu (N, D) of a logistic regression fitted to train_mu (M, D), standardised by train_mu.

    The L2 penalty (C = 1) keeps the optimum finite on separable classes, float64 the line search sound.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(_numpy(train_mu).astype(np.float64), _numpy(train_labels))
    return float(probe.score(_numpy(mu).astype(np.float64), _numpy(labels)))


def frechet_distance(a: Array, b: Array) -> float:
    """Squared Frechet distance of the Gaussians fitted to a (N, F) and b (M, F): Heusel et al. 2017, eq. 6.

    |m_a - m_b|^2 + tr(A + B - 2 (AB)^(1/2)), covariances with ddof 1. With A = R_a'R_a and B = R_b'R_b the
    last trace is the sum of the singular values of R_a R_b'. Each R comes from QR of the centred features: no
    covariance has to be invertible, and no root of a rounding error is taken.
    """
    mean_a, root_a = _gaussian(a)
    mean_b, root_b = _gaussian(b)
    shift = np.square(mean_a - mean_b).sum()
    fidelity = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum() - 2 * fidelity
    return float(shift + max(spread, 0.0))


def _gaussian(features: Array) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and a root R (r, F) of the covariance: R'R."""
    x = _rows(features)
    if len(x) < 2:
        raise ValueError(f"{len(x)} feature row: a covariance needs at least two")
    mean = x.mean(axis=0)
    root = np.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r")
    return mean, np.asarray(root)  # numpy's stubs take it for a pair


def gather_chunks(parts: Iterable[Tensor], count: int) -> Tensor:
    """Results (n, ...) of chunks in one tensor (count, ...) on the CPU; raises ValueError for another number of rows.

    A list of results would fragment the memory between the large tensors of the chunks, which cost gigabytes.
    """
    whole, start = torch.empty(0), 0
    for part in parts:
        whole = whole if start else torch.empty(count, *part.shape[1:], dtype=part.dtype)
        whole[start : start + len(part)] = part.cpu()
        start += len(part)
    if start != count:
        raise ValueError(f"{start} rows of {count}")
    return whole


def precision_recall(real: Array, fake: Array, k: int = 3, chunk: int = 100) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2) of real (N, F) and fake (M, F).

    Precision: share of fake inside some real's ball; a ball reaches to the k-th nearest other of its own set.
    Recall: the same with the sets exchanged. Memory: three matrices of chunk x max(N, M) float64.
    """
    r, f = torch.from_numpy(_rows(real)), torch.from_numpy(_rows(fake))
    r_radius, f_radius = _radii(r, k, chunk), _radii(f, k, chunk)
    f_inside = torch.zeros(len(f), dtype=torch.bool)
    recalled = 0
    for rows, radii in zip(r.split(chunk), r_radius.split(chunk), strict=True):
        distance = _distances(rows, f)  # (chunk, M)
        f_inside |= (distance <= radii[:, None]).any(0)
        recalled += int((distance <= f_radius).any(1).sum())
    return float(f_inside.double().mean()), recalled / len(r)


def _radii(x: Tensor, k: int, chunk: int) -> Tensor:
    """(N, F) -> (N,): distance to the k-th nearest other row; the nearest of all is the row itself."""
    if len(x) <= k:
        raise ValueError(f"{len(x)} feature rows: the {k}-th nearest neighbour needs more than {k}")
    nearest_first = (_distances(rows, x).topk(k + 1, largest=False).values for rows in x.split(chunk))
    return gather_chunks(nearest_first, len(x))[:, -1]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # Differences, not |x|^2 - 2xy + |y|^2: a copy must be at 0, or a ball of radius 0 would lose it.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _rows(features: Array) -> np.ndarray:
    x = _numpy(features).astype(np.float64)
    if x.ndim != 2:
        raise ValueError(f"features of shape {x.shape}: rows of features are needed")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(axis=1).sum())
        raise RunFailed(f"{bad} of {len(x)} feature rows hold NaN or infinity; look at their images")
    return x


def nearest(x: Array, pool: Array) -> tuple[np.ndarray, np.ndarray]:
    """Index (N,) of the nearest neighbour in pool (M, ...) of each x (N, ...), and its Euclidean distance (N,).

    uint8 is divided by 255, so distances are in units of the pixel range. Memory: pool in float32.
    """
    from sklearn.metrics import pairwise_distances_argmin

    query, candidates = _unit(_numpy(x)), _unit(_numpy(pool))
    index = pairwise_distances_argmin(query, candidates)
    # by differences: |x|^2 - 2xy + |y|^2 cancels, and a copied image must be at 0
    return index, np.linalg.norm(query - candidates[index], axis=1)


def _unit(images: np.ndarray) -> np.ndarray:
    """(N, ...) -> float32 (N, P), uint8 scaled to [0, 1]."""
    flat = images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float32)
    return flat / 255 if images.dtype == np.uint8 else flat


def class_histogram(predictions: Array, classes: int) -> np.ndarray:
    """Counts (classes,) of integer predictions (N,); one outside 0 .. classes - 1 raises ValueError."""
    p = _numpy(predictions)
    if p.size and not 0 <= p.min() <= p.max() < classes:
        raise ValueError(f"predictions from {p.min()} to {p.max()}: 0 to {classes - 1} is allowed")
    return np.bincount(p, minlength=classes)
