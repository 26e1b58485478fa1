"""The tiny model as `ic-jax convert` would have written it, for tests of the command line."""

import jax
from flax.traverse_util import flatten_dict
from tiny_model import TINY, random_like, tiny_weights

from ic_jax import text
from ic_jax.model_folder import new_model_folder, write_component, write_manifest

NAME = "Tiny"


def write_tiny(path):
    """Its variant has to be put among the others under `NAME`."""
    weights = tiny_weights()
    parts = {"vae": weights.vae, "dit": weights.dit}
    parts["umt5"] = random_like(text.expected_shapes(TINY))
    with new_model_folder(path) as folder:
        components = {}
        for name, tree in parts.items():
            flat = flatten_dict(jax.device_get(tree), sep="/")
            components[name] = {"tensors": write_component(folder / name, flat, flat.items())}
        manifest = {"variant": NAME, "components": components, "loras": [], "calibration": {}}
        write_manifest(folder, manifest | {"versions": {"jax": "0"}})
    return path
