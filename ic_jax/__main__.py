"""`python -m ic_jax` is `ic-jax`."""

from ic_jax_start import main

if __name__ == "__main__":
    main()
