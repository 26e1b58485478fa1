"""diffusers' side of the benchmarks: random weights and calls, in a process without JAX or with.

What comes in and goes out are numpy arrays with channels last, as on our side.
"""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

Call = Callable[[], torch.Tensor]


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """In float32, on the host."""
    return tensor.movedim(1, -1).float().cpu().numpy()


def autoencoder(base: int, device: str) -> AutoencoderKLWan:
    """The network, of that width."""
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=base).eval().requires_grad_(False).to(device)


def autoencoder_call(module: AutoencoderKLWan, half: str, given: np.ndarray) -> Call:
    """Encode a clip, or decode a latent in the autoencoder's own units, in its own chunks."""
    given = _channels_second(given).to(module.device)
    if half == "encode":
        return _waited(lambda: module.encode(given).latent_dist.mode())
    return _waited(lambda: module.decode(given).sample)


def autoencoder_alone(half: str, base: int, device: str, given: np.ndarray) -> Call:
    """One half, network and all."""
    return autoencoder_call(autoencoder(base, device), half, given)


def transformer(sizes: dict, dtype: str, device: str) -> WanTransformer3DModel:
    """The network as diffusers loads it: norms, modulation and time embedding in float32."""
    torch.manual_seed(0)
    with torch.device(device):
        module = WanTransformer3DModel(**sizes)
    kept = set(module._keep_in_fp32_modules)
    for name, parameter in module.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return module.eval().requires_grad_(False)


def transformer_call(
    module: WanTransformer3DModel, dtype: str, given: tuple[np.ndarray, ...], compiled: bool
) -> Call:
    """A velocity from latent, timestep and text, which is embedded anew."""
    latent, timestep, text = given
    latent, text = (
        each.to(module.device, getattr(torch, dtype))
        for each in (_channels_second(latent), torch.from_numpy(text))
    )
    timestep = torch.from_numpy(timestep).to(module.device)
    run = torch.compile(module) if compiled else module
    return _waited(lambda: run(latent, timestep, text, return_dict=False)[0])


def transformer_alone(
    sizes: dict, dtype: str, device: str, given: tuple[np.ndarray, ...], compiled: bool
) -> Call:
    """A step, network and all."""
    return transformer_call(transformer(sizes, dtype, device), dtype, given, compiled)


def _channels_second(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).movedim(-1, 1).contiguous()


def _waited(run: Call) -> Call:
    """The call, back when the device is done."""

    def call() -> torch.Tensor:
        with torch.inference_mode():
            result = run()
        if result.is_cuda:
            torch.cuda.synchronize()
        return result

    return call
