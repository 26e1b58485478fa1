"""Cameras, depth, and the warp from one view to another."""

from ic_jax.geometry.camera import Camera as Camera
from ic_jax.geometry.camera import camera as camera
from ic_jax.geometry.camera import compose as compose
from ic_jax.geometry.camera import intrinsics_from_fov as intrinsics_from_fov
from ic_jax.geometry.camera import scale_intrinsics as scale_intrinsics
from ic_jax.geometry.depth import DepthClip as DepthClip
from ic_jax.geometry.depth import depth_edges as depth_edges
from ic_jax.geometry.depth import resize_depth as resize_depth
from ic_jax.geometry.depth import scene_radius as scene_radius
from ic_jax.geometry.mask import MaskOperator as MaskOperator
from ic_jax.geometry.trajectory import TRAJECTORIES as TRAJECTORIES
from ic_jax.geometry.trajectory import load_trajectory as load_trajectory
from ic_jax.geometry.trajectory import trajectory as trajectory
from ic_jax.geometry.warp import WarpOperator as WarpOperator
from ic_jax.geometry.warp import warp_frame as warp_frame
from ic_jax.geometry.warp import warp_operator as warp_operator
