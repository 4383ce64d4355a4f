"""Joining the processes of one run, before anything touches a device."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from reid_jax.errors import UserError, first_line

# JAX ends the process with a dump of its stack when its own waiting time is over, so
# ours has to be over first.
_MARGIN_SECONDS = 60


def join(
    coordinator: str | None, *, count: int | None, index: int | None, timeout: int
) -> None:
    """Joins this process to the others; with `coordinator` None it runs alone.

    A process that waited in vain ends here with exit code 2 and a message: JAX is
    waiting outside Python then, where no exception could reach it.

    Args:
      coordinator: host:port of process 0, or "auto" where the cluster tells.
      count: of processes; None with "auto".
      index: this process's, from 0; None with "auto".
      timeout: seconds to wait for the others; once they are there, one that is not
        heard of for a third of it (10 s at least) is taken for dead: JAX ends the run.

    Raises:
      UserError: if the arguments do not describe a process, if no cluster is known
        here, or if process 0 cannot listen at its address.
    """
    if timeout < 1:
        raise UserError(f"--process_timeout is {timeout}; it must be at least 1 second")
    if coordinator is None:
        if count is not None or index is not None:
            raise UserError("--process_count and --process_index need --coordinator")
        return
    auto = coordinator == "auto"
    arguments = {} if auto else _arguments(coordinator, count, index)
    with _deadline(timeout, arguments):
        try:
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=timeout + _MARGIN_SECONDS,
                heartbeat_timeout_seconds=max(timeout // 3, 10),
            )
        except ValueError as error:  # Raised where JAX's detection finds nothing.
            raise UserError(
                "--coordinator=auto: no cluster that JAX knows (Slurm, Open MPI, "
                "Kubernetes, Cloud TPU) is found here; give --coordinator=HOST:PORT, "
                f"--process_count and --process_index ({error})"
            ) from error


def check_devices() -> None:
    """Starts JAX's backend, and waits until all processes have.

    Between CPUs the first thing that they do together has 30 seconds, however long one
    of them has other work; what comes later waits.

    Raises:
      UserError: if there is none of the kind that JAX_PLATFORMS asks for, or it does
        not start.
    """
    asked = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("joined")
    except Exception as error:  # JAX raises several kinds, one of them without words.
        first = (
            first_line(error).partition(" (set")[0] if str(error) else "none is found"
        )
        wanted = f"JAX_PLATFORMS={asked}" if asked else "JAX"
        raise UserError(
            f"{wanted} has no devices here: {first}. Without JAX_PLATFORMS the best "
            "that is there is taken; cpu is always there; cuda needs a GPU and pip "
            "install 'jax[cuda13]', tpu needs 'jax[tpu]'"
        ) from error


def _arguments(
    coordinator: str, count: int | None, index: int | None
) -> dict[str, str | int]:
    """Keyword arguments for JAX, checked."""
    if count is None or index is None:
        raise UserError("--coordinator needs --process_count and --process_index")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator} is neither HOST:PORT nor auto")
    if not 0 <= index < count:
        raise UserError(
            f"--process_index={index} with --process_count={count}; indices count "
            f"from 0 to {count - 1}"
        )
    if index == 0:
        _check_free(int(port))
    return {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": index,
    }


def _check_free(port: int) -> None:
    """Raises UserError if nothing can listen at a port: there JAX may crash."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        # As a server does it: connections of an earlier run do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"process 0 cannot listen at port {port} of --coordinator ({error}); "
                "take another for all processes"
            ) from error


@contextlib.contextmanager
def _deadline(timeout: int, arguments: dict[str, str | int]) -> Iterator[None]:
    """Ends the process with a message if the body takes longer than `timeout`."""

    def give_up() -> None:
        print(
            f"error: {_missing(timeout, arguments)}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _missing(timeout: int, arguments: dict[str, str | int]) -> str:
    """What can be said about who did not come."""
    waited = (
        f"not all processes of the run came within {timeout} s (--process_timeout). "
    )
    if not arguments:
        return waited + (
            f"This one, on {socket.gethostname()}, found its cluster; look at the "
            "others' logs for one that did not start."
        )
    address, count = arguments["coordinator_address"], arguments["num_processes"]
    index = arguments["process_id"]
    waited += f"This is process {index} of {count}, on {socket.gethostname()}. "
    if index == 0:
        return waited + (
            f"At least one of the processes 1 to {count - 1} did not reach {address}: "
            "was it started with this address and count, and is the port open?"
        )
    try:
        host, _, port = str(address).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return waited + (
            f"Nothing answers at {address} ({error}): is process 0 running there, and "
            "is the port open?"
        )
    return waited + (
        f"Process 0 answers at {address}, so another one is missing: look at its log."
    )
