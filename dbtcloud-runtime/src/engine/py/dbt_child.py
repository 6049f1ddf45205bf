"""What one dbt invocation does inside its own process, whichever backend started it.

Runs dbt's own CLI entry point unchanged, with one callback attached that writes a compact subset of dbt's
events as JSON lines to a descriptor. Nothing here prints: standard output belongs to dbt.
"""

import atexit
import json
import os
import signal
import sys
import threading

MESSAGE_LIMIT = 16 * 1024  # characters of one event's message that are forwarded
WANTED = frozenset(("MainReportVersion", "NodeStart", "LogStartLine", "NodeFinished", "CommandCompleted", "MainEncounteredError"))


class Events:
    """Forwards events to a descriptor; goes quiet for good when nobody reads any more."""

    def __init__(self, fd):
        self.fd = fd
        self.lock = threading.Lock()

    def close(self):
        with self.lock:
            if self.fd is not None:
                os.close(self.fd)
                self.fd = None

    def write(self, record):
        data = json.dumps(record, separators=(",", ":"), default=str).encode("utf-8", "replace") + b"\n"
        with self.lock:
            try:
                while data and self.fd is not None:
                    data = data[os.write(self.fd, data):]
            except OSError:
                self.fd = None

    def __call__(self, msg):
        try:
            name = msg.info.name
            if name in WANTED:
                self.write(compact(name, msg))
        except Exception as error:  # an event is never a reason to fail a run
            self.write({"k": "bad", "message": type(error).__name__})


def scrub(text):
    from dbt_common.events.functions import env_scrubber

    return env_scrubber(text)[:MESSAGE_LIMIT]


def node(record, info):
    record["id"] = info.unique_id
    record["name"] = info.node_name
    record["type"] = info.resource_type
    record["mat"] = info.materialized
    record["status"] = info.node_status
    record["started"] = info.node_started_at
    record["finished"] = info.node_finished_at
    record["relation"] = info.node_relation.relation_name
    return {key: value for key, value in record.items() if value not in ("", None)}


def compact(name, msg):
    info, data = msg.info, msg.data
    ts = info.ts.ToJsonString()
    if name == "NodeStart":
        return node({"k": "start", "ts": ts}, data.node_info)
    if name == "LogStartLine":
        return node({"k": "progress", "ts": ts, "index": data.index, "total": data.total}, data.node_info)
    if name == "NodeFinished":
        result = data.run_result
        return node(
            {
                "k": "finish",
                "ts": ts,
                "result": result.status,
                "message": scrub(result.message),
                "seconds": result.execution_time,
                "failures": result.num_failures,
                "thread": result.thread,
            },
            data.node_info,
        )
    if name == "MainReportVersion":
        return {"k": "version", "ts": ts, "version": data.version.lstrip("="), "invocation": info.invocation_id}
    if name == "CommandCompleted":
        return {"k": "completed", "ts": ts, "success": data.success, "seconds": data.elapsed}
    return {"k": "error", "ts": ts, "message": scrub(info.msg)}


def install_signals():
    """SIGINT is dbt's only clean cancel. It may have been inherited as ignored; SIGTERM is made to mean it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def relocate_seeds():
    """Makes parse state that was kept from another checkout fit this one.

    dbt keeps one absolute path in it: that of a seed's project (SeedNode.root_path), from which it reads the CSV
    file even when nothing had to be parsed again.
    """
    from dbt.parser.manifest import ManifestLoader

    read = ManifestLoader.read_manifest_for_partial_parse

    def relocated(loader):
        manifest = read(loader)
        for node in manifest.nodes.values() if manifest is not None else ():
            project = loader.all_projects.get(node.package_name)
            if getattr(node, "root_path", None) and project is not None:
                node.root_path = project.project_root
        return manifest

    ManifestLoader.read_manifest_for_partial_parse = relocated


def run(argv, events):
    """Runs dbt and never returns. Exit codes are dbt's: 0 success, 1 a node failed, 2 anything else."""
    code = 2
    try:
        sys.argv = ["dbt"] + argv
        install_signals()
        from dbt.cli.main import cli

        relocate_seeds()
        obj = {"callbacks": [events]} if events is not None else {}
        cli.main(args=list(argv), prog_name="dbt", obj=obj)
        code = 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            code = stop.code or 0
        else:
            print(stop.code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        code = 2
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        # Interpreter teardown is skipped: duckdb's binding reports leaks from it in forked children.
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            atexit._run_exitfuncs()
        except BaseException:
            pass
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                pass
        os._exit(code)
