"""What a node runs out of: room and inodes of /run, ports of a bridge. The answer says what, where, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.bridge_world import add, dual
from tests.e2e.world import Node, network, wait_until

if TYPE_CHECKING:
    from tests.e2e.world import Pod

RUN = "/run/cnikit/networks"
LOCKS = "/run/cnikit/locks"


def limited(node: Node, folder: str, options: str) -> None:
    node.run("mkdir", "-p", folder)
    node.run("mount", "-t", "tmpfs", "-o", options, "none", folder)


def refused(node: Node, pod: Pod) -> tuple[str, str]:
    """What ADD says, after which nothing of the pod is left."""
    error = node.call("bridge", "ADD", dual(ipMasq=True), pod).error
    assert "Errno" not in error["msg"]
    assert "eth0" not in node.links(pod)
    assert node.leases("net") == {}
    return error["msg"], error["details"]


def test_records_with_no_inodes(node: Node) -> None:
    limited(node, RUN, "nr_inodes=1")

    msg, details = refused(node, node.pod())

    assert f"expected room in {RUN}" in msg
    assert "found no inodes left (ENOSPC)" in msg
    assert f"df -i {RUN}" in details


def test_records_with_no_space(node: Node) -> None:
    limited(node, RUN, "size=4k")
    node.run("dd", "if=/dev/zero", f"of={RUN}/filler", "bs=4096", "count=1")

    msg, details = refused(node, node.pod())

    assert f"expected room in {RUN}/net/attachments, found no space left (ENOSPC)" in msg
    assert f"df {RUN}/net/attachments" in details


@pytest.mark.parametrize("inodes", range(2, 8))
def test_holders_and_records_with_few_inodes(node: Node, inodes: int) -> None:
    """Whichever of them is the first without an inode: folder, record, lock or holder."""
    limited(node, RUN, f"nr_inodes={inodes}")

    msg, _ = refused(node, node.pod())

    assert f"at {RUN}/net" in msg
    assert "found no inodes left (ENOSPC)" in msg


def test_locks_with_no_inodes(node: Node) -> None:
    limited(node, LOCKS, "nr_inodes=1")
    pod = node.pod()

    msg, _ = refused(node, pod)

    assert f"expected room in {LOCKS}, found no inodes left (ENOSPC)" in msg
    deleted = node.call("bridge", "DEL", dual(ipMasq=True), pod)
    deleted.silent()
    assert "Errno" not in deleted.stderr


def test_a_read_only_run(node: Node) -> None:
    limited(node, LOCKS, "ro")

    msg, details = refused(node, node.pod())

    assert LOCKS in msg
    assert "EROFS (Read-only file system)" in msg
    assert details == "mount it writable"


def test_a_full_bridge(node: Node) -> None:
    first = node.pod()
    add(node, first, network())
    batch = "".join(f"link add d{number} master cni0 type ifb\n" for number in range(1022))
    node.run("ip", "-batch", "-", stdin=batch.encode())
    pod = node.pod()

    error = node.call("bridge", "ADD", network(), pod).error

    assert error["code"] == 11
    assert "bridge cni0: expected a free port, found all 1023 in use" in error["msg"]
    assert "EXFULL" in error["msg"]
    assert error["details"] == "delete pods, or give the network another `bridge`"
    assert list(node.leases("net")) == ["10.1.0.2"]
    assert "eth0" not in node.links(pod)
    said = node.call("bridge", "STATUS", network()).error
    assert (said["code"], said["details"]) == (50, error["details"])
    assert "bridge cni0 cannot serve ADD: bridge cni0: expected a free port, found all 1023 in use" in said["msg"]
    node.call("bridge", "STATUS", network(ipam={**network()["ipam"], "statusOnExhausted": False})).silent()

    node.call("bridge", "DEL", network(), first).silent()
    node.call("bridge", "STATUS", network()).silent()
    wait_until(lambda: node.call("bridge", "ADD", network(), pod).ok, "a port is free again")


LEASE_FOLDER = "/var/lib/cni/networks"


@pytest.mark.parametrize("inodes", range(1, 13))
def test_leases_with_few_inodes(node: Node, inodes: int) -> None:
    """Whichever of them is the first without an inode: folder, lock, lease, entry of the index, bitmap, last address."""
    limited(node, LEASE_FOLDER, f"nr_inodes={inodes}")
    pod = node.pod()

    added = node.call("bridge", "ADD", dual(), pod)

    if not added.ok:
        assert f"at {LEASE_FOLDER}" in added.error["msg"]
        assert "found no inodes left (ENOSPC)" in added.error["msg"]
        assert f"df -i {LEASE_FOLDER}" in added.error["details"]
        assert node.leases("net") == {}
    node.call("bridge", "DEL", dual(), pod).silent()
    assert node.leases("net") == {}


@pytest.mark.parametrize("pages", range(1, 5))
def test_leases_with_little_space(node: Node, pages: int) -> None:
    limited(node, LEASE_FOLDER, f"size={4 * pages}k")
    node.run("dd", "if=/dev/zero", f"of={LEASE_FOLDER}/filler", "bs=4096", "count=1")
    pod = node.pod()

    added = node.call("host-local", "ADD", dual(), pod)

    assert f"in {LEASE_FOLDER}" in added.error["msg"]
    assert "found no space left (ENOSPC)" in added.error["msg"]
    assert f"df {LEASE_FOLDER}" in added.error["details"]
    assert node.leases("net") == {}
    node.call("host-local", "DEL", dual(), pod).silent()
