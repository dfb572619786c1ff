"""The small process between `rebuildctl up` and each of its children: it makes sure that none outlives the parent.

Its stdin is a pipe that only the parent holds open, so the parent's end shows as end-of-file, whatever the parent died
of; then the guard stops its child in order, and kills what is left after the grace. PR_SET_PDEATHSIG alone would not
do: it fires when the forking *thread* ends, is cleared by a change of user, and knows no order. Here it is the second
net: it stops the child when the guard itself is killed. As a subreaper the guard also inherits and ends the
grandchildren (PostgreSQL's backends, Celery's pool) of a child that crashed.

It runs by its path under `python -I -S` and imports only the standard library: that keeps it at 15 ms and 8 MB.
argv[1] is an `Order` as JSON. On stdout it writes `pid N` once and `exit N` at the end (128 + signal when killed).
The environment is the child's, so no secret stands in an argument list.
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypedDict

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STRAYS_GRACE_SECONDS = 2.0
"""What a crashed child leaves behind gets TERM and this long before KILL; the next start waits for it."""


class Order(TypedDict):
    """What the guard is told: the program, where its output goes, as whom it runs and how it is stopped."""

    argv: list[str]
    log: str
    cwd: str | None
    uid: int | None
    gid: int | None
    stop_signal: int
    grace_seconds: float
    lock_fd: int | None


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _become(order: Order, guard: int) -> NoReturn:
    """In the forked child: own session, other user, then the program. Never returns."""
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
    except OSError:
        os._exit(126)
    try:
        os.setsid()
        if order["uid"] is not None and order["gid"] is not None:
            os.setgroups([])
            os.setgid(order["gid"])
            os.setuid(order["uid"])
        os.umask(0o077)
        if order["cwd"]:
            os.chdir(order["cwd"])
        _prctl(PR_SET_PDEATHSIG, order["stop_signal"])
        if os.getppid() != guard:
            os._exit(125)
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) is not None:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(order["argv"][0], order["argv"], os.environ)  # noqa: S606  # no shell is meant
    except OSError as e:
        os.write(2, f"could not start {order['argv'][0]}: {e.strerror}\n".encode())
    finally:
        os._exit(127)


def _say(line: str) -> None:
    """To the parent, which may be gone."""
    with suppress(OSError):
        os.write(1, f"{line}\n".encode())


def _signal(pid: int, number: int, *, group: bool = False) -> None:
    with suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(pid, number)


def _own_children() -> list[int]:
    """Pids whose parent this process is; empty where there is no /proc."""
    me, found = os.getpid(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The command in parentheses may hold spaces and parentheses of its own; the parent is two fields after it.
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == me:
                found.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


class Guard:
    """One child from fork to the last of its descendants."""

    def __init__(self, order: Order):
        self.order = order
        self.parent = os.getppid()
        self.child = 0
        self.exit_code: int | None = None
        self.kill_at: float | None = None

    def run(self) -> int:
        wake, wake_write = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        guard = os.getpid()
        before_exec, held_until_exec = os.pipe()
        # Blocked over the fork: a stop that comes before the exec waits, and then meets the default action.
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        self.child = os.fork()
        if self.child == 0:
            _become(self.order, guard)
        # Only the pipe decides: a Ctrl-C or a TERM to the whole group must not break the parent's order of stopping.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.close(held_until_exec)
        os.read(before_exec, 1)  # ends with the exec: from then on the child leads a group that can be signalled
        _say(f"pid {self.child}")
        self._watch(wake)
        self._end_strays()
        _say(f"exit {self.exit_code}")
        return self.exit_code or 0

    def _watch(self, wake: int) -> None:
        """Until the child is gone; from the pipe's end on, it is being stopped."""
        pipe: list[int] = [0]
        while self.exit_code is None:
            readable, _, _ = select.select([wake, *pipe], [], [], self._patience())
            if wake in readable:
                os.read(wake, 1024)
            self._reap()
            # The parent's death shows by getppid as well: a fork of the parent may hold the pipe open.
            if pipe and ((0 in readable and not os.read(0, 1024)) or os.getppid() != self.parent):
                pipe.clear()
                self.kill_at = time.monotonic() + self.order["grace_seconds"]
                if self.exit_code is None:
                    _signal(self.child, self.order["stop_signal"])
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                _signal(self.child, signal.SIGKILL, group=True)

    def _patience(self) -> float:
        return 1.0 if self.kill_at is None else min(1.0, max(0.02, self.kill_at - time.monotonic()))

    def _reap(self) -> bool:
        """Collects whatever ended. False when no child is left at all."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.child:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self.exit_code = code if code >= 0 else 128 - code
        except ChildProcessError:
            return False
        return True

    def _end_strays(self) -> None:
        """Ends what the child left behind: TERM at once, KILL after a short grace (at once if that was used up)."""
        now = time.monotonic()
        kill_at = now + STRAYS_GRACE_SECONDS if self.kill_at is None else min(self.kill_at, now + STRAYS_GRACE_SECONDS)
        told: set[int] = set()
        while self._reap():
            late = time.monotonic() >= kill_at
            for pid in _own_children():
                if late or pid not in told:
                    told.add(pid)
                    _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
            if late and not _own_children():
                return
            time.sleep(0.01)


def main() -> int:
    order: Order = json.loads(sys.argv[1])
    if order["lock_fd"] is not None:
        # Held open, not handed on: the state folder stays locked until the last guard has ended its child.
        os.set_inheritable(order["lock_fd"], False)
    return Guard(order).run()


if __name__ == "__main__":
    sys.exit(main())
