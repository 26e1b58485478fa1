"""Which tensors a network's output does not notice: a mistaken mapping could hide in those."""

from collections.abc import Callable

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

# In units of the tensor's own spread; another tensor in its place would differ by more.
SIZE = 0.3
# Unlike other programs of the tests (conftest), what runs once per tensor is worth optimising.
OPTIMISED = {"xla_backend_optimization_level": 1}


def unmoved(run: Callable, params: dict, threshold: float, stacked: str | None = None) -> list[str]:
    """Names of tensors whose change moves the output of `run` by less than `threshold`.

    Leaves below the key `stacked` are changed one slice of their leading axis at a time.
    """
    flat = {key: np.asarray(leaf) for key, leaf in flatten_dict(params, sep="/").items()}
    evaluate = jax.jit(lambda flat: run(unflatten_dict(flat, sep="/")), compiler_options=OPTIMISED)
    on_device = jax.device_put(flat)
    reference = np.asarray(evaluate(on_device))
    rng = np.random.default_rng(0)
    still = []
    for key, leaf in flat.items():
        blocks = range(leaf.shape[0]) if stacked and key.startswith(f"{stacked}/") else [...]
        for block in blocks:
            changed = leaf.copy()
            noise = rng.standard_normal(leaf[block].shape)
            changed[block] += SIZE * leaf[block].std() * noise.astype(leaf.dtype)
            moved = evaluate(on_device | {key: changed})
            if np.abs(np.asarray(moved) - reference).max() < threshold:
                still.append(f"{key}[{block}]")
    return still
