"""A Debian root of another processor, and how a program in it is run: under qemu-user, with no root needed.

The packages are downloaded and verified by apt with a state of its own, so this machine's packages stay as they are, and
unpacked with `dpkg-deb`: nothing of them is run, as nothing could be installed here (a second stage of debootstrap makes
device nodes). The result is kept in the cache, below a name that is a hash of what goes into it.

Its programs run because the kernel hands them to QEMU: binfmt_misc, mounted in a user namespace of our own (Linux 6.7) with
the flag F, which opens QEMU before the root changes. On an older kernel it has to be there for the whole machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from cli.image import Architecture, ImageError
from cli.image.debian import DATABASE, Debian
from cli.image.packages import locked, required

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
# What PyInstaller runs: the interpreter, `ldd` (a script for bash), `ldconfig`, `objcopy` and `strip`.
PACKAGES = (PYTHON, f"lib{PYTHON}", "libc-bin", "bash", "binutils", "libgcc-s1")
SITE = "site"  # in the root: the Python packages
# Folders that are there to mount something on.
MOUNTS = ("dev", "proc", "src", "work")
_WHEELS = ("manylinux2014", "manylinux_2_28", "manylinux_2_34")


def cache() -> Path:
    """The folder of what took long to make and does not depend on this checkout."""
    named = os.environ.get("CNIKIT_CACHE", "")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cnikit")


def root_of(architecture: Architecture) -> Path:
    """The root of a processor, from the cache or made now. ImageError when it cannot be made."""
    pins = [f"{name}=={locked()[name]}" for name in sorted(required("pyinstaller"))]
    key = hashlib.sha256("\n".join([architecture.name, *_state(), *pins, Path(__file__).read_text()]).encode())
    place = cache() / "image" / f"root-{architecture.name}-{key.hexdigest()[:16]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place.parent):
        if not place.is_dir():
            with tempfile.TemporaryDirectory(prefix=".root-", dir=place.parent) as work:
                made = Path(work, "root")
                print(f"making a root of Debian packages for {architecture.name} in {place}", file=sys.stderr)
                _unpack(architecture, _download(architecture, Path(work, "apt")), made)
                _install_packages(architecture, pins, made / SITE)
                for name in MOUNTS:
                    (made / name).mkdir(exist_ok=True)
                run(architecture, made, ["/sbin/ldconfig"])
                made.rename(place)
    return place


def run(
    architecture: Architecture,
    root: Path,
    command: list[str],
    mounts: Mapping[str, Path] | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Run a program of a root in it, with these folders of `MOUNTS` filled. ImageError when it fails."""
    argv = inside(architecture, root, command, mounts)
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    status = subprocess.run(argv, env={**path, **(environ or {})}, stdin=subprocess.DEVNULL, check=False).returncode
    if status != 0:
        raise ImageError(
            f"{command[0]} for {architecture.name} failed with exit code {status}; its messages are above. If it did not "
            "start at all: this needs Linux 6.7 and user namespaces, or a machine where binfmt_misc has "
            f"qemu-{architecture.machine} with the flag F"
        )


def inside(
    architecture: Architecture, root: Path, command: list[str], mounts: Mapping[str, Path] | None = None
) -> list[str]:
    """The command that runs `command` in a root of another processor."""
    # The kernel compares the first bytes of a file: 64 bits, little-endian, a program or a library, and for whom.
    magic = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + architecture.elf.to_bytes(2, "little")
    mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff" + b"\xff\xff"
    escaped = ["".join(f"\\x{byte:02x}" for byte in pattern) for pattern in (magic, mask)]
    rule = f":cnikit-{architecture.machine}:M::{escaped[0]}:{escaped[1]}:{emulator(architecture)}:F"
    rules = "/proc/sys/fs/binfmt_misc"
    lines = [
        "set -eu",
        # Refused before Linux 6.7, where the machine's own rules count.
        f"if mount -t binfmt_misc binfmt_misc {rules} 2>/dev/null; then printf %s {shlex.quote(rule)} >{rules}/register; fi",
    ]
    places = {"dev": Path("/dev"), "proc": Path("/proc"), **(mounts or {})}
    lines += [f"mount --rbind {shlex.quote(str(place))} {shlex.quote(str(root / at))}" for at, place in places.items()]
    lines.append(f"exec chroot {shlex.quote(str(root))} {shlex.join(command)}")
    return ["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", "\n".join(lines)]


