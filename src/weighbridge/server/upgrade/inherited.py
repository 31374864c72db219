"""A listening socket that this process was given: by systemd, or by the process that it stands in for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from weighbridge.errors import BadInput

#: The first file that systemd passes on (sd_listen_fds(3)).
FIRST_FILE = 3
#: What a process says that hands its socket over, and what it is told.
OFFER, READY, LEAVING = b"weighbridge 1\n", b"ready\n", b"leaving\n"
#: Seconds in which the old process answers.
ANSWERS_WITHIN = 10.0


def socket_of_systemd() -> socket.socket | None:
    """The socket of `LISTEN_FDS`, once; None where there is none. Raises BadInput for one that is no use."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or count == "0":
        return None
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # children of ours are passed none
    if count != "1":
        raise BadInput(f"LISTEN_FDS says that there are {count} sockets; a server listens on one")
    os.set_inheritable(FIRST_FILE, False)
    return checked(socket.socket(fileno=FIRST_FILE))


def checked(listener: socket.socket) -> socket.socket:
    """A socket that was given to us, if it is one for TCP. Raises BadInput."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.type != socket.SOCK_STREAM:
        raise BadInput("the socket that was passed on is none for TCP (ListenStream=HOST:PORT)")
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class Taken:
    """A socket taken over from a process that serves on until it is told that this one is ready."""

    def __init__(self, path: Path) -> None:
        """Ask the process behind a Unix socket for its listening socket. Raises BadInput where nobody gives one."""
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.settimeout(ANSWERS_WITHIN)
        try:
            self._line.connect(str(path))
            said, files, _, _ = socket.recv_fds(self._line, len(OFFER), 1)
        except OSError as error:
            self._line.close()
            what = "start it without --takeover where nothing is to be taken over"
            raise BadInput(
                f"no socket could be taken over at {path}: {error}; {what}", param="takeover"
            ) from error
        if said != OFFER or len(files) != 1:
            self._line.close()
            raise BadInput(f"what answers at {path} hands no socket over", param="takeover")
        self.listener = checked(socket.socket(fileno=files[0]))

    def ready(self) -> None:
        """Tell the old process that this one serves; when this returns, that one accepts no more."""
        try:
            self._line.sendall(READY)
            self._line.recv(len(LEAVING))
        except OSError:
            pass  # it is gone already
        finally:
            self._line.close()
