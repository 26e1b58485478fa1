"""Eight host devices, and arithmetic that does not depend on the machine's defaults."""

import os

# Compiling is most of the work here, and what is compiled runs once or twice.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The command line would keep what it compiles in the user's cache folder.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="module", autouse=True)
def _forget_what_was_compiled():
    """Every program maps memory, and XLA crashes when a process has no mappings left."""
    yield
    jax.clear_caches()


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs `ic-jax` with arguments: its exit code and what it printed on each stream."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["ic-jax", *map(str, arguments)])
        code = 0
        try:
            from ic_jax.cli import main

            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return call
