"""A notice to stop that comes while Python cannot listen, as in a compilation."""

import signal
import subprocess
import sys

import pytest

from reid_jax.runtime.preemption import PreemptionNotice
from tests.conftest import CHECKOUT
from tests.waiting import PATIENCE

# One call into C that takes minutes, in which no handler of Python's is run. Should a
# signal come before it, where Python listens, the call is made all the same.
BUSY = """
import contextlib, hashlib
from reid_jax.runtime import interrupts, preemption
with {}():
    ready = False
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            if not ready:
                ready = True
                print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)
"""


@pytest.mark.parametrize(
    ("within", "first", "last"),
    [
        (
            "preemption.PreemptionNotice",
            "stopping: saves after this",
            "interrupted; the last checkpoint stands",
        ),
        ("interrupts.acknowledged", "stopping after what is", "interrupted"),
    ],
)
def test_ctrl_c_is_acknowledged_at_once_and_the_second_ends(within, first, last):
    with subprocess.Popen(
        [sys.executable, "-c", BUSY.format(within)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline().startswith(first)
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert rest == f"{last}\n"


def test_a_notice_is_received_and_handlers_are_given_back(capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    notice = PreemptionNotice()
    with notice:
        assert not notice.received(1)
        signal.raise_signal(signal.SIGTERM)
        assert notice._flag.wait(60)
        assert notice.received(2)
        assert not notice.interrupted
        signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert capsys.readouterr().err.count("stopping: saves") == 1
