"""Calls for a process of their own, in a module that loads neither JAX nor torch."""

import sys

import numpy as np


def allocation(mebibytes):
    """A call that fills so much memory once."""
    return lambda: np.ones(mebibytes << 17).sum()


def loaded(*libraries):
    """A call that fills 64 MiB for each of the libraries that it finds loaded."""
    return allocation(64 * sum(library in sys.modules for library in libraries))
