#!/usr/bin/env python3
"""Makes a one-layer image of a folder, for `ctr images import` or `buildah`: no daemon, no registry.

image.py NAME:TAG OUT.tar ROOT [--stop-signal SIGNAL] [ENTRYPOINT...]
"""
import hashlib
import io
import json
import platform
import sys
import tarfile

EPOCH = "1970-01-01T00:00:00Z"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def plain(entry):
    """Without what differs from machine to machine: the same folder gives the same image."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def main(name, out, root, *rest):
    rest, stop = list(rest), None
    if rest[:1] == ["--stop-signal"]:
        stop, rest = rest[1], rest[2:]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        layer.add(root, arcname=".", filter=plain)
    layer = buffer.getvalue()
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    settings = {"Env": ["PATH=" + path], "Entrypoint": rest or None, "WorkingDir": "/"}
    if stop:
        settings["StopSignal"] = stop
    config = json.dumps({
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        "history": [{"created": EPOCH, "created_by": "image.py"}],
        "created": EPOCH,
    }).encode()
    named = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": named, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(out, "w") as archive:
        for file, content in ((named, config), ("layer.tar", layer), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


if len(sys.argv) < 4:
    sys.exit(__doc__)
main(*sys.argv[1:])
