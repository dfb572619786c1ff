"""rebuildctl in this process, against the fake API, with an environment of its own."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.cli import context, main, watch
from tests.cli.fake_api import TOKEN, FakeApi, fake_api


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run of rebuildctl left behind."""

    code: int
    out: str
    err: str


Rebuildctl = Callable[..., Result]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeApi]:
    for name in list(os.environ):
        if name.startswith(("REBUILD_", "GITHUB_", "CI", "BUILD_TAG", "OS_")):
            monkeypatch.delenv(name)
    with fake_api() as served:
        monkeypatch.setenv("REBUILD_API_URL", served.url)
        monkeypatch.setenv("REBUILD_TOKEN", TOKEN)
        monkeypatch.setenv("REBUILD_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(watch, "AWAY_SECONDS", 0.5)
        monkeypatch.setattr(context, "PATIENCE_SECONDS", 0.3)
        yield served


@pytest.fixture
def rebuildctl(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> Rebuildctl:
    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = main.run(arguments)
        out, err = capsys.readouterr()
        return Result(code=code, out=out, err=err)

    return call


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text("name: web tier\ncloud: prod\nimage: base\ntargets: {select: {name: 'web-*'}}\n")
    return str(path)
