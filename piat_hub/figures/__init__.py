"""Figures from runs' own records, and from their weights."""

NAMES = (
    "epochs",
    "interpolation",
    "lambda",
    "mu",
    "gaps",
    "scatter",
    "union",
    "corruptions",
    "landscape",
    "images",
)  # all that `piat figures` draws
