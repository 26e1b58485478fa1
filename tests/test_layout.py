"""Imports point one way: cli -> pipeline -> the parts, and the parts stand side by side."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# All that a part may import of the library, beside itself, its errors and its registry.
PARTS = {
    "geometry": set(),
    "models": set(),
    # A folder of frames is told from what a run has left.
    "video": {"output", "video_colour"},
    "video_colour": set(),
    "latent_mask": set(),
    # The mask is what a consistency rule is about; it arrives from nowhere else.
    "sampling": {"latent_mask"},
    # It places the weights, the blocks' tokens and the answers that steps reuse.
    "parallel": {"model", "models", "sampling"},
}
FOREIGN = {"torch", "tensorflow", "tensorflow_datasets", "optax", "matplotlib"}
OURS_BUT_OUTSIDE = {"convert", "experiments", "tests"}


def imports(source: str, package: tuple[str, ...]) -> set[str]:
    """Absolute dotted names of everything that a module of `package` imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *filter(None, [node.module])))
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(
    "module", [str(p.relative_to(ROOT)) for p in sorted((ROOT / "ic_jax").rglob("*.py"))]
)
def test_imports_point_one_way(module):
    path, parts = ROOT / module, Path(module).with_suffix("").parts
    found = [name.split(".") for name in imports(path.read_text(), parts[:-1])]
    roots = {name[0] for name in found}
    assert not roots & FOREIGN
    # The commands `convert` and `verify` are the one way from the library to the converters.
    assert roots & OURS_BUT_OUTSIDE <= ({"convert"} if parts[1] == "cli" else set())
    room = parts[1]
    if room not in PARTS:
        return
    # The whole library, without the name of a room, is as much as all of them.
    rooms = {"".join(name[1:2]) for name in found if name[0] == "ic_jax"}
    assert rooms <= {room, "errors", "registry"} | PARTS[room]


def test_relative_and_absolute_imports_are_told_apart():
    source = "from ..models import wan_vae\nfrom .b import c\nimport torch.nn\nfrom . import d"
    found = imports(source, ("ic_jax", "sampling"))
    assert found == {
        "ic_jax.models.wan_vae", "ic_jax.sampling.b.c", "torch.nn", "ic_jax.sampling.d",
    }  # fmt: skip


def test_the_pipeline_loads_without_the_extras():
    show = "import sys, ic_jax.pipeline; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "jax" in loaded
    assert not set(loaded) & FOREIGN
