"""How fast a large compressed corpus is read, in how much memory, and how soon a bomb is refused.

    python -m experiments.bench_texts --out=runs/texts --gigabytes=1

Writes JSON lines of this Python's standard library, compressed by zstandard, until their text has the size that was
asked for, and reads them as a run would; then writes a file of 10 MB that expands to 10 GB. Both are deleted again.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import zstandard

from fftlm_jax.data import load_corpus
from fftlm_jax.data.corpus import standard_library
from fftlm_jax.data.unpacked import TextOptions
from fftlm_jax.runtime.errors import DataError
from fftlm_jax.runtime.process import CommandParser, path_option, run_command

_BOMB, _RATIO = 10 << 20, 1000
_WRITE = "import sys; from experiments.bench_texts import write_lines; write_lines(sys.argv[1], int(sys.argv[2]))"


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = CommandParser("python -m experiments.bench_texts", __doc__)
    parser.add_argument("--out", required=True, type=path_option, help="folder for both files and what is unpacked")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of text")
    args = parser.parse_args(arguments)
    return run_command(lambda: _measure(args.out, round(args.gigabytes * 1e9)))


def _measure(out: Path, size: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    packed, bomb = out / "lines.jsonl.zst", out / "bomb.zst"
    subprocess.run([sys.executable, "-c", _WRITE, str(packed), str(size)], check=True)  # Its memory is not ours.
    before = _peak()
    for what in ("unpacked and read", "found again and read"):
        start = time.perf_counter()
        corpus = load_corpus("files", str(packed), 0.1, window=1024, options=TextOptions(cache=str(out / "cache")))
        seconds = time.perf_counter() - start
        print(
            f"{what}: {size / 1e6:,.0f} MB of text out of {packed.stat().st_size / 1e6:,.0f} MB in {seconds:.1f} s, "
            f"{size / 1e6 / seconds:.0f} MB/s; peak memory {_peak() / 1e6:,.0f} MB ({before / 1e6:,.0f} MB before)"
        )
    print(corpus.description)
    _write_bomb(bomb)
    start = time.perf_counter()
    try:
        load_corpus("files", str(bomb), 0.1, window=1024, options=TextOptions(cache=str(out / "cache")))
    except DataError as error:
        print(f"a bomb of {bomb.stat().st_size / 1e6:.0f} MB: refused in {time.perf_counter() - start:.2f} s: {error}")
    for file in (packed, bomb, *(out / "cache").rglob("*")):
        if file.is_file():
            file.unlink()


def write_lines(file: str, size: int) -> None:
    """JSON lines of source files, over and over, until their text has `size` bytes."""
    texts = [path.read_text(errors="replace") for _, path in standard_library()]
    written = number = 0
    with zstandard.open(file, "wt", encoding="utf-8") as handle:
        while written < size:
            text = f"# {number}\n{texts[number % len(texts)]}"
            handle.write(json.dumps({"text": text, "number": number}) + "\n")
            written += len(text.encode(errors="surrogatepass"))
            number += 1


def _write_bomb(file: Path) -> None:
    """Zeros among which some noise stands, so that they expand about a thousand times."""
    noise = zstandard.ZstdCompressor().compress(bytes(range(256)) * 40)
    zeros = zstandard.ZstdCompressor().compress(bytes(_RATIO * 1024 * 16))
    with open(file, "wb") as handle:
        while handle.tell() < _BOMB:
            handle.write(zeros + noise)


def _peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
