"""The persistent compilation cache: what one process compiles, later ones read."""

from __future__ import annotations

import jax

from reid_jax import storage
from reid_jax.storage import PathLike


def use_cache(folder: PathLike) -> None:
    """Keeps compiled programs in a folder; to be called before anything is compiled.

    An entry's key has the program, its shapes and shardings, the versions of JAX and
    XLA and the kind of devices, so that nothing has to be removed when these change. Of
    several processes only the first one writes: they need a folder that all of them
    see, or a bucket. Whoever can write there decides what is run here.

    Args:
      folder: of the entries; made if it is not there.

    Raises:
      UserError: if nothing can be written there.
    """
    if jax.process_index() == 0:
        storage.check_writable(folder)
    jax.config.update("jax_compilation_cache_dir", str(storage.absolute(folder)))
    # JAX leaves out what took less than a second; evaluation has many such programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
