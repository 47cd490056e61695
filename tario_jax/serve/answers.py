"""Rates as the body of a response: an Arrow stream, or npz."""

import io

import numpy as np
import pyarrow as pa

ARROW, NPZ = "application/vnd.apache.arrow.stream", "application/x-npz"
TYPES = {"arrow": ARROW, "npz": NPZ}


def encoded(kind: str, x_um_S: np.ndarray, y_um_S: np.ndarray, rates_SxG: np.ndarray, genes: list[str],
            about: dict[str, str]) -> bytes:  # fmt: skip
    """arrow: a row a square, its columns x_um, y_um and the genes, `about` in the schema's metadata; npz: arrays x_um,
    y_um, rates [S, G], genes, and what is about them, each a string."""
    if kind == "arrow":
        columns = {"x_um": x_um_S, "y_um": y_um_S} | dict(zip(genes, np.ascontiguousarray(rates_SxG.T), strict=True))
        table = pa.table(columns).replace_schema_metadata({f"tario.{name}": value for name, value in about.items()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()
    content = io.BytesIO()
    np.savez(content, x_um=x_um_S, y_um=y_um_S, rates=rates_SxG, genes=np.array(genes), **about)
    return content.getvalue()
