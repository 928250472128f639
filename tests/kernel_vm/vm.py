"""Runs one command as root under another Linux kernel, on this machine's own files.

    python vm.py COMMAND [ARGUMENT...]

A small virtual machine (qemu, software emulation, so it needs no KVM) boots a Debian kernel. Its root is this
machine's root, shared read-only in effect: what the command writes lands on a tmpfs and is gone afterwards. Output
and exit status of the command come back. What is missing is installed with apt-get; the kernel package is only
unpacked, into the cache folder.

It is for kernel features, not for figures: everything takes about twenty times as long.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# With virtiofs built in, so that it boots from the shared root with no initramfs.
KERNEL_PACKAGE = "linux-image-6.12-cloud-amd64"
INIT = Path(__file__).with_name("init")
MEMORY = "1536M"

VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")

# A file that shows whether a package is there (several places: Debian releases differ), and the package.
NEEDS = (
    (("/usr/bin/qemu-system-x86_64",), "qemu-system-x86"),
    (VIRTIOFSD, "virtiofsd"),
    (("/sbin/depmod", "/usr/sbin/depmod"), "kmod"),
)


class VmError(Exception):
    """The machine could not be set up, or ended before its command did."""


@dataclass(frozen=True)
class Outcome:
    """What the command gave. `output` is stdout and stderr together."""

    status: int
    output: str


def run(argv: list[str], timeout: float = 300) -> Outcome:
    """Boot, run the command with this process's working directory and environment, and power off."""
    virtiofsd = _install_needs()
    kernel = _kernel(_cache())
    with tempfile.TemporaryDirectory(prefix="cnikit-vm.") as folder:
        run_dir = Path(folder)
        _write_command(run_dir / "command", argv)
        (run_dir / "output").touch()
        with _shared_root(virtiofsd, run_dir) as listener:
            _boot(kernel, run_dir, listener, timeout)
        return _outcome(run_dir)


@contextlib.contextmanager
def _shared_root(virtiofsd: str, run_dir: Path) -> Iterator[str]:
    """Serve this machine's root to the virtual one; the path of the socket. It ends with its only client."""
    path = f"{run_dir}/fs.socket"
    with socket.socket(socket.AF_UNIX) as listener, (run_dir / "fs.log").open("wb") as log:
        listener.bind(path)
        listener.listen(1)
        options = ["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"]
        argv = [virtiofsd, f"--fd={listener.fileno()}", *options]
        share = subprocess.Popen(argv, pass_fds=[listener.fileno()], stdout=log, stderr=log)
    try:
        yield path
    finally:
        share.terminate()
        share.wait()


def _install_needs() -> str:
    """Install what is missing; the path of virtiofsd."""
    missing = [package for paths, package in NEEDS if not any(map(os.path.exists, paths))]
    if missing:
        _output("apt-get", "update", "-q")
        known = [package for package in missing if _output("apt-cache", "search", "-n", f"^{package}$")]
        # Where virtiofsd is no package of its own it comes with qemu.
        _output("apt-get", "install", "-q", "-y", "--no-install-recommends", *known)
    for path in VIRTIOFSD:
        if os.path.exists(path):
            return path
    raise VmError(f"expected virtiofsd at one of {VIRTIOFSD}, found none")


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnikit-kernel-vm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _kernel(cache: Path) -> Path:
    """The folder with the unpacked kernel package; made at the first use."""
    kernel = cache / KERNEL_PACKAGE
    if kernel.is_dir():
        return kernel
    _output("apt-get", "update", "-q")
    depends = _output("apt-cache", "depends", "--important", KERNEL_PACKAGE)
    # The package of that name always depends on the newest build.
    package = next(line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line)
    with tempfile.TemporaryDirectory(dir=cache, prefix="unpack.") as folder:
        _output("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package, cwd=folder)
        (archive,) = Path(folder).glob("*.deb")
        root = Path(folder) / "root"
        _output("dpkg", "-x", str(archive), str(root))
        if not (root / "lib").exists():
            (root / "lib").symlink_to("usr/lib")  # where depmod and modprobe look
        (modules,) = (root / "lib" / "modules").iterdir()
        _output("/sbin/depmod", "-b", str(root), modules.name)
        root.rename(kernel)
    return kernel


def _output(*argv: str, cwd: str | None = None) -> str:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VmError(f"{shlex.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout


def _write_command(path: Path, argv: list[str]) -> None:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in os.environ.items() if name.isidentifier()]
    path.write_text("\n".join([*lines, f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(argv)}", ""]))


def _boot(kernel: Path, run_dir: Path, listener: str, timeout: float) -> None:
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    # What the kernel does not know of its command line it gives to init, as environment.
    cmdline = f"console=ttyS0 quiet panic=-1 root=root rootfstype=virtiofs rw init={INIT} KERNEL={kernel} RUN={run_dir}"
    machine = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY,
        "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", f"file:{run_dir}/console",
        "-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on", "-numa", "node,memdev=memory",
        "-chardev", f"socket,id=fs,path={listener}", "-device", "vhost-user-fs-pci,chardev=fs,tag=root",
        "-kernel", str(image), "-append", cmdline,
    ]  # fmt: skip
    with (run_dir / "qemu.log").open("wb") as log:
        try:
            subprocess.run(machine, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise VmError(f"no end within {timeout} s\n{_logs(run_dir)}") from None


def _outcome(run_dir: Path) -> Outcome:
    status = run_dir / "status"
    if not status.exists():
        raise VmError(f"the machine ended before its command did\n{_logs(run_dir)}")
    return Outcome(int(status.read_text()), (run_dir / "output").read_text(errors="replace"))


def _logs(run_dir: Path) -> str:
    logs = [run_dir / name for name in ("console", "qemu.log", "fs.log", "output")]
    return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in logs if path.exists())


def main() -> None:
    if len(sys.argv) < 2 or shutil.which("apt-get") is None:
        sys.exit(__doc__)
    try:
        outcome = run(sys.argv[1:])
    except VmError as error:
        sys.exit(f"vm.py: {error}")
    sys.stdout.write(outcome.output)
    sys.exit(outcome.status)


if __name__ == "__main__":
    main()
