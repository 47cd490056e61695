"""Sections of a source in memory, as a test looks at them: sources hand over pixels and detections block by block."""

import dataclasses

from tario_jax.corpus.section import BlockImage, DetectionBlocks, SectionData
from tario_jax.sources.ingested import Ingested


def whole_sections(ingested: Ingested) -> list[SectionData]:
    """All sections of a source; each is read when its turn comes, since its files are open no longer."""
    found = []
    for section in ingested.sections:
        whole = {}
        if isinstance(section.he, BlockImage):
            whole["he"] = section.he[:, :]
        if isinstance(section.detections, DetectionBlocks):
            whole["detections"] = section.detections.gathered()
        found.append(dataclasses.replace(section, **whole))
    return found
