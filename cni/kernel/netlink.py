"""Netlink: messages, attributes and the socket that carries them (netlink(7), RFC 3549).

Own codec, because importing a netlink library takes far longer than a whole ADD. Two protocols
stand on it: `rtnetlink.py` and `nftables.py` turn operations into requests and answers into values, both
without I/O; this socket sends requests and finds each one's answer by its sequence number.

A request is a tuple (message type, flags, body). Numbers in headers are in the machine's byte order.
"""

from __future__ import annotations

import _socket
import _struct
import sys
from errno import EAGAIN, EBADMSG, EINTR, ENODATA, EPERM, ETIMEDOUT

from cni.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Request = tuple[int, int, bytes]
    Answer = tuple[int, str]  # errno (0: done) and the kernel's own words, if it had any

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_NONREC = 0x100  # of a request that deletes: only what holds nothing
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200

NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG = 1

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_HEADER = _struct.Struct("=IHHII")
_HEADER_SIZE = 16
_ATTR = _struct.Struct("=HH")
_ERROR = _struct.Struct("=i")
_TIMEVAL = _struct.Struct("@ll")
_PADDING = (b"", b"\0", b"\0\0", b"\0\0\0")

_RECEIVE = 1 << 16  # the kernel makes no answer larger than 32 KiB
_BATCH = 1 << 16  # at most 2,048 requests, whose answers fit into the receive buffer
_RECEIVE_BUFFER = 1 << 20
_ANSWER_SECONDS = 10  # an answer is there when `send` returns; this only turns a lost one into an error
_DUMP_TRIES = 100
_LAST_SEQ = 1 << 31


# Encoding


