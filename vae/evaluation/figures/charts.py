"""Figures made of curves, points and bars: arrays or CPU tensors go in, a `matplotlib.figure.Figure` comes out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from vae.evaluation.figures.page import (
    BLUE,
    DPI,
    FAINT,
    HALO,
    IDLE,
    INK,
    MUTED,
    RED,
    Array,
    Names,
    Series,
    add_colour_bar,
    add_legend,
    as_classes,
    as_finite,
    as_series,
    as_vector,
    chart,
    class_colours,
    dress,
    lay_out,
    settled,
)


def _curve(axis: Axes, epochs: np.ndarray, values: np.ndarray, **settings: Any) -> None:
    """A line over epochs; few points are shown as such, and one alone gets room on both sides."""
    mark = {"marker": "o", "markersize": 4} if len(epochs) <= 20 else {}
    axis.plot(epochs, values, **{"linewidth": 1.8, **mark, **settings})
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(epochs) == 1:
        axis.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axis.set_xticks(epochs)


def _endings(epochs: np.ndarray, values: np.ndarray, best: bool = True) -> str:
    least = values.argmin()
    last = f"{values[-1]:.4g} at epoch {epochs[-1]:g}"
    if not best:
        return last
    if values[least] == values[-1]:
        return f"{last}, the lowest"
    return f"{last}, lowest {values[least]:.4g} at {epochs[least]:g}"


PANELS = (
    ("loss", "(a) Loss"),
    ("reconstruction", "(b) Reconstruction"),
    ("kl", "(c) KL"),
)

CURVES: dict[str, tuple[str, dict[str, Any]]] = {  # split -> label and style; the same in every panel
    "train": ("train, while it learns", {"color": RED}),
    "train_eval": ("train images, after the epoch", {"color": RED, "linestyle": "--", "linewidth": 1.3}),
    "dev": ("dev", {"color": BLUE, "zorder": 4}),
}


def losses(
    history: Mapping[str, Series], caption: str, baselines: Mapping[str, float] | None = None, units: Names = ("", "")
) -> Figure:
    """The loss and its two terms over epochs, train and dev in one panel (figure 5 of the report, both halves).

    `history` holds `train/loss`, `dev/loss`, and what there is of `train_eval/loss` (the same model with dropout off
    on training images, with which dev compares), `<split>/reconstruction` and `<split>/kl`; `units` are those of the
    loss and of the reconstruction. `baselines` leave a reconstruction only, so they are lines in (b); those that would
    leave the curve less than a third of the panel are only named, with an arrow to their side.
    """
    for name in ("train/loss", "dev/loss"):
        as_series(f"history[{name!r}]", history.get(name, []))
    panels = [panel for panel in PANELS if history.get(f"dev/{panel[0]}")]
    figure, axes = chart(100 + 440 * len(panels), 480, caption, columns=len(panels))
    for axis, (name, title) in zip(axes, panels, strict=True):
        drawn = {s: as_series(f"history['{s}/{name}']", c) for s in CURVES if (c := history.get(f"{s}/{name}", []))}
        for split, (epochs, values) in drawn.items():
            label, style = CURVES[split]
            _curve(axis, epochs, values, **style, label=label)
        low, high, early = _settled_range({split: values for split, (_, values) in drawn.items()})
        axis.set_ylim(low, high)
        unit = units[name == "reconstruction"] if name != "kl" else "nats"
        ends = f"dev {_endings(*drawn['dev'], best=name != 'kl')}"
        dress(axis, title, "epoch", f"{unit} per image".strip(), ends + early)
        if name == "reconstruction" and baselines:
            heights = as_vector("baselines", list(baselines.values()))
            axis.set_ylim(_view(np.array([low, high]), heights, squeezable=len(drawn["dev"][0]) == 1))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=8.5, labelcolor=INK, frameon=False)
    for axis, (name, _) in zip(axes, panels, strict=True):
        if name == "reconstruction" and baselines:
            _draw_baselines(figure, axis, list(baselines), heights)
    return settled(figure)


def _settled_range(curves: Mapping[str, np.ndarray]) -> tuple[float, float, str]:
    """Limits that the first tenth of the epochs does not stretch, and a word on what lies beyond them."""
    late = np.concatenate([v[max(1, len(v) // 10) if len(v) > 2 else 0 :] for v in curves.values()])
    pad = 0.06 * np.ptp(late) or 0.05 * abs(late[0]) or 1.0
    low, high = late.min() - pad, late.max() + pad
    split = max(curves, key=lambda name: max(low - curves[name][0], curves[name][0] - high))
    first = curves[split][0]
    return low, high, "\n " if low <= first <= high else f"\n{split} at first {first:.4g}, beyond the panel"


def _view(curve: np.ndarray, baselines: np.ndarray, squeezable: bool) -> tuple[float, float]:
    """Limits that hold the curve and, nearest first, the baselines that leave it a third of the height."""
    low, high = curve.min(), curve.max()
    distance = np.maximum(low - baselines, baselines - high)
    for value in baselines[np.argsort(distance, kind="stable")]:
        wider = min(low, value), max(high, value)
        if not squeezable and 0 < np.ptp(curve) < (wider[1] - wider[0]) / 3:
            break
        low, high = wider
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _draw_baselines(figure: Figure, axis: Axes, names: Names, values: np.ndarray) -> None:
    """Dotted lines at the values, named at the right; the names are moved apart and led to their lines."""
    lay_out(figure)  # the axes' height is known only once it is laid out
    points = axis.bbox.height * 72 / DPI
    size = min(8.5, points / (1.4 * len(names)))
    low, high = axis.get_ylim()
    order = np.argsort(values, kind="stable")
    true = (values[order] - low) / (high - low)  # fractions of the axes' height
    apart = _spread(true.clip(0, 1), 1.4 * size / points)
    for index, at, shown in zip(order, true, apart, strict=True):
        inside = 0 <= at <= 1
        arrow = "" if inside else "\u2191 " if at > 1 else "\u2193 "
        name = f"{arrow}{names[index]}: {values[index]:.4g}"
        where: dict[str, Any] = {"transform": axis.transAxes, "clip_on": False}
        axis.text(1.045, shown, name, fontsize=size, color=MUTED, va="center", parse_math=False, **where)
        if inside:
            axis.axhline(values[index], color=MUTED, linewidth=1, linestyle=":", zorder=2)
            axis.plot([1, 1.035], [at, shown], color=MUTED, linewidth=0.7, scalex=False, scaley=False, **where)


def _spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Sorted fractions moved at least `gap` apart, upwards first and down again from the top."""
    out = wanted.astype(float)
    for index in range(1, len(out)):
        out[index] = max(out[index], out[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(out))):
        out[index] = min(out[index], ceiling)
        ceiling = out[index] - gap
    return out


