"""The plain backend: a fresh interpreter per command, dbt's own entry point, events over descriptor 0.

Descriptor 0 is a socket to the agent: events go out; end of file coming in means that the agent is gone.
"""

import os
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dbt_child  # noqa: E402

del sys.path[0]


def leash(fd, grace):
    """When the agent is gone nobody can cancel any more: interrupt cleanly, then kill the group."""
    try:
        while os.read(fd, 64):
            pass
    except OSError:
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(grace)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main():
    grace, wanted, umask, argv = float(sys.argv[1]), sys.argv[2] == "events", int(sys.argv[3], 8), sys.argv[4:]
    os.umask(umask)
    control = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    threading.Thread(target=leash, args=(control, grace), daemon=True, name="leash").start()
    dbt_child.run(argv, dbt_child.Events(control) if wanted else None)


if __name__ == "__main__":
    main()
