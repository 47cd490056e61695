"""What one pass over a slide's rows gathers by field of view. Its size grows with fields and targets, not with rows."""

import dataclasses
import functools

import numpy as np

# of every row: local x, y and global x, y in px, and what a field's position explains of them
LOCAL, GLOBAL, X_START, UP_START, DOWN_START = slice(0, 2), slice(2, 4), 4, 5, 6
_LEAST_FIELDS = 4
_LEAST_EXPECTED = 20.0  # detections of a gene in a field, below which its absence says nothing
_LOST = 0.1  # of what is expected
_MANY = 0.05  # of a field's genes
_GENES_AT_ONCE = 1024


@dataclasses.dataclass
class _Field:
    rows: int
    total_7: np.ndarray
    low_7: np.ndarray
    high_7: np.ndarray
    by_target: np.ndarray  # int64, as long as there are targets so far
    cells: np.ndarray  # distinct cell ids, rising


class FovSurvey:
    """Rows by field: extremes and sums of their places, targets and cells. F fields, in the order of their numbers."""

    def __init__(self):
        self._fields: dict[int, _Field] = {}

    def add(
        self, fov_N: np.ndarray, local_px_Nx2: np.ndarray, global_px_Nx2: np.ndarray, target_N: np.ndarray,
        cell_id_N: np.ndarray | None,
    ) -> None:  # fmt: skip
        """Adds rows that have a field and finite places; target −1 is none, a cell id of 0 or less is no cell."""
        if not len(fov_N):
            return
        (x_N, y_N), (across_N, up_N) = local_px_Nx2.T, global_px_Nx2.T
        values_Nx7 = np.stack([x_N, y_N, across_N, up_N, across_N - x_N, up_N - y_N, up_N + y_N], 1)
        order = np.argsort(fov_N, kind="stable")
        fovs, starts = np.unique(fov_N[order], return_index=True)
        for fov, rows in zip(fovs.tolist(), np.split(order, starts[1:]), strict=True):
            values_Rx7 = values_Nx7[rows]
            by_target = np.bincount(target_N[rows][target_N[rows] >= 0])
            cells = np.zeros(0, np.int64)
            if cell_id_N is not None:
                cells = np.unique(cell_id_N[rows])
            field = _Field(len(rows), values_Rx7.sum(0), values_Rx7.min(0), values_Rx7.max(0), by_target,
                           cells[cells > 0])  # fmt: skip
            before = self._fields.get(fov)
            self._fields[fov] = field if before is None else _merged(before, field)

    def __len__(self) -> int:
        return len(self._fields)

    @property
    def fovs(self) -> np.ndarray:
        return np.array(sorted(self._fields), np.int64)

    @property
    def rows(self) -> int:
        return sum(field.rows for field in self._fields.values())

    def _stacked(self, name: str) -> np.ndarray:
        return np.array([getattr(self._fields[fov], name) for fov in self.fovs.tolist()])

    @functools.cached_property
    def low_Fx7(self) -> np.ndarray:
        return self._stacked("low_7")

    @functools.cached_property
    def high_Fx7(self) -> np.ndarray:
        return self._stacked("high_7")

    @functools.cached_property
    def mean_Fx7(self) -> np.ndarray:
        return self._stacked("total_7") / self._stacked("rows")[:, None]

    def miss_px(self, column: int) -> float:
        """How far a row's value departs from its field's mean at most."""
        mean_F = self.mean_Fx7[:, column]
        return float(max((self.high_Fx7[:, column] - mean_F).max(), (mean_F - self.low_Fx7[:, column]).max()))

    @functools.cached_property
    def cell_keys(self) -> np.ndarray:
        """Field and id of every cell of the slide in one number, rising."""
        keys = [cell_key(np.int64(fov), self._fields[fov].cells) for fov in self.fovs.tolist()]
        return np.concatenate(keys or [np.zeros(0, np.int64)])

    def by_target(self, targets: int) -> np.ndarray:
        """Rows by field and target, int64 [F, targets]."""
        held = (self._fields[fov].by_target for fov in self.fovs.tolist())
        return np.array([np.pad(one, (0, targets - len(one))) for one in held]).reshape(len(self), targets)


def cell_key(fov: np.ndarray | np.int64, cell_id: np.ndarray) -> np.ndarray:
    """A cell's id is unique only inside its field."""
    return np.asarray(fov, np.int64) << 32 | cell_id


def _merged(one: _Field, other: _Field) -> _Field:
    targets = max(len(one.by_target), len(other.by_target))
    one_T, other_T = (np.pad(field.by_target, (0, targets - len(field.by_target))) for field in (one, other))
    return _Field(
        one.rows + other.rows, one.total_7 + other.total_7, np.minimum(one.low_7, other.low_7),
        np.maximum(one.high_7, other.high_7), one_T + other_T, np.union1d(one.cells, other.cells),
    )  # fmt: skip


def lost_genes(counts_FxG: np.ndarray) -> np.ndarray:
    """Share of each field's genes that it lost: fewer than a tenth of what was to be expected; float64 [F].

    Expected is the field's total times the gene's share in the median field, so a gene of few fields is never missed.
    Genes with at least 20 expected detections are looked at. NaN where a field has none, or the slide too few fields.
    """
    total_Fx1 = counts_FxG.sum(1, keepdims=True)
    if len(counts_FxG) < _LEAST_FIELDS:
        return np.full(len(counts_FxG), np.nan)
    genes = range(0, counts_FxG.shape[1], _GENES_AT_ONCE)
    usual_G = np.concatenate([
        np.median(counts_FxG[:, gene : gene + _GENES_AT_ONCE] / np.maximum(total_Fx1, 1), axis=0) for gene in genes
    ])  # fmt: skip
    lost_F, looked_at_F = np.zeros(len(counts_FxG)), np.zeros(len(counts_FxG))
    for field, (counts_G, total) in enumerate(zip(counts_FxG, total_Fx1[:, 0], strict=True)):
        expected_G = total * usual_G
        looked_at_F[field] = (expected_G >= _LEAST_EXPECTED).sum()
        lost_F[field] = ((expected_G >= _LEAST_EXPECTED) & (counts_G < _LOST * expected_G)).sum()
    return np.where(looked_at_F > 0, lost_F / np.maximum(looked_at_F, 1), np.nan)


def lost_many(share_F: np.ndarray) -> np.ndarray:
    """bool [F]: fields whose share of lost genes is no accident."""
    return np.nan_to_num(share_F) > _MANY
