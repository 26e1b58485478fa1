"""What a user chose, checked, and what the model recommends where nothing was chosen."""

from dataclasses import replace
from numbers import Integral, Real

from .course import check_levels
from .errors import InputError
from .latent_mask import MASKS
from .model import Model
from .sampling.consistency import GAMMA_SCHEDULES, NOISES
from .sampling.methods import METHODS, options
from .sampling.solvers import SOLVERS
from .settings import Settings, guidance_scale

CLEAN_ERRORS = "gaussian", "measured"


def resolve(settings: Settings, model: Model, editing: bool = False) -> Settings:
    """Settings with the model's own recommendation in place of every None.

    An edit leans on its prompt more than a new view does, and shows the clip itself wherever the
    mask keeps it.

    Raises:
        InputError: a setting out of its range or that nothing would heed, a name that does not
            exist, or noise levels at which no step begins.
    """
    check(settings)
    sizes = model.variant
    if settings.latent_mask == "kernel" and "kernel" not in model.calibration:
        raise InputError(f"{model.name}: mask kernel was never fitted to it; run ic-jax calibrate")
    if settings.clean_error == "measured" and "clean_error" not in model.calibration:
        raise InputError(f"{model.name}: its clean error was never measured; run ic-jax calibrate")
    if settings.guidance_scale_low is not None and sizes.boundary is None:
        raise InputError(f"{model.name}: has one expert; leave --guidance-scale-low out")
    recommended = {
        "solver": sizes.solver,
        "steps": sizes.steps,
        "guidance_scale": guidance_scale(sizes, settings, "dit"),
        "shift": sizes.shift,
        "clean_error": "gaussian",
        "variance_scale": variance_scale(model, settings.latent_mask),
        "composite": sizes.composite or editing,
    }
    if editing and sizes.edit_guidance_scale is not None:
        recommended["guidance_scale"] = sizes.edit_guidance_scale
    if sizes.boundary is not None:
        recommended["guidance_scale_low"] = guidance_scale(sizes, settings, "dit_low")
    unset = {n: value for n, value in recommended.items() if getattr(settings, n) is None}
    resolved = replace(settings, **unset)
    check_levels(sizes, resolved)
    return resolved


def variance_scale(model: Model, mask: str) -> float:
    """What calibration says of this mask's error variance; 1 where it says nothing."""
    return model.calibration.get("variance_scale", {}).get(mask, 1.0)


def check(settings: Settings) -> None:
    """Raises InputError for a setting out of its range, or a name that does not exist."""
    _check_names(settings)
    _check_ranges(settings)
    _check_what_goes_together(settings)


def _check_names(settings: Settings) -> None:
    for name, known in (
        ("latent_mask", MASKS),
        ("consistency", METHODS),
        ("gamma_schedule", GAMMA_SCHEDULES),
        ("clean_error", CLEAN_ERRORS),
        ("noise", NOISES),
        ("solver", SOLVERS),
    ):
        value = getattr(settings, name)
        unset = value is None and getattr(Settings, name) is None
        if not unset and value not in known:
            option = name.replace("_", "-")
            raise InputError(f"unknown --{option} {value!r}; one of {', '.join(known)}")


def _check_ranges(settings: Settings) -> None:
    ranges = {
        "steps": (1, 1000),
        "shift": (1e-3, 1e3),
        "guidance_scale": (0, 100),
        "guidance_scale_low": (0, 100),
        "gamma": (0, 1e6),
        "inner": (0, 1000),
        "reuse": (0, 1000),
        "guided_from": (0, 1),
        "guided_to": (0, 1),
        "refresh_at": (0, 1),
        "renoise": (0, 1),
        "variance_scale": (0, 1e6),
    }
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        whole = name in ("steps", "inner", "reuse")
        # An array would be no part of what a compiled program is known by.
        fits = isinstance(value, Integral if whole else Real) and low <= value <= high
        if not fits and not (value is None and getattr(Settings, name) is None):
            option = name.replace("_", "-")
            kind = "whole number" if whole else "number"
            raise InputError(f"--{option} is {value}; give a {kind} from {low} to {high}")


def _check_what_goes_together(settings: Settings) -> None:
    takes = options(settings.consistency)
    for name in ("gamma", "gamma_schedule", "noise", "inner"):
        if getattr(settings, name) is not None and name not in takes:
            option = name.replace("_", "-")
            raise InputError(
                f"--consistency {settings.consistency} has no --{option}; leave it out"
            )
    if settings.clean_error == "measured" and "r2" not in takes:
        raise InputError(
            f"--consistency {settings.consistency} does not ask how wrong the model is; "
            "leave --clean-error out"
        )
    if settings.reuse and not METHODS[settings.consistency].single:
        raise InputError(
            f"--consistency {settings.consistency} asks the model more than once in a step; "
            "leave --reuse out"
        )
    windowed = settings.guided_from < 1 or settings.guided_to > 0 or settings.refresh_at is not None
    if windowed and not METHODS[settings.consistency].trajectory:
        raise InputError(
            f"--consistency {settings.consistency} has no noisy trajectory;"
            " leave --guided-from, --guided-to and --refresh-at out"
        )
    if settings.guided_from < settings.guided_to:
        raise InputError("--guided-from is below --guided-to; give the higher noise level first")