def sigma_history(history: Series, caption: str, label: str = "decoder's mean sigma'") -> Figure:
    """A positive quantity over epochs; the y axis is logarithmic when it spans more than a decade."""
    epochs, values = as_series("history", history)
    figure, (axis,) = chart(820, 440, caption)
    title = f"{label[:1].upper()}{label[1:]} over training"
    dress(axis, title, "epoch", label, _endings(epochs, values))
    _curve(axis, epochs, values, color=BLUE)
    if values.min() > 0 and values.max() > 10 * values.min():
        log_y(axis, few=values.max() < 1000 * values.min())
    return settled(figure)


def log_y(axis: Axes, few: bool) -> None:
    """A logarithmic y axis in plain text: the usual 10^k goes through a parser that threads would share."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def rate_distortion(rate: Array, distortion: Array, epochs: Array, caption: str) -> Figure:
    """Training in the plane of Alemi et al. (2018), nats per image; rate + distortion = -ELBO."""
    r = as_vector("rate", rate)
    d, when = as_vector("distortion", distortion, len(r)), as_vector("epochs", epochs, len(r))
    figure, (axis,) = chart(900, 640, caption)
    x, y = "rate KL (nats per image)", "distortion -E[log p(x|z)] (nats per image)"
    dress(axis, "Rate and distortion", x, y, "grey lines: equal -ELBO = rate + distortion, in nats", grid="")
    axis.set(xlim=_padded(r), ylim=_padded(d))
    _diagonals(axis)
    axis.plot(r, d, color=MUTED, linewidth=1, zorder=3)
    norm = Normalize(when.min(), max(when.max(), when.min() + 1))
    dots = axis.scatter(r, d, c=when, cmap="viridis", norm=norm, s=22, zorder=4)
    end = f"epoch {when[-1]:g}: rate {r[-1]:.4g} + distortion {d[-1]:.4g} = {r[-1] + d[-1]:.4g} nats"
    axis.plot(r[-1:], d[-1:], "*", markersize=15, color=RED, markeredgecolor="white", zorder=5, label=end)
    add_colour_bar(figure, dots, [axis], "epoch", ticks=MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    add_legend(axis, loc="best")
    return settled(figure)


def _padded(values: np.ndarray) -> tuple[float, float]:
    pad = 0.1 * np.ptp(values) or 0.05 * abs(values[0]) or 1.0
    return values.min() - pad, values.max() + pad


def _diagonals(axis: Axes) -> None:
    """Lines x + y = constant at round constants, each named where it leaves the axes."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    levels = [c for c in MaxNLocator(9).tick_values(left + bottom, right + top) if left + bottom < c < right + top]
    lines = [[(left, level - left), (right, level - right)] for level in levels]
    axis.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.9, zorder=1), autolim=False)
    for level in levels:
        x = min(right, level - bottom)
        if x - left < 0.1 * (right - left) or level - x > top - 0.05 * (top - bottom):
            continue  # a corner has no room for the number
        axis.annotate(
            f"{level:g}",
            (x, level - x),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=MUTED,
        )


