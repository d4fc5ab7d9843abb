"""Figures made of curves, points and bars: arrays or CPU tensors go in, a `matplotlib.figure.Figure` comes out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from vae.evaluation.figures.page import (
    DEV,
    FAINT,
    IDLE,
    INK,
    MUTED,
    SMALL,
    TRAIN,
    Array,
    Names,
    add_colour_bar,
    as_array,
    chart,
    class_colours,
    drawn,
    dress,
    lay_out,
    signed,
)

Series = Sequence[tuple[int, float]]  # (epoch, value)

PANELS = {"loss": "(a) Loss", "reconstruction": "(b) Reconstruction", "kl": "(c) KL"}

CURVES: dict[str, tuple[str, dict[str, Any]]] = {  # split -> label and style; the same in every panel
    "train": ("train (running average)", {"color": TRAIN}),
    "train_eval": ("train (re-evaluated after the epoch)", {"color": TRAIN, "linestyle": "--", "linewidth": 1.3}),
    "dev": ("dev", {"color": DEV, "zorder": 4}),
}

LINE = 0.065  # height of a line of small text, as a fraction of the axes of `losses`


@drawn
def losses(
    history: Mapping[str, Series], caption: str, baselines: Mapping[str, float] | None = None, units: Names = ("", "")
) -> Figure:
    """The loss and its two terms over epochs, train and dev in one panel (figure 5 of the report, both halves).

    `history` holds `train/loss`, `dev/loss`, and what there is of `train_eval/loss` (the same model with dropout off
    on training images, with which dev compares), `<split>/reconstruction` and `<split>/kl`; `units` are those of the
    loss and of the reconstruction. `baselines` leave a reconstruction only, so they are lines in (b); those that would
    leave the curve less than a third of the panel are only named, with an arrow to their side.
    """
    panels = {name: title for name, title in PANELS.items() if history.get(f"dev/{name}")}
    figure, axes = chart(100 + 440 * len(panels), 480, caption, columns=len(panels))
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        keys = {split: f"{split}/{name}" for split in CURVES if history.get(f"{split}/{name}")}
        curves = {split: as_array(f"history[{key!r}]", history[key], 2).T for split, key in keys.items()}
        levels = baselines if baselines and name == "reconstruction" else {}
        axis.set_ylim(*_limits([values for _, values in curves.values()], levels))
        for split, (epochs, values) in curves.items():
            label, style = CURVES[split]
            _curve(axis, epochs, values, label=label, **style)
            _mark_off_scale(axis, epochs, values, style["color"])
        _draw_baselines(axis, levels)
        unit = "nats" if name == "kl" else units[name == "reconstruction"]
        epochs, values = curves["dev"]
        note = f"dev {_endings(epochs, values, best=name != 'kl')}\n{_first_off_scale(axis, curves)}"
        dress(axis, title, "epoch", f"{unit} per image".strip(), note)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    return figure


def _curve(axis: Axes, epochs: np.ndarray, values: np.ndarray, **settings: Any) -> None:
    """A line over epochs; few points are shown as such, and one alone gets room on both sides."""
    axis.plot(epochs, values, marker="o" if len(epochs) <= 20 else None, **settings)
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


def _limits(curves: Sequence[np.ndarray], baselines: Mapping[str, float]) -> tuple[float, float]:
    """Limits that the first tenth of the epochs does not stretch, nor baselines to more than thrice the curves."""
    late = np.concatenate([values[max(1, len(values) // 10) if len(values) > 2 else 0 :] for values in curves])
    low, high, span = late.min(), late.max(), np.ptp(late)
    if baselines:
        as_array("baselines", list(baselines.values()))
    for value in sorted(baselines.values(), key=lambda v: max(low - v, v - high)):
        wider = min(low, value), max(high, value)
        if len(curves[0]) > 1 and 0 < 3 * span < wider[1] - wider[0]:
            break
        low, high = wider
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _mark_off_scale(axis: Axes, epochs: np.ndarray, values: np.ndarray, colour: str) -> None:
    """Carets at the edge that a curve leaves."""
    low, high = axis.get_ylim()
    for beyond, edge, marker in ((values > high, high, "^"), (values < low, low, "v")):
        if beyond.any():
            axis.plot(epochs[beyond], np.full(beyond.sum(), edge), marker, color=colour, clip_on=False, zorder=5)


def _first_off_scale(axis: Axes, curves: Mapping[str, np.ndarray]) -> str:
    low, high = axis.get_ylim()
    split = max(curves, key=lambda name: max(low - curves[name][1][0], curves[name][1][0] - high))
    first = curves[split][1][0]
    return " " if low <= first <= high else f"first epoch off scale: {split} {first:.4g}"


def _draw_baselines(axis: Axes, baselines: Mapping[str, float]) -> None:
    """Dotted lines at the values, named at the right; names that would collide stand together."""
    low, high = axis.get_ylim()
    names: list[tuple[float, list[str]]] = []  # the height of the topmost, and the lines from there downwards
    for name, value in sorted(baselines.items(), key=lambda item: -item[1]):
        at = (value - low) / (high - low)
        if 0 <= at <= 1:
            axis.axhline(value, color=MUTED, linewidth=1, linestyle=":", zorder=2)
        arrow = "\u2191 " if at > 1 else "\u2193 " if at < 0 else ""
        text = f"{arrow}{name}: {value:.4g}"
        height = float(np.clip(at, 0, 1))
        if names and names[-1][0] - LINE * len(names[-1][1]) < height:
            names[-1][1].append(text)
        else:
            names.append((height, [text]))
    for height, lines in names:
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "xytext": (6, 0)}
        axis.annotate("\n".join(lines), (1, height + LINE / 2), va="top", font=SMALL, color=MUTED, **place)


@drawn
def sigma_history(history: Series, caption: str, label: str = "decoder's mean sigma'") -> Figure:
    """A positive quantity over epochs; the y axis is logarithmic when it spans more than a decade."""
    epochs, values = as_array("history", history, 2).T
    figure, (axis,) = chart(820, 440, caption)
    title = f"{label[:1].upper()}{label[1:]} over training"
    dress(axis, title, "epoch", label, _endings(epochs, values))
    _curve(axis, epochs, values, color=DEV)
    if values.min() > 0 and values.max() > 10 * values.min():
        _log_y(axis, few=values.max() < 1000 * values.min())
    return figure


def _log_y(axis: Axes, few: bool) -> None:
    """A logarithmic y axis in plain text."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


