"""Write scikit-learn's handwritten digits as the folder that postcodes.py reads.

    python make_data.py ~/postcodes

There are three post offices of unequal size: A has half of the training images, B a third, C the
rest. C's pen is fainter, so the clients' data differ.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FAINT = 0.5


def write(folder: Path) -> None:
    """Write all 1,797 digits to a folder: every fifth for testing, the others for training."""
    images, digits = load_digits(return_X_y=True)
    for number, (image, digit) in enumerate(zip(images, digits, strict=True)):
        part = "test" if number % 5 == 0 else "train"
        office = "AAABBC"[number % 6]
        pixels = image.reshape(8, 8) * (15 * FAINT if office == "C" else 15)  # 0..16 to 0..240
        file = folder / part / office / str(digit) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)


if __name__ == "__main__":
    write(Path(sys.argv[1]).expanduser())
