"""What bytes look like that should be text: other formats by their first bytes, and noise by its distribution."""

import numpy as np

_LOOKS_LIKE = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"%PDF-": "PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"Salted__": "a file that OpenSSL encrypted",
    b"age-encryption.org/": "a file that age encrypted",
    b"-----BEGIN PGP MESSAGE": "a file that PGP encrypted",
}
_POINTER = b"version https://git-lfs.github.com/spec/"
_NOISE, _CONSTANT = 7.9, 0.1  # Bits per byte of single bytes. Text has 4 to 5, programs of a processor 5 to 7.
SAMPLE, _FEWEST = 1 << 14, 1 << 12  # Bytes: of a sample, and for a judgement.


def is_pointer(beginning: bytes) -> bool:
    """Whether a file is the pointer that Git leaves in place of a large file that was not fetched."""
    return beginning.startswith(_POINTER)


def what_it_looks_like(beginning: bytes) -> str:
    """What the first bytes of a file that should be text betray, in words; "" for nothing."""
    if beginning[257:262] == b"ustar":
        return "a tar archive"
    return next((name for magic, name in _LOOKS_LIKE.items() if beginning.startswith(magic)), "")


def entropy_fault(sample: np.ndarray) -> str:
    """What is wrong with the distribution of bytes, uint8 [N], in words; "" where nothing is."""
    if len(sample) < _FEWEST:
        return ""
    share = np.bincount(sample, minlength=256) / len(sample)
    share = share[share > 0]
    bits = float(-(share * np.log2(share)).sum())
    if bits > _NOISE:
        return f"has {bits:.2f} bits per byte, as compressed, encrypted or random data have; a model would learn noise"
    return f"is nearly constant ({bits:.2f} bits per byte)" if bits < _CONSTANT else ""
