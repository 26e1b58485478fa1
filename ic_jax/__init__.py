"""InverseCrafter in functional JAX: give a video a new camera, training nothing."""

from .choices import resolve
from .director import Take, direct
from .edit import forget, load_edit
from .errors import InputError
from .model import Model, load_model
from .pipeline import recapture
from .settings import Settings
from .shot import Shot, load_shot
from .text import embed_prompts
from .video import Clip, read_video, write_video

__all__ = [
    "Clip",
    "InputError",
    "Model",
    "Settings",
    "Shot",
    "Take",
    "direct",
    "embed_prompts",
    "forget",
    "load_edit",
    "load_model",
    "load_shot",
    "read_video",
    "recapture",
    "resolve",
    "write_video",
]
