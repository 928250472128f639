"""A cluster to try things on by hand, and a shell where it lives; tests/cluster starts it."""

from __future__ import annotations

import subprocess
import sys

from tests.e2e.kube.cluster import FAMILIES, Cluster
from tests.e2e.kube.conftest import make_place


def main() -> None:
    family = sys.argv[1] if len(sys.argv) > 1 else FAMILIES[0]
    if family not in FAMILIES:
        sys.exit(f"expected one of {', '.join(FAMILIES)}, found {family}")
    with make_place() as place:
        print(f"creating a cluster ({family}) ...", flush=True)
        with Cluster(place, family):
            print(
                "kubectl, kind and podman work here; nodes have no network yet; ^D takes the cluster down", flush=True
            )
            subprocess.run(place.inside("bash"), env=place.environ, check=False)


main()
