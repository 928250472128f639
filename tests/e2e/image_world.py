"""The image as its readers see it: archives taken apart by the OCI specification, and roots that programs run in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from cli.image import ARCHITECTURES, Architecture
from cli.image.root import inside

OWN = next(one for one in ARCHITECTURES.values() if one.machine == os.uname().machine)
OTHER = next(one for one in ARCHITECTURES.values() if one != OWN)
EMPTY = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class Archive:
    """An archive in the OCI image layout; every digest in it is checked when it is followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(path) as content:
            members = [(entry.name, content.extractfile(entry)) for entry in content if entry.isfile()]
            self.files = {name: file.read() for name, file in members if file is not None}
        (self.named,) = json.loads(self.files["index.json"])["manifests"]

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        data = self.files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert descriptor["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert descriptor["size"] == len(data)
        return data

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The descriptor of each platform's manifest, by the architecture's name."""
        several = self.named["mediaType"].endswith(".index.v1+json")
        found = json.loads(self.blob(self.named))["manifests"] if several else [self.named]
        return {one["platform"]["architecture"]: one for one in found}

    def image(self, architecture: Architecture) -> Image:
        return Image(self, json.loads(self.blob(self.manifests()[architecture.name])), architecture)


class Image:
    """One platform's image: its configuration, and its layers from below."""

    def __init__(self, archive: Archive, manifest: dict[str, Any], architecture: Architecture) -> None:
        self.architecture = architecture
        self.config = json.loads(archive.blob(manifest["config"]))
        self.layers = [gzip.decompress(archive.blob(one)) for one in manifest["layers"]]
        self.size = sum(one["size"] for one in manifest["layers"])

    def entries(self) -> dict[str, tarfile.TarInfo]:
        """What is in it, by its path."""
        found: dict[str, tarfile.TarInfo] = {}
        for layer in self.layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as content:
                found.update({entry.name: entry for entry in content})
        return found

    def digests(self) -> dict[str, str]:
        """A digest of each file's content, by its path."""
        found: dict[str, str] = {}
        for layer in self.layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as content:
                files = [(entry.name, content.extractfile(entry)) for entry in content if entry.isfile()]
                found |= {name: hashlib.sha256(file.read()).hexdigest() for name, file in files if file is not None}
        return found

    def unpacked(self, root: Path) -> Root:
        root.mkdir()
        for layer in self.layers:
            subprocess.run(["tar", "-x", "-C", root], input=layer, check=True)
        return Root(root, self.architecture)


class Root:
    """An image's root file system, and programs in it: those of another processor run under qemu-user."""

    def __init__(self, path: Path, architecture: Architecture) -> None:
        self.path = path
        self.architecture = architecture
        for name in ("dev", "proc"):
            (path / name).mkdir()

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command in it."""
        if self.architecture == OWN:
            script = f"mount --rbind /proc {self.path}/proc && exec chroot {self.path} {shlex.join(command)}"
            return ["unshare", "--mount", "/bin/sh", "-c", script]
        return inside(self.architecture, self.path, list(command))

    def run(self, *command: str, stdin: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
        env = {**EMPTY, **environ}
        return subprocess.run(self.argv(*command), input=stdin, capture_output=True, env=env, timeout=300, check=False)
