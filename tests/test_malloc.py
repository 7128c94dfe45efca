"""The malloc setting keeps freed memory, and leaves alone what the user has tuned."""

import subprocess
import sys

import pytest

from fftlm_jax.runtime import process

# Takes, fills and frees 128 MiB five times in a thread of its own, as XLA does (its arena would hold at most 64 MiB);
# prints the page faults of the last four rounds.
_ROUNDS = """
import ctypes, resource, sys, threading
from fftlm_jax.runtime.process import keep_freed_blocks
if sys.argv[1] == "kept" and not keep_freed_blocks({}):
    print("unsupported"); sys.exit()
libc, size = ctypes.CDLL(None), 128 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def rounds():
    for turn in range(5):
        if turn == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(size)
        libc.memset(block, 1, size)
        libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=rounds)
thread.start()
thread.join()
"""


def faults(mode: str) -> int:
    run = subprocess.run([sys.executable, "-c", _ROUNDS, mode], capture_output=True, text=True, check=True)
    if run.stdout.strip() == "unsupported":
        pytest.skip("this system's malloc has no such setting")
    return int(run.stdout)


def test_a_freed_block_is_used_again_without_page_faults():
    assert faults("kept") < 100 < faults("default")


@pytest.mark.parametrize("name", ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"))
def test_what_the_user_tunes_is_left_alone(name):
    assert not process.keep_freed_blocks({name: "x"})
