"""The runner of the claims, on claims made up for it, and the project's own pages against docs/claims.json."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import claim_format
import claim_pages
import claim_runs
import pytest
from run import main

MEASURE = """
import json, pathlib, sys
with open("runs.txt", "a") as file:
    file.write("run\\n")
print("measuring")
pathlib.Path(sys.argv[1]).write_text(json.dumps({"headline": {"ours": 0.75, "theirs": 0.5}, "exact": True,
                                             "table": "ours theirs"}))
"""
SHARED = 'command = "{python} measure.py {json}"\nminutes = 0.1\n'


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """A repository with one commit and no claims yet."""
    monkeypatch.delenv("TARIO_REAL_DATA", raising=False)
    monkeypatch.setattr(claim_runs.tempfile, "tempdir", str(tmp_path))  # a failed run's folder is kept
    root = tmp_path / "house"
    (root / "docs").mkdir(parents=True)
    (root / "measure.py").write_text(MEASURE)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "measure.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], cwd=root, check=True, capture_output=True)
    return root


def put(root: Path, key: str, text: str) -> None:
    path = root / "tests" / "claims" / f"{key}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("claim") else f'claim = "{key} holds"\n{text}')


def stored(root: Path) -> dict:
    return json.loads((root / "docs" / "claims.json").read_text())["claims"]


def test_met_and_missed_share_one_run(house, capsys):
    put(house, "model/ahead", SHARED + 'figure = "headline.ours - headline.theirs"\nbar = ">= 0.2"\nshow = "{:.2f}"')
    put(house, "model/far_ahead", SHARED + 'figure = "headline.ours / headline.theirs"\nbar = "> 1.6"\nunit = "times"')
    assert main([], house) == 1
    assert (house / "runs.txt").read_text() == "run\n"
    ahead, far_ahead = stored(house)["model/ahead"], stored(house)["model/far_ahead"]
    assert (ahead["status"], ahead["figure"], ahead["shown"], ahead["bar"]) == ("met", 0.25, "0.25", ">= 0.2")
    assert (far_ahead["status"], far_ahead["figure"]) == ("missed", 1.5)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=house, capture_output=True, text=True).stdout
    assert head.startswith(ahead["commit"].rstrip("+")) and ahead["commit"].endswith("+")  # the claim files are new
    assert ahead["machine"] and ahead["date"] and ahead["seconds"] > 0 and "{python}" in ahead["command"]
    table = capsys.readouterr().out
    assert "model/far_ahead holds | 1.5 times | > 1.6" in table and "| missed" in table and "| met" in table
    page = (house / "docs" / "claims.md").read_text()
    assert "| model/ahead holds | 0.25 | >= 0.2 | met |" in page and "measure.py {json}" in page
    assert claim_pages.stale_pages(house, claim_format.load_claims(house / "tests" / "claims")) == []


def test_a_table_is_kept_with_its_origin_and_an_absent_one_is_missed(house, capsys):
    put(house, "model/told", SHARED + 'table = "both"\nfigure = "headline.ours"\nbar = "> 0"')
    put(
        house,
        "model/silent",
        'command = "echo {} > {json}"\nminutes = 0.1\ntable = "none"\nfigure = "1"\nbar = "> 0"',
    )
    assert main([], house) == 1
    kept = (house / "docs" / "tables" / "both.txt").read_text()
    assert kept.startswith("ours theirs\n") and stored(house)["model/told"]["commit"] in kept and "measure.py" in kept
    assert 'holds no text "table"' in stored(house)["model/silent"]["reason"]
    assert not (house / "docs" / "tables" / "none.txt").exists()
    put(house, "model/out", SHARED + 'table = "../x"\nfigure = "1"\nbar = "> 0"')
    assert main([], house) == 2 and "expected a bare name" in capsys.readouterr().err


def test_only_takes_several_groups_and_patterns(house, capsys):
    for key in ("model/a", "model/b", "slides/c"):
        put(house, key, SHARED + 'figure = "headline.ours"\nbar = "> 0"')
    assert main(["--only=slides,model/a", "--list"], house) == 0
    listed = capsys.readouterr().out
    assert "slides/c" in listed and "model/a" in listed and "model/b" not in listed
    assert main(["--only=slides,modle/*"], house) == 2
    assert "--only=modle/*" in capsys.readouterr().err


def test_what_is_not_run_is_open_with_its_last_figure(house, capsys):
    put(house, "model/slow", SHARED + 'figure = "headline.ours"\nbar = "> 0"\nlong = true')
    assert main(["--long"], house) == 0
    first = stored(house)["model/slow"]
    assert first["status"] == "met"
    capsys.readouterr()
    assert main([], house) == 0
    assert (house / "runs.txt").read_text() == "run\n"
    again = stored(house)["model/slow"]
    assert again["status"] == "open" and "LONG=1" in again["reason"]
    assert {name: again[name] for name in ("figure", "commit", "machine", "date")} == {
        name: first[name] for name in ("figure", "commit", "machine", "date")
    }
    table = capsys.readouterr().out
    assert "0.75" in table and "open (long" in table and first["commit"] in table and first["machine"] in table


def test_needs_leave_a_claim_open(house, monkeypatch, capsys):
    put(house, "slides/page", SHARED + 'figure = "headline.ours"\nbar = "> 0"\nneeds = ["real-data", "chromium"]')
    monkeypatch.setattr(claim_runs.shutil, "which", lambda name: None)
    assert main([], house) == 0
    assert stored(house)["slides/page"]["reason"] == "needs real-data, chromium"
    assert not (house / "runs.txt").exists()
    monkeypatch.setenv("TARIO_REAL_DATA", str(house))
    monkeypatch.setattr(claim_runs.shutil, "which", lambda name: "/bin/" + name if name == "chromium" else None)
    assert main([], house) == 0
    assert stored(house)["slides/page"]["status"] == "met"


def test_a_package_that_is_needed_is_looked_for(house, monkeypatch):
    for need in ("torch", "libtpu"):
        monkeypatch.setattr(claim_runs.importlib.util, "find_spec", lambda name, need=need: None if name == need else 1)
        assert [claim_runs.absent(one, house) for one in ("torch", "libtpu")] == [need == "torch", need == "libtpu"]


@pytest.mark.parametrize(
    ("command", "figure", "reason"),
    [
        ("echo working; echo {workdir}/corpus: no seal >&2; exit 3", "a", "{workdir}/corpus: no seal"),
        ("false | true", "a", "exit status 1"),
        ("true", "a", "left no {json}"),
        ("echo nonsense > {json}", "a", "not JSON"),
        ("echo '{\"b\": 1}' > {json}", "a", "no a; expected one of: b"),
        ("echo '{\"a\": NaN}' > {json}", "a", "the figure is nan"),
        ("echo '{\"a\": 0}' > {json}", "1 / a", "cannot be computed"),
        ('echo \'{"a": "x"}\' > {json}', "a", "expected a number"),
    ],
)
def test_a_command_without_its_figure_is_missed(house, tmp_path, command, figure, reason):
    put(house, "corpus/broken", f"command = '''{command}'''\nfigure = \"{figure}\"\nbar = \">= 0\"\nminutes = 0.1\n")
    assert main([], house) == 1
    record = stored(house)["corpus/broken"]
    assert record["status"] == "missed" and record["figure"] is None and reason in record["reason"]
    assert str(tmp_path) not in (house / "docs" / "claims.json").read_text()
    assert (next(tmp_path.glob("claim-corpus-broken-*")) / "claim.log").exists()


def test_a_list_needs_no_shell_and_a_result_may_lie_anywhere(house):
    words = '["{python}", "measure.py", "{workdir}/re port.json"]'
    put(house, "model/list", f'command = {words}\nresult = "{{workdir}}/re port.json"\nfigure = "exact"\nbar = "== 1"\n'
        "minutes = 0.1\n")  # fmt: skip
    put(house, "model/time", 'command = "sleep 0.3"\nresult = ""\nfigure = "wall_seconds"\nbar = ">= 0.3"\nminutes = 1')
    assert main([], house) == 0


def test_a_command_is_not_steered_by_the_make_around_it(house, monkeypatch):
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "warm")
    (house / "Makefile").write_text("result.json:\n\t@echo '{\"a\": 1}' > $(TO)\n")
    command = """test -z "${JAX_COMPILATION_CACHE_DIR:-}" && make TO={json}"""
    put(house, "launch/make", f"command = '''{command}'''\nfigure = 'a'\nbar = '== 1'\nminutes = 0.1\n")
    assert main([], house) == 0


def test_a_command_that_does_not_end_is_ended(house, monkeypatch):
    monkeypatch.setattr(claim_runs, "SPARE", -59.9)  # of five minutes, this leaves 0.6 s
    put(house, "launch/hangs", 'command = "sleep 5 & sleep 5"\nfigure = "a"\nbar = "> 0"\nminutes = 0.0833\n')
    assert main([], house) == 1
    assert "ended after" in stored(house)["launch/hangs"]["reason"]
    assert stored(house)["launch/hangs"]["seconds"] < 4


def test_whoever_ends_the_runner_ends_the_command(house):
    put(house, "model/slow", 'command = "echo $$ > pid; sleep 60"\nresult = ""\nfigure = "wall_seconds"\nbar = "> 0"\n'
        "minutes = 5")  # fmt: skip
    program = f"import sys, pathlib, run; sys.exit(run.main([], pathlib.Path({str(house)!r})))"
    environment = os.environ | {"PYTHONPATH": str(Path(claim_runs.__file__).parent), "TMPDIR": str(house.parent)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL) as runner:
        _wait_until(lambda: (house / "pid").exists() and (house / "pid").read_text().strip())
        child = int((house / "pid").read_text())
        os.kill(child, 0)
        runner.terminate()
    assert runner.returncode == 143
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_runs_at_once_keep_each_others_figures(house):
    """The slow one begins first, and ends last: what the other measured meanwhile stays."""
    put(house, "model/slow", 'command = "touch begun; while [ ! -e end ]; do sleep 0.02; done"\nresult = ""\n'
        'figure = "wall_seconds"\nbar = "> 0"\nminutes = 1')  # fmt: skip
    put(house, "virtual/quick", SHARED + 'figure = "exact"\nbar = "== 1"')
    (house / "README.md").write_text("<!--claim:virtual/quick--><!--/claim--> <!--claim:model/slow--><!--/claim-->")
    program = f"import sys, pathlib, run; sys.exit(run.main(['--only=model'], pathlib.Path({str(house)!r})))"
    environment = os.environ | {"PYTHONPATH": str(Path(claim_runs.__file__).parent), "TMPDIR": str(house.parent)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL) as slow:
        _wait_until(lambda: (house / "begun").exists())
        assert main(["--only=virtual"], house) == 0
        (house / "end").touch()
    assert slow.returncode == 0
    assert {key: record["status"] for key, record in stored(house).items()} == {
        "model/slow": "met", "virtual/quick": "met"}  # fmt: skip
    assert claim_pages.stale_pages(house, claim_format.load_claims(house / "tests" / "claims")) == []
    assert not list((house / "docs").glob("*.tmp"))


def test_pages_that_hold_figures_are_no_change_of_the_code(house):
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    pages = ("README.md", "launch/README.md", "docs/page.md")
    for page in pages:
        (house / page).parent.mkdir(exist_ok=True)
        (house / page).write_text("one")
    for words in (["add", "-A"], ["commit", "-q", "-m", "second"]):
        subprocess.run([*git, *words], cwd=house, check=True, capture_output=True)
    for page in pages:
        (house / page).write_text("two")
    assert not claim_runs.commit(house).endswith("+")
    (house / "launch/new.py").write_text("")
    assert claim_runs.commit(house).endswith("+")


def test_only_leaves_other_groups_as_they_were(house):
    put(house, "model/one", SHARED + 'figure = "exact"\nbar = "== 1"')
    put(house, "virtual/two", SHARED + 'figure = "headline.ours"\nbar = "== 0.75"')
    assert main(["--only=model"], house) == 0
    assert stored(house)["virtual/two"]["status"] == "open"
    before = stored(house)["model/one"]
    assert main(["--only=virtual/two"], house) == 0
    assert stored(house)["virtual/two"]["status"] == "met"
    assert stored(house)["model/one"] == before
    assert main(["--only=modle"], house) == 2


def test_a_changed_claim_does_not_keep_what_was_measured(house):
    text = SHARED + 'figure = "headline.ours"\nbar = "> 0.7"'
    put(house, "model/one", text)
    assert main([], house) == 0
    put(house, "model/one", text.replace("0.7", "0.8"))
    assert main(["--pages"], house) == 0
    record = stored(house)["model/one"]
    assert record["status"] == "open" and record["figure"] == 0.75 and "missed the bar" in record["reason"]
    put(house, "model/one", text.replace("ours", "theirs"))
    assert main(["--pages"], house) == 0
    assert stored(house)["model/one"]["figure"] is None
    assert (house / "runs.txt").read_text() == "run\n"


def test_figures_in_pages_are_rewritten(house):
    put(house, "model/one", SHARED + 'figure = "headline.ours"\nbar = "> 0"\nshow = "{:.0%}"')
    put(house, "model/slow", SHARED + 'figure = "exact"\nbar = "> 0"\nlong = true')
    readme, deep = house / "README.md", house / "docs" / "how" / "page.md"
    deep.parent.mkdir()
    readme.write_text("reaches <!--claim:model/one-->90%<!--/claim--> and <!--claim:model/slow-->1<!--/claim-->.\n")
    deep.write_text("<!--claim:model/one--><!--/claim-->")
    claims = claim_format.load_claims(house / "tests" / "claims")
    assert len(claim_pages.stale_pages(house, claims)) >= 2
    assert main([], house) == 0
    assert readme.read_text() == (
        "reaches <!--claim:model/one-->75%<!--/claim--> and <!--claim:model/slow-->not measured<!--/claim-->.\n"
    )
    assert deep.read_text() == "<!--claim:model/one-->75%<!--/claim-->"
    assert claim_pages.stale_pages(house, claims) == []
    readme.write_text(readme.read_text().replace("75%", "76%"))
    (house / "docs" / "claims.md").write_text("all met")
    assert len(claim_pages.stale_pages(house, claims)) == 2


@pytest.mark.parametrize(
    "text",
    ["<!--claim:model/none-->1<!--/claim-->", "<!--claim:model/one-->1", "1<!--/claim-->",
     "<!--claim:model/one-->1 <!--claim:model/one-->2<!--/claim-->"],
)  # fmt: skip
def test_a_marker_without_claim_or_end_is_refused(house, text, capsys):
    put(house, "model/one", SHARED + 'figure = "exact"\nbar = "== 1"')
    assert main([], house) == 0
    (house / "README.md").write_text(text)
    assert len(claim_pages.stale_pages(house, claim_format.load_claims(house / "tests" / "claims"))) == 1
    assert main(["--pages"], house) == 2
    assert (house / "README.md").read_text() == text
    assert "README.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('bar = "about 3"', "an order and a number"),
        ('bar = "> 1.2.3"', "an order and a number"),
        ("figure = \"__import__('os')\"", "arithmetic over fields"),
        ('figure = "[a for a in b]"', "arithmetic over fields"),
        ('figure = "a ** 9"', "arithmetic over fields"),
        ('figure = "a -"', "expected arithmetic"),
        ('needs = ["luck"]', "one of gpu, libtpu, torch, real-data, chromium, slurm, crds"),
        ('show = "no place"', "a format of one number"),
        ('command = "{pyhton} x"', "placeholder {pyhton}"),
        ('minutes = "3"', "int or float"),
        ("tolerance = 1", "field 'tolerance'"),
    ],
)
def test_a_file_that_is_no_claim_gets_one_line(house, capsys, line, message):
    lines = {"command": 'command = "true"', "figure": 'figure = "a"', "bar": 'bar = "> 0"', "minutes": "minutes = 1"}
    lines[line.split(" ")[0]] = line
    put(house, "model/odd", "\n".join(lines.values()))
    assert main([], house) == 2
    said = capsys.readouterr().err
    assert message in said and "model/odd" in said and said.count("\n") == 1


def test_missing_field_and_unknown_group_are_refused(house, capsys):
    put(house, "model/odd", 'command = "true"\nfigure = "a"\nminutes = 1')
    assert main([], house) == 2
    assert "no bar" in capsys.readouterr().err
    (house / "tests" / "claims" / "model" / "odd.toml").unlink()
    put(house, "models/odd", SHARED)
    assert main([], house) == 2
    assert "group 'models'" in capsys.readouterr().err


def test_figure_arithmetic():
    result = {"a": {"b-c": [1.5, -2], "d": 4}, "yes": True}
    figure = 'max(abs(a["b-c"][-1]), 1) * (a.d - a["b-c"][0]) / -(2 + 3) + yes'
    assert claim_format.figure_of(figure, result) == pytest.approx(2 * 2.5 / -5 + 1)


def test_the_projects_own_claims_and_pages_agree(repository):
    claims = claim_format.load_claims(repository / "tests" / "claims")
    assert claims
    stale = claim_pages.stale_pages(repository, claims)
    assert not stale, "\n".join([*stale, "mend with: python tests/claims/run.py --pages"])
