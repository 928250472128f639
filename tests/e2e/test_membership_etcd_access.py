"""How a source comes to etcd: certificates and users, and what is told when they are not as they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.etcd_world import PREFIX, Etcd, Member, Pki, put_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytest_plugins = ["tests.e2e.etcd_fixtures"]


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def tls_etcd(tmp_path: Path, pki: Pki) -> Iterator[Etcd]:
    server = Etcd(tmp_path / "tls", pki).start()
    yield server
    server.kill()


def test_with_certificates_on_both_sides(tls_etcd: Etcd, pki: Pki, member: Callable[..., Member]) -> None:
    one = member(1, **_tls(tls_etcd, pki)).start().ready()

    assert f"{PREFIX}/nodes/node1" in tls_etcd.content()
    assert one.ear.troubles in ([], [""])


def _tls(etcd: Etcd, pki: Pki, client: str = "client", ca: str = "ca.crt") -> dict[str, Any]:
    found: dict[str, Any] = {"endpoints": [etcd.url], "caFile": pki.path(ca)}
    return {**found, "certFile": pki.path(f"{client}.crt"), "keyFile": pki.path(f"{client}.key")} if client else found


def test_an_expired_client_certificate_is_told_and_a_renewed_one_taken(
    tls_etcd: Etcd, pki: Pki, member: Callable[..., Member]
) -> None:
    pki.issue("mine", days=-1)
    one = member(1, **_tls(tls_etcd, pki, "mine")).start()
    one.ear.wait(lambda ear: "does not accept the certificate" in ear.trouble_now, "trouble")
    assert f"openssl x509 -noout -dates -issuer -in {pki.path('mine.crt')}" in one.ear.trouble_now

    pki.issue("mine")

    one.ready()


def test_no_client_certificate_where_one_is_asked_for(tls_etcd: Etcd, pki: Pki, member: Callable[..., Member]) -> None:
    one = member(1, **_tls(tls_etcd, pki, "")).start()

    one.ear.wait(lambda ear: "give certFile and keyFile" in ear.trouble_now, "trouble")


def test_an_expired_certificate_of_etcd(tmp_path: Path, pki: Pki, member: Callable[..., Member]) -> None:
    pki.issue("server", "127.0.0.1", days=-1)
    server = Etcd(tmp_path / "expired", pki, asks=False)
    server.launch()
    try:
        one = member(1, **_tls(server, pki)).start()
        one.ear.wait(lambda ear: "it has expired: renew etcd's certificate" in ear.trouble_now, "trouble")
    finally:
        server.kill()


def test_a_certificate_of_another_authority(tls_etcd: Etcd, tmp_path: Path, member: Callable[..., Member]) -> None:
    stranger = Pki(tmp_path / "stranger")

    one = member(1, **_tls(tls_etcd, stranger)).start()

    one.ear.wait(lambda ear: "caFile must hold the authority" in ear.trouble_now, "trouble")


def test_the_wrong_scheme(etcd: Etcd, tls_etcd: Etcd, pki: Pki, member: Callable[..., Member]) -> None:
    one = member(1, **{**_tls(etcd, pki), "endpoints": [etcd.url.replace("http:", "https:")]}).start()
    two = member(2, endpoints=[tls_etcd.url.replace("https:", "http:")]).start()

    one.ear.wait(lambda ear: "endpoints must say http:// there" in ear.trouble_now, "trouble")
    two.ear.wait(lambda ear: "where it speaks TLS, endpoints must say https://" in ear.trouble_now, "trouble")


@pytest.mark.parametrize("key", ["caFile", "certFile", "keyFile"])
def test_files_that_are_not_there(tls_etcd: Etcd, pki: Pki, member: Callable[..., Member], key: str) -> None:
    one = member(1, **{**_tls(tls_etcd, pki), key: "/nowhere/file.pem"}).start()

    one.ear.wait(lambda ear: "/nowhere/file.pem: cannot be read: No such file" in ear.trouble_now, "trouble")


@pytest.fixture
def guarded(etcd: Etcd) -> Etcd:
    """With users: root, and `net` who may read and write under the prefix."""
    for command in (
        "user add root:top", "user grant-role root root", "user add net:secret", "role add net",
        f"role grant-permission --prefix=true net readwrite {PREFIX}/", "user grant-role net net",
        "user add poor:secret", "auth enable",
    ):  # fmt: skip
        etcd.ctl(*command.split())
    etcd.user = "root:top"
    return etcd


def _user(tmp_path: Path, name: str, password: str) -> dict[str, str]:
    file = tmp_path / f"{name}-password"
    file.write_text(password + "\n")
    return {"username": name, "passwordFile": str(file)}


def test_with_user_and_password(guarded: Etcd, tmp_path: Path, member: Callable[..., Member]) -> None:
    one = member(1, **_user(tmp_path, "net", "secret")).start().ready()

    guarded.kill()  # and with it the token
    guarded.start()
    put_node(guarded, "node2", "192.0.2.2", "10.244.200.0/24")

    one.ear.wait(lambda ear: "node2" in ear.nodes and not ear.trouble_now, "node2")


@pytest.mark.parametrize(
    ("name", "password", "told"),
    [
        ("net", "wrong", "username and passwordFile must be those of an etcd user"),
        ("poor", "secret", "grant the user's role readwrite on prefix"),
        ("", "", "give username and passwordFile"),
    ],
)
def test_users_that_may_not(
    guarded: Etcd, tmp_path: Path, member: Callable[..., Member], name: str, password: str, told: str
) -> None:
    one = member(1, **(_user(tmp_path, name, password) if name else {})).start()

    one.ear.wait(lambda ear: told in ear.trouble_now, "trouble")
