"""Runs a foreign server as a child of a benchmark: `python -m bench.peers.run PROGRAM …`.

It starts the program, prints its process id, and ends it when standard input ends, so an interrupted run leaves no
process behind. If this process is killed, the kernel ends the program.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys

from bench.proc import reply

_END_S = 8.0  # time in which a server must end by itself
_PR_SET_PDEATHSIG = 1  # prctl(2)
_STDIN = 0


def _keep(command: list[str]) -> int:
    libc = ctypes.CDLL(None)  # loaded here, so that the new process does as little as possible between fork and exec
    program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
    )
    handle = os.pidfd_open(program.pid)
    reply(pid=program.pid)
    while True:
        ready, _, _ = select.select([_STDIN, handle], [], [])
        if handle in ready:
            return program.wait() or 1  # the program ended without a request
        if not os.read(_STDIN, 4096):
            break
    program.terminate()
    try:
        program.wait(_END_S)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
    return 0


if __name__ == "__main__":
    sys.exit(_keep(sys.argv[1:]))
