"""Folders of embeddings: begun and never named, another's, and with rows that are of another model or version."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_patients import ABOUT, made_row, made_store
from refusals import refused

from tario_jax.cli.main import main
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import PREDICTED
from tario_jax.panel import Panel


def test_a_first_command_that_was_killed_goes_on(tmp_path):
    folder = tmp_path / "x.embeddings"
    (folder / "parts").mkdir(parents=True)
    (folder / "panel.tsv").write_text("of another model")
    (folder / ".embeddings.json.node-7.partial").write_text("{")
    store = made_store(folder, ("GENE0", "GENE1"), [made_row("P", [1.0, 2.0])])
    assert [row.patient for row in store.rows(PREDICTED)] == ["P"] and store.panel.symbols == ("GENE0", "GENE1")


def test_what_another_wrote_is_not_touched(tmp_path):
    for name in ("notes.txt", "parts/a.parquet", ".hidden", "parts"):
        folder = tmp_path / name.replace("/", "-") / "x.embeddings"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
        refused(lambda folder=folder: EmbeddingStore.begun(folder, Panel(("GENE0",)), ABOUT), "is there already")
        assert not (folder / "panel.tsv").exists()


SYMBOLS = tuple(f"GENE{gene}" for gene in range(6))


def store_of(folder, names: str, **about) -> EmbeddingStore:
    rng = np.random.default_rng(0)
    return made_store(folder, SYMBOLS, [made_row(name, rng.normal(8, 1, 6)) for name in names], **about)


@pytest.mark.parametrize("about", [{"checkpoint": "d"}, {"bin_um": 18.0}, {"overlap": 0.0}, {"region_um": 90.0}])
def test_rows_of_another_model_that_were_laid_beside_are_refused(tmp_path, capsys, about):
    """By every command that reads them, and by the next that would add to them."""
    store, other = store_of(tmp_path / "a.embeddings", "ABCD"), store_of(tmp_path / "b.embeddings", "EFGH", **about)
    (part,) = other.parts()
    shutil.copy(other.folder / "parts" / part, store.folder / "parts")
    ((name, value),) = about.items()
    words = part, f"its rows are of {name.replace('_', ' ')} {value}", f"is of {name.replace('_', ' ')} {ABOUT[name]}"
    for read in (store.held, lambda: store.rows(PREDICTED), lambda: store.patients_of(part), store.patient_of_section):
        refused(read, *words, "take it out of the folder")
    table = tmp_path / "t.tsv"
    table.write_text("patient\tx\n" + "".join(f"{name}\tyes\n" for name in "ABCDEFGH"))
    for job in (["neighbours", "--patient=A"], ["probe", f"--table={table}", "--columns=x"],
                ["atlas", f"--out={tmp_path / 'atlas'}"]):  # fmt: skip
        assert main([job[0], str(store.folder), *job[1:]]) == 2
        error = capsys.readouterr().err
        assert words[1] in error and error.count("\n") == 1
    (store.folder / "parts" / part).unlink()
    assert [row.patient for row in store.rows(PREDICTED)] == list("ABCD")


def test_rows_of_a_version_that_did_not_say_what_they_are_of_stay_where_they_were(tmp_path):
    store = store_of(tmp_path / "a.embeddings", "AB")
    (part,) = store.parts()
    path = store.folder / "parts" / part
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    refused(lambda: EmbeddingStore(store.folder).rows(PREDICTED), part, "do not say what they are of")
    about = store.folder / "embeddings.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format_version": 4}))
    old = EmbeddingStore(store.folder)
    old.add([made_row("C", np.ones(6))])
    assert [row.patient for row in old.rows(PREDICTED)] == list("ABC")
    shutil.copy(next((store_of(tmp_path / "b.embeddings", "D", checkpoint="d").folder / "parts").iterdir()),
                path.parent)  # fmt: skip
    refused(lambda: old.rows(PREDICTED), "its rows are of checkpoint d")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format_version": 3}))
    refused(lambda: EmbeddingStore(store.folder), "version 3", "embed again")