@drawn
def rate_distortion(rate: Array, distortion: Array, epochs: Array, caption: str) -> Figure:
    """Training in the plane of Alemi et al. (2018), nats per image; rate + distortion = -ELBO."""
    r, d, when = as_array("rate", rate, 1), as_array("distortion", distortion, 1), as_array("epochs", epochs, 1)
    figure, (axis,) = chart(900, 640, caption)
    x, y = "rate KL (nats per image)", "distortion \u2212E[log p(x|z)] (nats per image)"
    dress(axis, "Rate and distortion", x, y, "grey lines: equal \u2212ELBO = rate + distortion, in nats", grid="")
    axis.set(xlim=_padded(r), ylim=_padded(d))
    across, up = np.linspace(*axis.get_xlim(), 40), np.linspace(*axis.get_ylim(), 40)
    sums = across + up[:, None]
    levels = MaxNLocator(9).tick_values(sums.min(), sums.max())
    lines = axis.contour(across, up, sums, levels, colors=FAINT, linewidths=0.9, zorder=1)
    axis.clabel(lines, fmt="%g", fontsize=7.5, colors=MUTED)
    axis.plot(r, d, color=MUTED, linewidth=1, zorder=3)
    norm = Normalize(when.min(), max(when.max(), when.min() + 1))
    dots = axis.scatter(r, d, c=when, cmap="viridis", norm=norm, s=22, zorder=4)
    end = f"epoch {when[-1]:g}: rate {r[-1]:.4g} + distortion {d[-1]:.4g} = {r[-1] + d[-1]:.4g} nats"
    axis.plot(r[-1:], d[-1:], "*", markersize=15, color=TRAIN, markeredgecolor="white", zorder=5, label=end)
    add_colour_bar(figure, dots, [axis], "epoch", ticks=MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.legend(loc="best")
    return figure


def _padded(values: np.ndarray) -> tuple[float, float]:
    pad = 0.1 * np.ptp(values) or 0.05 * abs(values[0]) or 1.0
    return values.min() - pad, values.max() + pad


@drawn
def latents(mu: Array, labels: Array, caption: str, class_names: Names, axes_names: Names = ()) -> Figure:
    """Latent means (N, D), one colour a class (figure 6 of the report).

    D = 1 is shown as a histogram per class, D = 2 as it is, more as the plane of its first two principal
    components, with the share of the variance that each keeps. `axes_names` are those of D = 2.
    """
    points, classes = as_array("mu", mu, 2), as_array("labels", labels, 1).astype(int)
    if points.shape[1] == 1:
        return _ridges(points[:, 0], classes, class_names, caption)
    plane = (points, ["posterior mean of z0", "posterior mean of z1"]) if points.shape[1] == 2 else _pca(points)
    return _plane(plane[0], axes_names or plane[1], classes, class_names, caption)


def _pca(points: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The first two principal components (N, 2) of (N, D) and their names, with % of variance."""
    centred = points - points.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    if len(points) < 2 or not sizes.any():  # no direction, and the ratio would be 0 / 0
        return points[:, :2] * 0, [f"principal component {k} (no variance)" for k in (1, 2)]
    shares = 100 * sizes**2 / (sizes**2).sum()
    names = [f"principal component {k} ({share:.1f} % of variance)" for k, share in enumerate(shares[:2], start=1)]
    return centred @ axes[:2].T, names


def _plane(points: np.ndarray, axes_names: Names, classes: np.ndarray, names: Names, caption: str) -> Figure:
    figure, (axis,) = chart(900, 800, caption)
    title = "Latent means by class" if len(names) > 1 else "Latent means"
    dress(axis, title, axes_names[0], axes_names[1], f"{len(points):,} images")
    colours, present = class_colours(len(names)), np.unique(classes)
    # One call in the order given: a call per class would bury the first classes under the last.
    size, alpha = float(np.clip(24_000 / len(points), 5, 30)), 0.9 if len(points) < 500 else 0.6
    axis.scatter(points[:, 0], points[:, 1], c=colours[classes], s=size, alpha=alpha, linewidths=0)
    axis.set_aspect("equal", adjustable="datalim")
    if len(names) == 1:
        return figure
    dots = [Line2D([], [], marker="o", linestyle="", markersize=6, color=colours[k]) for k in present]
    columns, text = 1 + len(dots) // 31, {"title": "class", "frameon": False}
    figure.legend(dots, [names[k] for k in present], loc="outside right upper", ncols=columns, **text)
    if len(present) <= 20:  # names on the plane too, for eyes that cannot tell the colours
        lay_out(figure)
        medians = {names[k]: np.median(points[classes == k], axis=0) for k in present}
        halo = [withStroke(linewidth=3, foreground="white")]
        style: dict[str, Any] = {"fontsize": 11, "fontweight": "bold", "path_effects": halo, "zorder": 5}
        texts = [axis.text(x, y, name, ha="center", va="center", **style) for name, (x, y) in medians.items()]
        adjust_text(texts, ax=axis, avoid_self=False, expand=(1.1, 1.1), iter_lim=200)
    return figure


def _ridges(values: np.ndarray, classes: np.ndarray, names: Names, caption: str) -> Figure:
    """A histogram per class, one above the other, each scaled to its own peak."""
    present, colours = np.unique(classes), class_colours(len(names))
    figure, (axis,) = chart(900, 160 + 56 * len(present), caption)
    dress(axis, "Latent means by class", "posterior mean of z0", "class", note=f"{len(values):,} images", grid="x")
    low, high = _padded(values)
    edges = np.linspace(low, high, 1 + bins_for(len(values) // len(present)))
    for row, k in enumerate(reversed(present)):
        counts = np.histogram(values[classes == k], edges)[0]
        heights = row + 0.88 * counts / counts.max()
        axis.stairs(heights, edges, baseline=row, fill=True, color=(*colours[k], 0.55), zorder=2)
        axis.stairs(heights, edges, baseline=row, color=colours[k], linewidth=1.2, zorder=3)
    axis.set_yticks(range(len(present)), [names[k] for k in reversed(present)])
    axis.tick_params(axis="y", length=0)
    axis.set(xlim=(low, high), ylim=(-0.05, len(present)))
    return figure


def bins_for(count: int) -> int:
    """Bins of a histogram of so many values by Rice's rule, 2 n^(1/3), an odd number from 9 to 101."""
    return int(np.clip(2 * round(count ** (1 / 3)) + 1, 9, 101))


@drawn
def kl_per_latent(kl: Array, caption: str, active: Array) -> Figure:
    """KL of each latent (D,) in nats per image, largest first; `active` (D,) colours the units in use."""
    nats, on = as_array("kl", kl, 1), as_array("active", active, 1).astype(bool)
    order = np.argsort(-nats, kind="stable")
    named = len(nats) <= 40
    figure, (axis,) = chart(900, 440, caption)
    x = "latent, largest KL first" if named else "latents, largest KL first"
    dress(axis, f"KL per latent: {nats.sum():.4g} nats in total", x, "KL (nats per image)", grid="y")
    colours = [DEV if on[k] else IDLE for k in order]  # the edge keeps a bar of no height in sight
    axis.bar(
        range(len(nats)), nats[order], color=colours, edgecolor=colours, linewidth=1.5, width=0.75 if named else 1,
        zorder=3, clip_on=False,
    )  # fmt: skip
    middle, half = (len(nats) - 1) / 2, max(len(nats), 4) / 2 + 0.2
    axis.set_xlim(middle - half, middle + half)
    if named:
        axis.set_xticks(range(len(nats)), [f"z{k}" for k in order])
    groups = (DEV, f"active: {on.sum()} of {len(nats)}"), (IDLE, f"inactive: {(~on).sum()}")
    axis.legend(handles=[Patch(color=colour, label=label) for colour, label in groups], loc="upper right")
    return figure


@drawn
def heat_map(values: Array, name: str, caption: str, title: str = "") -> Figure:
    """A quantity of at least 0 per pixel (C, H, W), one panel per channel, on a scale from 0."""
    array = as_array(name, values, 3)
    if array.min() < 0:
        raise ValueError(f"{name}: {array.min():g}, expected at least 0")
    side = 400 if len(array) == 1 else 310
    figure, axes = chart(150 + side * len(array), side + 70, caption, columns=len(array), compress=True)
    titles = ["red", "green", "blue"] if len(array) == 3 else [f"channel {k}" for k in range(len(array))]
    if len(array) == 1:
        titles = [title or f"{name}: {array.min():.3g} to {array.max():.3g}"]
    for axis, channel, head in zip(axes, array, titles, strict=True):
        # from 0: a scale between the extremes would blow noise up
        heat = axis.imshow(channel, cmap="viridis", vmin=0, vmax=array.max() or 1, interpolation="none")
        axis.set(title=head, xticks=[], yticks=[], frame_on=False)
    add_colour_bar(figure, heat, axes, name)
    return figure


@drawn
def residuals(r: Array, caption: str) -> Figure:
    """Density of standardised residuals (any shape) against N(0, 1), which they follow if sigma is right.

    The density is of all values, also of those outside the axes; its axis is logarithmic when its peak would
    flatten the curve.
    """
    values = as_array("r", r).ravel()
    size = np.abs(values)
    reach = max(5.0, float(np.quantile(size, 0.999)))
    edges = np.linspace(-reach, reach, 1 + bins_for(len(values)))
    density = np.histogram(values, edges)[0] / (len(values) * (edges[1] - edges[0]))
    figure, (axis,) = chart(900, 520, caption)
    dress(axis, "Standardised residuals", "residual / sigma", "density", f"{len(values):,} values")
    beyond = 100 * (size > 3).mean()
    text = f"mean {signed(values.mean(), 3)}, sd {values.std():.3f}, beyond \u00b13: {beyond:.2f} %"
    axis.stairs(density, edges, fill=True, color=DEV, alpha=0.45, label=f"residuals: {text}")
    at = np.linspace(-reach, reach, 401)
    normal = np.exp(-(at**2) / 2) / np.sqrt(2 * np.pi)
    axis.plot(at, normal, color=TRAIN, label="N(0, 1): mean 0, sd 1, beyond \u00b13: 0.27 %")
    peak = max(density.max(), normal.max())
    axis.set(xlim=(-reach, reach), ylim=(0, 1.3 * peak))  # room above for the legend
    if peak > 1.5:
        _log_y(axis, few=False)
        axis.set_ylim(1e-5, 100 * peak)
    axis.legend(loc="upper right")
    return figure


@drawn
def class_histogram(counts: Array, caption: str, class_names: Names) -> Figure:
    """How many samples a classifier puts in each class (n_classes,), against equal shares."""
    array = as_array("counts", counts, 1)
    total, classes = array.sum(), len(array)
    equal = total / classes
    figure, (axis,) = chart(900, 460, caption)
    dress(axis, f"Predicted classes of {total:,.0f} samples", "class", "samples", grid="y")
    bars = axis.bar(range(classes), array, color=class_colours(classes), width=0.8, zorder=2)
    if classes <= 20:
        shares = [f"{100 * value / total:.1f} %" for value in array]
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.bar_label(bars, shares, font=SMALL, padding=3, bbox=paper, zorder=4)
    axis.axhline(equal, color=INK, linestyle="--", linewidth=1.2, zorder=3, label="equal shares")
    band = 2 * np.sqrt(equal * (1 - 1 / classes))
    axis.axhspan(equal - band, equal + band, color=INK, alpha=0.08, linewidth=0, label="\u00b1 2 sd by chance")
    axis.set_xticks(range(classes), class_names)
    if max(map(len, class_names)) * classes > 80:
        axis.tick_params(axis="x", rotation=30)
    axis.set_ylim(0, 1.22 * max(array.max(), equal))
    axis.legend(loc="upper right", ncols=2)
    return figure


@drawn
def aggregate_posterior(draws: Array, prior: Array, names: Names, caption: str) -> Figure:
    """Draws of the aggregate posterior (N, d) beside the prior's (M, d): each latent's marginal, and its QQ plot."""
    q, p = as_array("draws", draws, 2), as_array("prior", prior, 2)
    count = len(names)
    figure, axes = chart(max(300 * count, 420), 600, caption, columns=count, rows=2)
    levels = (np.arange(1, 200) - 0.5) / 199
    for k, (above, below) in enumerate(zip(axes[:count], axes[count:], strict=True)):
        low, high = np.quantile(np.concatenate([q[:, k], p[:, k]]), [0.0005, 0.9995])
        edges = np.linspace(low, high + 1e-9, 1 + bins_for(len(q)))
        density = [np.histogram(values[:, k], edges)[0] / (len(values) * (edges[1] - edges[0])) for values in (q, p)]
        above.stairs(density[0], edges, color=DEV, label="aggregate posterior", fill=True, alpha=0.45)
        above.stairs(density[1], edges, color=TRAIN, label="prior", linewidth=1.6)
        moments = f"mean {signed(q[:, k].mean(), 2)}, sd {q[:, k].std():.2f}"
        dress(above, names[k], names[k], "density" if k == 0 else "", moments, grid="x")
        x, y = np.quantile(p[:, k], levels), np.quantile(q[:, k], levels)
        below.plot(x, x, color=TRAIN, linewidth=1.2)
        below.plot(x, y, ".", color=DEV, markersize=3)
        dress(below, "", "prior's quantile", "posterior's quantile" if k == 0 else "")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return figure


TRUTHS: dict[str, tuple[str, dict[str, Any]]] = {
    "truth": ("true posterior p(z|x)", {"color": INK, "linewidth": 1.8}),
    "q": ("the encoder's q(z|x)", {"color": DEV, "linewidth": 1.6, "linestyle": "--"}),
    "best": ("the best diagonal Gaussian", {"color": TRAIN, "linewidth": 1.2, "linestyle": "-."}),
}


@drawn
def true_posteriors(
    panels: Sequence[Mapping[str, np.ndarray]], gaps: Sequence[str], caption: str, latents: Names
) -> Figure:
    """The true posterior of single images beside q, one panel an image; one or two latents.

    A panel holds the image `x` (C, H, W), `z`, the grid's coordinates for each latent [(n,), ...], and on the grid the
    densities `truth`, `q` and `best` (n,) or (n, n), the last index the last latent's; `gaps` says the numbers of each.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = chart(450 * columns, 430 * rows, caption, columns=columns, rows=rows)
    for number, (axis, panel, text) in enumerate(zip(axes, panels, gaps, strict=False)):
        y = "density" if len(latents) == 1 else latents[1]
        dress(axis, f"image {number}", latents[0], y, text)
        if len(latents) == 1:
            _densities(axis, panel)
        else:
            _regions(axis, panel)
        corner = axis.inset_axes((0.8, 0.8, 0.2, 0.2), xticks=[], yticks=[])
        corner.imshow(np.squeeze(np.moveaxis(panel["x"], 0, -1)), vmin=0, vmax=1, interpolation="none")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles = [Line2D([], [], label=label, **style) for label, style in TRUTHS.values()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    return figure


def _densities(axis: Axes, panel: Mapping[str, Any]) -> None:
    for name, (_, style) in TRUTHS.items():
        if name in panel:
            axis.plot(panel["z"][0], panel[name], **style)


def _regions(axis: Axes, panel: Mapping[str, Any]) -> None:
    """The smallest regions that hold 50 % and 95 % of each density, on equal axes."""
    x, y = panel["z"]
    inside = np.zeros((len(x), len(y)), dtype=bool)
    for name, (_, style) in TRUTHS.items():
        if name in panel:
            density = np.asarray(panel[name])
            levels = _levels(density)
            inside |= density >= levels[0]
            lines = {"colors": style["color"], "linewidths": style["linewidth"]}
            axis.contour(x, y, density.T, levels=levels, linestyles=style.get("linestyle", "-"), **lines)
    ranges = [(z[held].min(), z[held].max()) for z, held in ((x, inside.any(1)), (y, inside.any(0)))]
    half = 0.75 * max(high - low for low, high in ranges) + x[1] - x[0] + y[1] - y[0]
    limits = [((low + high) / 2 - half, (low + high) / 2 + half) for low, high in ranges]
    axis.set(xlim=limits[0], ylim=limits[1], aspect="equal")


def _levels(density: np.ndarray) -> list[float]:
    ordered = np.sort(density, axis=None)[::-1]
    mass = ordered.cumsum() / ordered.sum()
    levels = sorted(float(ordered[min(int(np.searchsorted(mass, share)), len(mass) - 1)]) for share in (0.5, 0.95))
    return levels if levels[0] < levels[1] else [levels[0]]