PLANE = ["posterior mean of z0", "posterior mean of z1"]


def latents(mu: Array, labels: Array, caption: str, class_names: Names | None = None, axes_names: Names = ()) -> Figure:
    """Latent means (N, D), one colour a class (figure 6 of the report).

    D = 1 is shown as a histogram per class, D = 2 as it is, more as the plane of its first two principal
    components, with the share of the variance that each keeps. `axes_names` are those of D = 2.
    """
    points = as_finite("mu", mu)
    if points.ndim != 2:
        raise ValueError(f"mu: shape {points.shape}, expected (N, D)")
    classes, names = as_classes(labels, len(points), class_names)
    if points.shape[1] == 1:
        return _ridges(points[:, 0], classes, names, caption)
    plane, found = (points, PLANE) if points.shape[1] == 2 else _pca(points)
    return _plane(plane, axes_names or found, classes, names, caption)


def _pca(points: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The first two principal components (N, 2) of (N, D) and their names, with % of variance."""
    from sklearn.decomposition import PCA

    if len(points) < 2:
        raise ValueError("mu: 1 image, a principal component needs at least 2")
    if not np.ptp(points, axis=0).any():  # collapsed to a point: no direction, and the ratio would be 0 / 0
        return points[:, :2] * 0, [f"principal component {k} (no variance)" for k in (1, 2)]
    pca = PCA(n_components=2, svd_solver="full").fit(points)
    shares = 100 * pca.explained_variance_ratio_
    names = [f"principal component {k} ({share:.1f} % of variance)" for k, share in enumerate(shares, start=1)]
    return pca.transform(points), names


def _plane(points: np.ndarray, axes_names: Names, classes: np.ndarray, names: Names, caption: str) -> Figure:
    figure, (axis,) = chart(900, 800, caption)
    title = "Latent means by class" if len(names) > 1 else "Latent means"
    dress(axis, title, axes_names[0], axes_names[1], f"{len(points):,} images")
    colours = class_colours(len(names))
    # One call in the order given: a call per class would bury the first classes under the last.
    size, alpha = float(np.clip(24_000 / len(points), 5, 30)), 0.9 if len(points) < 500 else 0.6
    axis.scatter(points[:, 0], points[:, 1], c=colours[classes], s=size, alpha=alpha, linewidths=0)
    axis.set_aspect("equal", adjustable="datalim")
    present = np.unique(classes)
    if all(len(names[k]) <= 3 for k in present):
        _name_medians(axis, {names[k]: np.median(points[classes == k], axis=0) for k in present}, np.ptp(points))
    if len(names) == 1:
        return settled(figure)
    dots = [Line2D([], [], marker="o", linestyle="", markersize=6, color=colours[k]) for k in present]
    text = {"fontsize": 9, "title": "class", "title_fontsize": 9, "labelcolor": INK, "frameon": False}
    figure.legend(dots, [names[k] for k in present], loc="outside right upper", ncols=1 + len(dots) // 31, **text)
    return settled(figure)


def _name_medians(axis: Axes, medians: Mapping[str, np.ndarray], span: float) -> None:
    """Short class names on the plane, for eyes that cannot tell the colours; those that would touch are moved apart."""
    places = _apart(np.array(list(medians.values())), 0.045 * span)
    for name, (x, y) in zip(medians, places, strict=True):
        text = axis.text(x, y, name, fontsize=11, fontweight="bold", color=INK, ha="center", va="center")
        text.set(path_effects=HALO, zorder=5, parse_math=False)


def _apart(points: np.ndarray, gap: float) -> np.ndarray:
    """Points (n, 2), each pair moved until it is `gap` apart, or as far as 200 rounds bring it."""
    out = points + 1e-6 * gap * np.arange(len(points))[:, None]  # two at one place need a direction
    for _ in range(200):
        away = out[:, None] - out  # (n, n, 2)
        distance = np.linalg.norm(away, axis=-1)
        short = np.where(np.eye(len(out), dtype=bool), 0, (gap - distance).clip(0))
        if not short.any():
            break
        out = out + 0.5 * (away * (short / distance.clip(1e-12))[..., None]).sum(axis=1)
    return out


def _ridges(values: np.ndarray, classes: np.ndarray, names: Names, caption: str) -> Figure:
    """A histogram per class, one above the other, each scaled to its own peak."""
    present, colours = np.unique(classes), class_colours(len(names))
    figure, (axis,) = chart(900, 160 + 56 * len(present), caption)
    dress(axis, "Latent means by class", "posterior mean of z0", "class", note=f"{len(values):,} images", grid="x")
    low, high = _padded(values)
    edges = np.linspace(low, high, 81)
    for row, k in enumerate(reversed(present)):
        counts = np.histogram(values[classes == k], edges)[0]
        heights = row + 0.88 * counts / counts.max()
        axis.stairs(heights, edges, baseline=row, fill=True, color=(*colours[k], 0.55), zorder=2)
        axis.stairs(heights, edges, baseline=row, color=colours[k], linewidth=1.2, zorder=3, label=names[k])
    axis.set_yticks(range(len(present)), [names[k] for k in reversed(present)], parse_math=False)
    axis.tick_params(axis="y", length=0)
    axis.set(xlim=(low, high), ylim=(-0.05, len(present)))
    return settled(figure)


def kl_per_latent(kl: Array, caption: str, active: Array | None = None) -> Figure:
    """KL of each latent (D,) in nats per image, largest first; `active` (D,) colours the units in use."""
    nats = as_vector("kl", kl)
    on = np.ones(len(nats), bool) if active is None else as_vector("active", active, len(nats)).astype(bool)
    order = np.argsort(-nats, kind="stable")
    named = len(nats) <= 40
    figure, (axis,) = chart(900, 440, caption)
    x = "latent, largest KL first" if named else "latents, largest KL first"
    dress(axis, f"KL per latent: {nats.sum():.4g} nats in total", x, "KL (nats per image)", grid="y")
    bars = axis.bar(range(len(nats)), nats[order], width=0.75 if named else 1, zorder=3, clip_on=False)
    for bar, k in zip(bars, order, strict=True):
        bar.set(color=BLUE if on[k] else IDLE, linewidth=1.5)  # the edge keeps a bar of no height in sight
    middle, half = (len(nats) - 1) / 2, max(len(nats), 4) / 2 + 0.2
    axis.set_xlim(middle - half, middle + half)
    if named:
        axis.set_xticks(range(len(nats)), [f"z{k}" for k in order])
    if active is not None:
        groups = (BLUE, f"active: {on.sum()} of {len(nats)}"), (IDLE, f"inactive: {(~on).sum()}")
        add_legend(axis, handles=[Patch(color=colour, label=label) for colour, label in groups], loc="upper right")
    return settled(figure)


def sigma_image(sigma: Array, caption: str) -> Figure:
    """The decoder's standard deviation per pixel (C, H, W), or one for all."""
    array = as_finite("sigma", sigma)
    if array.size > 1 and array.ndim != 3:
        raise ValueError(f"sigma: shape {array.shape}, expected (C, H, W) or a scalar")
    if array.min() < 0:
        raise ValueError(f"sigma: {array.min():g}, a standard deviation is at least 0")
    return heat_map(array.reshape(1, 1, 1) if array.size == 1 else array, "sigma", caption)


def error_map(error: Array, caption: str) -> Figure:
    """The mean squared error of a reconstruction per pixel (C, H, W)."""
    array = as_finite("error", error)
    return heat_map(array, "squared error", caption, f"squared error: {array.sum():.4g} an image")


def heat_map(array: np.ndarray, name: str, caption: str, title: str = "") -> Figure:
    """A quantity per pixel (C, H, W), one panel a channel."""
    shared = array.size == 1
    side = 160 if shared else 400 if len(array) == 1 else 310
    figure, axes = chart(150 + side * len(array), side + 70, caption, columns=len(array), compress=True)
    low, high = array.min(), array.max()
    norm = Normalize(low, high) if low < high else Normalize(0, 2 * high or 1)
    titles = ["red", "green", "blue"] if len(array) == 3 else [f"channel {k}" for k in range(len(array))]
    if len(array) == 1:
        titles = [title or (f"{name} = {low:.4g}" if shared else f"{name}: {low:.3g} to {high:.3g}")]
    for axis, channel, title in zip(axes, array, titles, strict=True):
        heat = axis.imshow(channel, cmap="viridis", norm=norm, interpolation="none")
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    add_colour_bar(figure, heat, axes, name)
    return settled(figure)


def residuals(r: Array, caption: str) -> Figure:
    """Density of standardised residuals (any shape) against N(0, 1), which they follow if sigma is right.

    The density is of all values, also of those outside the axes; its axis is logarithmic when its peak would
    flatten the curve.
    """
    values = as_finite("r", r).ravel()
    size = np.abs(values)
    reach = max(5.0, float(np.quantile(size, 0.999)))
    edges = np.linspace(-reach, reach, 102)  # an odd number of bins: one is centred on 0
    density = np.histogram(values, edges)[0] / (len(values) * (edges[1] - edges[0]))
    figure, (axis,) = chart(900, 520, caption)
    dress(axis, "Standardised residuals", "residual / sigma", "density", f"{len(values):,} values")
    beyond = 100 * (size > 3).mean()
    text = f"mean {round(values.mean(), 3) + 0.0:.3f}, sd {values.std():.3f}, beyond \u00b13: {beyond:.2f} %"
    axis.stairs(density, edges, fill=True, color=BLUE, alpha=0.45, label=f"residuals: {text}")
    at = np.linspace(-reach, reach, 401)
    normal = np.exp(-(at**2) / 2) / np.sqrt(2 * np.pi)
    axis.plot(at, normal, color=RED, linewidth=1.8, label="N(0, 1): mean 0, sd 1, beyond \u00b13: 0.27 %")
    peak = max(density.max(), normal.max())
    axis.set(xlim=(-reach, reach), ylim=(0, 1.3 * peak))  # room above for the legend
    if peak > 2:
        log_y(axis, few=False)
        axis.set_ylim(1e-5, 100 * peak)
    add_legend(axis, loc="upper right")
    return settled(figure)


def class_histogram(counts: Array, caption: str, class_names: Names | None = None) -> Figure:
    """How many samples a classifier puts in each class (n_classes,), against equal shares."""
    found = as_vector("counts", counts)
    if found.min() < 0 or found.sum() == 0:
        raise ValueError(f"counts: least {found.min():g}, sum {found.sum():g}; expected counts of at least one sample")
    if class_names is not None and len(class_names) != len(found):
        raise ValueError(f"class_names: {len(class_names)} names for {len(found)} counts")
    names = [str(k) for k in range(len(found))] if class_names is None else list(class_names)
    total = found.sum()
    equal = total / len(found)
    figure, (axis,) = chart(900, 460, caption)
    dress(axis, f"Predicted classes of {total:,.0f} samples", "class", "samples", grid="y")
    bars = axis.bar(range(len(found)), found, color=class_colours(len(found)), width=0.8, zorder=2)
    if len(found) <= 20:
        shares = [f"{100 * value / total:.1f} %" for value in found]
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.bar_label(bars, shares, fontsize=8.5, color=INK, padding=3, bbox=paper, zorder=4)
    axis.axhline(equal, color=INK, linestyle="--", linewidth=1.2, zorder=3, label="equal shares")
    band = 2 * np.sqrt(equal * (1 - 1 / len(found)))
    axis.axhspan(equal - band, equal + band, color=INK, alpha=0.08, linewidth=0, label="\u00b1 2 sd by chance")
    axis.set_xticks(range(len(found)), names, parse_math=False)
    axis.set_ylim(0, 1.22 * max(found.max(), equal))
    add_legend(axis, loc="upper right", ncols=2)
    return settled(figure)


def aggregate_posterior(drawn: Array, prior: Array, names: Names, caption: str) -> Figure:
    """Draws of the aggregate posterior (N, d) beside the prior's (M, d): each latent's marginal, and its QQ plot."""
    q, p = as_finite("drawn", drawn), as_finite("prior", prior)
    if q.ndim != 2 or p.ndim != 2 or not q.shape[1] == p.shape[1] == len(names):
        raise ValueError(f"drawn {q.shape} and prior {p.shape}: expected (N, {len(names)}) and (M, {len(names)})")
    count = len(names)
    figure, axes = chart(max(300 * count, 420), 600, caption, columns=count, rows=2)
    levels = (np.arange(1, 200) - 0.5) / 199
    for k, (above, below) in enumerate(zip(axes[:count], axes[count:], strict=True)):
        low, high = np.quantile(np.concatenate([q[:, k], p[:, k]]), [0.0005, 0.9995])
        edges = np.linspace(low, high + 1e-9, 61)
        density = [np.histogram(values[:, k], edges)[0] / (len(values) * (edges[1] - edges[0])) for values in (q, p)]
        above.stairs(density[0], edges, color=BLUE, label="aggregate posterior", fill=True, alpha=0.45)
        above.stairs(density[1], edges, color=RED, label="prior", linewidth=1.6)
        moments = f"posterior: mean {q[:, k].mean():.2f}, sd {q[:, k].std():.2f}".replace("-0.00", "0.00")
        dress(above, names[k], f"{names[k]}", "density" if k == 0 else "", moments, grid="x")
        x, y = np.quantile(p[:, k], levels), np.quantile(q[:, k], levels)
        below.plot(x, x, color=RED, linewidth=1.2)
        below.plot(x, y, ".", color=BLUE, markersize=3)
        dress(below, "", "prior's quantile", "posterior's quantile" if k == 0 else "")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8.5, labelcolor=INK, frameon=False)
    return settled(figure)


