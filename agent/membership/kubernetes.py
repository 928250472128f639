"""Membership from Kubernetes: the cluster's Node objects, listed once and then watched.

    "membership": {"source": "kubernetes", "kubeconfig": "/etc/kubernetes/cnikit.conf"}

Without a kubeconfig the pod's service account is used. One thread lists and watches; another one tells the cluster
about this node (`kubernetes_own.py`), so that a slow patch holds up no news. What a watch cannot carry on from (410,
garbage) leads to a new list. Anything else that fails is tried again from where it stood, on a new connection made
from the files as they are then: certificates, tokens and the server's address may be others by now.

A watch misses nothing, so lists are insurance only, and the bigger the cluster, the dearer: each node takes one in
so much time that the whole cluster takes one every few seconds.
"""

from __future__ import annotations

import ctypes
import random
import threading
import time
from typing import TYPE_CHECKING

from agent.membership import FIRST_PAUSE, LAST_PAUSE, Source
from agent.membership.kubernetes_api import SERVICE_ACCOUNT, Api, ApiError, GoneError
from agent.membership.kubernetes_members import Members
from agent.membership.kubernetes_name import this_machine
from agent.membership.kubernetes_own import Announcer
from agent.membership.troubles import Troubles
from cni.config import wrong

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.membership import Listener, Network
    from cni.config import Reader
    from plugins.peers import Node, Subnet

# A watch lasts between these, as each ends at another time.
_WATCH_SECONDS = (300, 600)
# Between lists: at least so long, and so long for each node.
_RESYNC_SECONDS, _RESYNC_SECONDS_A_NODE = 600.0, 5.0
# How long `close` waits for threads that have been interrupted. One that connects takes longer, and tells nobody.
_CLOSE_SECONDS = 1.0


def make(config: Reader, network: Network) -> KubernetesSource:
    """The source that `membership` describes. CniError 7 for a kubeconfig that is no absolute path."""
    kubeconfig = config.string("kubeconfig")
    if kubeconfig and not kubeconfig.startswith("/"):
        config.refuse(wrong(config.at("kubeconfig"), "an absolute path", kubeconfig))
    return KubernetesSource(network, kubeconfig, machine=this_machine())


class KubernetesSource(Source):
    """The nodes of a cluster. `service_account` is the folder that a pod finds its own in, and `machine` tells this one
    from another of its name (empty: that is not looked at)."""

    def __init__(
        self, network: Network, kubeconfig: str, service_account: str = SERVICE_ACCOUNT, machine: str = ""
    ) -> None:
        self._machine = machine
        self._network = network
        self._connect: Callable[[], Api] = lambda: Api(kubeconfig, service_account)
        self._closed = threading.Event()
        self._api: Api | None = None
        self._version = ""  # of what is known; empty: a list is due
        self._pause = FIRST_PAUSE
        self._resync = 0.0  # when the next list is due, on the monotonic clock
        self._spoilt = False  # the watch that is next has to prove itself
        self._thread: threading.Thread | None = None
        self._here: frozenset[Subnet] = frozenset()

    @property
    def stated(self) -> tuple[bytes, ...]:
        return self._members.stated if self._thread is not None else ()

    @property
    def announced(self) -> tuple[bytes, ...]:
        return self._members.announced if self._thread is not None else ()

    def locate(self, here: frozenset[Subnet]) -> None:
        before, self._here = self._here, here
        gone = {packed for packed, _ in before}.difference(packed for packed, _ in here)
        for api in (self._api, self._announcer.api) if self._thread is not None else ():
            if api is not None:
                api.leave(gone)

    def start(self, own: Node, listener: Listener) -> None:
        self._troubles = Troubles(listener.trouble, follows={"announce": "api"})
        self._announcer = Announcer(own, self._network, self._connect, self._troubles, time.time, self._machine)
        self._members = Members(own, self._network, listener, self._troubles, self._announcer)
        self._thread = threading.Thread(target=self._run, name="kubernetes", daemon=True)
        self._thread.start()
        self._announcer.start()

    def update(self, own: Node) -> None:
        self._members.update(own)

    def judge(self, fault: str) -> None:
        self._announcer.judge(fault)

    def close(self) -> None:
        self._closed.set()
        if self._thread is None:
            return
        self._members.close()
        self._troubles.close()
        self._announcer.close()
        api = self._api
        if api is not None:
            api.interrupt()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._learn()
            except GoneError:
                self._version = ""
                self._wait()
            except ApiError as failure:
                self._fail(failure)
            except Exception as error:  # noqa: BLE001 - this thread must not end
                self._fail(ApiError(f"membership from Kubernetes: {type(error).__name__}: {error}", spoilt=True))
        self._drop()

    def _learn(self) -> None:
        """List when that is due, then watch until the watch ends."""
        if self._api is None:
            self._api = self._connect()
        if not self._version or time.monotonic() >= self._resync:
            self._version = self._list(self._api)
            if not self._spoilt:
                self._troubles.tell("api", "")
        self._watch(self._api)

    def _list(self, api: Api) -> str:
        version = ""
        reading = self._members.read()
        for version, page in api.pages():  # noqa: B007 - that of the last page is the list's
            for view in page:
                reading.take(view)
        self._members.replace(reading)
        ctypes.CDLL(None).malloc_trim(0)  # pages of megabytes leave holes as large
        wait = max(_RESYNC_SECONDS, _RESYNC_SECONDS_A_NODE * len(reading.nodes))
        self._resync = time.monotonic() + wait * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        return version

    def _watch(self, api: Api) -> None:
        began = time.monotonic()
        most = min(random.uniform(*_WATCH_SECONDS), max(self._resync - began, 1.0))  # noqa: S311
        for kind, view in api.watch(self._version, int(most)):
            if kind == "":
                if self._closed.is_set():  # too early to be interrupted
                    return
                if not self._spoilt:
                    self._troubles.tell("api", "")
                continue
            self._version = view.metadata.resourceVersion or self._version
            self._prove()
            if kind == "DELETED":
                self._members.gone(view.metadata.name)
            elif kind != "BOOKMARK":
                self._members.put(view)
        if time.monotonic() - began >= LAST_PAUSE:
            self._prove()
        else:  # somebody between us cuts it, or the server is about to go
            self._wait()

    def _prove(self) -> None:
        """The watch works: nothing is wrong any more."""
        self._pause = FIRST_PAUSE
        if self._spoilt:
            self._spoilt = False
            self._troubles.tell("api", "")

    def _fail(self, failure: ApiError) -> None:
        self._drop()
        if failure.spoilt:  # what was heard cannot be trusted: begin anew
            self._spoilt = True
            self._version = ""
        self._troubles.tell("api", str(failure))
        self._wait(failure.retry_after)

    def _wait(self, least: float = 0.0) -> None:
        """A pause, longer each time, and not the same on all nodes."""
        self._closed.wait(max(least, self._pause * random.uniform(0.5, 1.0)))  # noqa: S311
        self._pause = min(2 * self._pause, LAST_PAUSE)

    def _drop(self) -> None:
        api, self._api = self._api, None
        if api is not None:
            api.close()