def attr(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = len(data) + 4
    return _ATTR.pack(size, kind) + data + _PADDING[-size & 3]


def attr_u32(kind: int, value: int) -> bytes:
    return attr(kind, value.to_bytes(4, sys.byteorder))


def attr_text(kind: int, text: str) -> bytes:
    """A string with its terminating NUL."""
    return attr(kind, text.encode("utf-8", "surrogateescape") + b"\0")


def nest(kind: int, *children: bytes) -> bytes:
    return attr(kind, b"".join(children))


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    """A whole message. `body` is already a multiple of four bytes."""
    return _HEADER.pack(_HEADER_SIZE + len(body), kind, flags, seq, 0) + body


# Decoding. Every reader takes any bytes: it gives a value or raises the one error below.


def malformed() -> KernelError:
    return KernelError("read the kernel's answer", EBADMSG)


def number(data: bytes) -> int:
    """An unsigned number in the machine's byte order."""
    return int.from_bytes(data, sys.byteorder)


def text(data: bytes) -> str:
    """A string up to its NUL."""
    return data.partition(b"\0")[0].decode("utf-8", "replace")


def attrs(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Attributes by type without their flags; of two with one type the last counts."""
    return dict(each_attr(data, offset))


def some_attrs(wanted: frozenset[int], data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The same for the types in `wanted`: a link has some 40 attributes, of which a quarter is asked for."""
    found: dict[int, bytes] = {}
    unpack, end = _ATTR.unpack_from, len(data)
    while end - offset >= 4:
        size, kind = unpack(data, offset)
        if size < 4 or offset + size > end:
            raise malformed()
        kind &= _NLA_TYPE_MASK
        if kind in wanted:
            found[kind] = data[offset + 4 : offset + size]
        offset += size + 3 & -4
    return found


def each_attr(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Attributes in order, for lists in which one type repeats."""
    end = len(data)
    while end - offset >= 4:
        size, kind = _ATTR.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            raise malformed()
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + size]
        offset += size + (-size & 3)


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence number, body) of each message of a datagram."""
    offset, end = 0, len(data)
    while end - offset >= _HEADER_SIZE:
        size, kind, flags, seq, _ = _HEADER.unpack_from(data, offset)
        if size < _HEADER_SIZE or offset + size > end:
            raise malformed()
        yield kind, flags, seq, data[offset + _HEADER_SIZE : offset + size]
        offset += size + (-size & 3)


def acknowledgement(flags: int, body: bytes) -> Answer:
    """What an NLMSG_ERROR message says: errno, 0 for success, and the kernel's explanation."""
    if len(body) < 4 + _HEADER_SIZE:
        raise malformed()
    errno = -_ERROR.unpack_from(body)[0]
    if not flags & _NLM_F_ACK_TLVS:
        return errno, ""
    echoed = _HEADER_SIZE if flags & _NLM_F_CAPPED else max(number(body[4:8]), _HEADER_SIZE)
    words = attrs(body, 4 + echoed + (-echoed & 3)).get(_NLMSGERR_ATTR_MSG, b"")
    return errno, text(words)


class Socket:
    """A netlink socket of the namespace in which it was opened. Not for two threads at once."""

    __slots__ = ("_failed", "_seq", "_socket")

    def __init__(self, protocol: int, groups: int = 0, buffer: int = _RECEIVE_BUFFER) -> None:
        self._failed = False
        try:
            # Python sets O_CLOEXEC on every socket that it makes.
            self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, protocol)
        except OSError as error:
            raise KernelError("open a netlink socket", error.errno or EPERM) from error
        self._seq = 0
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            timeout = _TIMEVAL.pack(_ANSWER_SECONDS, 0)
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeout)
            self._buffer(_SO_RCVBUFFORCE, _socket.SO_RCVBUF, buffer)
            if groups:
                self._socket.bind((0, groups))
        except OSError as error:
            self.close()
            raise KernelError("set up a netlink socket", error.errno or EPERM) from error

    @property
    def usable(self) -> bool:
        """False after a failure to send or receive: an answer may still come, and a dump that nobody read to its
        end makes the kernel refuse the next one. Also before sequence numbers, which distinguish the answers, run out.
        """
        return not self._failed and self._seq < _LAST_SEQ

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def detach(self) -> int:
        """Give the descriptor away: the caller closes it."""
        return self._socket.detach()

    def execute(self, requests: list[Request]) -> list[Answer]:
        """Send changes in one call and give the answer to each. The kernel goes on after a refused one.

        Only what no single call can hold (more than 64 KiB) is sent in several.
        """
        answers: list[Answer] = []
        while len(answers) < len(requests):
            answers += self._execute(requests, len(answers))
        return answers

    def transact(self, begin: Request, requests: list[Request], end: Request) -> tuple[int, Answer] | None:
        """Send an nfnetlink batch. None when it is done, else the number of the first refused request
        (-1 for the batch as a whole) and the answer to it.

        Only the last request asks for an answer, since a refused one gets its own without asking, and before.
        """
        first = self._seq + 1
        self._seq += len(requests) + 2
        batch = [message(begin[0], begin[1], first, begin[2])]
        for seq, (kind, flags, body) in enumerate(requests, first + 1):
            ack = NLM_F_ACK if seq == first + len(requests) else 0
            batch.append(message(kind, flags | NLM_F_REQUEST | ack, seq, body))
        batch.append(message(end[0], end[1], self._seq, end[2]))
        self._send(b"".join(batch))
        refused: tuple[int, Answer] | None = None
        while True:
            for kind, flags, seq, body in messages(self._receive()):
                if kind != _NLMSG_ERROR or not first <= seq <= self._seq:
                    continue
                answer = acknowledgement(flags, body)
                if answer[0] and refused is None:
                    refused = (seq - first - 1, answer)
                if seq == first or seq >= first + len(requests):
                    return refused

    def ask(self, what: str, kind: int, body: bytes, absent: tuple[int, ...] = ()) -> bytes | None:
        """The one answer to a question; None when the kernel says one of the errno in `absent`."""
        self._seq += 1
        self._send(message(kind, NLM_F_REQUEST, self._seq, body))
        while True:
            for answer_kind, flags, seq, answer in messages(self._receive()):
                if seq != self._seq:
                    continue
                if answer_kind != _NLMSG_ERROR:
                    return answer
                errno, hint = acknowledgement(flags, answer)
                if errno in absent:
                    return None
                raise KernelError(what, errno or ENODATA, hint)

    def dump(self, what: str, kind: int, body: bytes, absent: tuple[int, ...] = ()) -> list[bytes]:
        """All answers to a question; none when the kernel says one of the errno in `absent`.

        When something changed meanwhile the kernel marks the dump as torn, and it is asked again.
        """
        for _ in range(_DUMP_TRIES):
            answers, torn, (errno, hint) = self._dump(kind, body)
            if errno in absent:
                return []
            if errno == EINTR or (torn and not errno):
                continue
            if errno:
                raise KernelError(what, errno, hint)
            return answers
        raise KernelError(what, EAGAIN, f"changed {_DUMP_TRIES} times while it was read")

    def notices(self) -> list[tuple[int, bytes]]:
        """(type, body) of the messages of one notice of the groups that the socket was opened for."""
        return [(kind, body) for kind, _, _, body in messages(self._receive())]

    def _execute(self, requests: list[Request], start: int) -> list[Answer]:
        """The same for as many, from `start`, as go into one call. Only the last asks for an answer, since a
        refused one gets its own without asking, and before."""
        end, size = start, 0
        while end < len(requests) and (end == start or size + len(requests[end][2]) + _HEADER_SIZE <= _BATCH):
            size += len(requests[end][2]) + _HEADER_SIZE
            end += 1
        first, last = self._seq + 1, self._seq + end - start
        self._seq = last
        batch = [
            message(kind, flags | NLM_F_REQUEST | (NLM_F_ACK if seq == last else 0), seq, body)
            for seq, (kind, flags, body) in enumerate(requests[start:end], first)
        ]
        self._send(b"".join(batch))
        answers: dict[int, Answer] = {}
        while last not in answers:
            for kind, flags, seq, body in messages(self._receive()):
                if kind == _NLMSG_ERROR and first <= seq <= last:
                    answers[seq] = acknowledgement(flags, body)
        return [answers.get(seq, (0, "")) for seq in range(first, last + 1)]

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool, Answer]:
        self._seq += 1
        self._send(message(kind, NLM_F_REQUEST | NLM_F_DUMP, self._seq, body))
        answers: list[bytes] = []
        torn = False
        while True:
            for answer_kind, flags, seq, answer in messages(self._receive()):
                if seq != self._seq:
                    continue
                torn = torn or bool(flags & NLM_F_DUMP_INTR)
                if answer_kind == _NLMSG_ERROR:
                    return [], torn, acknowledgement(flags, answer)
                if answer_kind == _NLMSG_DONE:
                    errno = -_ERROR.unpack_from(answer)[0] if len(answer) >= 4 else 0
                    return answers, torn, (errno, "")
                answers.append(answer)

    def _send(self, data: bytes) -> None:
        try:
            if len(data) > _BATCH * 2:  # an nftables transaction cannot be cut into pieces
                self._buffer(_SO_SNDBUFFORCE, _socket.SO_SNDBUF, len(data) * 2)
                self._buffer(_SO_RCVBUFFORCE, _socket.SO_RCVBUF, max(len(data) * 8, _RECEIVE_BUFFER))
            self._socket.send(data)
        except OSError as error:
            self._failed = True
            raise KernelError("send to the kernel", error.errno or EPERM) from error

    def _receive(self) -> bytes:
        """The next datagram from the kernel; from another process it is ignored."""
        try:
            while True:
                data, (sender, _) = self._socket.recvfrom(_RECEIVE)
                if sender == 0:
                    return data
        except OSError as error:
            self._failed = True
            errno = ETIMEDOUT if error.errno == EAGAIN else error.errno or EPERM
            raise KernelError("receive the kernel's answer", errno) from error

    def _buffer(self, forced: int, ordinary: int, size: int) -> None:
        """Set a buffer's size, past the machine's limit when we may."""
        try:
            self._socket.setsockopt(_socket.SOL_SOCKET, forced, size)
        except PermissionError:
            self._socket.setsockopt(_socket.SOL_SOCKET, ordinary, size)
