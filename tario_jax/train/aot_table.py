"""What `tario compile` found, for people."""

from typing import Any

_GIB = 1 << 30


def mesh_words(shape: dict[str, int]) -> str:
    """The axes that split something, as in fsdp 64 × context 4."""
    return " × ".join(f"{axis} {size}" for axis, size in shape.items() if size > 1) or "one device"


def table(result: dict[str, Any]) -> str:
    """The result of a compile."""
    memory, held = result["memory_bytes"], result["chip_memory_bytes"]
    sizes, flops, line = result["parameters"], result["flops"], result["roofline"]
    slices = f" × {result['slices']} slices" if result["slices"] > 1 else ""
    lines = [
        f"{result['chips']} chips of {result['topology']}{slices}: {mesh_words(result['mesh'])}",
        f"{result['rows']} rows of {result['tokens_a_row']:,} tokens and {result['queries_a_row']:,} queries: windows "
        f"of {result['window_um']:,.0f} µm, up to {result['count_capacity']:,} counts",
        f"heads of {result['head_dim']}, remat {result['remat']}",
        f"parameters: trunk {sizes['trunk'] / 1e6:,.0f}M, gene tables {sizes['gene_tables'] / 1e6:,.0f}M",
    ]
    if result["compiled"]:
        lines += [f"memory of a chip: {memory['total'] / _GIB:.2f} of {held / _GIB:.1f} GiB: arguments "
                  f"{memory['arguments'] / _GIB:.2f}, temporaries {memory['temporaries'] / _GIB:.2f}, outputs "
                  f"{memory['outputs'] / _GIB:.2f}, program {memory['program'] / _GIB:.2f}"
                  + (f"; of its host {memory['host'] / _GIB:.2f}" if memory["host"] else "")]  # fmt: skip
        lines += [f"{'a chip receives in a step':<28}{'axes':<20}{'times':>8}{'MiB':>12}"]
        lines += [f"{one['kind']:<28}{' × '.join(one['axes']):<20}{one['count']:>8,}{one['bytes'] / 2**20:>12,.1f}"
                  for one in result["collectives"]] or ["nothing"]  # fmt: skip
    lines += [
        f"FLOPs of a step: {flops['total']:.3g} (decoder {flops['decoder'] / flops['total']:.0%}, attention "
        f"{flops['attention'] / flops['total']:.0%}, gene head {flops['gene_head'] / flops['total']:.0%}, encoders "
        f"{flops['encoders'] / flops['total']:.0%}): 6 a weight and row, attention 12 a pair, head and width",
        f"{'a chip takes at least, ms':<28}{'products':>10}{'exponentials':>14}{'memory':>10}{'in all':>10}",
    ]
    for name, part in line["parts"].items():
        products, exponentials, memory_, whole = (
            1e3 * part[kind] for kind in ("products", "exponentials", "memory", "seconds")
        )
        lines.append(f"{name:<28}{products:>10,.1f}{exponentials:>14,.1f}{memory_:>10,.1f}{whole:>10,.1f}")
    lines.append(f"{'together':<28}{'':34}{1e3 * line['computing_seconds']:>10,.1f}")
    if result["compiled"]:
        lines += [f"{f'links along {axis}':<28}{'':34}{1e3 * seconds:>10,.1f}"
                  for axis, seconds in line["links"].items() if seconds]  # fmt: skip
        lines += [
            f"bound by {line['bound_by']}: a step of {line['seconds']:.3g} s, MFU at most {line['mfu']:.0%}; "
            f"{line['mfu_without_overlap']:.0%} if nothing that is sent overlapped with what is computed",
            *(["what goes to the host and back is not counted in that"] if memory["host"] else []),
        ]
    if result["fits"]:
        lines.append("verdict: fits")
    else:
        passed = "was compiled, but " if result["compiled"] else ""
        lines.append(f"verdict: does not fit: {passed}takes {memory['total'] / _GIB:.1f} GiB, "
                     f"{(memory['total'] - held) / _GIB:.1f} too many")  # fmt: skip
    return "\n".join(lines)
