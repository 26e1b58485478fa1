"""Every model by its checkpoint's own name: sizes, and the settings its authors sample with."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from ic_jax.errors import InputError

from .clip_vision import CLIPVisionConfig
from .umt5 import UMT5Config
from .wan_dit import DiTConfig
from .wan_vae import VAEConfig

# Of frames, rows and columns: nothing near it fits any machine, and much beyond it no count does.
LARGEST = 2**16


@dataclass(frozen=True)
class Variant:
    """The networks, the clip that they were trained on, and default sampling settings."""

    dit: DiTConfig
    vae: VAEConfig
    umt5: UMT5Config
    frames: int
    height: int
    width: int
    steps: int
    guidance_scale: float
    shift: float
    solver: str = "unipc"
    clip: CLIPVisionConfig | None = None
    conditioning: Literal["inpaint", "first_frame"] | None = None
    """What an image model was trained to be shown: any mask, or the first frame alone."""
    boundary: float | None = None
    """Noise level from which the first of two experts leads, in [0, 1]; None for one expert."""
    guidance_scale_low: float | None = None  # of the second
    edit_guidance_scale: float | None = None  # where edits need another than new views
    negative_prompt: str = ""
    dtype: str = "bfloat16"  # of the transformer's matrix products
    chunk: int | None = 4  # frames that the autoencoder takes at a time; None for all
    composite: bool = False  # show the observed pixels themselves where they were seen

    def resized(self, frames: int | None, height: int | None, width: int | None) -> "Variant":
        """The same model at another size; None leaves one as it is.

        Raises:
            InputError: a size beyond `LARGEST`, or no multiple of what the networks need.
        """
        sizes = replace(
            self,
            frames=self.frames if frames is None else frames,
            height=self.height if height is None else height,
            width=self.width if width is None else width,
        )
        for name in ("frames", "height", "width"):
            if (value := getattr(sizes, name)) > LARGEST:
                raise InputError(f"--{name} is {value}; give a number up to {LARGEST}")
        every = self.vae.temporal_factor
        # A window shares two latents' worth of frames with the one before.
        if sizes.frames <= 1 + every or (sizes.frames - 1) % every:
            least = 1 + 2 * every
            raise InputError(
                f"--frames is {frames}; give 1 plus a multiple of {every}, at least {least}"
            )
        for name, patch in (("height", self.dit.patch[1]), ("width", self.dit.patch[2])):
            value, multiple = getattr(sizes, name), self.vae.spatial_factor * patch
            if value < multiple or value % multiple:
                raise InputError(f"--{name} is {value}; give a multiple of {multiple}")
        return sizes


# Our own words for what Wan's own long list is about.
_UNWANTED = (
    "blown-out highlights, grey and faded colours, frozen picture, no motion, subtitles, logo, "
    "painting, blurred details, coarse JPEG blocks, low resolution, ugly, malformed hands, fused "
    "or surplus fingers, distorted face, wrong number of limbs, cluttered background, crowd in "
    "the background, walking backwards"
)

_WAN_VAE = VAEConfig()
_UMT5_XXL = UMT5Config(vocab=256_384, dim=4096, ffn_dim=10_240, heads=64, head_dim=64, layers=24)
# Wan reads the last block but one of ViT-H/14: 31 of 32.
_CLIP_H = CLIPVisionConfig(dim=1280, ffn_dim=5120, heads=16, layers=31)

_T2V_1_3B = DiTConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
_T2V_14B = DiTConfig(dim=5120, ffn_dim=13_824, num_heads=40, num_layers=40)
# 36 = noisy latent 16, mask 4, conditioning latent 16.
_I2V_14B = replace(_T2V_14B, in_channels=36)


def _wan(dit: DiTConfig, steps: int, guidance_scale: float, shift: float, **more) -> Variant:
    """A row at 81 frames of 480p."""
    size = 81, 480, 832
    more = {"negative_prompt": _UNWANTED, **more}
    return Variant(dit, _WAN_VAE, _UMT5_XXL, *size, steps, guidance_scale, shift, **more)


def _with_clip(text_to_video: DiTConfig) -> DiTConfig:
    return replace(text_to_video, in_channels=36, image_dim=_CLIP_H.dim)


VARIANTS = {
    "nano": Variant(
        DiTConfig(dim=192, ffn_dim=768, num_heads=3, num_layers=6, text_dim=128, text_len=64),
        # Two halvings after a 2×2 patch: the same 4×8×8 compression from a quarter of the pixels.
        # Trained to unit latents: the normalisation is folded into its outer projections.
        VAEConfig(
            base=16,
            multipliers=(1, 3, 6),
            blocks=1,
            temporal=(True, True),
            patch=2,
            latent_mean=(0.0,) * 16,
            latent_std=(1.0,) * 16,
        ),
        UMT5Config(vocab=259, dim=128, ffn_dim=256, heads=4, head_dim=32, layers=2),
        frames=17,
        height=64,
        width=96,
        steps=24,
        guidance_scale=1.5,
        edit_guidance_scale=3.0,
        shift=3.0,
        solver="euler",
        dtype="float32",
        chunk=None,
        composite=True,  # so small an autoencoder blurs what the sampler kept
    ),
    "Wan2.1-T2V-1.3B": _wan(_T2V_1_3B, steps=50, guidance_scale=6.0, shift=8.0),
    "Wan2.1-T2V-14B": _wan(_T2V_14B, steps=50, guidance_scale=5.0, shift=5.0),
    "Wan2.1-I2V-14B": _wan(
        _with_clip(_T2V_14B),
        steps=40,
        guidance_scale=5.0,
        shift=3.0,
        clip=_CLIP_H,
        conditioning="first_frame",
    ),
    "Wan2.1-Fun-1.3B-InP": _wan(
        _with_clip(_T2V_1_3B),
        steps=50,
        guidance_scale=6.0,
        shift=3.0,
        clip=_CLIP_H,
        conditioning="inpaint",
    ),
    "Wan2.1-Fun-14B-InP": _wan(
        _with_clip(_T2V_14B),
        steps=50,
        guidance_scale=6.0,
        shift=3.0,
        clip=_CLIP_H,
        conditioning="inpaint",
    ),
    "Wan2.2-T2V-A14B": _wan(
        _T2V_14B,
        steps=40,
        guidance_scale=4.0,
        shift=12.0,
        boundary=0.875,
        guidance_scale_low=3.0,
    ),
    "Wan2.2-I2V-A14B": _wan(
        _I2V_14B,
        steps=40,
        guidance_scale=3.5,
        shift=5.0,
        conditioning="first_frame",
        boundary=0.9,
        guidance_scale_low=3.5,
    ),
    # Of the same sizes, and sampled alike: no other recommendation of its authors is known to us.
    "Wan2.2-Fun-A14B-InP": _wan(
        _I2V_14B,
        steps=40,
        guidance_scale=3.5,
        shift=5.0,
        conditioning="inpaint",
        boundary=0.9,
        guidance_scale_low=3.5,
    ),
}


def variant(name: str) -> Variant:
    """The row called `name`; raises InputError with the nearest name for an unknown one."""
    if name in VARIANTS:
        return VARIANTS[name]
    near = get_close_matches(name, VARIANTS, n=1, cutoff=0.0)[0]
    raise InputError(f"unknown model {name!r}: did you mean {near!r}? ({', '.join(VARIANTS)})")