def true_posteriors(
    panels: Sequence[Mapping[str, np.ndarray]], gaps: Sequence[str], caption: str, latents: Names
) -> Figure:
    """The true posterior of single images beside q, one panel an image; one or two latents.

    A panel holds `z`, the grid's coordinates for each latent [(n,), ...], and on the grid the densities `truth`,
    `q` and `best` (n,) or (n, n), the last index the last latent's; `gaps` says each image's numbers.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = chart(450 * columns, 410 * rows, caption, columns=columns, rows=rows)
    for number, (axis, panel, text) in enumerate(zip(axes, panels, gaps, strict=False)):
        if len(latents) == 1:
            _densities(axis, panel)
        else:
            _regions(axis, panel)
        dress(axis, f"image {number}", latents[0], "density" if len(latents) == 1 else latents[1], text)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles = [Line2D([], [], label=label, **style) for label, style in TRUTHS.values()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8.5, labelcolor=INK, frameon=False)
    return settled(figure)


TRUTHS: dict[str, tuple[str, dict[str, Any]]] = {
    "truth": ("true posterior p(z|x)", {"color": INK, "linewidth": 1.8}),
    "q": ("the encoder's q(z|x)", {"color": BLUE, "linewidth": 1.6, "linestyle": "--"}),
    "best": ("the best diagonal Gaussian", {"color": RED, "linewidth": 1.2, "linestyle": "-."}),
}


def _densities(axis: Axes, panel: Mapping[str, Any]) -> None:
    for name, (_, style) in TRUTHS.items():
        if name in panel:
            axis.plot(panel["z"][0], panel[name], **style)


def _regions(axis: Axes, panel: Mapping[str, Any]) -> None:
    """The smallest regions that hold 50 % and 95 % of each density."""
    x, y = panel["z"]
    held = np.zeros((len(x), len(y)), dtype=bool)
    for name, (_, style) in TRUTHS.items():
        if name in panel:
            density = np.asarray(panel[name])
            held |= density >= _levels(density)[0]
            axis.contour(
                x, y, density.T, levels=_levels(density), colors=style["color"], linewidths=style["linewidth"],
                linestyles=style.get("linestyle", "-"),
            )  # fmt: skip
    for values, inside, limit in ((x, held.any(1), axis.set_xlim), (y, held.any(0), axis.set_ylim)):
        low, high = values[inside].min(), values[inside].max()
        pad = 0.25 * (high - low) + values[1] - values[0]
        limit(low - pad, high + pad)


def _levels(density: np.ndarray) -> list[float]:
    ordered = np.sort(density, axis=None)[::-1]
    held = ordered.cumsum() / ordered.sum()
    levels = sorted(float(ordered[min(int(np.searchsorted(held, share)), len(held) - 1)]) for share in (0.5, 0.95))
    return levels if levels[0] < levels[1] else [levels[0]]
