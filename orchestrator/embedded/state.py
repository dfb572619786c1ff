"""The state folder: its lock, the user that its servers run as, where they live, and what is remembered of them."""

import fcntl
import json
import os
import pwd
import secrets
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

from orchestrator.embedded.errors import EmbeddedFailed, StateFolderBusy
from orchestrator.log import get_logger

log = get_logger(__name__)

FAR_HOME = Path("/var/lib/fleet-rebuild")
"""Where root's servers live when their user can't reach the state folder (say, below a /root of mode 0700)."""

PORTS = range(20_000, 30_000)
"""Below the usual ephemeral range, so that no outgoing connection takes the port while the servers are down."""


@dataclass(frozen=True, kw_only=True)
class ServerUser:
    """Whom the servers run as. `drop` says that this process is root and gives up its rights for them."""

    uid: int
    gid: int
    name: str
    drop: bool


class StateLock:
    """An exclusive lock on the state folder. The guards hold it too, so it outlives a killed parent until its servers
    have ended: a new `up` waits for that instead of starting beside them."""

    def __init__(self, state_dir: Path):
        self.path = state_dir / "lock"
        self.fd = -1

    def acquire(self, *, wait_seconds: float = 30.0) -> Self:
        """Takes the lock, and the folder is made (0700) where it is missing. Blocks only while the holder named in it
        is dead and its servers are still being stopped.

        Raises `StateFolderBusy` within a second when the holder lives, `EmbeddedFailed` for a folder that can't be
        used.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise EmbeddedFailed(f"the state folder {self.path.parent} can't be used: {e.strerror}") from e
        begin = time.monotonic()
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                # A process that was just killed may still show for a moment.
                if time.monotonic() - begin > (0.5 if _alive(holder) else wait_seconds):
                    os.close(fd)
                    raise StateFolderBusy(
                        f"the state folder {self.path.parent} is in use by process {holder or 'unknown'}: "
                        "stop that one first, or choose another folder with --state-dir"
                    ) from None
                time.sleep(0.02)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self.fd = fd
        return self

    def release(self) -> None:
        """Gives the lock back; the file stays, since removing it would let two processes lock two files."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _alive(pid: str) -> bool:
    """Whether that process runs; one that has ended and waits to be collected (a zombie) does not."""
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return True


def server_user(state_dir: Path) -> ServerUser:
    """Whom to run the servers as: this process's user, and for root the folder's owner or `nobody` (initdb refuses
    root).

    Raises `EmbeddedFailed` for a uid without an entry in the user database, which initdb refuses as well.
    """
    uid, drop = os.geteuid(), False
    try:
        if uid == 0:
            drop = True
            uid = state_dir.stat().st_uid or pwd.getpwnam("nobody").pw_uid
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise EmbeddedFailed(
            f"PostgreSQL can't run as user id {uid or 'nobody'}: it has no entry in the user database (/etc/passwd). "
            "Add one, or set REBUILD_DATABASE_URL and REBUILD_REDIS_URL to servers of your own"
        ) from None
    return ServerUser(uid=uid, gid=entry.pw_gid if drop else os.getegid(), name=entry.pw_name, drop=drop)


def server_home(state_dir: Path, user: ServerUser) -> Path:
    """The folder that the servers' data, programs and secrets live in: `STATE/servers`.

    Root's servers run as another user, who needs a way in: a closed state folder gets mode 0710 for that
    user's group. The folders above it are never opened; where they shut that user out, `servers` is a link to a folder
    elsewhere, usually in `FAR_HOME`.
    """
    link = state_dir / "servers"
    try:
        if not user.drop:
            link.mkdir(mode=0o700, exist_ok=True)
            return link.resolve()
        if not link.exists():
            if all(_may_enter(folder, user) for folder in state_dir.resolve().parents):
                link.mkdir(mode=0o700)
            else:
                far = _far_home(state_dir)
                link.symlink_to(far)
                log.warning("state_folder_out_of_reach", user=user.name, state_dir=str(state_dir), servers=str(far))
        home = link.resolve()
        for folder in (home,) if link.is_symlink() else (state_dir, home):
            if not _may_enter(folder, user):
                os.chown(folder, -1, user.gid)
                folder.chmod((folder.stat().st_mode & 0o707) | 0o010)
    except OSError as e:
        raise EmbeddedFailed(f"{link} can't be made: {e.strerror}") from e
    return home


