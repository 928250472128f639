"""The executables as files: where they run from, what they need, and what they leave to their children.

`dist/bin` is copied, linked, torn apart and put on bare machines; every answer is the executable's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("bridge", "host-gw", "host-local", "loopback", "vxlan")
VERSION = {"CNI_COMMAND": "VERSION"}
MISSING = 999


def call(
    program: str | Path, environ: dict[str, str] | None = None, stdin: bytes = b"", **options: Any
) -> subprocess.CompletedProcess[bytes]:
    command = [os.fspath(program)]
    env = VERSION if environ is None else environ
    return subprocess.run(command, env=env, input=stdin, capture_output=True, timeout=60, check=False, **options)


def answers(ran: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether a VERSION was answered, with one JSON object and nothing else."""
    assert ran.returncode == 0, ran
    assert ran.stderr == b""
    versions: list[str] = json.loads(ran.stdout)["supportedVersions"]
    return versions[0] == "0.1.0" and versions[-1] == "1.1.0"


def refused(ran: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """The one CNI error object of a call that failed."""
    assert ran.returncode == 1, ran
    error: dict[str, Any] = json.loads(ran.stdout)
    assert set(error) == {"cniVersion", "code", "msg", "details"}
    assert error["cniVersion"] == "1.1.0"
    return error


def unshared(
    mounts: str, program: str | Path, *, environ: str = "CNI_COMMAND=VERSION"
) -> subprocess.CompletedProcess[bytes]:
    """Call `program` in a mount namespace of its own, after the shell commands `mounts`."""
    script = f"set -e; {mounts}; exec env -i {environ} {program}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


def bundle_in(folder: Path) -> Path:
    """The one bundle of a CNI bin directory."""
    (bundle,) = (entry for entry in (folder / ".cnikit").iterdir() if not entry.name.startswith("."))
    assert re.fullmatch(re.escape(__version__) + "-[0-9a-f]{16}", bundle.name)
    return bundle


@pytest.fixture
def copy(bin_dir: Path, tmp_path: Path) -> Path:
    """The folder copied somewhere else."""
    subprocess.run(["cp", "-a", f"{bin_dir}/.", tmp_path / "bin"], check=True)
    return tmp_path / "bin"


@pytest.mark.parametrize("name", NAMES)
def test_it_works_in_place(bin_dir: Path, name: str) -> None:
    assert answers(call(bin_dir / name))


@pytest.mark.parametrize("name", NAMES)
def test_without_a_command_it_tells_what_it_is(bin_dir: Path, name: str) -> None:
    ran = call(bin_dir / name, {})
    assert (ran.returncode, ran.stdout) == (0, b"")
    assert ran.stderr.decode().startswith(f"CNI plugin {name} v{__version__}")


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_works(copy: Path, name: str) -> None:
    assert answers(call(copy / name))


def test_it_works_from_a_folder_with_a_strange_name(bin_dir: Path, tmp_path: Path) -> None:
    strange = tmp_path / 'a b"c\\d\n\N{SNOWMAN}'
    subprocess.run(["cp", "-a", bin_dir, strange], check=True)
    assert answers(call(strange / "bridge"))
    shutil.rmtree(strange / ".cnikit")
    assert "no bundle" in refused(call(strange / "bridge"))["msg"]


@pytest.mark.parametrize("name", [b"a:b", b"$ORIGIN", b"\xff"])
def test_it_says_so_in_a_folder_whose_name_it_cannot_use(bin_dir: Path, tmp_path: Path, name: bytes) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    subprocess.run(["cp", "-a", bin_dir, folder], check=True)
    assert "UTF-8" in refused(call(folder / "bridge"))["details"]


def test_it_works_through_links(bin_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bridge").symlink_to(bin_dir / "bridge")
    (tmp_path / "my-bridge").symlink_to(tmp_path / "bridge")
    (tmp_path / "folder").symlink_to(bin_dir)
    for path in ("bridge", "my-bridge", "folder/host-local"):
        assert answers(call(tmp_path / path))
    assert call(tmp_path / "my-bridge", {}).stderr.startswith(b"CNI plugin bridge ")


def test_it_works_when_hard_links_have_become_files(copy: Path) -> None:
    for name in NAMES:
        content = (copy / name).read_bytes()
        (copy / name).unlink()
        (copy / name).write_bytes(content)
        (copy / name).chmod(0o755)
        assert answers(call(copy / name))


def test_it_works_by_a_relative_path_and_by_name(bin_dir: Path) -> None:
    assert answers(call("./bridge", cwd=bin_dir))
    ran = subprocess.run(
        ["sh", "-c", "bridge"], env={**VERSION, "PATH": str(bin_dir)}, stdin=subprocess.DEVNULL, capture_output=True,
        check=False, executable="/bin/sh",
    )  # fmt: skip
    assert answers(ran)


@pytest.mark.parametrize("command", ["VERSION", "ADD", ""])
def test_one_file_without_its_bundle_says_what_is_missing(bin_dir: Path, tmp_path: Path, command: str) -> None:
    shutil.copy2(bin_dir / "bridge", tmp_path / "bridge")
    error = refused(call(tmp_path / "bridge", {"CNI_COMMAND": command} if command else {}))
    assert error["code"] == MISSING
    assert f"{tmp_path}/.cnikit/{bundle_in(bin_dir).name}" in error["msg"]
    assert ".cnikit" in error["details"]


def test_a_bundle_of_another_version_is_not_taken(copy: Path) -> None:
    bundle_in(copy).rename(copy / ".cnikit" / "0.0.0")
    assert "no bundle" in refused(call(copy / "bridge"))["msg"]


def test_a_broken_bundle_says_which_file(copy: Path) -> None:
    program = bundle_in(copy) / "cnikit-oneshot"
    program.write_bytes(b"\x7fELF of another machine")
    error = refused(call(copy / "bridge"))
    assert str(program) in error["msg"]


@pytest.mark.parametrize("made", ["copy", "hard link", "link"])
@pytest.mark.parametrize("name", ["mine", "host-local"])
def test_under_another_name_it_is_what_it_was(copy: Path, made: str, name: str) -> None:
    """As with Go: operators rename plugins, and a name of ours is no exception."""
    file = copy / name
    file.unlink(missing_ok=True)
    if made == "copy":
        shutil.copy2(copy / "bridge", file)
    elif made == "link":
        file.symlink_to("bridge")
    else:
        file.hardlink_to(copy / "bridge")
    assert answers(call(file))
    assert call(file, {}).stderr.startswith(b"CNI plugin bridge ")


def test_it_needs_no_environment(bin_dir: Path) -> None:
    assert call(bin_dir / "bridge", {}).returncode == 0
    assert answers(call(bin_dir / "bridge", VERSION))


def test_it_works_in_a_folder_that_is_gone(bin_dir: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    assert answers(call(bin_dir / "bridge", cwd=gone, preexec_fn=gone.rmdir))


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 2)])
def test_it_works_with_closed_descriptors(bin_dir: Path, closed: tuple[int, ...]) -> None:
    redirections = " ".join({0: "<&-", 2: "2>&-"}[fd] for fd in closed)
    ran = subprocess.run(
        ["sh", "-c", f"exec {bin_dir}/bridge {redirections}"], env=VERSION, capture_output=True, check=False
    )
    assert answers(ran)


