"""`ic-jax verify`: whether to trust a conversion."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..errors import InputError


@dataclass(frozen=True)
class Verify:
    """Compare a converted model with its source, in torch; says whether to trust it.

    Exit code 0 for yes and 1 for no.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Folder that `ic-jax convert` wrote."""
    against: Path
    """The released file or folder that it was converted from."""

    def run(self) -> None:
        try:
            from convert.verify import verify
        except ImportError as error:
            raise InputError(f"verify needs {error.name}: pip install 'ic-jax[verify]'") from error
        comparison = verify(self.checkpoint, self.against, print)
        print(comparison.verdict())
        if not comparison.trusted:
            sys.exit(1)
