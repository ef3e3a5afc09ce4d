"""Notices at once that one of several training processes has ended, and ends the others with a word on which it was.

A process that waits for another in a collective operation would wait for hours. So each holds a connection to the first
one, and nothing is sent on it: when a process ends, however, its system closes the connection, and when a machine is
gone, TCP's own keep-alive finds out within 20 seconds. Neither depends on what Python is busy with.

Whoever started the processes may notice too, and end the others, even before the connections show it, as a process that
has just been forked may hold one open for a moment. So a process that gets SIGTERM says so to the others, and ends when
each of them has said the same, or at the end of a grace: one that ends unasked is named all the same.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

_DONE, _TOLD, _ASKED = b"done\n", b"told\n", b"asked\n"
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, attempts
# Exit status: without the others, when the user has been told what is wrong, and of who was asked to end.
_FAILED, _REFUSED, _TERMINATED = 1, 2, 128 + signal.SIGTERM
_LINE = 400  # bytes of a message at most
_MEETING = 60  # seconds in which all have to meet
_GREETING = 5  # seconds from a connection to its word
_GRACE = 2  # seconds from SIGTERM in which the others say that they got one too, or are seen to have ended


class RankWatch:
    """Watches over the processes of a training, from construction on.

    When one ends without `close`, the others print a sentence that names it, with its machine and process number, and
    end with exit status 1.

    Args:
        rank: of this process.
        ranks: how many there are.
        speaks: whether this process is the one of its machine that prints.
        address: at which the first one's machine is reached.
        from_main: returns in every process what the first one gives; called in all of them at once.

    Attributes:
        hint: what a user can do then, for the end of the sentence.
    """

    def __init__(self, rank: int, ranks: int, speaks: bool, address: str, from_main: Callable[[Any], Any]) -> None:
        self.hint = ""
        self._rank, self._speaks, self._closing = rank, speaks, False
        name = f"rank {rank} (process {os.getpid()} on {socket.gethostname()})"
        server = _server() if rank == 0 else None
        told = from_main((server.getsockname()[1], secrets.token_hex(), name) if server else None)
        port, secret, self._names = told[0], told[1], {0: told[2], rank: name}
        self._peers: dict[socket.socket, int] = {}
        if server is None:
            peer = socket.create_connection((address, port), timeout=_MEETING)
            peer.sendall(f"{secret} {rank} {name}\n".encode())
            self._add(peer, 0)
        else:
            with server:
                server.settimeout(_MEETING)
                while len(self._peers) < ranks - 1:
                    peer = server.accept()[0]
                    peer.settimeout(_GREETING)
                    try:
                        said = peer.makefile(errors="replace").readline(_LINE)
                    except OSError:  # somebody else's, who says nothing
                        said = ""
                    known, _, who = said.strip().partition(" ")
                    if known == secret:
                        number, _, name = who.partition(" ")
                        self._names[int(number)] = name
                        self._add(peer, int(number))
                    else:
                        peer.close()
        self._signals = _terminations()
        self._masks = threading.local()  # of signals, of each thread that forks
        if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
            os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._let_go)
        threading.Thread(target=self._watch, name="rank watch", daemon=True).start()

    def close(self) -> None:
        """Stop watching; to be called when all processes have come to their end."""
        self._closing = True
        self._say(_DONE)

    def give_up(self) -> None:
        """End the other processes without a word, as the user has been told by this one."""
        self._closing = True
        self._say(_TOLD)

    def _hold(self) -> None:
        """Let SIGTERM wait while a process forks: the new one would take it for a signal to this one."""
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def _release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def _let_go(self) -> None:
        """Close the connections in a forked process, a data loader's worker say: open ones would outlive this one."""
        for peer in self._peers:
            peer.close()
        if self._signals:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._release()

    def _say(self, message: bytes, but: str = "") -> None:
        for peer, number in self._peers.items():
            if self._names[number] != but:
                with suppress(OSError):  # that one has ended
                    peer.sendall(message)

    def _add(self, peer: socket.socket, number: int) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._peers[peer] = number

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self._peers:
                selector.register(connection, selectors.EVENT_READ)
            if self._signals:
                selector.register(self._signals, selectors.EVENT_READ)
            silent, deadline = set(self._peers), None  # who has not said that it ends; when this process does
            while selector.get_map():
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready = [cast(socket.socket, key.fileobj) for key, _ in selector.select(left)]
                for peer in ready:
                    try:
                        said = peer.recv(_LINE)
                    except OSError:
                        said = b""
                    if peer is self._signals:
                        if signal.SIGTERM in said and deadline is None:
                            deadline = time.monotonic() + _GRACE
                            self._say(_ASKED)
                        continue
                    if said.startswith(_ASKED):
                        silent.discard(peer)
                        said = said.removeprefix(_ASKED)
                        if not said:
                            continue
                    if said == _TOLD:
                        os._exit(_REFUSED)
                    elif said == _DONE or self._closing or (deadline is not None and peer not in silent):
                        silent.discard(peer)
                        selector.unregister(peer)
                    else:
                        self._end(said.decode(errors="replace").strip() or self._names[self._peers[peer]])
                if deadline is not None and not (ready and silent):
                    os._exit(_TERMINATED)

    def _end(self, name: str) -> None:
        """Tell the others and the user who has ended, and end."""
        if self._rank == 0:
            self._say(f"{name}\n".encode()[:_LINE], but=name)
        if self._speaks or (self._rank == 1 and name == self._names[0]):
            print(f"yolo-lat: error: {name} has ended before the training{self.hint}", file=sys.stderr, flush=True)
        os._exit(_FAILED)


def _terminations() -> socket.socket | None:
    """Have SIGTERM end nothing, and return the socket that tells of it at once, whatever the main thread is busy with.

    None where somebody else handles it already, or it cannot be handled: it ends the process, or not, as before.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return None
    told, tells = socket.socketpair()
    tells.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(tells.detach(), warn_on_full_buffer=False)
    return told


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
