"""Layers, and the OCI image layout as one archive: https://github.com/opencontainers/image-spec

The same files give the same bytes, so that an image's digest says what is in it: entries in order, owned by root, of no
time, and compressed without a name.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Descriptor = dict[str, Any]


class Layer(NamedTuple):
    """A compressed layer, the digest of what is in it, and a line about that."""

    content: bytes
    diff_id: str
    made_of: str


class Image(NamedTuple):
    """An image of one platform: `architecture` as OCI has it, layers from below, and its configuration."""

    architecture: str
    layers: tuple[Layer, ...]
    config: Mapping[str, Any]


def layer(files: Mapping[str, Path | bytes], made_of: str) -> Layer:
    """A layer of these files and folders, by their place in the root: a path is copied with all that is below it.

    Files with the same content are one file with several names, so a library that two bundles bring is there once.
    """
    found: dict[str, Path | bytes] = {}
    for place, source in files.items():
        found[place] = source
        if isinstance(source, Path) and source.is_dir() and not source.is_symlink():
            found.update({f"{place}/{below.relative_to(source)}": below for below in source.rglob("*")})
    for place in list(found):
        for above in PurePosixPath(place).parents[:-1]:
            found.setdefault(str(above), b"")
    folders = {str(above) for place in found for above in PurePosixPath(place).parents}
    packed, names = io.BytesIO(), dict[tuple[int, bytes], str]()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for place, source in sorted(found.items()):
            _add(archive, place, source, is_folder=place in folders, names=names)
    content = packed.getvalue()
    return Layer(_compressed(content), digest(content), made_of)


def _add(
    archive: tarfile.TarFile, place: str, source: Path | bytes, *, is_folder: bool, names: dict[tuple[int, bytes], str]
) -> None:
    entry = tarfile.TarInfo(place)  # of root, and of the first second of 1970
    if isinstance(source, Path) and source.is_symlink():
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(source.readlink()), 0o777
    elif is_folder or (isinstance(source, Path) and source.is_dir()):
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    else:
        content = source if isinstance(source, bytes) else source.read_bytes()
        entry.mode = 0o755 if isinstance(source, Path) and source.stat().st_mode & 0o111 else 0o644
        first = names.setdefault((entry.mode, content), place)
        if content and first != place:
            entry.type, entry.linkname = tarfile.LNKTYPE, first
        else:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
            return
    archive.addfile(entry)


def _compressed(content: bytes) -> bytes:
    """Content in gzip's format, whose head has neither a name nor a time then."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def write(place: Path, name: str, images: Iterable[Image]) -> str:
    """Write an archive with the image `name` for each platform; returns the digest that the name stands for.

    With one platform it is that of a manifest, with several that of an index of them.
    """
    blobs: dict[str, bytes] = {}
    manifests = [_manifest(image, blobs) for image in images]
    (named,) = manifests if len(manifests) == 1 else [_blob(blobs, INDEX, _index(manifests))]
    # The first is read by containerd, the second by the others.
    named["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(_index([named]))}
    files |= {f"blobs/{key.replace(':', '/')}": content for key, content in sorted(blobs.items())}
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.new")
    with tarfile.open(new, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in ("blobs", "blobs/sha256"):
            _add(archive, path, b"", is_folder=True, names={})
        for path, content in files.items():
            _add(archive, path, content, is_folder=False, names={})
    new.replace(place)
    return str(named["digest"])


def _manifest(image: Image, blobs: dict[str, bytes]) -> Descriptor:
    platform = {"architecture": image.architecture, "os": "linux"}
    config = {
        **platform,
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in image.layers]},
        "history": [{"created_by": "make image", "comment": one.made_of} for one in image.layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _blob(blobs, CONFIG, config),
        "layers": [_blob(blobs, LAYER, one.content) for one in image.layers],
    }
    return {**_blob(blobs, MANIFEST, manifest), "platform": platform}


def _index(manifests: list[Descriptor]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}


def _blob(blobs: dict[str, bytes], media_type: str, content: bytes | Mapping[str, Any]) -> Descriptor:
    data = content if isinstance(content, bytes) else _json(content)
    key = digest(data)
    blobs[key] = data
    return {"mediaType": media_type, "digest": key, "size": len(data)}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
