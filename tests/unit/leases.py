"""host-local called in-process on a real folder, and the folder read with nobody's help.

    pool = Pool(tmp_path)
    pool.add("pod", pool.conf())      # ["10.1.0.2"]
    pool.leases()                     # {"10.1.0.2": "pod\\r\\neth0"}

`foreign_*` do to the folder what the Go host-local does, system call by system call.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cni.config import Reader
from cni.dispatch import Call
from cni.request import Request
from cni.testing.fake_kernel import FakeKernel
from cni.world import World

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BOOKKEEPING = ("lock", "last_reserved_ip.")


class Pool:
    """One data folder on one node, which can be restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "networks"
        self.network = self.data_dir / "net"
        self.own = self.data_dir / ".cnikit" / "net"
        self.host = "host 1"
        self.boot = "boot 1"
        self.log: list[str] = []
        self.world = World(
            {"host-local": "ipam.host_local"},
            FakeKernel(),
            clock=iter(range(1 << 60)).__next__,
            log=self.log.append,
            own_plugin=lambda _: None,
            boot_id=lambda: self.boot,
            host_id=lambda: self.host,
            run_dir=str(folder / "run"),
        )

    def conf(self, *sets: Any, **ipam: Any) -> dict[str, Any]:
        """A configuration with these range sets, 10.1.0.0/24 when none is given."""
        ranges = list(sets) or [[{"subnet": "10.1.0.0/24"}]]
        section = {"type": "host-local", "dataDir": str(self.data_dir), "ranges": ranges, **ipam}
        return {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": section}

    def call(
        self, verb: str, conf: dict[str, Any], container: str = "pod", args: str = "", *, deliver: bool = True
    ) -> dict[str, Any]:
        """One verb; its result's JSON, empty for other verbs. Not delivered means that the answer was lost."""
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/none",
            "CNI_PATH": "/none",
            "CNI_ARGS": args,
        }
        with Call(self.world, "host-local", Request(environ), Reader(conf)) as call:
            result = call.run()
            if deliver:
                call.context.undo.commit()
            return result.json(call.context.version) if result else {}

    def add(self, container: str, conf: dict[str, Any] | None = None, args: str = "") -> list[str]:
        """ADD; the addresses without prefix."""
        result = self.call("ADD", conf or self.conf(), container, args)
        return [ip["address"].partition("/")[0] for ip in result["ips"]]

    def delete(self, container: str) -> None:
        self.call("DEL", self.conf(), container)

    def gc(self, valid: Iterable[str], conf: dict[str, Any] | None = None) -> None:
        listed = [{"containerID": container, "ifname": "eth0"} for container in valid]
        self.call("GC", {**(conf or self.conf()), "cni.dev/valid-attachments": listed})

    def leases(self) -> dict[str, str]:
        """Every lease file: address and text."""
        names = os.listdir(self.network) if self.network.exists() else []
        kept = [name for name in names if not name.startswith(BOOKKEEPING)]
        return {name: (self.network / name).read_bytes().decode() for name in kept}

    def plant(self, address: str, text: str) -> None:
        """A lease file by another hand, and nothing else."""
        self.network.mkdir(parents=True, exist_ok=True)
        with (self.network / address).open("xb") as file:
            file.write(text.encode())

    def foreign_add(self, container: str, address: str, index: int = 0) -> None:
        self.plant(address, f"{container}\r\neth0")
        (self.network / f"last_reserved_ip.{index}").write_text(address)

    def foreign_del(self, container: str) -> None:
        for address, text in self.leases().items():
            if text == f"{container}\r\neth0":
                (self.network / address).unlink()
