"""Facts about the supervisor, with small real processes."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from orchestrator.embedded import ChildSpec, ChildState, EmbeddedFailed, StateFolderBusy, Supervisor
from tests.embedded.processes import is_alive
from tests.parts import eventually

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('{mark}', 'w'); " + SLEEP


def script(name: str, code: str, **options: object) -> ChildSpec:
    return ChildSpec(name=name, argv=[sys.executable, "-I", "-S", "-c", code], **options)  # type: ignore[arg-type]


def with_offspring(marks: Path, *, then: str = SLEEP) -> str:
    """A process with a child in its group and one in a session of its own; both write their pids and ignore TERM."""
    kid = f"import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
    return (
        f"import subprocess, sys, time\n"
        f"for name, own in (('group', False), ('session', True)):\n"
        f"    p = subprocess.Popen([sys.executable, '-I', '-S', '-c', {kid!r}], start_new_session=own)\n"
        f"    open({str(marks)!r} + '/' + name, 'w').write(str(p.pid) + '.')\n"
        f"{then}"
    )


async def offspring(marks: Path) -> list[int]:
    def written() -> list[int]:
        texts = [(marks / name).read_text() if (marks / name).exists() else "" for name in ("group", "session")]
        return [int(text[:-1]) for text in texts if text.endswith(".")]

    return await eventually(lambda: pids if len(pids := written()) == 2 else [], message="both offspring run")


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    async with Supervisor(tmp_path / "state") as found:
        yield found


def told(supervisor: Supervisor, what: str) -> list[str]:
    return [event.name for event in supervisor.events if event.what == what]


async def test_start_returns_once_the_child_says_that_it_is_ready(supervisor: Supervisor, tmp_path: Path) -> None:
    mark = tmp_path / "ready"

    async def ready() -> bool:
        return mark.exists()

    starting = asyncio.create_task(supervisor.start(script("a", SLEEP, ready=ready)))
    await eventually(lambda: told(supervisor, "started") == ["a"])
    assert not starting.done()
    mark.touch()
    child = await starting
    assert child.state is ChildState.READY
    assert child.pid is not None
    assert is_alive(child.pid)


async def test_children_stop_in_reverse_order(supervisor: Supervisor) -> None:
    for name in ("first", "second", "third"):
        await supervisor.start(script(name, SLEEP))
    pids = [child.pid or 0 for child in supervisor.children.values()]
    await supervisor.stop()
    assert told(supervisor, "stopped") == ["third", "second", "first"]
    assert not any(is_alive(pid) for pid in pids)


async def test_children_of_one_group_stop_side_by_side(supervisor: Supervisor, tmp_path: Path) -> None:
    """Each needs its whole grace: three in a row would need three times as long."""
    for name in ("one", "two", "three"):
        mark = tmp_path / name
        await supervisor.start(script(name, STUBBORN.format(mark=mark), grace_seconds=1.0, group="workers"))
        await eventually(mark.exists)
    begin = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - begin < 2.5


async def test_a_child_that_dies_is_started_again_within_five_seconds(supervisor: Supervisor) -> None:
    child = await supervisor.start(script("a", SLEEP))
    for restarts in (1, 2, 3):
        first = child.pid or 0
        os.kill(first, signal.SIGKILL)
        await eventually(lambda n=restarts: child.restarts == n and child.state is ChildState.READY, deadline=5.0)  # type: ignore[misc]
        assert child.pid not in (first, None)
        assert not is_alive(first)
    assert [e.exit_code for e in supervisor.events if e.what == "exited"] == [137] * 3


async def test_a_child_that_may_not_restart_stays_down_until_started_again(supervisor: Supervisor) -> None:
    spec = script("a", SLEEP, restart=False)
    child = await supervisor.start(spec)
    await supervisor.kill_child("a")
    await eventually(lambda: child.state is ChildState.STOPPED)
    again = await supervisor.start(spec)
    assert again.pid != child.pid
    with pytest.raises(EmbeddedFailed, match="running already"):
        await supervisor.start(spec)


async def test_a_child_that_ends_at_once_is_an_error_with_the_end_of_its_log(supervisor: Supervisor) -> None:
    with pytest.raises(EmbeddedFailed, match=r"a ended, code 3: no such setting: speed"):
        await supervisor.start(script("a", "import sys; print('no such setting: speed'); sys.exit(3)", ready=never))
    assert supervisor.children["a"].state is ChildState.STOPPED


async def never() -> bool:
    return False


async def test_a_child_that_is_never_ready_is_stopped_and_reported(supervisor: Supervisor) -> None:
    with pytest.raises(EmbeddedFailed, match=r"a was not ready within 0.2 s"):
        await supervisor.start(script("a", SLEEP, ready=never, ready_seconds=0.2))
    pid = supervisor.children["a"].pid
    assert pid
    assert not is_alive(pid)


async def test_a_program_that_does_not_exist_is_an_error(supervisor: Supervisor) -> None:
    with pytest.raises(EmbeddedFailed, match=r"code 127.*No such file"):
        await supervisor.start(ChildSpec(name="a", argv=["/no/such/program"], ready=never))


async def test_a_stubborn_child_is_killed_after_its_grace_with_all_its_descendants(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    child = await supervisor.start(script("a", with_offspring(tmp_path), grace_seconds=0.3))
    kids = await offspring(tmp_path)
    await supervisor.stop()
    assert not any(is_alive(pid) for pid in [child.pid or 0, *kids])


async def test_what_a_crashed_child_leaves_behind_ends_before_it_starts_again(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    child = await supervisor.start(script("a", with_offspring(tmp_path)))
    kids, first = await offspring(tmp_path), child.pid
    assert first
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: child.restarts == 1 and child.pid not in (None, first), deadline=5.0)
    assert not any(is_alive(pid) for pid in kids)


async def test_a_child_whose_guard_is_killed_ends_and_is_started_again(supervisor: Supervisor) -> None:
    child = await supervisor.start(script("a", SLEEP))
    first = child.pid
    assert first
    assert child.guard_pid
    os.kill(child.guard_pid, signal.SIGKILL)
    await eventually(lambda: child.restarts == 1 and child.state is ChildState.READY, deadline=5.0)
    assert not is_alive(first)


async def test_a_signal_to_the_guard_does_not_break_the_order_of_stopping(supervisor: Supervisor) -> None:
    """A TERM to every process of the service, as some service managers send it, must not take the database first."""
    child = await supervisor.start(script("a", SLEEP))
    assert child.guard_pid
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(child.guard_pid, number)
    with pytest.raises(AssertionError):
        await eventually(child.ended.is_set, deadline=0.5)


async def test_a_child_gets_its_environment_default_signals_and_a_log_that_grows(supervisor: Supervisor) -> None:
    code = (
        "import os, signal; print(sorted(set(os.environ) - {'LC_CTYPE'}), "
        "signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.getsignal(signal.SIGHUP) is signal.SIG_DFL, "
        "signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getsid(0) == os.getpid(), "
        "sorted(os.listdir('/proc/self/fd')))"
    )
    for _ in range(2):
        await supervisor.run(script("a", code, env={"ONLY": "this"}))
    path = supervisor.log_path("a")
    assert path.read_text() == "['ONLY'] True True set() True ['0', '1', '2', '3']\n" * 2  # 3 is the listing's own
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_large_log_is_set_aside_at_the_next_start(supervisor: Supervisor) -> None:
    path = supervisor.log_path("a")
    path.parent.mkdir()
    with path.open("w") as file:
        file.truncate(17 * 1024 * 1024)
    await supervisor.run(script("a", "print('new')"))
    assert path.read_text() == "new\n"
    assert path.with_name("a.log.1").exists()


async def test_the_state_folder_is_locked_until_the_end_and_the_error_names_the_holder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with Supervisor(state):
        with pytest.raises(StateFolderBusy, match=f"in use by process {os.getpid()}"):
            await Supervisor(state).__aenter__()
    async with Supervisor(state):
        pass


def test_it_works_under_uvloop(tmp_path: Path) -> None:
    async def work() -> None:
        async with Supervisor(tmp_path / "state") as supervisor:
            child = await supervisor.start(script("a", SLEEP))
            await supervisor.kill_child("a")
            await eventually(lambda: child.restarts == 1 and child.state is ChildState.READY, deadline=5.0)
        assert child.pid
        assert not is_alive(child.pid)

    uvloop.run(work())
