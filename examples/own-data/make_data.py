"""Write scikit-learn's handwritten digits as the folder that postcodes.py reads.

    python make_data.py ~/postcodes

Three post offices of unequal size: office A has a half of the training images, B a third, C the
rest, and C's pen is fainter, so that the clients differ by nature.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

FAINT = 0.5


def write(folder: Path) -> None:
    """Write all 1,797 digits below a folder: every fifth for the test, the others to train on."""
    images, digits = load_digits(return_X_y=True)
    for number, (image, digit) in enumerate(zip(images, digits, strict=True)):
        part = "test" if number % 5 == 0 else "train"
        office = "AAABBC"[number % 6]
        pixels = image.reshape(8, 8) * (15 * FAINT if office == "C" else 15)  # 16 greys to 240
        file = folder / part / office / str(digit) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)


if __name__ == "__main__":
    write(Path(sys.argv[1]).expanduser())
