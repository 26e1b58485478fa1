"""`ic-jax convert`: a downloaded checkpoint into a model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import tyro
from tqdm import tqdm

from .console import note


@dataclass(frozen=True)
class Convert:
    """Turn a checkpoint as it was downloaded into a model folder, for --model."""

    source: tyro.conf.Positional[Path]
    """A folder of Wan, VideoX-Fun or diffusers, or the weights of one network."""
    out: tyro.conf.Positional[Path]
    """The model folder: new, or empty."""
    variant: str | None = None
    """The model's name, where the weights fit more than one."""
    lora: tuple[Path, ...] = ()
    """LoRA files to merge into the transformer."""
    lora_scale: float = 1.0
    """How strongly: 1 is as they were trained."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Of the written weights; without it, that of the source, which the VAE keeps in any case."""

    def run(self) -> None:
        from convert.folder import plan_conversion, write_conversion

        dtype = None if self.dtype is None else jnp.dtype(self.dtype)
        conversion = plan_conversion(self.source, self.variant, self.lora, dtype, self.lora_scale)
        total = conversion.bytes_to_write + conversion.bytes_to_read
        with tqdm(total=total, unit="B", unit_scale=True, leave=False) as bar:

            def advance(what: str, done: int) -> None:
                bar.set_description(what)
                bar.update(done)

            manifest = write_conversion(conversion, self.out, advance)
        if conversion.missing:
            note(f"{self.source} holds no {', '.join(conversion.missing)}")
        components = manifest["components"]
        dtypes = "+".join(sorted({component["dtype"] for component in components.values()}))
        size = sum(file.stat().st_size for file in self.out.rglob("*") if file.is_file())
        print(
            f"{self.out}/: {manifest['variant']} ({', '.join(components)}), {dtypes}, "
            f"{size / 1e9:.2f} GB"
        )
