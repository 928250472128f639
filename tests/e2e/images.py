"""Images made here, from files of this machine such as its static busybox: no registry, no download."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
FOLDERS = ("/bin", "/dev", "/etc", "/proc", "/sys", "/tmp", "/run")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def save(path: Path, name: str, *command: str) -> None:
    """Write an archive of an image with busybox and a link for each of its applets; `command` is what it runs."""
    busybox, links = busybox_files()
    write(path, name, layer(busybox, links), command)


def write(path: Path, name: str, content: bytes, command: Sequence[str], words: Sequence[str] = ()) -> None:
    """Write an OCI archive with one layer, a tar file; `command` is what the image runs, with `words` when no others
    are given."""
    packed = gzip.compress(content, 1, mtime=0)
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Env": [f"PATH={SEARCH_PATH}"], "Entrypoint": list(command), "Cmd": list(words)},
        "rootfs": {"type": "layers", "diff_ids": [_digest(content)]},
    }
    blobs: dict[str, bytes] = {}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(blobs, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [_blob(blobs, packed, "application/vnd.oci.image.layer.v1.tar+gzip")],
    }
    described = _blob(blobs, json.dumps(manifest).encode(), manifest["mediaType"])
    described["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [described]}).encode())
        for digest, data in blobs.items():
            _add(archive, f"blobs/sha256/{digest}", data)


def busybox_files() -> tuple[dict[str, Path], dict[str, str]]:
    """The files and links of busybox, for `layer`."""
    busybox = shutil.which("busybox")
    assert busybox, "no busybox on PATH: expected the static one (Debian: busybox-static)"
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    return {"/bin/busybox": Path(busybox)}, {f"/bin/{applet}": "busybox" for applet in listed if applet != "busybox"}


def layer(files: Mapping[str, Path], links: Mapping[str, str]) -> bytes:
    """A root folder as a tar file: where each file goes, and what each link points to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        above = {folder for name in (*files, *links) for folder in map(str, PurePosixPath(name).parents)}
        for folder in sorted({*above, *FOLDERS} - {"/"}):
            entry = tarfile.TarInfo(folder.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "/tmp" else 0o755
            archive.addfile(entry)
        for name, file in files.items():
            _add(archive, name.lstrip("/"), file.read_bytes(), 0o755)
        for name, target in links.items():
            link = tarfile.TarInfo(name.lstrip("/"))
            link.type, link.linkname = tarfile.SYMTYPE, target
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
