"""Warm parent: imports dbt once, exercises it once, then forks a fresh child per invocation.

    python -I -X utf8 warm_parent.py CONFIG.json        (prints one line: ready or refused, then detaches)

Processes: the parent (one thread, no secrets, only accepts) -> a keeper per connection (reads the request, watches
the connection, waits) -> dbt. The parent never reads a request, so neither environments nor credentials pass
through it. A keeper whose connection ends interrupts its dbt, waits, and kills it.
"""

import array
import ctypes
import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import dbt_child  # noqa: E402

del sys.path[0]

PROTOCOL = 1
REQUEST_LIMIT = 8 * 1024 * 1024
REQUEST_SECONDS = 30.0
BACKLOG = 128
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Refused(Exception):
    """This process must not serve; the caller uses the plain backend."""


def send(conn, record):
    try:
        conn.sendall(json.dumps(record).encode() + b"\n")
    except OSError:
        pass


# ---------------------------------------------------------------- warm-up


def check_versions(config):
    from importlib.metadata import version

    found = {"dbt-core": version("dbt-core"), "dbt-" + config["adapter"]: version("dbt-" + config["adapter"])}
    if found["dbt-core"] not in config["core_versions"]:
        raise Refused("dbt-core %s is not a version the warm parent was tested with" % found["dbt-core"])
    if config["adapter"] not in config["adapters"]:
        raise Refused("adapter %s was not tested with the warm parent" % config["adapter"])
    return found


def patch_locks():
    """dbt takes the spawn context only to make locks; spawn starts a tracker process per invocation."""
    import multiprocessing

    import dbt.mp_context as target

    if type(getattr(target, "_MP_CONTEXT", None)).__name__ != "SpawnContext":
        raise Refused("dbt.mp_context is not shaped as expected")
    target._MP_CONTEXT = multiprocessing.get_context("fork")


MODULES = (
    "dbt.cli.main dbt.task.build dbt.task.compile dbt.task.deps dbt.task.docs.generate dbt.task.freshness "
    "dbt.task.list dbt.task.retry dbt.task.run dbt.task.run_operation dbt.task.seed dbt.task.show dbt.task.snapshot "
    "dbt.task.test dbt.task.clone dbt.task.debug dbt.task.clean dbt.parser.manifest dbt.parser.partial"
).split()

PROJECT = {
    "dbt_project.yml": 'name: warm\nversion: "1.0.0"\nprofile: warm\nconfig-version: 2\nmodel-paths: [models]\nseed-paths: [seeds]\n'
    "macro-paths: [macros]\nsnapshot-paths: [snapshots]\ntest-paths: [tests]\nanalysis-paths: [analyses]\n"
    "models:\n  warm:\n    +materialized: view\n",
    "seeds/s.csv": "id,name\n1,a\n2,b\n",
    "seeds/s.yml": "version: 2\nseeds:\n  - name: s\n    description: a seed\n    columns:\n      - name: id\n        data_tests: [unique, not_null]\n",
    "models/a.sql": "select id, name from {{ ref('s') }}\n",
    "models/b.sql": "{{ config(materialized='table', tags=['t']) }}\n{% set xs = ['x', 'y'] %}\nselect id{% for x in xs %}, '{{ x }}' as {{ x }}{% endfor %}"
    " from {{ ref('a') }} where {{ warm_macro('id') }} > {{ var('low', 0) }}\n",
    "models/c.sql": "{{ config(materialized='incremental', unique_key='id') }}\nselect * from {{ ref('b') }}\n",
    "models/m.yml": "version: 2\nsources:\n  - name: src\n    schema: x\n    tables: [{name: t, columns: [{name: id, data_tests: [not_null]}]}]\n"
    "models:\n  - name: a\n    description: '{{ doc(\"d\") }}'\n    columns:\n      - name: id\n        data_tests:\n          - unique\n          - not_null\n"
    "          - relationships: {arguments: {to: ref('s'), field: id}}\n      - name: name\n        data_tests:\n          - accepted_values: {arguments: {values: [a, b]}}\n"
    "exposures:\n  - {name: e, type: dashboard, owner: {name: o, email: o@example.invalid}, depends_on: [ref('a')]}\n",
    "models/d.md": "{% docs d %}\ntext\n{% enddocs %}\n",
    "macros/m.sql": "{% macro warm_macro(c) %}abs({{ c }}){% endmacro %}\n",
    "tests/t.sql": "select * from {{ ref('a') }} where id < 0\n",
    "snapshots/s.sql": "{% snapshot sn %}{{ config(target_schema='x', unique_key='id', strategy='check', check_cols='all') }}select * from {{ ref('s') }}{% endsnapshot %}\n",
}


