"""Figures as results files keep them."""

import numpy as np


def rounded(value):
    """The same dicts, lists and figures, floats to four decimals; None where one is not finite.

    JSON has no nan: a scene without a figure has none.
    """
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 4) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
