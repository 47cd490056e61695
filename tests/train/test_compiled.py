"""The step is compiled once, kept for the run that goes on, and fed nothing that waits for the host."""

import collections

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_tissue import tiny_config

from tario_jax.train import loop
from tario_jax.train.checkpoint import CheckpointWriter


class Killed(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


@pytest.fixture
def no_folder_named():
    """As for a user who sets no JAX_COMPILATION_CACHE_DIR, in a process that has compiled nothing yet."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    jax.clear_caches()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def happened():
    """Counts jax's events, and by "traced" and "compiled" those of the function `step`."""
    count: collections.Counter = collections.Counter()
    kinds = {"/jax/core/compile/jaxpr_trace_duration": "traced",
             "/jax/core/compile/backend_compile_duration": "compiled"}  # fmt: skip

    def event(name: str, **_) -> None:
        count[name.rsplit("/", 1)[-1]] += 1

    def lasted(name: str, seconds: float, fun_name: str = "", **_) -> None:
        if name in kinds and fun_name in ("step", "jit(step)"):
            count[kinds[name]] += 1

    jax.monitoring.register_event_listener(event)
    jax.monitoring.register_event_duration_secs_listener(lasted)
    yield count
    jax.monitoring.unregister_event_listener(event)
    jax.monitoring.unregister_event_duration_listener(lasted)


_SHORT = {"steps": 6, "validate_every": 3, "checkpoint_every": 3}


@pytest.mark.slow
def test_a_run_that_goes_on_compiles_nothing_anew(tiny_corpus, tmp_path, monkeypatch, no_folder_named, happened):
    config, said = tiny_config(train=_SHORT), []
    save = CheckpointWriter.save

    def saved_then_killed(self, state, provenance):
        save(self, state, provenance)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(CheckpointWriter, "save", saved_then_killed)
        loop.train(config, tiny_corpus, tmp_path / "run", said.append)
    assert happened["traced"] == happened["compiled"] == 1
    (folder,) = (tmp_path / "run" / "compiled").iterdir()
    kept = {path.name for path in folder.glob("*-cache")}
    assert any(name.startswith("jit_step-") for name in kept)
    assert any(line.startswith("step compiled in ") and line.endswith(f"kept in {folder}") for line in said)
    assert jax.config.jax_compilation_cache_dir is None

    jax.clear_caches()
    happened.clear()
    said.clear()
    loop.train(config, tiny_corpus, tmp_path / "run", said.append)
    assert happened["traced"] == 1
    assert happened["cache_hits"] == happened["compile_requests_use_cache"] > 0
    assert {path.name for path in folder.glob("*-cache")} == kept
    assert any(line.startswith(f"step read from {folder} in ") for line in said)


def test_what_is_not_on_the_device_is_refused_by_the_loop(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "to_devices", lambda batch, mesh: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        loop.train(tiny_config(), tiny_corpus, tmp_path / "run", lambda line: None)
