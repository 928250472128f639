"""How to speak to etcd: the files that prove who we are and who it is. They are read for each connection, because they
may have been renewed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl


class Credentials(NamedTuple):
    """Paths of PEM files, and a user whose password stands in a file. Empty: not that."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.ca, self.cert, self.key, self.password)))

    def context(self) -> ssl.SSLContext:
        """What TLS needs. OSError that names the file which cannot be read, ssl.SSLError for what is none."""
        import ssl

        for path in filter(None, (self.ca, self.cert, self.key)):
            with open(path):
                pass  # OpenSSL's error would not tell which file cannot be read
        context = ssl.create_default_context(cafile=self.ca or None)
        if self.cert:
            context.load_cert_chain(self.cert, self.key or None)
        return context

    def secret(self) -> str:
        """The user's password."""
        with open(self.password) as file:
            return file.readline().rstrip("\r\n")
