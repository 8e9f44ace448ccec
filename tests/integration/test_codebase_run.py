"""A repository from its files to a student that was graded by its tests: what is shown, and what stands where."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.checkers import check
from pipeline.cli import app
from pipeline.display import Display
from pipeline.recipe_file import load_recipe
from pipeline.run import run
from teachers.causal_lm import load_tokenizer
from tests.repositories import everything
from tests.runs import Settings, changed, environment, write_recipe
from tests.workshop import make_workshop, workshop_files, workshop_settings

pytestmark = [
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's"),
]

COUNTED = Path(__file__).parents[1] / "plugins" / "counted.py"
RESTLESS = Path(__file__).parents[1] / "plugins" / "restless.py"
MARKER = "quodlibetarian"  # in every function's body, and nowhere else in this project
SECONDS = 600.0

# Made of pieces, so that no scanner takes this file for a leak.
SECRETS = {
    "aws": "AKIA" + "Z7QXK3N5RT2VB6WM",
    "github": "ghp_" + "a8Kd03nVqPz5RtY7uWx1CbMf9LsJ2hGe4TiO",
    "slack": "xoxb-" + "204938475610-584736251094-" + "qWnB7vTzKx3RmLpYs8DcHf2G",
    "password": "tr0ub4dor&3-" + "Vq9zXw2LmK",
    "certificate": "MIIEowIBAAKCAQEA" + "x9Wq3ZtYv0LrN7kPb2McD5fGhJ8sKaQe1RuTyI4oUiXzVbNm",
}


def with_secrets() -> dict[str, str]:
    block = f"-----BEGIN RSA PRIVATE KEY-----\n{SECRETS['certificate']}\n-----END RSA PRIVATE KEY-----"
    files = {
        "workshop/access.py": f'''
AWS_KEY = "{SECRETS["aws"]}"
password = "{SECRETS["password"]}"
CERTIFICATE = """{block}
"""


def signed(text):
    """The text with what proves it."""
    return f"{{text}}:{{AWS_KEY[:4]}}:{{len(CERTIFICATE)}}"
''',
        "workshop/mirror.py": '''
def mirrored(text):
    """Each word the other way round."""
    parts = text.split("-")
    return "-".join(part[::-1] for part in parts)
''',
        "tests/test_mirror.py": f'''
import pytest
from workshop import mirror

TOKEN = "{SECRETS["github"]}"


def test_mirrored():
    assert mirror.mirrored(TOKEN) == TOKEN[::-1]


@pytest.mark.parametrize("text", ["{SECRETS["slack"]}", "ab-cd"])
def test_mirrored_twice(text):
    assert mirror.mirrored(mirror.mirrored(text)) == text


def test_that_fails():
    assert mirror.mirrored(TOKEN) == "nothing"
''',
        "deploy.toml": f'slack_token = "{SECRETS["slack"]}"\n',
    }
    marked = re.compile(r'^( +"""\w.*"""\n)(?= +\w)', re.MULTILINE)
    return {
        name: marked.sub(rf"\1    {MARKER} = None\n", text).lstrip("\n") if name.startswith("workshop/") else text
        for name, text in workshop_files(files).items()
    }


# ---- a run, with all its prompts and rollouts kept ----


@dataclass(frozen=True)
class Done:
    folder: Path
    root: Path
    said: str
    cache: Path
    before: Mapping[str, tuple[bytes, int]]

    @property
    def run(self) -> Path:
        return self.folder / "run"


def run_aloud(path: Path, *overrides: str) -> str:
    """Runs a recipe in this process; what it printed."""
    heard = io.StringIO()
    with Display(Console(file=heard, width=200)) as display:
        run(load_recipe(path, overrides), resume=False, extend=False, display=display)
    return heard.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder = tmp_path_factory.mktemp("code")
    root = make_workshop(folder / "workshop", with_secrets())
    before = everything(root)
    settings = workshop_settings(folder, root)
    lines = {"kind": "codebase", "task": "line", "count": 30}
    path = write_recipe(folder / "recipe.yaml", changed(settings, {"data.sources.lines": lines}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("pipeline.manifest.prune", lambda folder, step: None)  # rollouts stay, to be looked through
        said = run_aloud(path)
        yield Done(folder, root, said, folder / "cache" / "tutelage", before)


def test_it_is_graded_by_the_repository_s_own_tests(done: Done) -> None:
    assert re.search(r"code, held out: tests tell for 2 of \d places", done.said)
    assert re.search(r"code, to train on: tests tell for 4 of \d places", done.said)
    assert "one of k answers passes" in done.said
    evaluation = json.loads((done.run / "evaluation.json").read_text())
    assert evaluation["domains"]["code"].keys() == {"base", "student"}
    assert evaluation["pass_at_k"]["code"]["student"].keys() == {"pass@1", "pass@2"}
    assert evaluation["measures"]["loss"]["code"].keys() == {"base", "student"}
    samples = [
        sample
        for line in (done.run / "provenance.jsonl").read_text().splitlines()
        for sample in json.loads(line)["samples"]
    ]
    code = [sample["teachers"] for sample in samples if sample["teachers"]["tests"].get("gave")]
    assert code
    assert all("score" in given["tests"]["gave"] for given in code)
    metrics = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert all(line["failures"].get("tests", {}).keys() <= {"no_grading"} for line in metrics)  # of lines: no tests


def test_the_checkout_is_not_written_to(done: Done) -> None:
    assert everything(done.root) == done.before


def test_every_prompt_tells_right_from_wrong(done: Done) -> None:
    """By the checker that an evaluation uses."""
    from pipeline.job import Job, _code_reader
    from pipeline.prompts import load_prompts
    from pipeline.ranks import world_of
    from pipeline.sharding import make_accelerator

    loaded = load_recipe(done.folder / "recipe.yaml")
    accelerator = make_accelerator(loaded.recipe)
    job = Job(loaded, done.run, {}, accelerator, world_of(accelerator), Display(Console(quiet=True)))
    prompts = load_prompts(
        loaded.recipe.data, folder=done.folder, seed=0, code=_code_reader(job, str(done.run / "initial"))
    )
    found = [*prompts.held_out["code"], *prompts.train["code"][:]]
    assert len(found) == 6
    for prompt in found:
        assert prompt.checker == "repository_tests"
        assert prompt.reference is not None
        assert check(prompt.checker, prompt.reference, prompt.reference, prompt) == 1.0
        nothing = "    return None\n"
        assert check(prompt.checker, nothing, prompt.reference, prompt) == 0.0
    assert {prompt.grading for prompt in prompts.held_out["lines"]} == {None}


def test_a_second_run_runs_no_test_again(done: Done) -> None:
    def rows() -> list[Any]:
        with sqlite3.connect(done.cache / "tests.sqlite") as base:
            return base.execute("SELECT rowid, key FROM results").fetchall()

    before = rows()
    assert before
    again = run_aloud(done.folder / "recipe.yaml", f"output={done.folder / 'again'}", "training.steps=1")
    assert re.search(r"code, to train on: tests tell for 4 of \d places", again)
    assert rows() == before


# ---- secrets, and source text ----


def forms(secret: str) -> list[bytes]:
    """As it is, and as programs write things."""
    plain = secret.encode()
    shifted = [base64.b64encode(b"x" * shift + plain)[4:-4] for shift in range(3)]
    return [plain, plain[::-1], plain.hex().encode(), secret.encode("utf-16-le"), *shifted]


def contents(path: Path, decode: Any) -> Iterator[bytes]:
    """A file's bytes; what a database's cells hold, unpacked; token ids as the text that they stand for."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".sqlite":
        with sqlite3.connect(path) as base:
            tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for cell in (cell for table in tables for row in base.execute(f"SELECT * FROM {table}") for cell in row):
                raw = cell if isinstance(cell, bytes) else str(cell).encode()
                yield raw
                try:
                    yield zlib.decompress(raw)
                except zlib.error:
                    continue
    if path.suffix in (".json", ".jsonl"):
        for ids in re.findall(rb"\[\d+(?:,\s*\d+)*\]", data):
            yield decode(json.loads(ids)).encode()


