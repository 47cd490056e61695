"""A folder of embeddings that was begun and never named is begun again; anything else in it is another's."""

from made_patients import ABOUT, made_row, made_store
from refusals import refused

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
