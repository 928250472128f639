"""An image made here, from the static busybox of this machine: no registry, no download."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
FOLDERS = ("bin", "dev", "etc", "proc", "sys", "tmp", "run")


def save(path: Path, name: str, *command: str) -> None:
    """Write an OCI archive with one layer: busybox and a link for each of its applets; `command` is what it runs."""
    layer = _layer()
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Entrypoint": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    blobs: dict[str, bytes] = {}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(blobs, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [_blob(blobs, layer, "application/vnd.oci.image.layer.v1.tar")],
    }
    described = _blob(blobs, json.dumps(manifest).encode(), manifest["mediaType"])
    described["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [described]}).encode())
        for digest, data in blobs.items():
            _add(archive, f"blobs/sha256/{digest}", data)


def _layer() -> bytes:
    busybox = shutil.which("busybox")
    assert busybox, "no busybox on PATH: expected the static one (Debian: busybox-static)"
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        with open(busybox, "rb") as file:
            _add(archive, "bin/busybox", file.read(), 0o755)
        for applet in listed:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(blobs: dict[str, bytes], data: bytes, media_type: Any) -> dict[str, Any]:
    digest = _digest(data)
    blobs[digest.partition(":")[2]] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))
