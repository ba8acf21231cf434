"""A pseudo-terminal, and what a program shows on it."""

from __future__ import annotations

import os
import re
import threading
from typing import TextIO


class Terminal:
    """A terminal 80 columns wide.

    Attributes:
        fd: The program's end.
        stream: A text stream to it.
    """

    def __init__(self) -> None:
        self._own, self.fd = os.openpty()
        self.stream: TextIO = os.fdopen(self.fd, "w", buffering=1)
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._shown += os.read(self._own, 65536)
            except OSError:  # the program's end is closed
                return

    def type(self, keys: bytes) -> None:
        os.write(self._own, keys)

    def text(self) -> str:
        """Return everything so far, with its control codes."""
        return self._shown.decode()

    def close(self) -> str:
        """Close the program's end, and return everything that it showed."""
        self.stream.close()
        self._reader.join()
        os.close(self._own)
        return self.text()


def lines_left(text: str) -> list[str]:
    """Return the lines that are on the screen in the end, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]", "", text)
    lines = text.rstrip("\r\n").split("\n")  # splitlines() would split at \r, too
    return [re.split(r"\r|\x1b\[2?K", line.rstrip("\r"))[-1].rstrip() for line in lines]
