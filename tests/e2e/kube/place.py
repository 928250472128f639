"""Where a cluster lives: namespaces of its own with podman set up in them, so that the machine stays as it is.

Network, mount, PID and cgroup namespaces (tests/e2e/holder.py). The nodes of a cluster are podman's containers, so
podman's network, its processes, the nodes' and their pods' all end with the place, also when the tests are killed. What
survives is podman's storage, which is an artefact: it holds the node's image, and the next place removes the rest.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.e2e.world import HOLDER, SEARCH_PATH, wait_until

if TYPE_CHECKING:
    from types import TracebackType

_CGROUP = "cnikit-kube"  # and a number, because one process may have several places, and its process ID
_numbers = itertools.count(1)
# podman lowers its own limit to this many processes, and must not promise a container more.
_PODMAN_PROCESSES = 32768
# A container that outlives its signal is killed: the init of a node does not end while pods run.
_CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
pids_limit = 0
log_driver = "k8s-file"
[network]
network_backend = "netavark"
network_config_dir = "/run/containers/networks"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
stop_timeout = 1
"""
_STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{storage}"
runroot = "/run/containers/storage"
"""
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


class Place:
    """From `__enter__` to `__exit__`. One at a time for each storage: a second one waits."""

    def __init__(self, storage: Path, *programs: Path) -> None:
        """`storage`: podman's; `programs`: folders to search for programs before the machine's."""
        self._storage = storage
        self.environ = {
            "PATH": ":".join([*map(str, programs), SEARCH_PATH]),
            "HOME": "/run",
            "CONTAINERS_CONF": "/run/lab/containers.conf",
            "CONTAINERS_STORAGE_CONF": "/run/lab/storage.conf",
            "KIND_EXPERIMENTAL_PROVIDER": "podman",
            "KUBECONFIG": "/run/lab/kubeconfig",
        }

    def __enter__(self) -> Self:
        self._storage.mkdir(parents=True, exist_ok=True)
        self._lock = self._storage.with_name(f"{self._storage.name}.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._remove_stale_cgroups()
            self._enter()
            self._configure()
            self._remove_stale_containers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        if holder := getattr(self, "_holder", None):
            holder.stdin.close()
            holder.stdout.close()
            holder.wait()
        self._lock.close()
        left = [str(folder) for folder in _cgroups() if folder.name == self._cgroup]
        assert not left, f"expected the cgroups of the place to be gone with it, found {left}"

    # Running things inside

    def inside(self, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` inside, in the place's cgroup."""
        proc = f"/proc/{self._pid}/ns"
        namespaces = [f"--{name}={proc}/{file}" for name, file in _NAMESPACES.items()]
        enter = ["/usr/bin/nsenter", *namespaces, f"--wd=/proc/{self._pid}/root/run", "--"]
        return [*enter, "/bin/sh", "-c", _JOIN, "sh", *map(str, argv)]

    def attempt(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end, whatever that is."""
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.environ, **options}
        if "input" not in settings:
            settings.setdefault("stdin", subprocess.DEVNULL)
        ran: subprocess.CompletedProcess[str] = subprocess.run(self.inside(*argv), check=False, **settings)
        return ran

    def run(self, *argv: str | Path, **options: Any) -> str:
        """Run a program inside that must succeed; its stdout."""
        ran = self.attempt(*argv, **options)
        command = shlex.join(map(str, argv))
        assert ran.returncode == 0, f"{command}: expected status 0, found {ran.returncode}\n{ran.stderr}{ran.stdout}"
        return ran.stdout or ""

    def path(self, inside: str) -> Path:
        """A file of the place as the tests reach it."""
        return Path(f"/proc/{self._pid}/root{inside}")

    # What makes it

    def _enter(self) -> None:
        self._cgroup = f"{_CGROUP}-{next(_numbers)}-{os.getpid()}"
        argv = [sys.executable, "-I", "-S", str(HOLDER), "--pids", "--cgroup", self._cgroup]
        # A session of its own: ^C in a terminal is for the tests, which then close the place.
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self._holder.stdout is not None
        first = self._holder.stdout.readline()
        assert first, "the place's holder ended at once: are the tests run as root?"
        self._pid = int(first)

    def _configure(self) -> None:
        folder = self.path("/run/lab")
        folder.mkdir()
        files, processes = (resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
        # More than the hard limit takes CAP_SYS_RESOURCE, which root has not everywhere.
        processes = min(processes, _PODMAN_PROCESSES) if processes >= 0 else _PODMAN_PROCESSES
        folder.joinpath("containers.conf").write_text(_CONTAINERS_CONF.format(files=files, processes=processes))
        folder.joinpath("storage.conf").write_text(_STORAGE_CONF.format(storage=self._storage))
        folder.joinpath("policy.json").write_text(_POLICY)
        self.run("ip", "link", "set", "lo", "up")
        if not self.path("/lib/modules").is_dir():  # kind gives it to the nodes, and podman refuses what is not there
            self.run("mkdir", "-p", "/run/lab/lib/modules")
            library = os.path.realpath("/lib")
            self.run("mount", "-t", "overlay", "-o", f"lowerdir=/run/lab/lib:{library}", "overlay", library)

    def _remove_stale_containers(self) -> None:
        """Those of a run that was killed: podman believes in them, but nothing of them runs."""
        for what in (("rm", "--force", "--all", "--volumes", "--time=0"), ("volume", "prune", "--force")):
            self.run("podman", *what)

    def _remove_stale_cgroups(self) -> None:
        """Those of a run whose holder was killed too. The lock says that no other place of this storage lives."""

        def removed() -> bool:
            for folder in _cgroups():
                if not Path(f"/proc/{folder.name.rpartition('-')[2]}").exists():
                    for below, _, _ in os.walk(folder, topdown=False):
                        try:
                            Path(below).rmdir()
                        except OSError:
                            return False
            return True

        wait_until(removed, "the cgroups of an earlier run are empty")


_NAMESPACES = {"mount": "mnt", "net": "net", "pid": "pid", "cgroup": "cgroup"}
# nsenter changes what is seen, not where the process is counted.
_JOIN = 'for file in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do [ ! -e $file ] || echo 0 > $file; done; exec "$@"'


def _cgroups() -> list[Path]:
    top = Path("/sys/fs/cgroup")
    return [*top.glob(f"{_CGROUP}-*"), *top.glob(f"*/{_CGROUP}-*")]
