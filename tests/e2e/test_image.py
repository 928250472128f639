"""The container image that `make image` has written: what is in it, that it runs, and that it can be made again.

What is of this machine's processor runs in a root of its own and in containerd; the other's runs under qemu-user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli.bundle import COMMAND_BUNDLE, PLUGIN_BUNDLE
from cli.image import libraries
from cli.image.packages import required
from cni import __version__
from tests.e2e.containerd_world import Containerd
from tests.e2e.image_world import EMPTY, OTHER, OWN, Archive, Image, Root
from tests.e2e.podman_world import PARENT, POLICY, Podman
from tests.e2e.world import Node, Way, cgroup, cgroups_removed

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
NAME = f"cnikit.dev/cnikit:{__version__}"
LARGEST = 35 << 20
NETWORK = {
    "cniVersion": "1.0.0", "name": "net", "type": "host-local",
    "ipam": {"type": "host-local", "dataDir": "/leases", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]},
}  # fmt: skip
# Resolves names, and ends a thread as Python ends those that still run when it exits.
PROBE = """
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <arpa/inet.h>

static void *leave(void *arg) { pthread_exit(arg); }

int main(int argc, char **argv) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, leave, NULL) || pthread_join(thread, NULL)) return 2;
    for (int i = 1; i < argc; i++) {
        struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
        int status = getaddrinfo(argv[i], NULL, &hints, &found);
        if (status) { puts(gai_strerror(status)); continue; }
        puts(inet_ntoa(((struct sockaddr_in *)found->ai_addr)->sin_addr));
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def archive(bin_dir: Path) -> Archive:
    path = bin_dir.parent / "image" / f"cnikit-{__version__}.tar"
    if not path.is_file():
        pytest.fail(f"expected {path}, found none: call make image", pytrace=False)
    return Archive(path)


@pytest.fixture(scope="module", params=[OWN, OTHER], ids=["own", "other"])
def image(request: pytest.FixtureRequest, archive: Archive) -> Image:
    return archive.image(request.param)


@pytest.fixture(scope="module")
def root(image: Image) -> Iterator[Root]:
    with tempfile.TemporaryDirectory(prefix="cnikit-") as folder:
        yield image.unpacked(Path(folder, "root"))


@pytest.fixture(scope="module")
def own_root(archive: Archive) -> Iterator[Root]:
    with tempfile.TemporaryDirectory(prefix="cnikit-") as folder:
        yield archive.image(OWN).unpacked(Path(folder, "root"))


def built(bin_dir: Path, image: Image) -> Path:
    """The folder that an image was made of."""
    return bin_dir.parent if image.architecture == OWN else bin_dir.parent / image.architecture.name


def bundles(folder: Path) -> list[Path]:
    """The two bundles below a folder with `bin` and the command."""
    found = [*(folder / "bin" / PLUGIN_BUNDLE[0]).iterdir(), *(folder / COMMAND_BUNDLE[0]).iterdir()]
    assert len(found) == 2
    return found


class TestContent:
    def test_it_has_a_version_and_says_how_it_starts(self, archive: Archive, image: Image) -> None:
        assert set(archive.named["annotations"].values()) == {NAME}
        assert set(archive.manifests()) == {"amd64", "arm64"}
        assert (image.config["os"], image.config["architecture"]) == ("linux", image.architecture.name)
        assert image.config["config"]["Entrypoint"] == ["/usr/bin/cnikit"]
        assert "User" not in image.config["config"]
        assert image.config["config"]["Labels"]["org.opencontainers.image.version"] == __version__

    def test_it_is_small(self, image: Image) -> None:
        assert image.size < LARGEST

    def test_everything_is_of_root_and_may_be_read_by_all(self, image: Image) -> None:
        for name, entry in image.entries().items():
            assert (entry.uid, entry.gid, entry.mtime) == (0, 0, 0), name
            expected = (0o755,) if entry.isdir() else (0o777,) if entry.issym() else (0o644, 0o755)
            assert entry.mode in expected, name

    def test_it_has_what_was_built(self, bin_dir: Path, image: Image, root: Root) -> None:
        source = built(bin_dir, image)
        for at, there in {"opt/cnikit/bin": source / "bin", "usr/bin": source}.items():
            (bundle,) = (there / (PLUGIN_BUNDLE if at.startswith("opt") else COMMAND_BUNDLE)[0]).iterdir()
            launchers = [one.name for one in there.iterdir() if one.is_file() and os.access(one, os.X_OK)]
            assert sorted(os.listdir(root.path / at)) == sorted([bundle.parent.name, *launchers])
            for name in [*launchers, str(bundle.relative_to(there))]:
                subprocess.run(["diff", "-r", "--no-dereference", there / name, root.path / at / name], check=True)
                assert os.access(root.path / at / name, os.X_OK)

    def test_it_has_nothing_else_but_glibc_and_terms(self, bin_dir: Path, image: Image) -> None:
        ours = ("opt/cnikit/bin/", "usr/bin/", "usr/share/doc/")
        rest = {name for name, one in image.entries().items() if not one.isdir() and not name.startswith(ours)}
        assert [name for name in rest if not name.startswith(("lib/", "lib64/", "usr/lib/"))] == []
        names = {name.rpartition("/")[2] for name in rest}
        assert "libc.so.6" in names
        if image.architecture == OWN:
            assert names == {*linked_outside(bundles(built(bin_dir, image))), "libgcc_s.so.1"}

    def test_it_has_the_terms_of_everything(self, image: Image, root: Root) -> None:
        doc = root.path / "usr/share/doc"
        packages = {path.parent.name for path in doc.glob("*/copyright") if path.stat().st_size}
        assert {"libc6", "libgcc-s1", "libpython3.11-stdlib", "libssl3", "musl"} <= packages
        assert "Apache License" in (doc / "cnikit" / "LICENSE").read_text()
        python = {path.name.rpartition("-")[0] for path in (doc / "cnikit").iterdir() if path.is_dir()}
        assert python == required("pyinstaller")
        assert not [name for name in image.entries() if "readline" in name], "it is under the GPL"


def linked_outside(folders: list[Path]) -> set[str]:
    """What ldd(1) finds for the programs of bundles outside them."""
    found = set()
    for folder in folders:
        for file in libraries.elf_files(folder):
            ran = subprocess.run(
                ["ldd", file], env={"LD_LIBRARY_PATH": str(folder)}, capture_output=True, text=True, check=False
            )
            for line in ran.stdout.splitlines():
                name, _, path = line.strip().partition(" => ")
                assert path != "not found", f"{file}: {line}"
                place = (path or name).partition(" (")[0]
                if place.startswith("/") and not place.startswith(str(folder)):
                    found.add(place.rpartition("/")[2])
    return found


class TestRuns:
    def test_the_command(self, image: Image, root: Root) -> None:
        ran = root.run(*image.config["config"]["Entrypoint"], "--version")
        assert (ran.returncode, ran.stderr) == (0, b""), ran
        assert __version__.encode() in ran.stdout

    def test_the_command_loads_all_that_its_agent_needs(self, root: Root) -> None:
        ran = root.run("/usr/bin/cnikit", "agent", "--help")
        assert (ran.returncode, ran.stderr) == (0, b""), ran

    def test_a_lease_of_both_families(self, root: Root) -> None:
        """A unit of IPAM, which starts the launcher and the bundle, writes files, and takes them away again."""
        environ = {
            "CNI_CONTAINERID": "pod",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/proc/self/ns/net",  # which an allocator does not touch
            "CNI_NETNS_OVERRIDE": "1",
            "CNI_PATH": "/opt/cnikit/bin",
        }
        conf = json.dumps(NETWORK).encode()

        def call(verb: str) -> subprocess.CompletedProcess[bytes]:
            return root.run("/opt/cnikit/bin/host-local", stdin=conf, CNI_COMMAND=verb, **environ)

        added = call("ADD")
        assert added.returncode == 0, added
        addresses = [one["address"] for one in json.loads(added.stdout)["ips"]]
        assert addresses == ["10.1.0.2/24", "fd00:1::2/64"]
        assert (root.path / "leases/net/10.1.0.2").read_text().split() == ["pod", "eth0"]
        deleted = call("DEL")
        assert (deleted.returncode, deleted.stdout) == (0, b""), deleted
        assert not (root.path / "leases/net/10.1.0.2").exists()

    @pytest.mark.parametrize("plugin", ["bridge", "host-gw", "host-local", "loopback", "vxlan"])
    def test_each_plugin_starts_its_bundle(self, root: Root, plugin: str) -> None:
        ran = root.run(f"/opt/cnikit/bin/{plugin}", stdin=b" {}", CNI_COMMAND="VERSION")
        assert ran.returncode == 0, ran
        assert "1.1.0" in json.loads(ran.stdout)["supportedVersions"]

    def test_names_are_resolved_by_hosts_and_by_dns(self, own_root: Root, bin_dir: Path, tmp_path: Path) -> None:
        """By the image's glibc, with the files that a kubelet mounts; and a thread can end, which needs libgcc_s."""
        (tmp_path / "probe.c").write_text(PROBE)
        target = f"{OWN.machine}-linux-gnu.2.34"
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-o", str(own_root.path / "probe")]
        subprocess.run([*compiler, tmp_path / "probe.c"], check=True)
        (own_root.path / "etc").mkdir(exist_ok=True)  # as the runtime that mounts these makes it
        (own_root.path / "etc/hosts").write_text("192.0.2.1 in-hosts.test\n")
        (own_root.path / "etc/resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        with Node(Way("one-shot", bin_dir)) as node, node.socket() as server:
            node.run("ip", "link", "set", "lo", "up")
            server.bind(("127.0.0.1", 53))
            threading.Thread(target=answer_dns, args=(server,), daemon=True).start()
            found = node.run(*own_root.argv("/probe", "in-hosts.test", "in-dns.test", "nowhere.test"))
        assert found.splitlines()[:2] == ["192.0.2.1", "192.0.2.2"]
        assert found.splitlines()[2:] == ["Name or service not known"]


def answer_dns(server: Any) -> None:
    """Serve in-dns.test as 192.0.2.2; no other name is there, not even those of /etc/hosts."""
    while True:
        try:
            asked, client = server.recvfrom(512)
        except OSError:  # closed at the test's end
            return
        question = asked[12 : asked.index(b"\0", 12) + 5]
        known = question.startswith(b"\x06in-dns\x04test\0")
        head = (
            asked[:2] + (b"\x85\x80" if known else b"\x85\x83") + b"\0\1" + (b"\0\1" if known else b"\0\0") + bytes(4)
        )
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\xc0\0\2\2" if known else b""
        server.sendto(head + question + answer, client)


class TestRuntimes:
    def test_containerd_imports_and_runs_it(self, archive: Archive, bin_dir: Path) -> None:
        with cgroups_removed(), tempfile.TemporaryDirectory(prefix="cnikit-") as folder:
            with Node(Way("one-shot", bin_dir), pids=True) as node:
                node.prepare()
                containerd = Containerd(node, Path(folder))
                shutil.copy(archive.path, node.path("/run/cd/image.tar"))
                # As `kind load image-archive` does it.
                containerd.ctr(
                    "-n",
                    "k8s.io",
                    "images",
                    "import",
                    "--all-platforms",
                    "--digests",
                    "--snapshotter",
                    "native",
                    "/run/cd/image.tar",
                )
                listed = containerd.ctr("-n", "k8s.io", "images", "ls", f"name=={NAME}")
                assert archive.named["digest"] in listed
                assert "linux/amd64" in listed
                assert "linux/arm64" in listed
                options = ["--rm", "--snapshotter", "native", "--cgroup", f"{cgroup()}/image", "--read-only"]
                ran = containerd.ctr("-n", "k8s.io", "run", *options, NAME, "image", "/usr/bin/cnikit", "--version")
                assert __version__ in ran
            containerd.daemon.wait(60)  # the kernel ended it with the node's PID namespace

    def test_podman_loads_and_runs_it(self, archive: Archive, bin_dir: Path) -> None:
        with cgroups_removed(), Node(Way("one-shot", bin_dir), pids=True) as node:
            node.prepare()
            podman = Podman(node)
            shutil.copy(archive.path, node.path("/run/pod/image.tar"))
            node.path("/run/pod/policy.json").write_text(POLICY)
            loaded = podman("load", "--signature-policy", "/run/pod/policy.json", "-i", "/run/pod/image.tar")
            assert NAME in loaded
            ran = podman("run", *PARENT, "--rm", "--network", "none", NAME, "--version")
            assert __version__ in ran


class TestReproducible:
    @pytest.fixture
    def clone(self) -> Iterator[Path]:
        """What git would give another person, in a folder of another name and length, with an environment of its own."""
        # Beside this checkout's, so that the environment's files can be links. Its compiler's cache is shared: musl takes a minute.
        with tempfile.TemporaryDirectory(prefix="clone-", dir=(ROOT / ".cache").resolve()) as folder:
            clone = Path(folder, "in a folder of another name")
            command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
            listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
            for name in filter(None, listed.stdout.decode().split("\0")):
                if (ROOT / name).is_file():  # not what is removed and not committed yet
                    (clone / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, clone / name)  # without its time
            environment, copy = (ROOT / ".venv").resolve(), clone / ".venv"
            if subprocess.run(["cp", "-al", environment, copy], check=False, capture_output=True).returncode != 0:
                shutil.rmtree(copy, ignore_errors=True)
                subprocess.run(["cp", "-a", environment, copy], check=True)
            # faketime is a library that is loaded into every program, and so PyInstaller's `ldd` would find it everywhere: the
            # interpreter that runs PyInstaller lives in another time, what that calls does not.
            alone = 'import os, sys; "PyInstaller" in sys.orig_argv and os.environ.pop("LD_PRELOAD", None)'
            (packages,) = copy.glob("lib/python3*/site-packages")
            (packages / "faketime.pth").write_text(alone)
            yield clone

    @pytest.mark.timeout(1800)
    def test_another_clone_on_another_day_gives_the_same_digest(self, archive: Archive, clone: Path) -> None:
        later = ["faketime", "-f", "+2d", str(clone / ".venv/bin/python"), "-m"]
        for command in (
            ["cli.bundle", "--output", "dist/bin"],
            ["cli.bundle", "--command", "--output", "dist"],
            ["cli.image", "--platform", f"linux/{OWN.name}", "--output", "out"],
        ):
            environ = {**os.environ, "PYTHONPATH": str(clone)}
            ran = subprocess.run(
                [*later, *command], cwd=clone, env=environ, capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, ran.stderr

        again = Archive(clone / "out" / f"cnikit-{__version__}-{OWN.name}.tar")

        one, two = archive.image(OWN), again.image(OWN)
        assert one.digests() == two.digests()
        assert archive.manifests()[OWN.name]["digest"] == again.manifests()[OWN.name]["digest"]
        assert not any(str(place).encode() in layer for layer in two.layers for place in (ROOT, clone))

    def test_an_image_of_nothing_is_refused(self, tmp_path: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "cli.image",
            "--built",
            str(tmp_path),
            "--output",
            str(tmp_path / "out"),
            "--platform",
        ]
        ran = subprocess.run(
            [*command, f"linux/{OWN.name}"],
            cwd=ROOT,
            env={**os.environ, **EMPTY},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, "call make image" in ran.stderr) == (1, True), ran.stderr
        assert not (tmp_path / "out").exists()
