"""A disk that is full whenever a test says so."""

import errno
import os

from fftlm_jax.recording import console, curves


class FullDisk:
    """Writes to metrics, samples, log and pictures fail while `full`; every third takes half of what it is given."""

    def __init__(self, monkeypatch):
        self.full, self.failures, self._write = False, 0, os.write
        monkeypatch.setattr(console.os, "write", self.write)
        monkeypatch.setattr(curves, "draw_curves", self.draw)
        monkeypatch.setattr("fftlm_jax.raft.cycles_figure.draw_cycles", self.draw)
        monkeypatch.setattr("fftlm_jax.recording.metrics.EventsWriter.write_event", self.event)

    def write(self, handle, data):
        if not self.full:
            return self._write(handle, data)
        self.failures += 1
        if self.failures % 3 == 0:
            return self._write(handle, data[: len(data) // 2])
        self.refuse()

    def draw(self, *_):
        self.refuse() if self.full else None

    def event(self, _):
        self.refuse() if self.full else None

    def refuse(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