def test_a_closed_stdout_is_a_failure(bin_dir: Path) -> None:
    ran = subprocess.run(
        ["sh", "-c", f"exec {bin_dir}/bridge >&-"],
        env=VERSION,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 1
    assert b"cannot write to stdout" in ran.stderr


def test_it_works_from_a_read_only_file_system(bin_dir: Path) -> None:
    assert answers(
        unshared(f"mount --bind {bin_dir} {bin_dir}; mount -o remount,bind,ro {bin_dir}", bin_dir / "bridge")
    )


def test_it_works_with_no_place_to_write_or_execute(bin_dir: Path) -> None:
    """Seen at /mnt, because the folder itself may lie below one of those that are hidden."""
    hidden = "; ".join(
        f"mount -t tmpfs -o noexec,ro none {folder}" for folder in ("/tmp", "/var/tmp", "/dev/shm", "/home")
    )
    assert answers(unshared(f"mount --bind {bin_dir} /mnt; {hidden}", "/mnt/bridge"))


def test_it_works_where_there_is_nothing_but_glibc(bin_dir: Path, tmp_path: Path) -> None:
    """No Python, no /usr, no /proc, no /dev, no shell: the C library and our folder."""
    root = bare_machine(tmp_path / "root", bin_dir)
    assert sorted(entry.name for entry in root.iterdir()) == ["lib", "lib64", "opt"]
    for name in NAMES:
        ran = call(f"/opt/cni/bin/{name}", preexec_fn=enter(root))
        assert answers(ran)


def test_it_says_so_where_there_is_no_glibc(bin_dir: Path, tmp_path: Path) -> None:
    root = bare_machine(tmp_path / "root", bin_dir)
    shutil.rmtree(root / "lib64")
    ran = call("/opt/cni/bin/bridge", preexec_fn=enter(root))
    error = refused(ran)
    assert "cannot execute /opt/cni/bin/.cnikit" in error["msg"]
    assert "glibc" in error["details"]


def enter(root: Path) -> Callable[[], None]:
    def change() -> None:
        os.chroot(root)
        os.chdir("/")

    return change


def bare_machine(root: Path, bin_dir: Path) -> Path:
    """A root directory with glibc's own libraries and the executables."""
    program = bundle_in(bin_dir) / "cnikit-oneshot"
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    loader = next(line.split()[0] for line in listed.splitlines() if "/ld-linux" in line)
    libc = Path(next(line.split()[2] for line in listed.splitlines() if "libc.so.6" in line))
    (root / loader[1:]).parent.mkdir(parents=True)
    shutil.copy2(loader, root / loader[1:])
    (root / "lib").mkdir(exist_ok=True)
    for name in ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"):
        shutil.copy2(libc.parent / name, root / "lib" / name)
    subprocess.run(["mkdir", "-p", root / "opt" / "cni"], check=True)
    subprocess.run(["cp", "-a", bin_dir, root / "opt" / "cni" / "bin"], check=True)
    return root


def test_the_launcher_is_small_and_static(bin_dir: Path) -> None:
    assert (bin_dir / "bridge").stat().st_size < 64 * 1024
    headers = subprocess.run(
        ["readelf", "--wide", "-l", bin_dir / "bridge"], capture_output=True, text=True, check=True
    )
    assert "INTERP" not in headers.stdout
    assert "DYNAMIC" not in headers.stdout


def test_it_needs_no_newer_glibc_than_the_readme_says(bin_dir: Path) -> None:
    said = re.search(r"glibc (\d+)\.(\d+)", (ROOT / "README.md").read_text())
    assert said is not None, "README.md names no glibc version"
    assert max(glibc_versions(bin_dir)) == (int(said[1]), int(said[2]))


def glibc_versions(folder: Path) -> set[tuple[int, int]]:
    """The glibc versions of all symbols that the folder's files ask for."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.read_bytes()[:4] == b"\x7fELF"]
    found = set()
    for file in files:
        symbols = subprocess.run(["objdump", "-T", file], capture_output=True, text=True, check=False).stdout
        found |= {(int(major), int(minor)) for major, minor in re.findall(r"GLIBC_(\d+)\.(\d+)", symbols)}
    assert found
    return found


@pytest.fixture
def spied(tmp_path: Path) -> Path:
    """A CNI bin directory with a foreign IPAM plugin that writes down its environment as the kernel has it."""
    folder = tmp_path / "spied"
    folder.mkdir()
    spy = folder / "spy"
    spy.write_text(f"#!/bin/sh\ncat > {folder}/stdin\nread -r line < /dev/null\ncp /proc/$$/environ {folder}/environ\n")
    spy.chmod(0o755)
    return folder


# What a runtime may have set: what our start needs must not get lost, change or leak.
THEIRS = {
    "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
    "LD_LIBRARY_PATH": "/their/libs:/more",
    "LD_LIBRARY_PATH_ORIG": "theirs",
    "_PYI_ARCHIVE_FILE": "/their/program",
    "_PYI_PARENT_PROCESS_LEVEL": "1",
    "_PYI_APPLICATION_HOME_DIR": "/their/home",
    "PYINSTALLER_RESET_ENVIRONMENT": "1",
    "PYTHONHOME": "/nowhere",
    "PYTHONPATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "LC_ALL": "tr_TR.ISO-8859-9",
    "EMPTY": "",
    "EQUALS": "a=b=c",
    "BYTES": os.fsdecode(b"\xff\xfe"),
}


@pytest.mark.parametrize("environ", [{}, THEIRS], ids=["bare", "full"])
def test_a_delegate_gets_the_environment_as_the_caller_set_it(
    bin_dir: Path, spied: Path, environ: dict[str, str]
) -> None:
    config = {"cniVersion": "1.1.0", "name": "spied", "type": "bridge", "ipam": {"type": "spy"}}
    given = {**environ, "CNI_COMMAND": "STATUS", "CNI_PATH": str(spied)}
    ran = call(bin_dir / "bridge", given, json.dumps(config).encode())
    assert (ran.returncode, ran.stdout) == (0, b""), ran
    found = (spied / "environ").read_bytes().split(b"\0")[:-1]
    assert sorted(found) == sorted(os.fsencode(f"{name}={value}") for name, value in given.items())
    assert json.loads((spied / "stdin").read_bytes()) == config


def test_ten_thousand_variables_are_no_problem(bin_dir: Path) -> None:
    assert answers(call(bin_dir / "bridge", {**VERSION, **{f"V{number}": "x" * 50 for number in range(10_000)}}))


@pytest.fixture
def installed(bin_dir: Path, tmp_path: Path) -> Path:
    target = tmp_path / "installed"
    target.mkdir()
    (target / "bridge").write_text("#!/bin/sh\necho old\n")
    (target / "portmap").write_text("foreign")
    install(bin_dir, target)
    return target


def install(source: Path, target: Path) -> None:
    subprocess.run([sys.executable, "-m", "cli.install", source, target], cwd=ROOT, check=True, capture_output=True)


def test_install_replaces_ours_and_keeps_the_others(installed: Path) -> None:
    assert (installed / "portmap").read_text() == "foreign"
    for name in NAMES:
        assert answers(call(installed / name))
    assert sorted(entry.name for entry in installed.iterdir()) == [".cnikit", *sorted([*NAMES, "portmap"])]
    assert bundle_in(installed).is_dir()


def test_a_call_that_began_before_the_installation_goes_on(installed: Path, bin_dir: Path, spied: Path) -> None:
    """The path of its program follows it out of the way, and it has more to load from there."""
    fifo = spied / "go-on"
    os.mkfifo(fifo)
    (spied / "waits").write_text(f"#!/bin/sh\ncat >/dev/null\necho >{spied}/begun\ncat {fifo}\n")
    (spied / "waits").chmod(0o755)
    config = {"cniVersion": "1.1.0", "name": "long", "type": "bridge", "ipam": {"type": "waits"}}
    environ = {"CNI_COMMAND": "STATUS", "CNI_PATH": str(spied)}
    long = subprocess.Popen(
        [installed / "bridge"], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert long.stdin is not None
    long.stdin.write(json.dumps(config).encode())
    long.stdin.close()
    long.stdin = None
    while not (spied / "begun").exists():
        assert long.poll() is None, long.communicate()
    program = Path(os.readlink(f"/proc/{long.pid}/exe"))

    (program.parent / "not-of-this-build").touch()
    install(bin_dir, installed)
    moved = Path(os.readlink(f"/proc/{long.pid}/exe"))
    assert moved != program, "it runs in the replaced bundle"
    assert (moved.parent / "modules.bin").exists()
    fifo.write_text("")
    stdout, stderr = long.communicate(timeout=60)
    assert (long.returncode, stdout, stderr) == (0, b"", b"")


def test_install_while_the_plugins_are_called(installed: Path, bin_dir: Path) -> None:
    installing = subprocess.Popen(
        [sys.executable, "-m", "cli.install", bin_dir, installed], cwd=ROOT, stdout=subprocess.PIPE
    )
    calls = 0
    while installing.poll() is None:
        assert answers(call(installed / "bridge"))
        calls += 1
    installing.communicate()
    assert installing.returncode == 0
    assert calls > 0


def test_install_of_a_broken_build_changes_nothing(installed: Path, copy: Path) -> None:
    (bundle_in(copy) / "modules.bin").write_bytes(b"")
    before = sorted((str(f), f.stat().st_ino) for f in installed.rglob("*"))
    ran = subprocess.run(
        [sys.executable, "-m", "cli.install", copy, installed], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "does not run" in ran.stderr
    assert sorted((str(f), f.stat().st_ino) for f in installed.rglob("*")) == before


def test_the_command_for_people_runs_from_a_copy(bin_dir: Path, tmp_path: Path) -> None:
    dist = bin_dir.parent
    for entry in ("cnikit", ".cnikit-command"):
        subprocess.run(["cp", "-a", dist / entry, tmp_path], check=True)
    ran = subprocess.run([tmp_path / "cnikit", "--help"], env={}, capture_output=True, text=True, check=True)
    assert "Usage: cnikit" in ran.stdout
    shutil.rmtree(tmp_path / ".cnikit-command")
    ran = subprocess.run([tmp_path / "cnikit", "--help"], env={}, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ".cnikit-command" in ran.stderr


def test_a_reader_that_has_seen_enough(bin_dir: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        ran = subprocess.run(
            [bin_dir.parent / "cnikit", "--help"], env={}, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (ran.returncode, ran.stderr) == (1, b"")


def test_the_built_command_prints_its_version(bin_dir: Path) -> None:
    command = subprocess.run(
        [bin_dir.parent / "cnikit", "--version"], env={}, capture_output=True, text=True, check=True
    )
    assert command.stdout == f"cnikit {__version__}\n"
