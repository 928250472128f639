"""What the image is put together from: layers, the OCI layout, libraries and their packages."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from cli.image import ARCHITECTURES, ImageError, archive, libraries
from cli.image.debian import Debian
from cli.image.packages import distribution, locked, packages_beside, required, terms

ROOT = Path(__file__).parents[2]
OWN = next(one for one in ARCHITECTURES.values() if one.machine == platform.machine())


def entries(layer: archive.Layer) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer.content), mode="r:gz") as content:
        return {entry.name: entry for entry in content}


def folder(place: Path, time: int, mode: int) -> Path:
    """The same files in another order, of another time and with other permissions for others."""
    files = {"b/program": b"\x7fELF", "a": b"text", "b/c/again": b"text", "empty": b"", "also-empty": b""}
    for name in sorted(files, reverse=bool(time % 2)):
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(files[name])
        file.chmod(0o700 | mode if name == "b/program" else 0o600 | mode & 0o66)
        os.utime(file, (time, time))
    (place / "link").symlink_to("b/program")
    return place


class TestLayer:
    def test_the_same_files_give_the_same_bytes(self, tmp_path: Path) -> None:
        one = archive.layer({"opt/x": folder(tmp_path / "one", 1_700_000_000, 0o55)}, "")
        two = archive.layer({"opt/x": folder(tmp_path / "another place", 1_800_000_001, 0)}, "")
        assert one == two

    def test_entries_are_of_root_and_of_no_time(self, tmp_path: Path) -> None:
        found = entries(archive.layer({"opt/x": folder(tmp_path / "one", 1_700_000_000, 0o55)}, ""))
        assert list(found) == sorted(found)
        assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in found.values()} == {(0, 0, "", "", 0)}
        assert {name for name, one in found.items() if one.isdir()} == {"opt", "opt/x", "opt/x/b", "opt/x/b/c"}
        assert {one.mode for one in found.values() if one.isdir()} == {0o755}
        assert (found["opt/x/b/program"].mode, found["opt/x/a"].mode) == (0o755, 0o644)
        assert (found["opt/x/link"].issym(), found["opt/x/link"].linkname) == (True, "b/program")

    def test_a_file_that_is_there_twice_takes_its_room_once(self, tmp_path: Path) -> None:
        found = entries(archive.layer({"opt/x": folder(tmp_path / "one", 1_700_000_000, 0o55)}, ""))
        assert (found["opt/x/b/c/again"].islnk(), found["opt/x/b/c/again"].linkname) == (True, "opt/x/a")
        assert found["opt/x/empty"].isreg()

    def test_a_bare_file_brings_its_folders(self) -> None:
        found = entries(archive.layer({"etc/deep/file": b"content"}, ""))
        assert {name: one.isdir() for name, one in found.items()} == {
            "etc": True,
            "etc/deep": True,
            "etc/deep/file": False,
        }

    def test_its_digest_is_of_what_is_in_it(self) -> None:
        layer = archive.layer({"etc/file": b"content"}, "")
        content = zlib.decompress(layer.content, 16 + zlib.MAX_WBITS)
        assert layer.diff_id == f"sha256:{hashlib.sha256(content).hexdigest()}"


class Written:
    """An archive that was written, read as a tool would."""

    def __init__(self, place: Path, *architectures: str) -> None:
        layer = archive.layer({"etc/file": b"content"}, "made of nothing")
        images = [archive.Image(one, (layer,), {"Entrypoint": ["/x"]}) for one in architectures]
        self.digest = archive.write(place, "cnikit.test/image:1", images)
        with tarfile.open(place) as content:
            files = {entry.name: content.extractfile(entry) for entry in content if entry.isfile()}
            self.files = {name: file.read() for name, file in files.items() if file is not None}
        (self.named,) = json.loads(self.files["index.json"])["manifests"]

    def blob(self, descriptor: dict[str, Any]) -> Any:
        data = self.files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert descriptor["size"] == len(data)
        assert descriptor["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        return json.loads(data)


class TestArchive:
    def test_one_platform_is_a_manifest(self, tmp_path: Path) -> None:
        written = Written(tmp_path / "one.tar", "amd64")
        assert json.loads(written.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
        assert written.named["digest"] == written.digest
        assert written.named["platform"] == {"architecture": "amd64", "os": "linux"}
        assert set(written.named["annotations"].values()) == {"cnikit.test/image:1"}
        manifest = written.blob(written.named)
        config = written.blob(manifest["config"])
        assert (config["architecture"], config["config"]) == ("amd64", {"Entrypoint": ["/x"]})
        assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) == 1
        assert config["history"] == [{"created_by": "make image", "comment": "made of nothing"}]
        assert "created" not in config, "a time would be another in each image"

    def test_two_platforms_are_an_index(self, tmp_path: Path) -> None:
        written = Written(tmp_path / "two.tar", "amd64", "arm64")
        assert written.named["digest"] == written.digest
        index = written.blob(written.named)
        assert index["mediaType"] == archive.INDEX
        found = [(one["platform"]["architecture"], written.blob(one)) for one in index["manifests"]]
        assert [name for name, _ in found] == ["amd64", "arm64"]
        for name, manifest in found:
            assert written.blob(manifest["config"])["architecture"] == name

    def test_it_is_written_at_once(self, tmp_path: Path) -> None:
        Written(tmp_path / "new" / "one.tar", "amd64")
        assert os.listdir(tmp_path / "new") == ["one.tar"]
        first = (tmp_path / "new" / "one.tar").read_bytes()
        Written(tmp_path / "new" / "one.tar", "amd64")
        assert (tmp_path / "new" / "one.tar").read_bytes() == first


class TestLibraries:
    def test_what_programs_need_is_found_with_what_that_needs(self, tmp_path: Path) -> None:
        python = Path(os.path.realpath("/usr/bin/python3"))
        (tmp_path / "python3").write_bytes(python.read_bytes())
        found = libraries.from_outside([tmp_path], Debian(Path("/"), OWN))
        names = {place.rpartition("/")[2] for place in found}
        assert {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libexpat.so.1"} <= names
        assert any(name.startswith("ld-linux-") for name in names)
        assert not any(file.is_symlink() for file in found.values())

    def test_what_is_beside_them_is_not_asked_for(self, tmp_path: Path) -> None:
        python = Path(os.path.realpath("/usr/bin/python3"))
        (tmp_path / "python3").write_bytes(python.read_bytes())
        system = Debian(Path("/"), OWN)
        (tmp_path / "libexpat.so.1").write_bytes(system.file(system.library("libexpat.so.1")).read_bytes())
        assert not any("libexpat" in place for place in libraries.from_outside([tmp_path], system))

    def test_a_folder_without_programs_is_a_mistake(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_bytes(b"no program")
        with pytest.raises(ImageError, match="expected programs, found none"):
            libraries.from_outside([tmp_path], Debian(Path("/"), OWN))

    def test_the_newest_symbol_of_glibc(self) -> None:
        major, minor = libraries.linked([Path(os.path.realpath("/usr/bin/python3"))]).glibc[:2]
        assert (2, 17) <= (major, minor) < (3, 0)

    def test_a_library_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=f"expected libc.so.6 for {OWN.name} below {tmp_path}"):
            Debian(tmp_path, OWN).library("libc.so.6")

    def test_links_are_followed_as_in_the_root(self, tmp_path: Path) -> None:
        (tmp_path / "usr").mkdir()
        (tmp_path / "usr" / "real").write_bytes(b"content")
        (tmp_path / "usr" / "relative").symlink_to("real")
        (tmp_path / "absolute").symlink_to("/usr/relative")
        assert Debian(tmp_path, OWN).file(Path("absolute")).read_bytes() == b"content"


class TestDebian:
    def test_whose_a_library_is_and_its_terms(self) -> None:
        system = Debian(Path("/"), OWN)
        end = f"{OWN.triplet}/libc.so.6"
        found = system.owners({end, f"{OWN.triplet}/libmissing.so.1"})
        assert list(found) == [end]
        package = system.described(found[end])
        assert package.name == "libc6"
        assert package.version.startswith("2.")
        assert b"LGPL" in system.copyright(package.name)

    def test_missing_terms_are_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="expected the terms of libc6 in .*usr/share/doc/libc6/copyright"):
            Debian(tmp_path, OWN).copyright("libc6")


class TestPackages:
    def test_dependencies_of_dependencies_are_required(self) -> None:
        found = required("pyinstaller")
        assert {"click", "lightkube", "httpcore2", "protobuf", "altgraph"} <= found
        assert not {"pytest", "mypy", "matplotlib", "numpy", "pillow", "ziglang"} & found
        assert "altgraph" not in required()
        assert found <= set(locked())

    def test_what_is_only_for_tests_stays_out_of_the_command(self) -> None:
        beside = set(packages_beside())
        assert {"pytest", "mypy", "PIL", "numpy", "matplotlib", "grpc", "PyInstaller", "setuptools"} <= beside
        assert not {"click", "yaml", "google", "opentelemetry", "httpx2"} & beside

    def test_each_has_terms(self) -> None:
        for name in required("pyinstaller"):
            files = dict(terms(distribution(name)))
            assert files, name
            assert all(files.values()), name

    def test_one_that_is_not_installed_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="expected the Python package click in .*, found none"):
            distribution("click", str(tmp_path))
