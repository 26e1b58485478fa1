"""How good the warp is, and what it costs.

    python -m experiments.splat_quality

writes experiments/results/splat_quality.md: error against bicubic interpolation on a magnified
plane, a real stereo pair warped left to right, seconds and memory at two sizes.
"""

import multiprocessing
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import skimage
import tyro
from skimage.data import astronaut, stereo_motorcycle

from experiments.tables import table
from ic_jax.geometry import (
    Camera,
    WarpOperator,
    camera,
    depth_edges,
    intrinsics_from_fov,
    trajectory,
    warp_frame,
    warp_operator,
)

ZOOMS = (1.0, 1.5, 2.0, 3.0, 4.0)
SIZES = ((17, 64, 96), (81, 480, 832))

# The calibration in the docstring of skimage.data.stereo_motorcycle; lengths in millimetres.
FOCAL, CENTRE_X, CENTRE_Y = 994.978, 311.193, 254.877
CENTRE_SHIFT, BASELINE = 31.086, 193.001


class StereoScene(NamedTuple):
    """A rectified pair of photographs in [-1, 1], with the left one's depth where known."""

    left: np.ndarray
    right: np.ndarray
    depth: np.ndarray
    known: np.ndarray
    left_camera: Camera
    right_camera: Camera


def stereo_scene(left: np.ndarray, right: np.ndarray, disparity: np.ndarray) -> StereoScene:
    """The motorcycle as cameras and depth: z = focal * baseline / (disparity + centre shift)."""
    known = np.isfinite(disparity)
    depth = FOCAL * BASELINE / (np.where(known, disparity, 1) + CENTRE_SHIFT)
    # the file counts from the centre of the first pixel, we from its corner
    intrinsics = np.array([[FOCAL, 0, CENTRE_X + 0.5], [0, FOCAL, CENTRE_Y + 0.5], [0, 0, 1]])
    shifted = intrinsics + [[0, 0, CENTRE_SHIFT], [0, 0, 0], [0, 0, 0]]
    right_pose = np.eye(4)
    right_pose[0, 3] = BASELINE
    cameras = camera(np.stack([np.eye(4), right_pose]), np.stack([intrinsics, shifted]), 2)
    left_camera, right_camera = (jax.tree.map(lambda leaf: leaf[i], cameras) for i in (0, 1))
    photographs = (np.float32(image / 127.5 - 1) for image in (left, right))
    return StereoScene(*photographs, np.float32(depth), known, left_camera, right_camera)


def nearest_splat(scene: StereoScene) -> tuple[np.ndarray, np.ndarray]:
    """The baseline: every pixel painted on the one it lands nearest to, far to near."""
    rows, columns = np.nonzero(scene.known)
    far_first = np.argsort(-scene.depth[rows, columns], kind="stable")
    rows, columns = rows[far_first], columns[far_first]
    disparity = FOCAL * BASELINE / scene.depth[rows, columns] - CENTRE_SHIFT
    landing = np.rint(columns - disparity).astype(int)
    inside = (landing >= 0) & (landing < scene.left.shape[1])
    warped, reached = np.zeros_like(scene.left), np.zeros(scene.known.shape, bool)
    # the last write wins, as numpy documents
    warped[rows[inside], landing[inside]] = scene.left[rows[inside], columns[inside]]
    reached[rows[inside], landing[inside]] = True
    return warped, reached


def psnr(ours: np.ndarray, truth: np.ndarray) -> float:
    """In dB, of values in [-1, 1]; infinite where they are equal."""
    error = np.mean(np.square(np.asarray(ours) - np.asarray(truth)))
    return float(10 * np.log10(4 / error)) if error else float("inf")


def bicubic_zoom(image: jax.Array, zoom: float) -> jax.Array:
    """[H, W, C] magnified about its middle."""
    size = jnp.array(image.shape[:2])
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), jnp.full(2, zoom), (1 - zoom) * size / 2, "cubic",
        antialias=False,
    )


