"""A whole study: its values, page, figures and table, and the command."""

import json
import math
import re

import pytest
from made_sweep import made_config, made_table, write_run, write_study

from tario_jax.cli import main as cli
from tario_jax.evaluate.scaling.figures import draw_gains
from tario_jax.evaluate.scaling.page import render, study_table
from tario_jax.evaluate.scaling.words import count_text, size_text

NO_FIGURES = dict.fromkeys(("sweeps", "joint", "grids", "comparisons"), ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "sweep")


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("out")
    command = ["scaling", str(folder), f"--out={place}", "--top-genes=20", "--samples=50", f"--json={place / 'o.json'}"]
    assert cli.main(command) == 0
    return place


def values(out) -> dict:
    return json.loads((out / "scaling.json").read_text())


def test_an_interval_that_ends_at_its_mean_is_drawn(out, tmp_path):
    """Of two held-out patients an end may be the mean itself, and lie past it by rounding."""
    comparison = values(out)["comparisons"][0]
    for decile in comparison["forms"]["counts"]["by_decile"]:
        decile["low"] = math.nextafter(decile["mean"], math.inf)
    draw_gains(tmp_path / "gains.png", comparison)
    assert (tmp_path / "gains.png").stat().st_size > 10_000


def test_a_split_by_section_is_said_on_the_page_and_in_the_table(out):
    told = values(out)
    assert told["split_by"] == "patient" and "Split by section" not in render(told, NO_FIGURES, "x")
    by_section = told | {"split_by": "section"}
    for text in (render(by_section, NO_FIGURES, "x"), study_table(by_section)):
        assert "Split by section: a patient may be on both sides of the split" in text


def test_every_axis_of_a_study_is_found(out):
    found = {sweep["name"]: len(sweep["points"]) for sweep in values(out)["sweeps"]}
    assert found == {
        "patients at equal steps": 5, "patients at equal epochs": 5, "compute along patients at equal epochs": 5,
        "parameters, data.window_um 144": 4, "compute along parameters, data.window_um 144": 4,
        "parameters, data.window_um 288": 3, "compute along parameters, data.window_um 288": 3,
        "context at equal tissue seen, parameters 5,995": 2, "context at equal tissue seen, parameters 15,147": 2,
        "context at equal tissue seen, parameters 45,739": 2, "resolution": 3,
    }  # fmt: skip
    assert not values(out)["apart"] and not values(out)["left_out"]


def test_laws_say_what_they_are_fitted_to_and_what_became_of_them(out):
    by_name = {sweep["name"]: sweep for sweep in values(out)["sweeps"]}
    for sweep in by_name.values():
        for name, law in sweep["laws"].items():
            assert law["of"] == {"nats": "nats", "gene_nats": "gene_nats", "r/counts/top": "noise ceiling − r"}.get(
                name, "1 − r"
            )
            assert (law["law"] is None) == (law["verdict"] == "not fitted") == (len(sweep["points"]) < 4)
            assert bool(law["why"]) == (law["verdict"] != "accepted") == (law["intervals"] is None)
            if law["law"] is not None:
                point, fitted = sweep["points"][0], law["law"]
                loss = fitted["floor"] + fitted["scales"][0] * point["size"] ** -fitted["exponents"][0]
                values_of_law = loss if law["top"] is None else law["top"] - loss
                assert values_of_law == pytest.approx(point["values"][name][0], abs=0.02)
                assert (law["top"] == 1.0) == (law["of"] == "1 − r")
                assert len(law["residuals"]) == 2 * len(sweep["points"]) and law["held_back"][0]["runs"] == 2
    verdicts = [law["verdict"] for law in by_name["patients at equal epochs"]["laws"].values()]
    assert "accepted" in verdicts
    exponent = by_name["patients at equal epochs"]["laws"]["nats"]["law"]["exponents"][0]
    assert exponent == pytest.approx(0.35, abs=0.1)
    (joint,) = values(out)["joint"]
    assert joint["laws"]["nats"]["law"]["exponents"] == pytest.approx([0.3, 0.35], abs=0.1)