def _far_home(state_dir: Path) -> Path:
    """A new folder outside; for a state folder in the temporary folder there, since what lies there may be lost."""
    temporary = Path(tempfile.gettempdir()).resolve()
    base = temporary if state_dir.resolve().is_relative_to(temporary) else FAR_HOME
    base.mkdir(mode=0o711, parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"fleet-rebuild-{state_dir.name}-", dir=base))


def _may_enter(folder: Path, user: ServerUser) -> bool:
    """Whether the mode bits let that user pass; a way in by ACL alone isn't seen."""
    status = folder.stat()
    if status.st_uid == user.uid:
        return bool(status.st_mode & 0o100)
    return bool(status.st_mode & (0o010 if status.st_gid == user.gid else 0o001))


def give_folder(path: Path, user: ServerUser) -> Path:
    """A folder of mode 0700 that belongs to the servers' user.

    Raises `EmbeddedFailed` where it belongs to someone else: the data was written by another user.
    """
    if not path.exists():
        path.mkdir(mode=0o700)
        if user.drop:
            os.chown(path, user.uid, user.gid)
    if (owner := path.stat().st_uid) != user.uid:
        raise EmbeddedFailed(f"{path} belongs to user id {owner}, not to {user.name}: run as before, or choose another")
    return path


def give_file(path: Path, content: str, user: ServerUser) -> Path:
    """Writes a file of mode 0600 that only the servers' user can read."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        if user.drop:
            os.fchown(fd, user.uid, user.gid)
        file.write(content)
    return path


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server's place on 127.0.0.1 and the password made for it."""

    port: int
    password: str


def remembered(home: Path, name: str) -> Address:
    """The address of that server: the one of last time, so that URLs stay the same, with a new port only when another
    process has taken it; the password is made once, of 256 bits. Kept in `home`/`name`.json, mode 0600."""
    path = home / f"{name}.json"
    try:
        known = cast("dict[str, object]", json.loads(path.read_text()))
        port, password = int(str(known["port"])), str(known["password"])
    except FileNotFoundError:
        port, password = 0, secrets.token_hex(32)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise EmbeddedFailed(f"{path} can't be read: {e}") from e
    if not port or not port_is_free(port):
        port = free_port()
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"port": port, "password": password}, file)
        fresh.rename(path)
    return Address(port=port, password=password)


def free_port() -> int:
    """A port that nobody listens on now. Raises `EmbeddedFailed` when none of a hundred is free."""
    for _ in range(100):
        if port_is_free(port := PORTS.start + secrets.randbelow(len(PORTS))):
            return port
    raise EmbeddedFailed("no free port was found on 127.0.0.1")


def port_is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def await_orphan(pid_file: Path, program: str, *, wait_seconds: float = 30.0) -> None:
    """Blocks until a server that outlived its guard has left its folder, and clears a pid file that names another.

    The second case is a container's: after a crash the same small pids come again, and PostgreSQL would take one of
    our own processes for its predecessor. The lock on the state folder says that no supervised one runs.
    Raises `EmbeddedFailed` when it doesn't leave.
    """
    deadline = time.monotonic() + wait_seconds
    while pid_file.exists():
        pid = pid_file.read_text().partition("\n")[0].strip()
        if not _runs_in(pid, program, pid_file.parent):
            pid_file.unlink(missing_ok=True)
            return
        if time.monotonic() > deadline:
            raise EmbeddedFailed(f"process {pid} still serves {pid_file.parent}: stop it first")
        time.sleep(0.05)


def _runs_in(pid: str, program: str, folder: Path) -> bool:
    """Whether that process is such a program at work in that folder; where /proc doesn't tell, whether it lives."""
    proc = Path("/proc") / pid
    if not pid.isdigit() or not _alive(pid):
        return False
    try:
        return (proc / "comm").read_text().strip() == program and (proc / "cwd").readlink() == folder.resolve()
    except OSError:
        return _alive(pid)
