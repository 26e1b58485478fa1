"""`python -m convert SOURCE OUT`: another name of `ic-jax convert`."""

import sys

from ic_jax.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    main()
