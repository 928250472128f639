"""What was measured of clusters, told: agents that start, and thousands of nodes that claim their subnets at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.cluster_agent import Started

    Claims = dict[str, Any]  # what claimers.py gives

FLANNEL = (
    "flanneld 0.28 (VXLAN, etcd) took 0.33, 0.96 and 4.6 s for 100, 1,000 and 5,000 peers on such a machine, and for "
    "5,000 it had 50 MiB resident, 55 at its peak: noted once, not measured in this run."
)
PEERS = (
    "The VXLAN device is a new one each time. `ip -batch` makes a neighbour and a route (`via` the peer's device, "
    "`onlink`) for each peer, then `bridge -batch` its forwarding entry, all by `replace`, from files that are there "
    "before; its time is that of both processes. cnikit's is from the peers as values to the kernel's last answer, "
    "with computing their entries and looking at what the kernel holds. After both, `ip` and `bridge` find the same "
    "routes, neighbours and forwarding entries. The peer that changes comes back with another address, MAC and subnet; "
    "the time is from the news to the kernel's last answer to the one batch."
)
STARTING = (
    "Until all are programmed: from before the agent's process is started until the kernel has announced a route, a "
    "neighbour and a forwarding entry for every peer. Memory is the agent's resident one when it then rests"
)
HEADINGS = ("an agent that starts", "peers", "all programmed after, s", "resident, MiB", "at its peak", "at most", "")
# Points of a curve that are kept in bench.json.
POINTS = 200
SOURCES = {"static": "from a file", "etcd": "from etcd", "kubernetes": "from a Kubernetes API"}


def table(starts: Sequence[Started]) -> Table:
    """For a terminal."""
    found = Table(title="an agent that starts in a cluster, medians")
    for heading in HEADINGS:
        found.add_column(heading, justify="left" if heading in {HEADINGS[0], ""} else "right")
    for one in starts:
        found.add_row(*cells(one))
    return found


def cells(one: Started) -> list[str]:
    limit = "" if one.start.at_most is None else f"{one.start.at_most:g} MiB"
    return [
        SOURCES[one.start.source], f"{one.peers:,}", f"{one.seconds:.2f}", f"{one.resident:.1f}", f"{one.peak:.1f}", limit,
        one.verdict,
    ]  # fmt: skip


def markdown(starts: Sequence[Started]) -> list[str]:
    return [
        f"| {' | '.join(HEADINGS)} |",
        "|---|--:|--:|--:|--:|--:|---|",
        *(f"| {' | '.join(cells(one))} |" for one in starts),
        "",
    ]


def claims_lines(claims: Claims) -> list[str]:
    """A table of what the simulated cluster has come to."""
    watching = claims["watching"]
    rows = [
        ("nodes that start at once", f"{claims['nodes']:,}, {claims['at_once']} requests at a time"),
        ("every node holds a subnet after", f"{claims['all_claimed_s']:.2f} s"),
        ("one claim, median and p99", f"{1000 * claims['claim_median_s']:.0f} and {1000 * claims['claim_p99_s']:.0f} ms"),
        ("tries that found a subnet taken", f"{claims['conflicts']:,}"),
        ("requests to etcd for one claim", f"{claims['requests'] / claims['nodes']:.1f}"),
        ("a watching node knows every other one after", f"{claims['all_seen_s']:.2f} s"),
        ("a node that starts then has read all of them after", f"{claims['read_all_s']:.2f} s"),
        ("CPU of etcd", f"{claims['etcd_cpu_s']:.1f} s"),
        ("memory of etcd", f"{claims['etcd_kib'] / 1024:.0f} MiB"),
        ("CPU of the claimers, connections included", f"{claims['claimers_cpu_s']:.1f} s"),
        ("CPU and memory of the watching node", f"{claims['observer_cpu_s']:.1f} s, {claims['observer_kib'] / 1024:.0f} MiB"),
        (f"etcd for one change sent to one of {watching['watchers']} watches", f"{1e6 * watching['etcd_cpu_each_s']:.0f} µs"),
        (
            "computed: etcd to send every node to every other one",
            f"{watching['computed_etcd_cpu_s']:.0f} s of CPU",
        ),
    ]  # fmt: skip
    return [
        "| a simulated cluster on one etcd | |",
        "|---|--:|",
        *(f"| {what} | {value} |" for what, value in rows),
        "",
    ]


def claims_json(claims: Claims) -> dict[str, Any]:
    """With less of the curves."""
    found = {key: round(value, 4) if isinstance(value, float) else value for key, value in claims.items()}
    for key in ("claimed_at", "samples"):
        found[key] = thinned(claims[key])
    return found


def thinned(values: list[Any]) -> list[Any]:
    """At most so many of them, the last one included."""
    step = -(-len(values) // POINTS) or 1
    return values[::-1][::step][::-1]