def test_grid_and_comparisons_are_there(out):
    found = values(out)
    (grid,) = found["grids"]
    assert len(grid["sizes"]) == 3 and grid["contexts_um"] == [144.0, 288.0]
    assert grid["quantities"]["nats"]["interaction"] < -3 * grid["quantities"]["nats"]["seed_sd"]
    names = [one["name"] for one in found["comparisons"]]
    assert "patients at equal steps" in names and not any(name.startswith("compute along") for name in names)
    for comparison in found["comparisons"]:
        assert {"counts", "composition", "residual"} == set(comparison["forms"])


def test_the_page_is_one_file_that_needs_no_network(out):
    page = (out / "scaling.html").read_text()
    figures = len(list((out / "figures").glob("*.png")))
    assert page.count("data:image/png;base64,") == page.count("<img") == figures >= 15
    assert not re.search(r"(src|href)=\"?https?:", page)
    assert "Virtual tissue" in page and "seed sd of" in page and "accepted:" in page
    assert json.loads((out / "o.json").read_text()) == values(out)


def test_the_table_holds_what_the_page_does(folder, tmp_path, capsys):
    places = [str(path) for path in sorted(folder.iterdir()) if "_w32_um144_s" in path.name]
    names = "p93_w32_um144_s0", "p1488_w32_um144_s0"
    command = ["scaling", *places, f"--out={tmp_path}", "--samples=20", "--between", *names]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "patients at equal steps\n" in told and "law: held-out loss" in told
    assert "p93_w32_um144_s0, p93_w32_um144_s1 → p1488_w32_um144_s0, p1488_w32_um144_s1" in told
    assert "two seeds of one configuration:" in told and f"report: {tmp_path.resolve()}/scaling.html" in told
    assert values(tmp_path)["comparisons"][0]["name"] == "asked for"


def test_two_seeds_of_one_configuration_are_compared_alone(folder, tmp_path):
    names = [str(folder / f"p93_w32_um144_s{seed}") for seed in (0, 1)]
    assert cli.main(["scaling", *names, f"--out={tmp_path}", "--samples=20", "--between", *names]) == 0
    (comparison,) = values(tmp_path)["comparisons"]
    assert (len(comparison["before"]["runs"]), len(comparison["after"]["runs"])) == (1, 1)
    assert "cannot be judged" in (tmp_path / "scaling.html").read_text()


def test_mistakes_are_answered_in_a_line(folder, tmp_path, capsys):
    def answer(*words: str) -> str:
        assert cli.main(["scaling", *words, f"--out={tmp_path}/o"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("tario: ")
        return error

    assert "no such workdir" in answer(str(tmp_path / "none"))
    assert "fewer than two runs" in answer(str(folder / "p93_w32_um144_s0"))
    assert "--between: nobody" in answer(str(folder), "--between", "p93_w32_um144_s0", "nobody")
    assert not (tmp_path / "o").exists()


def test_what_stands_apart_or_is_left_out_is_told_on_the_page(tmp_path, capsys):
    write_run(tmp_path / "s/a", made_config(width=16), made_table())
    write_run(tmp_path / "s/b", made_config(width=32, rate=1e-3), made_table(noise_seed=1))
    write_run(tmp_path / "s/<c>", made_config(width=64), None)
    assert cli.main(["scaling", str(tmp_path / "s"), f"--out={tmp_path}/o"]) == 0
    told, page = capsys.readouterr().out, (tmp_path / "o/scaling.html").read_text()
    assert (
        "! b is on no axis with another run: from a, the nearest, it differs in" in told
        and "optim.learning_rate 0.001 and 0.002" in told
    )
    assert "! left out: <c>: not evaluated" in told
    assert "<li>&lt;c&gt;: not evaluated" in page and "b is on no axis" in page


def test_sizes_are_written_as_people_read_them():
    assert [count_text(n) for n in (93, 2545, 16785, 999_905, 1.2e6, 4e9)] == [
        "93", "2,545", "16.8k", "1M", "1.2M", "4B"]  # fmt: skip
    assert size_text("resolution", 1000 / 18) == "18 µm bins"
    assert size_text("context at equal tissue seen", 288.0) == "288 µm"
    assert size_text("compute along parameters", 3.4e15) == "3.4e15"
