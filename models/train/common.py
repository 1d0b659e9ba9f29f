"""What every part of the trainer agrees on: special tokens, splits, folders."""

import hashlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
CORPUS = WORK / "corpus"

EOS, CLS, MASK, SMASK, GMASK, SOP, EOP = range(7)
SPECIALS = ["<|endoftext|>", "[CLS]", "[MASK]", "[sMASK]", "[gMASK]",
            "<|startofpiece|>", "<|endofpiece|>"]
VOCAB = 12_288
MAX_POSITION = 512


def bucket(text: str, of: int = 10) -> int:
    """The split of a text: 0 is test, 1 is dev, the rest trains."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % of


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
