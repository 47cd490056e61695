"""What a server makes of what it should not be sent: `measure_bad_input.py BUNDLE OUT.json`.

* mistakes: each is answered 4xx with a reason.
* 1,000 slow connections: a third says nothing, a third sends its headers byte by byte, a third its body; meanwhile good
  requests are answered, and in the end each slow one has been told 4xx.
* schemathesis (in an environment of its own) makes requests from /openapi.json; /metrics tells how many there were, and
  how many were answered 5xx.

The server must live through all of it and still give the bundle's own rates.
"""

import io
import json
import re
import socket
import subprocess
import sys
import time
import venv
import zlib
from pathlib import Path

import httpx
import numpy as np
from measure_serving import made, memory_mib, served_bundle
from PIL import Image

from tario_jax.export.loader import Bundle

SLOW, GOOD_EVERY_S, EXAMPLES = 1000, 2.0, 400
PATIENCE_S, BODY_S = 10.0, 30.0  # of `tario serve`
PNG = {"content-type": "image/png"}


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    bundle = Bundle(folder)
    images, expected, genes = made(bundle)
    asked = {"um_per_px": bundle.signature["window"]["um_per_px"], "tissue": bundle.signature["trained_on"],
             "format": "npz", "genes": ",".join(genes)}  # fmt: skip
    good = png(images[0])

    with served_bundle(folder, out) as (url, process):

        def is_right() -> bool:
            response = httpx.post(f"{url}/v1/predict", params=asked, content=good, headers=PNG, timeout=60)
            if response.status_code != 200:
                return False
            rates = np.load(io.BytesIO(response.content))["rates"]
            return bool(np.abs(rates / expected[0] - 1).max() < 1e-4)

        right = [is_right()]
        lines, others = [], 0
        for what, (status, reason) in mistakes(url, asked, good).items():
            met = 400 <= status < 500 and bool(reason)
            others += not met
            lines.append(f"{what:<34}{status}  {reason}" + ("" if met else "   <-- expected 4xx with a reason"))
        before = memory_mib(process.pid)
        slow, during = slow_connections(url, is_right)
        told = sum(number for how, number in slow.items() if how.startswith("4"))
        lines.append(f"{SLOW} slow connections: {slow}; good requests meanwhile: {sum(during)} of {len(during)}")
        begun = counted(url)
        fuzz_status = fuzz(url, out.parent / "fuzz")
        ended = counted(url)
        tried = {status: ended[status] - begun.get(status, 0) for status in sorted(ended)}
        tried = {status: number for status, number in tried.items() if number}
        errors = sum(number for status, number in tried.items() if status >= 500)
        lines.append(f"schemathesis: {sum(tried.values())} requests, by status {tried}; exit status {fuzz_status}")
        lines.append(f"memory of the server {before:.0f} to {memory_mib(process.pid):.0f} MiB")
        right.append(is_right())
        lives = process.poll() is None and httpx.get(f"{url}/healthz").status_code == 200
    result = {"mistakes": len(lines) - 3, "others": others, "slow": SLOW - told, "during": len(during),
              "during_wrong": len(during) - sum(during), "fuzzed": sum(tried.values()), "errors": errors,
              "fuzz_status": fuzz_status,
              "dead": int(not (lives and all(right))), "table": "\n".join(lines)}  # fmt: skip
    print(result["table"])
    out.write_text(json.dumps(result))


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def mistakes(url: str, asked: dict, good: bytes) -> dict[str, tuple[int, str]]:
    """Status and reason of each."""
    blank = png(np.full((4, 4, 3), 255, np.uint8))
    # a header that tells of 100,000 x 100,000 px; its checksum is what such a header has
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + blank[24:29]
    huge = blank[:12] + header + zlib.crc32(header).to_bytes(4, "big") + blank[33:]
    raw = {"content-type": "application/octet-stream"}
    sent = {
        "a text file as PNG": (b"gene,count\nEPCAM,3\n", {}, PNG),
        "a text file as JPEG": (b"gene,count\nEPCAM,3\n", {}, {"content-type": "image/jpeg"}),
        "a text file as text": (b"gene,count\n", {}, {"content-type": "text/plain"}),
        "no content type": (good, {}, {}),
        "no body": (b"", {}, PNG),
        "100,000 x 100,000 px": (huge, {}, PNG),
        "100,000 px of raw bytes": (bytes(300_000), {"width_px": 100_000, "height_px": 1}, raw),
        "raw bytes of another size": (bytes(1000), {"width_px": 20, "height_px": 20}, raw),
        "raw bytes without a size": (bytes(1200), {}, raw),
        "a torn PNG": (good[: len(good) // 2], {}, PNG),
        "µm per px of 0": (good, {"um_per_px": 0}, PNG),
        "µm per px of 40": (good, {"um_per_px": 40}, PNG),
        "µm per px of −1": (good, {"um_per_px": -1}, PNG),
        "µm per px of nan": (good, {"um_per_px": "nan"}, PNG),
        "µm per px of a word": (good, {"um_per_px": "half"}, PNG),
        "an unknown gene": (good, {"genes": "NOSUCHGENE"}, PNG),
        "squares of 0 µm": (good, {"bin_um": 0}, PNG),
        "squares of 1e9 µm": (good, {"bin_um": 1e9}, PNG),
        "an unknown form": (good, {"format": "csv"}, PNG),
        "a huge overlap": (good, {"overlap": 0.99}, PNG),
    }
    found = {}
    for what, (body, changes, headers) in sent.items():
        response = httpx.post(f"{url}/v1/predict", params=asked | changes, content=body, headers=headers, timeout=60)
        found[what] = response.status_code, reason_of(response)
    without = {name: value for name, value in asked.items() if name != "um_per_px"}
    response = httpx.post(f"{url}/v1/predict", params=without, content=good, headers=PNG, timeout=60)
    found["µm per px not given"] = response.status_code, reason_of(response)
    response = httpx.get(f"{url}/v1/predict", params=asked)
    found["GET of /v1/predict"] = response.status_code, reason_of(response)
    response = httpx.get(f"{url}/v2/predict")
    found["an unknown path"] = response.status_code, reason_of(response)
    found["a truncated body"] = truncated(url, asked, good)
    return found


def reason_of(response: httpx.Response) -> str:
    try:
        return str(response.json()["reason"])
    except (ValueError, KeyError, TypeError):
        return ""


def truncated(url: str, asked: dict, good: bytes) -> tuple[int, str]:
    """Half of what was announced, and then nothing: what the server says when its patience ends."""
    request = httpx.Request("POST", f"{url}/v1/predict", params=asked)
    target = request.url.raw_path.decode()
    address = (request.url.host, request.url.port)
    with socket.create_connection(address) as connection:
        connection.settimeout(BODY_S + 30)
        connection.sendall(f"POST {target} HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: "
                           f"{len(good)}\r\n\r\n".encode() + good[: len(good) // 2])  # fmt: skip
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["reason"]


def slow_connections(url: str, is_right) -> tuple[dict[str, int], list[bool]]:
    """How the connections ended, and whether each good request meanwhile was answered rightly."""
    body = (b"POST /v1/predict?um_per_px=0.5&tissue=virtual HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100000\r\n\r\n")  # fmt: skip
    drips = (b"", b"GET /healthz HTTP/1.1\r\nX-Slow: ", body)
    connections = []
    for number in range(SLOW):
        connection = socket.create_connection((httpx.URL(url).host, httpx.URL(url).port))
        connection.setblocking(True)
        connection.sendall(drips[number % 3])
        connection.setblocking(False)
        connections.append((connection, number % 3))
    ended: dict[str, int] = {}
    right, end = [], time.monotonic() + BODY_S + PATIENCE_S + 20
    while connections and time.monotonic() < end:
        began = time.monotonic()
        right.append(is_right())
        left = []
        for connection, kind in connections:
            how = None
            try:
                answer = connection.recv(4096)
                how = answer.split(b"\r\n")[0].split(b" ")[1].decode() if answer else "closed"
            except BlockingIOError:
                pass
            except OSError:
                how = "closed"
            if how is None and kind:
                try:
                    connection.send(b"x")
                except OSError:
                    how = "closed"
            if how is None:
                left.append((connection, kind))
            else:
                ended[how] = ended.get(how, 0) + 1
                connection.close()
        connections = left
        time.sleep(max(0.0, GOOD_EVERY_S - (time.monotonic() - began)))
    for connection, _ in connections:
        connection.close()
    return ended, right


def counted(url: str) -> dict[int, int]:
    """Requests that the server has answered, by status."""
    found: dict[int, int] = {}
    for status, number in re.findall(
        r'tario_requests_total\{.*status="(\d+)"\} ([\d.e+]+)', httpx.get(f"{url}/metrics").text
    ):
        found[int(status)] = found.get(int(status), 0) + int(float(number))
    return found


def fuzz(url: str, folder: Path) -> int:
    """Exit status of schemathesis: 0 where it saw no answer of 5xx and no broken connection."""
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([folder / "bin/python", "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                    "schemathesis>=4"], check=True)  # fmt: skip
    done = subprocess.run([folder / "bin/python", "-I", folder / "bin/schemathesis", "run", f"{url}/openapi.json",
                           "--checks=not_a_server_error",
                           f"--max-examples={EXAMPLES}", "--seed=0", "--request-timeout=60"], text=True,
                          capture_output=True, check=False)  # fmt: skip
    print(done.stdout[-2000:], done.stderr[-1000:])
    return done.returncode


if __name__ == "__main__":
    main()
