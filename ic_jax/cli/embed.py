"""`ic-jax embed`: prompts, encoded once and kept."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from ..model import find_model, identify
from ..models.variants import variant
from ..text import check_replaceable, embed_prompts, save_context
from .console import note


@dataclass(frozen=True)
class Embed:
    """Encode prompts once: later runs take the file and leave the text encoder on the disk."""

    model: tyro.conf.Positional[Path] = Path("nano")
    """Folder of a converted model; without it, the bundled small model."""
    prompt: str = ""
    """What the result shows."""
    negative_prompt: str | None = None
    """What it should not show; without it, the model's own."""
    out: Path = Path("prompts.safetensors")
    """The file, for --context. An earlier one is replaced; any other file is left alone."""

    def run(self) -> None:
        folder = find_model(self.model)
        name, _ = identify(folder)
        sizes = variant(name)
        check_replaceable(self.out)
        negative = self.negative_prompt
        if negative is None:
            negative = sizes.negative_prompt
        context, cuts = embed_prompts(folder, sizes, [negative, self.prompt])
        for cut in cuts:
            note(cut)
        save_context(self.out, context, [negative, self.prompt], name, sizes)
        print(f"negative prompt and prompt for {name} in {self.out}")
