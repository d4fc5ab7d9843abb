"""The one table of colours, of figures, charts, the explorer and Optuna's pictures: on white paper and on dark."""

LIGHT = {"paper": "#ffffff", "ink": "#222222", "muted": "#666666", "faint": "#dddddd"}
DARK = {"paper": "#16181a", "ink": "#ececec", "muted": "#b4b4b4", "faint": "#45484c"}

# What a curve or a bar stands for.
LIGHT |= {"train": "#c8372d", "dev": "#2a6fbb", "idle": "#b4b4b4"}
DARK |= {"train": "#ff8a7a", "dev": "#6db3f2", "idle": "#6a6d70"}

# Of the classes and of lines without another meaning. No grey, and no two closer than 29 in CIELAB, also to eyes that
# lack one of the three cones (Machado et al. 2009); matplotlib's tab10 comes down to 5. In this order digits that are
# often confused, 4, 7, 9 and 3, 5, 8, differ most. Dark paper takes the same hues, lighter where they are too dark.
CLASSES = (
    "#882277", "#99cc77", "#ff5599", "#33ddee", "#2200ff", "#ee0000", "#bb88ff", "#aa0033", "#7722bb", "#ffbb00",
)  # fmt: skip
