"""Virtual cohorts through the command line: in parts, with their limits, and what is refused."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from conftest import CLI_SIMULATE

from tario_jax.corpus.one_writer import one_writer
from tario_jax.corpus.place import Place

SMALL = CLI_SIMULATE[:-1]


def seal(root):
    return json.loads((root / "corpus.json").read_text())["seal"]


def test_parts_of_a_cohort_make_the_same_corpus(cli_corpus, cli_tario, tmp_path):
    root = tmp_path / "parts"
    for part in (2, 3):
        done = cli_tario(*SMALL, "--workers=1", f"--out={root}", f"--part={part}/3")
        assert done.returncode == 0 and f"part {part}/3 is done; " in done.stdout, done.stderr
        assert not (root / "corpus.json").exists()
    done = cli_tario(*SMALL, "--workers=1", f"--out={root}", "--part=1/3")
    assert done.returncode == 0 and "seal" in done.stdout
    assert seal(root) == seal(cli_corpus)


def test_a_smaller_cohort_does_not_orphan_the_patients_of_a_larger_one(cli_corpus, cli_tario, tmp_path):
    root = shutil.copytree(cli_corpus, tmp_path / "c")
    before = (root / "corpus.json").read_text(), (root / "split.tsv").read_text()
    done = cli_tario(*SMALL, f"--out={root}", "--patients=2")
    assert done.returncode == 2 and "holds 2 sections that this cohort has not" in done.stderr
    assert ((root / "corpus.json").read_text(), (root / "split.tsv").read_text()) == before


def test_a_cohort_that_was_stopped_is_not_sealed_as_a_smaller_one(cli_corpus, cli_tario, tmp_path):
    root = shutil.copytree(cli_corpus, tmp_path / "c")
    (root / "corpus.json").unlink()
    done = cli_tario(*SMALL, f"--out={root}", "--patients=2")
    assert done.returncode == 2 and "holds 2 sections that this cohort has not" in done.stderr
    assert not (root / "corpus.json").exists()


def test_a_corpus_has_one_writer(cli_corpus, cli_tario):
    with one_writer(Place(cli_corpus)):
        for more in ((), ("--part=1/2",)):
            done = cli_tario(*SMALL, f"--out={cli_corpus}", *more)
            assert done.returncode == 75 and "another process writes it now" in done.stderr
    with one_writer(Place(cli_corpus), shared=True):
        assert cli_tario(*SMALL, f"--out={cli_corpus}", "--part=1/2").returncode == 0


def test_limits_are_printed_by_gene_class(cli_corpus, cli_tario, tmp_path):
    done = cli_tario("check", cli_corpus, "--limits=1", f"--json={tmp_path / 'limits.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "limits.json").read_text())
    assert found["sections"] == ["vh00000_core"] and set(found["limits"]) == {"36", "18", "9"}
    markers = found["limits"]["36"]["counts"]["type_marker"]
    assert 0 < markers["reachable"] <= markers["true"] + 0.05 and "type_marker" in done.stdout


def test_patients_bring_what_a_clinic_would_know(cli_corpus):
    rows = pq.read_table(cli_corpus / "patients.parquet").to_pylist()
    assert {row["patient"] for row in rows} >= {"vt00000", "vh00001"}
    for row in rows:
        assert row["diagnosis"] and row["sex"] in ("female", "male") and row["site"].startswith("site_")
        assert (row["EGFR"] in ("true", "false")) == (row["cohort"] in ("LUAD", "LUSC"))
        assert (row["response"] in ("true", "false")) == (row["treated"] == "true")


@pytest.mark.parametrize(("words", "answer"), [
    (("--part=0/3",), "expected K/N with K from 1 to N"),
    (("--part=4/3",), "expected K/N with K from 1 to N"),
    (("--cohorts=LAUD",), "cancer type 'LAUD'; expected some of LUAD"),
    (("--regions=large",), "expected core, border, or both"),
    (("--panel=small",), "invalid choice: 'small'"),
    (("--limits=0",), "expected a whole number of at least 1"),
    (("--seed=99999999999999999999999", "--patients=1"), "expected 0 to 2^63 - 1"),
    (("--section-um=inf", "--patients=1"), "section_um is inf"),
])  # fmt: skip
def test_a_cohort_that_cannot_be_is_refused(cli_tario, tmp_path, words, answer):
    done = cli_tario("simulate", f"--out={tmp_path / 'c'}", *words)
    assert done.returncode == 2 and answer in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_real_tissue_has_no_limits(real_data, cli_tario, tmp_path):
    out = tmp_path / "xenium"
    cli_tario("ingest", "--source=xenium", f"--path={real_data / 'xenium_excerpt'}", "--patient=P1", "--cohort=BRCA",
              f"--out={out}")  # fmt: skip
    (out / "split.tsv").write_text("patient\tsplit\nP1\theld_out\n")
    done = cli_tario("check", out, "--limits=1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