def exercise(config):
    """Runs dbt's code paths once so that lazily generated code exists before any fork. Never connects."""
    import importlib

    for name in MODULES + ["dbt.adapters." + config["adapter"]]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith("dbt.task."):
                raise Refused("cannot import %s: %s" % (name, error))
    root = tempfile.mkdtemp(prefix="dbtcloud-warm-")
    # dbt prints while it is exercised; the line that says "ready" must be the only one.
    stdout, stderr = os.dup(1), os.dup(2)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    here = os.getcwd()
    try:
        for name, text in PROJECT.items():
            path = os.path.join(root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as out:
                out.write(text)
        with open(os.path.join(root, "profiles.yml"), "w") as out:
            json.dump({"warm": {"target": "t", "outputs": {"t": config["profile"]}}}, out)
        os.chdir(root)
        from dbt.cli.main import dbtRunner

        # The static parser starts native threads, and a forked child then waits on them for ever.
        common = ["--no-static-parser", "--log-level-file", "none", "--quiet"]
        steps = (
            common + ["parse", "--no-partial-parse"],
            common + ["parse"],
            common + ["--no-populate-cache", "compile", "--no-introspect"],
            common + ["list", "--output", "json"],
        )
        for argv in steps:
            sys.argv = ["dbt"] + argv
            result = dbtRunner(callbacks=[dbt_child.Events(None)]).invoke(argv)
            if not result.success:
                raise Refused("warm-up `dbt %s` failed: %s" % (" ".join(argv), str(result.exception)[:500]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        for fd in (stdout, stderr, null):
            os.close(fd)
        os.chdir(here)
        shutil.rmtree(root, ignore_errors=True)


def forget():
    """Drops what the exercise left behind and a fresh interpreter would not have."""
    from dbt.adapters.factory import reset_adapters
    from dbt_common.events.event_manager_client import cleanup_event_logger
    from dbt_common.events.functions import reset_metadata_vars

    reset_adapters()
    cleanup_event_logger()
    reset_metadata_vars()
    import dbt.deprecations

    for name in ("active_deprecations", "buffered_deprecations"):
        left = getattr(dbt.deprecations, name, None)
        if left:
            left.clear()


def assert_one_thread():
    count = len(os.listdir("/proc/self/task"))
    if count != 1:
        raise Refused("%d threads after warm-up; forking is safe with one" % count)


# ---------------------------------------------------------------- keeper


def read_request(conn):
    conn.settimeout(REQUEST_SECONDS)
    fds = array.array("i")
    data, ancillary, flags, _ = conn.recvmsg(65536, socket.CMSG_LEN(3 * fds.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        raise Refused("descriptors were cut off")
    buffer = bytearray(data)

    def need(count):
        while len(buffer) < count:
            more = conn.recv(65536)
            if not more:
                raise Refused("the request ended early")
            buffer.extend(more)

    need(4)
    (length,) = struct.unpack(">I", buffer[:4])
    if length > REQUEST_LIMIT:
        raise Refused("the request is larger than %d bytes" % REQUEST_LIMIT)
    need(4 + length)
    return json.loads(bytes(buffer[4 : 4 + length])), list(fds)


def dbt_process(request, fds, null):
    """The grandchild: becomes one dbt invocation. Signals are still blocked here."""
    try:
        os.setpgid(0, 0)
        if LIBC is not None:  # should the keeper be killed, dbt is interrupted
            LIBC.prctl(1, signal.SIGINT, 0, 0, 0)
        for target, fd in ((0, null), (1, fds[0]), (2, fds[1])):
            os.dup2(fd, target)
        events = os.dup(fds[2]) if request["events"] else None
        keep = events if events is not None else 2
        os.closerange(3, keep) if keep > 3 else None
        os.closerange(keep + 1, max(fds + [null, keep]) + 16)
        os.environ.clear()
        os.environ.update(request["env"])
        time.tzset()
        os.umask(request["umask"])
        random.seed()
        from dbt_common.invocation import reset_invocation_id

        reset_invocation_id()
        dbt_child.run(request["argv"], dbt_child.Events(events) if events is not None else None)
    except BaseException as error:
        os.write(2, ("dbtcloud: could not start dbt: %s\n" % type(error).__name__).encode())
    finally:
        os._exit(2)


def signal_group(pid, number):
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


def keep(conn, state):
    """The keeper: one connection, at most one dbt."""
    try:
        request, fds = read_request(conn)
        operation = request.get("op")
        if operation == "ping":
            send(conn, dict(state, t="pong"))
            return
        if operation == "stop":
            os.kill(state["pid"], signal.SIGTERM)
            send(conn, {"t": "stopping"})
            return
        if operation != "run" or request.get("protocol") != PROTOCOL or len(fds) != 3:
            raise Refused("not a request this parent understands")
        if state["running"] >= state["max_running"]:
            raise Refused("busy: %d invocations are running" % state["running"])
        os.chdir(request["cwd"])
        null = os.open(os.devnull, os.O_RDWR)
        grace = float(request["grace"])
    except Refused as error:
        send(conn, {"t": "refused", "reason": str(error)})
        return
    except Exception as error:  # before anything was started: say so, the caller goes the plain way
        send(conn, {"t": "refused", "reason": "%s before dbt was started" % type(error).__name__})
        return
    # Two steps, so that a caller who gave up waiting can go another way and never has dbt started twice.
    send(conn, {"t": "accepted"})
    try:
        if conn.recv(1) != b"G":
            return
    except OSError:
        return
    conn.settimeout(None)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    pid = os.fork()
    if pid == 0:
        dbt_process(request, fds, null)
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass
    for fd in fds + [null]:
        os.close(fd)
    request.clear()
    send(conn, {"t": "started", "pid": pid})
    handle = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(conn, select.POLLIN | select.POLLHUP)
    poll.register(handle, select.POLLIN)
    deadline = None
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poll.poll(wait))
        if handle in ready:
            break
        if deadline is not None and time.monotonic() >= deadline:
            signal_group(pid, signal.SIGKILL)
            deadline = time.monotonic() + 1.0
        if conn.fileno() in ready:
            try:
                command = conn.recv(1)
            except OSError:
                command = b""
            if command == b"I":
                signal_group(pid, signal.SIGINT)
            elif command == b"K":
                signal_group(pid, signal.SIGKILL)
            elif not command:
                # Whoever asked is gone; nobody is left to cancel this dbt or to read it.
                poll.unregister(conn)
                signal_group(pid, signal.SIGINT)
                deadline = time.monotonic() + grace
    # The group is killed while its dead leader still holds the number.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    signal_group(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    send(
        conn,
        {
            "t": "exited",
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "user_us": int(usage.ru_utime * 1e6),
            "system_us": int(usage.ru_stime * 1e6),
            "max_rss_kib": usage.ru_maxrss,
        },
    )


# ---------------------------------------------------------------- parent


class Parent:
    def __init__(self, config, versions):
        self.config = config
        self.children = set()
        self.forks = 0
        self.started = time.monotonic()
        self.used = self.started
        self.stopping = False
        self.state = {
            "protocol": PROTOCOL,
            "key": config["key"],
            "pid": os.getpid(),
            "versions": versions,
            "max_running": config["max_running"],
        }
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = config["socket"]
        mask = os.umask(0o177)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self.listener.bind(path)
        os.umask(mask)
        self.listener.listen(BACKLOG)
        self.listener.setblocking(False)
        self.inode = os.stat(path).st_ino

    def stop(self, *_):
        self.stopping = True

    def reap(self):
        while self.children:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.children.clear()
                return
            if pid == 0:
                return
            self.children.discard(pid)

    def own_path(self):
        try:
            return os.stat(self.config["socket"]).st_ino == self.inode
        except OSError:
            return False

    def serve_one(self):
        try:
            conn, _ = self.listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        self.used = time.monotonic()
        peer = struct.unpack("3i", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if peer[1] not in (os.getuid(), 0):
            conn.close()
            return True
        self.forks += 1
        state = dict(self.state, forks=self.forks, running=len(self.children), uptime=time.monotonic() - self.started)
        try:
            pid = os.fork()
        except OSError:
            conn.close()
            return True
        if pid == 0:
            try:
                os.setsid()
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                self.listener.close()
                conn.setblocking(True)
                keep(conn, state)
            finally:
                os._exit(0)
        self.children.add(pid)
        conn.close()
        return True

    def due(self):
        """Whether to leave: told to, replaced, idle, or old. Invocations under way outlive the parent."""
        now = time.monotonic()
        if not self.children and now - self.used > self.config["idle_seconds"]:
            return True
        return (
            self.stopping
            or self.forks >= self.config["max_forks"]
            or now - self.started > self.config["max_seconds"]
            or not self.own_path()
            or not os.path.exists(sys.executable)
        )

    def serve(self):
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        tick = max(0.05, min(5.0, self.config["idle_seconds"] / 4))
        while not self.due():
            ready, _, _ = select.select([self.listener, read], [], [], tick)
            if read in ready:
                os.read(read, 4096)
            self.reap()
            if self.listener in ready:
                self.serve_one()
        if self.own_path():
            os.unlink(self.config["socket"])
        while self.serve_one():  # those who connected before the name was gone
            pass


def main():
    with open(sys.argv[1]) as source:
        config = json.load(source)
    # Detach before anything heavy: no terminal, no parent to die with.
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.chdir("/")
    try:
        versions = check_versions(config)
        patch_locks()
        exercise(config)
        forget()
        gc.collect()
        gc.freeze()
        assert_one_thread()
        parent = Parent(config, versions)
        line = {"t": "ready", "pid": os.getpid()}
    except Refused as error:
        line, parent = {"t": "refused", "reason": str(error)}, None
    except BaseException as error:
        line, parent = {"t": "refused", "reason": "%s: %s" % (type(error).__name__, str(error)[:500])}, None
    try:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(1)
    if parent is None:
        os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    parent.serve()
    os._exit(0)


if __name__ == "__main__":
    main()