def emulator(architecture: Architecture) -> str:
    """The path of the QEMU that runs an architecture's programs: static, so that it works in any root."""
    name = f"qemu-{architecture.machine}-static"
    found = shutil.which(name)
    if found is None:
        raise ImageError(f"expected {name} on PATH, found none: apt-get install qemu-user-static")
    return os.path.realpath(found)


def _state() -> list[str]:
    """What of this machine decides which packages come: its release, and how new its own are."""
    lines = Path("/etc/os-release").read_text().splitlines()
    release = [line for line in lines if line.startswith(("ID=", "VERSION_ID=", "VERSION_CODENAME="))]
    shown = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\n", "libc6", PYTHON]
    ran = subprocess.run(shown, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise ImageError(f"expected Debian with {PYTHON}, its own Python: {ran.stderr.strip()}")
    return [*release, *ran.stdout.splitlines(), *PACKAGES]


def _download(architecture: Architecture, state: Path) -> list[Path]:
    """The packages and what they depend on, as files that apt has verified."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()  # nothing is installed, so everything is downloaded
    settings = {
        "Dir::State": str(state), "Dir::State::status": str(state / "status"), "Dir::Cache": str(state / "cache"),
        "APT::Architecture": architecture.name, "APT::Architectures": architecture.name,
        "APT::Install-Recommends": "false", "APT::Sandbox::User": "root", "Acquire::Languages": "none",
    }  # fmt: skip
    config = state / "apt.conf"
    config.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    environ = {**os.environ, "APT_CONFIG": str(config)}
    # A source that has nothing for this processor fails here; what matters is whether the packages come.
    subprocess.run(["apt-get", "-qq", "update"], env=environ, check=False)
    install = ["apt-get", "-qq", "--yes", "--download-only", "install", *PACKAGES]
    if subprocess.run(install, env=environ, check=False, stdout=sys.stderr).returncode != 0:
        raise ImageError(f"apt-get could not download {' '.join(PACKAGES)} for {architecture.name}; it says why above")
    return sorted((state / "cache/archives").glob("*.deb"))


def _unpack(architecture: Architecture, files: Iterable[Path], root: Path) -> None:
    """Unpack packages, and note them as dpkg does, so that dpkg-query can be asked."""
    info = root / DATABASE / "info"
    info.mkdir(parents=True)
    (info / "format").write_text("1\n")
    status = []
    for file in files:
        subprocess.run(["dpkg-deb", "--extract", file, root], check=True)
        control = _output(["dpkg-deb", "--field", str(file)]).decode()
        fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line and line[0] != " ")
        name = fields["Package"]
        if fields.get("Multi-Arch") == "same":
            name = f"{name}:{architecture.name}"
        with tarfile.open(fileobj=BytesIO(_output(["dpkg-deb", "--fsys-tarfile", str(file)]))) as content:
            (info / f"{name}.list").write_text(
                "".join(f"{name.removeprefix('.') or '/.'}\n" for name in content.getnames())
            )
        status.append(f"{control.rstrip()}\nStatus: install ok installed\n")
    (root / DATABASE / "status").write_text("\n".join(sorted(status)))


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def _install_packages(architecture: Architecture, pins: list[str], place: Path) -> None:
    """Put the Python packages of requirements.lock there, as the other processor needs them."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-compile", "--only-binary", ":all:", "--python-version", PYTHON.removeprefix("python")]
    command += [word for wheel in _WHEELS for word in ("--platform", f"{wheel}_{architecture.machine}")]
    if subprocess.run([*command, "--target", str(place), *pins], check=False).returncode != 0:
        raise ImageError(f"pip could not install wheels for {architecture.name}; it says why above")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time makes roots in a cache."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def system(architecture: Architecture) -> Debian:
    """The system that an architecture's bundles are built in: this machine's, or the root above."""
    own = os.uname().machine == architecture.machine
    return Debian(Path("/") if own else root_of(architecture), architecture)
