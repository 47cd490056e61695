"""Columns from a text file: as people save them, beside a corpus or alone, and every mistake in one line."""

import json

import numpy as np
import pytest
from made_patients import made_row, made_store
from refusals import refused

from tario_jax.cli.main import main
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients.atlas import agreement
from tario_jax.evaluate.patients.frame import outcome_shares
from tario_jax.evaluate.patients.tables import columns_of, read_table, usual_columns

GENES, PATIENTS = 12, 60


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for at in range(PATIENTS):
        expression = 6 + rng.normal(0, 0.5, GENES) + 2 * (at % 2) * (np.arange(GENES) < 4)
        rows.append(made_row(f"P{at:02d}", expression, cohort=("LUAD", "OV")[at % 4 // 2], log_expression=expression,
                             texture=rng.normal(0, 1, 30)[: len(made_row("", [0.0]).texture_F)]))  # fmt: skip
    return made_store(tmp_path_factory.mktemp("tabled") / "x.embeddings", tuple(f"GENE{k}" for k in range(GENES)), rows)


def write(path, text: str | bytes):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("content", [
    "patient\tEGFR\tnote\nP1\tmutated\ta, b\nP2\tNA\t\n",
    "patient,EGFR,note\r\nP1,mutated,\"a, b\"\r\n\r\nP2,Unknown,none\r\n",
    "\ufeff\"patient\";\"EGFR\";\"note\"\nP1;mutated;a, b\nP2; ;NaN\n",
])  # fmt: skip
def test_a_file_is_read_as_people_save_it(tmp_path, content):
    table = read_table(write(tmp_path / "x.csv", content))
    found = columns_of([table], ("EGFR", "note"), ("P2", "P1", "P3"))
    assert found["EGFR"].tolist() == ["", "mutated", ""] and found["note"].tolist() == ["", "a, b", ""]


@pytest.mark.parametrize(("content", "words"), [
    ("patient,EGFR\nP1,a\nP2,b\nP1,a\n", ("line 4", "'P1'", "line 2")),
    ("name,EGFR\nP1,a\n", ("line 1", "name,EGFR", "'patient' first")),
    ("patient\nP1\n", ("line 1", "expected 'patient' first, then others")),
    ("patient,EGFR\nP1,a\nP2,\xe9\n".encode("latin-1"), ("line 3", "UTF-8")),
    ("patient,EGFR,EGFR\nP1,a,b\n", ("'EGFR' stands twice",)),
    ("patient,EGFR,\nP1,a,b\n", ("has no name",)),
    ("patient,EGFR\nP1\n", ("line 2", "1 columns; expected 2")),
    ("patient,EGFR\n,a\n", ("line 2", "no patient")),
    ("patient,EGFR\nP1,\"a\n", ("line 2", "no row of a table")),
    ("patient,EGFR\n", ("no row but its header",)),
    ("", ("line 1",)),
])  # fmt: skip
def test_a_mistake_names_the_file_and_the_line(tmp_path, content, words):
    refused(lambda: read_table(write(tmp_path / "clinical.csv", content)), "clinical.csv", *words)


def test_what_two_tables_say_of_a_patient_has_to_agree(tmp_path, store):
    rows = ({"patient": "P00", "site": "a", "EGFR": None}, {"patient": "P01", "site": "b", "EGFR": "true"})
    corpus = Corpus(store.folder, store.panel, "real", "", rows, ())
    table = read_table(write(tmp_path / "x.tsv", "patient\tEGFR\tsite\nP00\ttrue\tunknown\nP01\ttrue\tb\n"))
    found = columns_of([corpus, table], ("EGFR", "site"), ("P00", "P01"))  # what one does not know the other tells
    assert found["EGFR"].tolist() == ["true", "true"] and found["site"].tolist() == ["a", "b"]
    other = read_table(write(tmp_path / "y.tsv", "patient\tsite\nP00\ta\nP01\tc\n"))
    refused(lambda: columns_of([corpus, other], ("site",), ("P00",)), "y.tsv, line 3", "'P01' has site 'c'", "'b'")


def test_unknown_is_one_rule():
    words = np.array(["NA", "n/a", "Unknown", "none", " ", "nan", "yes", "no", "yes", "no"])
    (no, yes) = outcome_shares(words.tolist(), words.tolist())
    assert (no["value"], yes["value"], yes["of"], yes["cohort"]) == ("no", "yes", 4, 4)
    assert agreement(np.array([0, 1, 2, 3, 4, 5, 0, 1, 0, 1]), words) == 1.0
    cohort = np.array(["LUAD", "NA"])
    assert columns_of([], ("cohort",), ("A", "B"), cohort_P=cohort)["cohort"].tolist() == ["LUAD", ""]
    assert usual_columns([], cohort) == ("cohort",) and usual_columns([], cohort[1:]) == ()


def test_a_table_alone_is_enough_for_every_command(store, tmp_path, capsys):
    """Patients of no corpus: their columns are those of the file, their cohort that of their rows."""
    lines = ["patient,TP53,grade", "Q1,mutated,1"]
    lines += [f"P{at:02d},{('wild', 'mutated')[at % 2] if at < 50 else 'NA'},{at % 3}" for at in range(56)]
    table = write(tmp_path / "clinical.csv", "\n".join(lines) + "\n")
    assert main(["probe", str(store.folder), f"--table={table}", "--columns=TP53", "--confounders=", "--folds=3",
                 "--repeats=1", "--shuffles=0", "--bootstraps=20",
                 f"--json={tmp_path / 'probe.json'}"]) == 0  # fmt: skip
    assert f"{table}: 1 of its 57 patients are not in {store.folder}" in capsys.readouterr().out
    told = json.loads((tmp_path / "probe.json").read_text())
    assert (told["patients"], told["corpus"], told["table"]) == (56, None, str(table))
    (one,) = told["outcomes"]
    assert one["patients"] == 50 and one["left_out"] == {"": 6} and one["auroc"]["vectors"]["value"] > 0.9
    assert list(told["confounders"]) == ["cohort"]
    assert main(["neighbours", str(store.folder), "--patient=P01", f"--table={table}", "--columns=grade",
                 "--differ=TP53", f"--json={tmp_path / 'near.json'}"]) == 0  # fmt: skip
    told = json.loads((tmp_path / "near.json").read_text())
    assert told["differ"]["value"] == "wild"
    assert [one["value"] for one in told["outcomes"]["TP53"]] == ["mutated", "wild"]
    assert main(["atlas", str(store.folder), f"--table={table}", f"--out={tmp_path / 'atlas'}"]) == 0
    told = json.loads((tmp_path / "atlas/atlas.json").read_text())
    assert list(told["agreement"]) == ["cohort", "TP53", "grade"] and told["agreement"]["TP53"] == pytest.approx(1.0)


def test_a_table_beside_a_corpus(store, tmp_path, monkeypatch, capsys):
    rows = tuple({"patient": f"P{at:02d}", "cohort": "LUAD", "site": "ab"[at // 2 % 2]} for at in range(40))
    monkeypatch.setattr(Corpus, "open", lambda place: Corpus(store.folder, store.panel, "real", "", rows, ()))
    table = write(tmp_path / "x.tsv", "patient\tEGFR\n" + "".join(f"P{at:02d}\t{at % 2}\n" for at in range(60)))
    start = ["probe", str(store.folder), "--folds=3", "--repeats=1", "--shuffles=0", "--bootstraps=20"]
    assert main([*start, "--corpus=x", f"--table={table}", "--columns=EGFR", f"--json={tmp_path / 'x.json'}"]) == 0
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["patients"] == 40 and told["confounders"] == ["cohort", "site"]  # those of the corpus
    capsys.readouterr()
    strange = write(tmp_path / "z.tsv", "patient\tEGFR\nQ1\t0\nQ2\t1\n")
    for words, answer in ((["--columns=EGFR"], "--corpus or --table"),
                          (["--columns=EGFR", f"--table={table}", "--reachable"], "give --corpus"),
                          (["--columns=EGFR", f"--table={strange}"], "none of its 2 patients"),
                          (["--columns=EGFR", "--table=/none.csv"], "cannot be read")):  # fmt: skip
        assert main([*start, *words]) == 2
        told = capsys.readouterr().err
        assert answer in told and told.count("\n") == 1, told


def test_an_atlas_without_a_table_shows_cohorts(store, tmp_path):
    assert main(["atlas", str(store.folder), f"--out={tmp_path / 'atlas'}"]) == 0
    told = json.loads((tmp_path / "atlas/atlas.json").read_text())
    assert list(told["agreement"]) == ["cohort"]
    lines = [line.split("\t") for line in (tmp_path / "atlas/patients.tsv").read_text().splitlines()]
    assert {line[lines[0].index("cohort")] for line in lines[1:]} == {"LUAD", "OV"}