def holding(done: Done, wanted: list[bytes], *places: Path) -> set[str]:
    """The files below `places` that hold one of these."""
    tokenizer = load_tokenizer(str(done.run / "initial"), name="student")

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode([number for number in ids if number < len(tokenizer)]))

    return {
        re.sub(r"\d{6}", "N", path.relative_to(done.folder).as_posix())
        for place in places
        for path in sorted(place.rglob("*"))
        if path.is_file()
        for text in contents(path, decode)
        if any(form in text for form in wanted)
    }


def test_no_secret_is_anywhere(done: Done) -> None:
    wanted = [form for secret in SECRETS.values() for form in forms(secret)]
    assert holding(done, wanted, done.root) >= {"workshop/workshop/access.py", "workshop/tests/test_mirror.py"}
    assert holding(done, wanted, done.run, done.cache) == set()
    assert not any(secret in done.said for secret in SECRETS.values())


# Where a private run's prompts, answers and references stand; its directory is closed to others. All else is clean.
HOLD_SOURCE = {
    "run/samples.jsonl",  # one rollout of each step, for a person to read
    "run/evaluations/base.samples.jsonl",  # every answer of an evaluation, beside its reference
    "run/evaluations/student-N.samples.jsonl",
    "run/journal/step-N.jsonl",  # rollouts, as token ids, until a checkpoint holds their update
    "run/initial/tokenizer.json",  # words of the code, where the student's tokenizer was learned from it
    "run/model/tokenizer.json",
}