def zoom_table() -> list[str]:
    photograph = jnp.asarray(astronaut(), jnp.float32)[:384] / 127.5 - 1
    height, width, _ = photograph.shape
    source = Camera(jnp.eye(4), intrinsics_from_fov(60.0, height, width))
    depth = jnp.full((height, width), 4.0)
    warp = jax.jit(warp_frame)
    rows = []
    for zoom in ZOOMS:
        pose = trajectory("zoom_in", 2, 4.0, 1 - 1 / zoom)[1]
        warped, visible = warp(photograph, depth, source, source._replace(c2w=pose))
        error = psnr(warped, bicubic_zoom(photograph, zoom))
        rows.append([f"{zoom:g}", f"{error:.1f}", f"{visible.min():.3f}"])
    return table(["zoom", "PSNR against bicubic, dB", "least visible"], rows)


def cleaned_share() -> float:
    """Share of the left photograph with a known depth that counts as flying or far rim."""
    scene = stereo_scene(*stereo_motorcycle())
    depth = jnp.where(scene.known, scene.depth, jnp.inf)
    return float(np.mean(scene.known & ~np.asarray(depth_edges(depth[None])[0])))


def stereo_table() -> list[str]:
    scene = stereo_scene(*stereo_motorcycle())
    baseline, reached = nearest_splat(scene)
    warps = [("nearest pixel", baseline, reached)]
    for name, edges in (("ours, every pixel", False), ("ours, edges cleaned", True)):
        warped, visible = jax.jit(warp_frame, static_argnames="edges")(
            scene.left, scene.depth, scene.left_camera, scene.right_camera, keep=scene.known,
            edges=edges,
        )
        warps.append((name, np.asarray(warped), np.asarray(visible) > 0.5))
    shared, rows = np.all([seen for *_, seen in warps], axis=0), []
    for name, warped, seen in warps:
        alone, together = (psnr(warped[where], scene.right[where]) for where in (seen, shared))
        rows.append([name, f"{alone:.2f}", f"{seen.mean():.1%}", f"{together:.2f}"])
    return table(["warp", "PSNR where visible, dB", "visible", "PSNR where all are, dB"], rows)


def bumpy_scene(frames: int, height: int, width: int) -> tuple[jax.Array, Camera, Camera]:
    """A wavy wall, a ball before it, and an arc around both."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None] - 0.5
    depth = 4 + 0.3 * np.sin(9 * x) - 1.5 * (x**2 + y**2 < 0.06)
    source = camera(np.eye(4), intrinsics_from_fov(60.0, height, width), frames)
    target = source._replace(c2w=trajectory("arc_left", frames, 4.0))
    return jnp.broadcast_to(jnp.float32(depth), (frames, height, width)), source, target


def cost(size: tuple[int, int, int]) -> list[str]:
    """One row: wall and processor seconds after compilation, and the memory they added."""
    scene = bumpy_scene(*size)
    clip = jnp.ones((*size, 3))
    steps = {"build": (jax.jit(warp_operator), scene)}
    operator = steps["build"][0](*scene)
    steps["apply"] = (jax.jit(WarpOperator.apply), (operator, clip))
    steps["adjoint"] = (jax.jit(WarpOperator.adjoint), (operator, clip))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cells = []
    for step, arguments in steps.values():
        compiled = step.lower(*arguments).compile()
        wall, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        cells.append(f"{wall:.3g} ({processor:.3g})")
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return ["×".join(map(str, size)), *cells, f"{added:.2f}"]


def cost_table() -> list[str]:
    # a fresh process each, whose peak of memory is its own
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = pool.map(cost, SIZES, chunksize=1)
    return table(["clip", "build, s", "apply, s", "adjoint, s", "memory added, GiB"], rows)


@dataclass
class Arguments:
    """Measure the warp's quality and cost."""

    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    text = "\n".join([
        "# Quality and cost of the warp",
        "",
        "`python -m experiments.splat_quality`, on"
        f" {jax.devices()[0].device_kind} ({platform.machine()}), Python"
        f" {platform.python_version()}, jax {jax.__version__}, scikit-image {skimage.__version__}.",
        "",
        "## A fronto-parallel photograph (384×512) under zoom",
        "",
        *zoom_table(),
        "## A real stereo pair: left photograph warped to the right one",
        "",
        "500×741, true disparity, known for 92.7 % of the pixels; the rest are dropped.",
        f"Cleaning edges drops {cleaned_share():.1%} more.",
        "",
        *stereo_table(),
        "## Cost",
        "",
        "Wall seconds (processor seconds), without compilation; other work may share the machine.",
        "",
        *cost_table(),
    ])
    print(text)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "splat_quality.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
