"""A plugin's call without root: the fake kernel, a folder for the records, and dispatch as the executable uses it.

    node = Node(tmp_path)
    answer = node.call("bridge", "ADD", conf)
    assert node.pod_link("eth0").up

IPAM is `fake-ipam` (fake_ipam.py), found on CNI_PATH and called in-process.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cni import dispatch
from cni.testing.fake_kernel import FakeKernel
from cni.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cni.kernel import Kernel

POD = "/run/netns/pod"
OTHER = "/run/netns/other"
REGISTRY = {
    "bridge": "plugins.bridge",
    "loopback": "plugins.loopback",
    "fake-ipam": "tests.unit.fake_ipam",
}


class Stdin:
    """stdin that holds `data`; counts how it was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[str] = []

    def all(self) -> bytes:
        self.reads.append("all")
        return self.data

    def probe(self) -> bytes:
        self.reads.append("probe")
        return self.data


class Answer:
    """What one call gave: exit code, stdout, and the lines for people."""

    def __init__(self, status: int, stdout: list[bytes], log: list[str]) -> None:
        self.status = status
        self.stdout = b"".join(stdout)
        self.documents = len(stdout)
        self.log = log

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.stdout.decode()} {self.log}>"

    @property
    def result(self) -> dict[str, Any]:
        assert self.status == 0, self
        found: dict[str, Any] = json.loads(self.stdout)
        return found

    @property
    def error(self) -> dict[str, Any]:
        assert self.status == 1, self
        found: dict[str, Any] = json.loads(self.stdout)
        assert set(found) == {"cniVersion", "code", "msg", "details"}
        return found

    def silent(self) -> None:
        assert (self.status, self.stdout) == (0, b""), self


class Node:
    """A node in memory with two pods, POD and OTHER."""

    def __init__(
        self, tmp_path: Path, kernel: FakeKernel | None = None, registry: Mapping[str, str] = REGISTRY
    ) -> None:
        self.kernel = kernel or FakeKernel()
        self.kernel.add_netns(POD)
        self.kernel.add_netns(OTHER)
        self.registry = registry
        self.run_dir = tmp_path / "run"
        self.bin_dir = tmp_path / "bin"
        self.bin_dir.mkdir()
        for name in registry:
            (self.bin_dir / name).touch(0o755)
        self.ipam_log = tmp_path / "ipam.log"

    def world(self, kernel: Kernel | None = None, log: list[str] | None = None) -> World:
        return World(
            self.registry,
            kernel or self.kernel,
            clock=iter(range(1_000_000)).__next__,
            log=(log if log is not None else []).append,
            own_plugin=lambda path: name if (name := path.rpartition("/")[2]) in self.registry else None,
            boot_id=lambda: "boot",
            run_dir=str(self.run_dir),
        )

    def environ(self, command: str, container: str = "ctr", netns: str = POD, **extra: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.bin_dir),
            **extra,
        }

    def call(
        self,
        plugin: str,
        command: str,
        conf: Any,
        container: str = "ctr",
        netns: str = POD,
        *,
        kernel: Kernel | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call; `conf` is bytes or what JSON can hold."""
        log: list[str] = []
        out: list[bytes] = []
        stdin = Stdin(conf if isinstance(conf, bytes) else json.dumps(conf).encode())
        environ = {**self.environ(command, container, netns), **(env or {})}
        status = dispatch.serve(
            self.world(kernel, log), plugin, environ, stdin, lambda _, data: out.extend([data] if data else [])
        )
        return Answer(status, out, log)

    def network(self, *addresses: str, **options: Any) -> dict[str, Any]:
        """A bridge configuration whose IPAM hands out these addresses (10.1.0.2/24 when none is given)."""
        ips = [{"address": cidr, "gateway": _gateway(cidr)} for cidr in addresses or ("10.1.0.2/24",)]
        ipam = {"type": "fake-ipam", "log": str(self.ipam_log), "result": {"ips": ips}}
        return {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam, **options}

    def ipam_calls(self) -> list[str]:
        """The verbs that IPAM was asked for, each with the container, in order."""
        return self.ipam_log.read_text().splitlines() if self.ipam_log.exists() else []

    def snapshot(self) -> dict[str, Any]:
        """The kernel and the records, but not the locks: what can be seen of attachments."""
        files = {str(path.relative_to(self.run_dir)): path for path in self.run_dir.rglob("*")}
        kept = {name: _content(path) for name, path in files.items() if path.name != "lock" and not path.is_dir()}
        return {**self.kernel.snapshot(), "files": kept}

    def own(self, what: str) -> Any:
        """`links`, `addresses`, ... of the node's own namespace."""
        return self.kernel.snapshot()["own"][what]

    def pod(self, what: str, netns: str = POD) -> Any:
        """The same of a pod."""
        return self.kernel.snapshot()[netns][what]

    def host_end(self) -> str:
        """The name of the one veth on the node that has a label."""
        (found,) = [name for name, link in self.own("links").items() if link["alias"].startswith("cnikit ")]
        return str(found)


def _gateway(cidr: str) -> str:
    """`10.1.0.1` for 10.1.0.2/24, `fd00::1` for fd00::2/64."""
    address = cidr.partition("/")[0]
    return address.rpartition(":" if ":" in address else ".")[0] + (":1" if ":" in address else ".1")


def _content(path: Path) -> str:
    return f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
