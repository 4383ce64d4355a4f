"""Compilation: the cache that later processes read, and what is said of it."""

from __future__ import annotations

import os

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


def silence_notes() -> None:
    """Leaves out what XLA's C++ code prints, such as "Very slow compile?".

    It prints that as an error, which it is none of. What goes wrong is raised as an
    exception all the same. To be called before a device is used; a user who sets
    TF_CPP_MIN_LOG_LEVEL to 0 sees everything.
    """
    # JAX sets it to 1 where the user has set nothing.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