def test_source_text_stands_where_it_is_said_to_and_nowhere_else(done: Done) -> None:
    assert holding(done, [MARKER.encode()], done.run) == HOLD_SOURCE
    assert MARKER not in done.said
    clean = {"evaluation.json", "metrics.jsonl", "timings.jsonl", "provenance.jsonl", "ledger.json", "recipe.yaml"}
    assert clean <= {path.name for path in done.run.iterdir()}
    assert stat.S_IMODE(done.run.stat().st_mode) == 0o700
    for name in ("code.sqlite", "tests.sqlite"):
        assert stat.S_IMODE((done.cache / name).stat().st_mode) == 0o600


def test_a_public_run_is_left_open(done: Done, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "r.yaml", changed(public(tmp_path, done.root), {"training.steps": 1}))
    run_aloud(path)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) & 0o055 == 0o055


def public(folder: Path, root: Path) -> Settings:
    """One step on lines, nothing run, nothing private."""
    settings = workshop_settings(folder, root)
    lines = {"kind": "codebase", "task": "line", "count": 30, "private": False}
    return changed(
        settings,
        {
            "source.tests": None,
            "teachers": {"original": settings["teachers"]["original"]},
            "data.sources": {"lines": lines},
            "rollout.samples_per_prompt": 1,
            "evaluation": {"prompts_per_domain": 2},
        },
    )


# ---- nothing leaves ----


@pytest.mark.parametrize("where", ["https://teacher.example/v1", "http://192.0.2.7:8000/v1"])
def test_a_teacher_elsewhere_is_refused_before_anything_is_read(where: str, done: Done, tmp_path: Path) -> None:
    far = {"kind": "chat", "url": where, "model": "grader"}
    settings = changed(workshop_settings(tmp_path, done.root), {"teachers.far": far})
    path = write_recipe(tmp_path / "r.yaml", settings)
    for command in (["check", str(path)], ["run", str(path)]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1
        assert "teachers.far: data.sources.code is private and" in result.stderr
        assert "is not this machine" in result.stderr
    assert not (tmp_path / "run").exists()


def counted(folder: Path, settings: Settings, *before: str) -> tuple[dict[str, Any], str]:
    """What the kernel counted of a run by the real command, and what that printed. before: what starts it."""
    path = write_recipe(folder / "recipe.yaml", settings)
    # What else might call home is told that it may, and finds keys to do it with.
    loose = environment() | {"WANDB_API_KEY": "0" * 40, "HF_TOKEN": "hf_none", "XDG_CACHE_HOME": str(folder / "cache")}
    del loose["HF_HUB_OFFLINE"]
    words = [*before, sys.executable, str(COUNTED), str(folder / "counted.json"), "run", str(path)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, env=loose, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((folder / "counted.json").read_text()), result.stdout


ALONE = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
alone = pytest.mark.skipif(
    shutil.which("ip") is None or subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0,
    reason="no network namespace can be made",
)
NOTHING = {"no route": 0, "no route, version 6": 0, "loopback": 0, "devices": ["lo"], "routes": []}


@alone
def test_no_connection_is_even_tried(tmp_path: Path) -> None:
    """In a namespace without a route the kernel counts whoever looks for one: the run, its programs, its libraries."""
    root = make_workshop(tmp_path / "workshop")
    found, said = counted(tmp_path, workshop_settings(tmp_path, root), *ALONE)
    assert "one of k answers passes" in said
    del found["namespace"]
    assert found == NOTHING


@alone
def test_whoever_tries_one_is_counted(tmp_path: Path) -> None:
    root = make_workshop(tmp_path / "workshop")
    settings = changed(public(tmp_path, root), {"training.steps": 1, "data.sources.lines.checker": f"{RESTLESS}:judge"})
    found, _ = counted(tmp_path, settings, *ALONE)
    judged = found["no route, version 6"]
    assert judged > 0
    assert found["no route"] == 2 * judged  # one by the process itself, one by a program that it starts


def test_sealed_it_runs_all_the_same(tmp_path: Path) -> None:
    root = make_workshop(tmp_path / "workshop")
    settings = changed(workshop_settings(tmp_path, root), {"privacy": {"mode": "sealed"}})
    found, said = counted(tmp_path, settings)
    assert "one of k answers passes" in said
    assert re.search(r"code, to train on: tests tell for 4 of \d places", said)
    assert found.pop("namespace") != str(Path("/proc/self/ns/net").readlink())
    assert found == NOTHING
