"""Xenium's gene_panel.json: what the assay could have seen, whether or not it did."""

import json
from pathlib import Path

from tario_jax.config import InputError


def read_gene_panel(path: Path) -> tuple[dict[str, str], int]:
    """(Ensembl id of each gene by symbol, '' where it is not given; number of targets, controls among them).

    Raises `InputError` where the file is not what the vendor writes or a symbol stands for two genes.
    """
    ensembl: dict[str, str] = {}
    try:
        targets = [target["type"] for target in json.loads(path.read_text())["payload"]["targets"]]
        genes = [target["data"] for target in targets if target["descriptor"] == "gene"]
        named = [(gene["name"], gene.get("id") or "") for gene in genes]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError(f"{path}: no payload.targets with type.descriptor and type.data.name; expected the vendor's "
                         "file unchanged, or none") from None  # fmt: skip
    for symbol, identifier in named:
        if not isinstance(symbol, str) or not isinstance(identifier, str) or not symbol.strip():
            raise InputError(f"{path}: a gene is named {symbol!r} and has the id {identifier!r}; expected a symbol")
        before = ensembl.setdefault(symbol, identifier)
        if before != identifier:
            raise InputError(f"{path}: gene {symbol!r} is {before} and {identifier}; expected one id a symbol, since "
                             "the transcripts bear the symbol only; rename one of them")  # fmt: skip
    if not ensembl:
        raise InputError(f"{path}: {len(targets)} targets, no gene among them; expected the vendor's file unchanged")
    return ensembl, len(targets)
