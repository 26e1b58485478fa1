"""Eight host devices, and arithmetic that does not depend on the machine's defaults."""

import gc
import os
import shutil
from functools import cache
from importlib.metadata import version

# Compiling is most of the work here, and what is compiled runs once or twice.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if version("jaxlib").startswith("0.10."):
    # The newer emitters compile for half as long again. Later versions have no others.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The command line would keep what it compiles in the user's cache folder.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

# Python would go through all that was imported and traced time and again, and free hardly anything.
gc.set_threshold(50_000, 20, 50)

# Nothing of ours is imported up here: this is read before pytest begins to check shapes.
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_finish():
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _forget_what_was_compiled():
    """Every program maps memory, and XLA crashes when a process has no mappings left."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _compile_no_program_twice(tmp_path_factory):
    """Other settings, variants and modules come to the same programs time and again.

    Each worker has a folder of its own: JAX does not lock what it writes.
    """
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()  # collecting tests has compiled without one
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def _ask_no_network_for_its_shapes_twice():
    """They follow from its sizes alone, and every model that is loaded asks: a second each time."""
    from ic_jax import model, text

    with pytest.MonkeyPatch.context() as patch:
        for module in model, text:
            once = cache(module.expected_shapes)
            # Dictionaries of their own: nobody shares one that another may change.
            anew = lambda sizes, once=once: jax.tree.map(lambda leaf: leaf, once(sizes))
            patch.setattr(module, "expected_shapes", anew)
        yield


@pytest.fixture(scope="session")
def _written(tmp_path_factory):
    from tiny_folder import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(_written, monkeypatch):
    """The folder of a converted model of a few parameters, which commands may read."""
    from tiny_folder import NAME
    from tiny_model import TINY

    from ic_jax.models.variants import VARIANTS

    monkeypatch.setitem(VARIANTS, NAME, TINY)
    return _written


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
