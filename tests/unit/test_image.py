"""What the image is put together from: layers, the OCI layout, libraries and their packages."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import tarfile
import tomllib
import zlib
from pathlib import Path
from typing import Any

import pytest

from cli.image import ARCHITECTURES, ImageError, archive, foreign, libraries, root
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

    def test_an_installed_wheel_says_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """There is no pyproject.toml beside it, and our own packages are among those that are installed."""
        expected = required()
        place = tmp_path / "cnikit-1.0.dist-info"
        place.mkdir()
        (place / "top_level.txt").write_text("cli\nagent\n")
        listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        extra = ['Requires-Dist: pyinstaller>=6; extra == "build"']
        lines = [
            "Metadata-Version: 2.4",
            "Name: cnikit",
            "Version: 1.0",
            *(f"Requires-Dist: {one}" for one in listed),
            *extra,
        ]
        (place / "METADATA").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr("cli.image.packages.ROOT", tmp_path)
        assert required() == expected
        assert not {"cli", "agent", "click"} & set(packages_beside())
        assert "pytest" in packages_beside()

    def test_each_has_terms(self) -> None:
        for name in required("pyinstaller"):
            files = dict(terms(distribution(name)))
            assert files, name
            assert all(files.values()), name

    def test_one_that_is_not_installed_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="expected the Python package click in .*, found none"):
            distribution("click", str(tmp_path))


class TestForeign:
    """Builds for the other processor are kept; how they are made is for tests/e2e/test_image.py."""

    @pytest.fixture
    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What was built; a build takes minutes, so a file stands for it here."""
        calls: list[str] = []

        def build(name: str, output: Path) -> None:
            calls.append(name)
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_text("built")

        (tmp_path / "cache" / "root-arm64-x").mkdir(parents=True)
        (tmp_path / "sources" / "cni").mkdir(parents=True)
        for name in ("pyproject.toml", "requirements.lock", "cni/main.py"):
            (tmp_path / "sources" / name).write_text("")
        monkeypatch.setattr(foreign, "ROOT", tmp_path / "sources")
        monkeypatch.setattr(foreign, "root_of", lambda _: tmp_path / "cache" / "root-arm64-x")
        monkeypatch.setattr(foreign, "build_command", lambda output, _: build("cnikit", output))
        monkeypatch.setattr(foreign, "build_plugins", lambda output, _, __: build("bridge", output))
        return calls

    def test_the_same_sources_are_built_once(self, tmp_path: Path, made: list[str]) -> None:
        output = tmp_path / "dist" / "arm64"
        for _ in range(2):
            foreign.build_for(ARCHITECTURES["linux/arm64"], output)
        assert sorted(made) == ["bridge", "cnikit"]
        assert (output / "cnikit").read_text() == (output / "bin" / "bridge").read_text() == "built"

    def test_others_are_built_anew_and_few_are_kept(self, tmp_path: Path, made: list[str]) -> None:
        output = tmp_path / "dist" / "arm64"
        for number in range(foreign.BUILDS_KEPT + 2):
            (tmp_path / "sources" / "cni" / "main.py").write_text(f"{number}")
            foreign.build_for(ARCHITECTURES["linux/arm64"], output)
        assert len(made) == 2 * (foreign.BUILDS_KEPT + 2)
        assert len(list((tmp_path / "cache").glob("built-arm64-*"))) == foreign.BUILDS_KEPT
        assert (tmp_path / "cache" / "root-arm64-x").is_dir()


class TestRoot:
    def test_the_cache_is_where_it_is_said_to_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CNIKIT_CACHE", str(tmp_path / "named"))
        assert root.cache() == tmp_path / "named"
        monkeypatch.delenv("CNIKIT_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert root.cache() == tmp_path / "xdg" / "cnikit"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert root.cache() == tmp_path / ".cache" / "cnikit"

    def test_make_says_the_same(self, tmp_path: Path) -> None:
        """It has another XDG_CACHE_HOME for what it runs."""
        shown = ["make", "-C", str(ROOT), "--no-print-directory", "--eval=shown:;@echo $$CNIKIT_CACHE", "shown"]
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        for given, expected in (
            ({}, tmp_path / ".cache" / "cnikit"),
            ({"XDG_CACHE_HOME": "/x"}, "/x/cnikit"),
            ({"XDG_CACHE_HOME": "/x", "CNIKIT_CACHE": "/named"}, "/named"),
        ):
            ran = subprocess.run(shown, env={**environ, **given}, capture_output=True, text=True, check=True)
            assert ran.stdout == f"{expected}\n"

    def test_a_missing_emulator_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(
            ImageError, match="expected qemu-aarch64-static on PATH, .*apt-get install qemu-user-static"
        ):
            root.emulator(ARCHITECTURES["linux/arm64"])
