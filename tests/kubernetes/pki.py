"""Certificates for a test: a CA, and whom it vouches for."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Pair(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A CA in a folder."""

    def __init__(self, folder: Path, name: str = "test-ca") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self._key = folder / "ca.crt", folder / "ca.key"
        _openssl(
            "req", "-x509", *_KEY, "-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}", "-days", "2"
        )

    def issue(self, file: str, subject: str, *, names: str = "", days: int = 1) -> Pair:
        """A certificate for a subject (`/O=system:masters/CN=admin`). One that is -1 days valid has expired."""
        found = Pair(self._folder / f"{file}.crt", self._folder / f"{file}.key")
        request, extensions = self._folder / f"{file}.csr", self._folder / f"{file}.ext"
        _openssl("req", "-new", *_KEY, "-keyout", found.key, "-out", request, "-subj", subject)
        extensions.write_text(
            "extendedKeyUsage=serverAuth,clientAuth\n" + (f"subjectAltName={names}\n" if names else "")
        )
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", str(days), "-extfile", extensions, "-out", found.certificate,
        )  # fmt: skip
        return found


def _openssl(*words: str | Path) -> None:
    ran = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
