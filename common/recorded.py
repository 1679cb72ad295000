"""Recorded steps of decoding (CUDA graphs). They only make sampling on a GPU faster.

One token through 28 layers is hundreds of small kernels, and a fast GPU runs them faster than a
CPU can launch them. A CUDA graph is a recording of one step that is launched as a whole. Its
shapes and addresses are fixed: the cache grows by GROWTH columns at a time, and the mask hides
the columns that are still empty.
"""

import sys

import torch
from torch.nn.functional import pad

from common.arguments import shorten
from common.batches import log_probabilities
from common.cache import advance

GROWTH, RECORDS = 256, ("cuda",)  # RECORDS: on which devices steps are recorded


class Replay:
    """A recorded step of decoding. It costs one step to warm up and one to record."""

    state = {"use": True, "unchecked": 3}  # so many replays are still compared with the step

    def __init__(self, step, inputs):
        self.inputs, self.graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # allocates workspaces and autocast's copies of weights
                step(*self.inputs)
            current.wait_stream(side)
            try:
                with torch.cuda.graph(self.graph):
                    self.out = step(*self.inputs)
            finally:
                # torch.cuda.graph does not do this if the end of the recording fails. Then all
                # that follows would run on the stream of the recording.
                torch.cuda.set_stream(current)

    def __call__(self, *inputs):
        for x, new in zip(self.inputs, inputs):
            x.copy_(new)
        self.graph.replay()
        return self.out


class RecordedSteps:
    """Replaces `decode` on a GPU: static shapes, and recorded steps where possible."""

    def __init__(self, model, rows):
        self.model, self.rows, self.replay = model, rows, None

    def __call__(self, t):
        rows, cache = self.rows, self.rows.cache
        if cache.length == rows.visible.shape[1]:  # the cache is full, or this is the first step
            columns = min(cache.length + GROWTH, cache.room)
            rows.visible = pad(rows.visible, (0, columns - cache.length))  # [R, columns]
            cache.resize(columns)
        rows.visible[:, cache.length] = True  # the new token may attend to itself
        position = rows.prompt_length + t  # [R]
        slot = torch.full((1,), cache.length, device=position.device)
        inputs = rows.token[:, None], position[:, None], rows.visible[:, None], slot
        hidden = self.recorded(inputs) if Replay.state["use"] else None
        hidden = self.step(*inputs) if hidden is None else hidden  # [R, width]
        cache.length += 1
        return hidden

    def step(self, token, position, visible, slot):
        self.rows.cache.slot = slot
        return advance(self.model, self.rows.cache, token, position, visible)[:, -1]

    def recorded(self, inputs):
        """The step from its recording. None if that fails; then none is recorded again."""
        try:
            if self.replay and self.replay.inputs[2].shape != inputs[2].shape:
                self.replay = None  # rows have left or the cache has grown: record again
            self.replay = self.replay or Replay(self.step, inputs)
            hidden = self.replay(*inputs)  # [R, width]
            if Replay.state["unchecked"]:
                Replay.state["unchecked"] -= 1
                # A step can be made twice: it writes the same numbers into the same column.
                if not self.same(self.step(*inputs), hidden):
                    raise RuntimeError("a recorded step differs from the step itself")
            return hidden
        except torch.OutOfMemoryError:  # `sample` goes on with fewer rows, and they are recorded
            self.replay = None
            raise
        except RuntimeError as error:
            Replay.state["use"], self.replay = False, None
            why = shorten(error, 100)
            print(f"CUDA graphs are not used ({why}): sampling is only slower", file=sys.stderr)

    def same(self, plain, hidden):
        """Do both hidden states [R, width] give every row the same next-token distribution?

        The distributions are compared, not the states: 5 % of a hidden state can be nats of a
        log-probability. KL is below 0.01 nats if both differ by bfloat16's rounding.
        """
        for pair in zip(plain.split(64), hidden.split(64)):  # so few rows have logits at once
            logp, recorded_logp = (log_probabilities(self.model, h) for h in pair)  # [r, V]
            kl = (logp.exp() * (logp - recorded_logp)).sum(-1)  # [r]
            if not (kl < 0.01).all():  # this is also the answer if a KL is NaN
                return False
        return True
