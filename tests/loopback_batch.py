"""`ic-jax` with the tiny model among its own: one of several processes that stand for hosts.

Started by `test_cli_batch` with the arguments of the command.
"""

from tiny_folder import NAME
from tiny_model import TINY

from ic_jax.cli import main
from ic_jax.models.variants import VARIANTS

if __name__ == "__main__":
    VARIANTS[NAME] = TINY
    main()
