"""A cluster of kind: made, looked at with kubectl as its users do, and taken down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.artefacts.node import IMAGE
from tests.e2e.world import wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.e2e.kube.place import Place

FAMILIES = ("ipv4", "ipv6", "dual")
# Seconds for what takes a few, on a machine that does other work too.
PATIENCE = 240.0


class Node(NamedTuple):
    """A node as the API server describes it; addresses and ranges in the cluster's order of families."""

    name: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    ready: bool


class Cluster:
    """From `__enter__` to `__exit__`: a control plane and workers, with no network but what a test installs."""

    def __init__(self, place: Place, family: str, *, workers: int = 2, patches: tuple[str, ...] = ()) -> None:
        """`patches`: kind's kubeadmConfigPatches."""
        assert family in FAMILIES
        self.place = place
        self.family = family
        self.name = f"cnikit-{family}"
        self._workers = workers
        self._patches = patches

    def __enter__(self) -> Self:
        networking: dict[str, Any] = {"disableDefaultCNI": True, "ipFamily": self.family}
        if self.family == "ipv6":
            networking["apiServerAddress"] = "127.0.0.1"  # netavark publishes no port on ::1
        config = {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "networking": networking,
            "kubeadmConfigPatches": list(self._patches),
            "nodes": [{"role": "control-plane"}, *({"role": "worker"} for _ in range(self._workers))],
        }
        try:
            options = ["--name", self.name, "--image", IMAGE, "--config", "-"]
            self.place.run("kind", "create", "cluster", *options, input=json.dumps(config), timeout=500)
            self.wait(lambda: all(node.pod_cidrs for node in self.nodes()), "each node has a pod range")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.place.run("kind", "delete", "cluster", "--name", self.name, timeout=PATIENCE)

    # The cluster

    def kubectl(self, *words: str, **options: Any) -> str:
        """kubectl, which must succeed; its stdout."""
        return self.place.run("kubectl", "--context", f"kind-{self.name}", *words, **options)

    def attempt(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """kubectl, whatever comes of it."""
        return self.place.attempt("kubectl", "--context", f"kind-{self.name}", *words, **options)

    def get(self, *words: str) -> Any:
        """An object, or the items of a list."""
        found = json.loads(self.kubectl("get", *words, "--output=json"))
        return found["items"] if found["kind"].endswith("List") else found

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "--filename=-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def load(self, archive: Path) -> None:
        """Put the image of an archive into every node."""
        self.place.run("kind", "load", "image-archive", archive, "--name", self.name, timeout=PATIENCE)

    def wait(self, condition: Any, what: str, seconds: float = PATIENCE) -> Any:
        """As `wait_until`; the failure shows the cluster."""
        try:
            return wait_until(condition, f"{self.name}: {what}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state()}") from None

    def state(self) -> str:
        """What a person would look at first."""
        looks = (
            ("get", "nodes", "--output=wide"),
            ("get", "pods", "--all-namespaces", "--output=wide"),
            ("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp", "--field-selector=type!=Normal"),
        )
        return "\n".join(self.attempt(*look).stdout[-6000:] for look in looks)

    # Its nodes

    def nodes(self) -> list[Node]:
        return [_node(item) for item in self.get("nodes")]

    def wait_ready(self) -> None:
        self.wait(lambda: all(node.ready for node in self.nodes()), "all nodes are Ready")

    def on_node(self, node: str, *argv: str, **options: Any) -> str:
        """A program on a node, which must succeed; its stdout."""
        return self.place.run("podman", "exec", *_interactive(options), node, *argv, **options)

    def write(self, node: str, path: str, text: str) -> None:
        """A file on a node, whole from its first moment."""
        self.on_node(node, "sh", "-c", 'cat > "$1.new" && mv "$1.new" "$1"', "sh", path, input=text)

    # Its pods

    def rolled_out(self, kind_and_name: str, namespace: str = "default") -> None:
        """Wait until all pods of a DaemonSet or Deployment are ready."""
        status = ("--namespace", namespace, "rollout", "status", kind_and_name, "--timeout=5s")
        self.wait(lambda: self.attempt(*status).returncode == 0, f"{namespace}/{kind_and_name} is rolled out")

    def in_pod(self, pod: str, *argv: str, **options: Any) -> str:
        """A program in a pod, which must succeed; its stdout."""
        return self.kubectl("exec", *_interactive(options), pod, "--", *argv, **options)


def _interactive(options: dict[str, Any]) -> tuple[str, ...]:
    """An option that podman and kubectl have in common."""
    return ("-i",) if "input" in options else ()


def _node(item: dict[str, Any]) -> Node:
    status = item["status"]
    return Node(
        item["metadata"]["name"],
        tuple(entry["address"] for entry in status.get("addresses", []) if entry["type"] == "InternalIP"),
        tuple(item["spec"].get("podCIDRs", [])),
        any(entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions", [])),
    )
