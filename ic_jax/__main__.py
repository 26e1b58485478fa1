"""`python -m ic_jax` is `ic-jax`."""

from .cli import main

if __name__ == "__main__":
    main()
