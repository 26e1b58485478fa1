"""What a user may choose of how a clip is sampled."""

from dataclasses import dataclass

from .models.variants import Variant


@dataclass(frozen=True)
class Settings:
    """How a clip is sampled; None means the model's own recommendation, or the method's."""

    latent_mask: str = "mean"
    """Latent mask: nearest, mean, min, encoded, probes, response, response_open, jacobian or
    kernel."""
    consistency: str = "bayes_draw"
    """How the sample agrees with the measurement: bayes_draw, bayes_dds, dds, ddnm, none, or any
    other of sampling.methods.METHODS; a name that does not exist lists them."""
    gamma: float | None = None
    """Strength of the measurement, from 0 to 1000000, in methods that have one number for it."""
    gamma_schedule: str | None = None
    """Its course over the noise levels: constant, falling, rising or variance."""
    clean_error: str | None = None
    """The model's own variance, where a method weighs it: gaussian, or measured (see
    `ic-jax calibrate`)."""
    noise: str | None = None
    """What becomes of the noise when the clean estimate moves: recompute, keep or renew."""
    inner: int | None = None
    """Calls of the model beyond the first in each step, from 0 to 1000, in methods that refine."""
    guided_from: float = 1.0
    """Highest noise level at which the measurement acts, from 0 to 1."""
    guided_to: float = 0.0
    """Lowest noise level at which the measurement acts, from 0 to 1."""
    refresh_at: float | None = None
    """Noise level, from 0 to 1, at which the holes are filled again, from the sample, and encoded:
    once. None for never."""
    solver: str | None = None
    """How predictions make the next latent: euler, flow_euler, unipc or dpmpp_2m."""
    steps: int | None = None
    """Sampling steps, from 1 to 1000; without it, the model's own."""
    guidance_scale: float | None = None
    """Weight of the prompt against the negative prompt, from 0 to 100; 1 ignores the latter."""
    guidance_scale_low: float | None = None
    """The same for the low-noise expert of a model of two, from 0 to 100."""
    shift: float | None = None
    """Shift of the noise levels, from 0.001 to 1000: larger spends more steps on noise."""
    reuse: int = 0
    """Steps in a row, from 0 to 1000, that take over what the model's blocks said before; 0 asks
    them at each."""
    renoise: float = 0.0
    """Share of the noise drawn anew at every step, from 0 to 1; costs unipc and dpmpp_2m an
    order."""
    variance_scale: float | None = None
    """Factor on the error variance of the latent mask, from 0 to 1000000; without it, as
    calibrated for the mask."""
    conditioning: bool = True
    """Tell an image model what was observed through its own inputs as well."""
    composite: bool | None = None
    """Show the observed pixels themselves where they were seen, over the decoded ones; without it,
    in edits, and else as the model recommends."""


def guidance_scale(sizes: Variant, settings: Settings, expert: str) -> float:
    """The expert's own weight of the prompt, unless `settings` has one."""
    if expert == "dit_low" and settings.guidance_scale_low is not None:
        return settings.guidance_scale_low
    if settings.guidance_scale is not None:
        return settings.guidance_scale
    return sizes.guidance_scale_low if expert == "dit_low" else sizes.guidance_scale


def prompt_count(sizes: Variant, settings: Settings, expert: str) -> int:
    """How many the expert is asked with: without guidance, the negative one has no say."""
    return 1 if guidance_scale(sizes, settings, expert) == 1 else 2


def most_prompts(sizes: Variant, settings: Settings) -> int:
    """`prompt_count` of the expert with the most of them."""
    experts = ("dit",) if sizes.boundary is None else ("dit", "dit_low")
    return max(prompt_count(sizes, settings, expert) for expert in experts)
