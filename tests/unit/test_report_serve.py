"""The page while a run goes on: this machine only, and made again only when something changed."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.report.serve import Page, server_of
from tests.run_directories import Size, make_run, write


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """A page that says how often it was made, and that takes a second."""

    def __init__(self, clock: Clock) -> None:
        self.times, self._clock = 0, clock

    def __call__(self) -> str:
        self.times += 1
        self._clock.now += 1
        return f"page {self.times}"


def test_a_page_is_made_again_when_a_file_changed_but_not_all_the_time(tmp_path: Path) -> None:
    clock = Clock()
    made = Counted(clock)
    page = Page(tmp_path, made, clock=clock)
    first, tag = page.newest()
    assert page.newest() == (first, tag) == (b"page 1", tag)
    write(tmp_path / "run.json", {})
    assert page.newest() == (first, tag)  # it took a second: ten have to pass
    clock.now += 10
    second, other = page.newest()
    assert (second, made.times) == (b"page 2", 2)
    assert other != tag
    clock.now += 100
    assert page.newest() == (second, other)
    write(tmp_path / "evaluations" / "base.json", {})
    assert page.newest()[0] == b"page 3"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with server_of(Page(tmp_path, lambda: "the page")) as server:
        assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, method: str = "GET", path: str = "/", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_page_and_its_tag(port: int) -> None:
    status, headers, body = ask(port)
    assert (status, body) == (200, b"the page")
    assert headers["Cache-Control"] == "no-store"
    assert ask(port, If_None_Match=headers["ETag"])[::2] == (304, b"")
    assert ask(port, If_None_Match='"another"')[0] == 200
    assert ask(port, "HEAD")[::2] == (200, b"")


def test_nothing_else_is_served(port: int) -> None:
    assert ask(port, path="/recipe.yaml")[0] == 404
    assert ask(port, path="/../../etc/passwd")[0] == 404
    assert ask(port, "POST")[0] == 501


def test_a_page_under_another_name_may_not_read_it(port: int) -> None:
    """Another site can make a browser look its own name up as 127.0.0.1."""
    assert ask(port, Host=f"evil.example:{port}")[::2] == (403, b"ask for 127.0.0.1")
    assert ask(port, Host=f"localhost:{port}")[0] == 200


# ---- the commands ----


def test_the_commands_say_what_is_wrong(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", Size(steps=3, rollouts=1))

    def call(*arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
        return result.exit_code, " ".join(result.output.split())

    assert call("report", tmp_path / "none") == (
        1, f"{tmp_path}/none: there is no such directory; give a run's, such as runs/quickstart"
    )  # fmt: skip
    assert call("report", run, "--output", tmp_path)[1].endswith("a folder is there; name a file for --output")
    assert call("report", run, "--serve", "--output", "x")[1].startswith("--serve writes no file")
    assert call("compare", run)[1].startswith("compare needs two different runs")
    assert call("compare", run, run)[1].startswith("compare needs two different runs")
    status, said = call("report", run)
    assert status == 0
    assert said.startswith(f"{run}/report.html: ")
