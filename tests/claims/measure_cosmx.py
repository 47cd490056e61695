"""Transcripts by gene in a corpus of CosMx Lung12 against a plain group-by of the vendor's file."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd

from tario_jax.corpus.read import Corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    file = pd.read_csv(Path(os.environ["TARIO_REAL_DATA"]) / "cosmx_lung12" / "Lung12_tx_file.csv")
    genes = file[~file["target"].str.match(r"^(?:NegPrb|SystemControl)\d+$")]
    plain = genes.groupby("target").size()
    corpus = Corpus.open(options.corpus)
    counted = sum(np.bincount(section.all_detections().gene_D, minlength=len(corpus.panel))
                  for section in corpus.sections)  # fmt: skip
    ours = pd.Series(counted, corpus.panel.symbols)
    difference = int(ours.sub(plain, fill_value=0).abs().sum())
    result = {"difference": difference, "transcripts": int(plain.sum()), "genes": len(plain)}
    print(result)
    options.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
