"""The one table of colours, of figures, charts, the explorer and Optuna's pictures: on white paper and on dark.

Those of the classes are also those of lines without another meaning. None is a grey, and no two are closer than 28 in
CIELAB, also to eyes that lack one of the three cones (Machado et al. 2009); matplotlib's tab10 comes down to 5. In this
order digits that are often confused, 4, 7, 9 and 3, 5, 8, differ most. On dark paper a class keeps its hue.
"""

CLASSES = (
    "#882277", "#99cc77", "#ff5599", "#33ddee", "#2200ff", "#ee0000", "#bb88ff", "#aa0033", "#7722bb", "#ffbb00",
)  # fmt: skip
CLASSES_ON_DARK = (
    "#9f418c", "#98da72", "#ff75a4", "#1df2f4", "#7132fb", "#ee0000", "#bb96f7", "#cd264f", "#8a41c5", "#ffdb07",
)  # fmt: skip

LIGHT = {
    "paper": "#ffffff", "ink": "#222222", "muted": "#5f5f5f", "faint": "#dddddd",
    "train": "#c8372d", "dev": "#2a6fbb", "idle": "#b4b4b4",
    **{f"class-{k}": colour for k, colour in enumerate(CLASSES)},
}  # fmt: skip
DARK = {
    "paper": "#16181a", "ink": "#ececec", "muted": "#b4b4b4", "faint": "#45484c",
    "train": "#ff8a7a", "dev": "#6db3f2", "idle": "#6a6d70",
    **{f"class-{k}": colour for k, colour in enumerate(CLASSES_ON_DARK)},
}  # fmt: skip
