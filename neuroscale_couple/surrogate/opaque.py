"""The surrogate of an opaque micro problem: one rung, no tangent, float64, on the CPU.

Where the micro problem remembers, what was answered long ago says little: a few points lead, are solved by the fine
solver in every window, and the others are answered from them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroscale_couple.errors import ArtifactError
from neuroscale_couple.operator.kriging import cover
from neuroscale_couple.physics.opaque import OpaqueProblem
from neuroscale_couple.reasons import Source
from neuroscale_couple.surrogate import artifact
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.values import F64, I64, Bool, Points, Prediction

CHUNK = 2048
"""Questions answered at a time: what fits the processor's cache."""
MOST = 400
"""Leaders of a rank at most; the work of choosing them grows with their square."""
LEAST = 20
"""Leaders of a rank at least: fewer say nothing about how answers vary."""
SHARE = 0.7
"""Leaders are chosen so that scores stay below this share of the largest accepted one."""
FRESH = 1e6
"""Points that need not be brought up to date are taken first: how much their scores count for more."""


class OpaqueSurrogate(Surrogate):
    """Answers questions of an opaque micro problem on the coarse rung.

    The floors that the artifact was fitted with become those of the problem where it has none yet, so that errors are
    measured alike from the first surrogate of a run to the last.
    path, sha256: of the artifact; version: set by whoever promotes it; leaders: int64, rows of this rank
    """

    def __init__(self, path: Path, problem: OpaqueProblem) -> None:
        self.path = Path(path)
        content, self.card, self.sha256 = artifact.read(self.path)
        artifact.check_problem(self.path, self.card, problem.signature)
        self.version = 0
        self.leaders: I64 = np.zeros(0, dtype=np.int64)
        self._problem = problem
        self._led: tuple[I64, F64, F64] | None = None  # rows, questions and outputs of the leaders
        self._first: tuple[I64, F64, F64] | None = None  # the same of the window's first iteration
        try:
            self.module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
        except RuntimeError as cause:
            raise ArtifactError(
                f"{path}: torch {torch.__version__} cannot load it ({cause}); train it again"
            ) from cause
        self._kept = self._given = self.module.stored()
        problem.take_floors(np.asarray(self.card.domain["floors"], dtype=np.float64))

    @property
    def rungs(self) -> tuple[Source, ...]:
        """The coarse rung alone: there are no fields."""
        return (Source.SURROGATE_COARSE,)

    def attach(self, points: Points) -> None:
        """Nothing is kept of the points: what distinguishes them is hidden in the simulations."""

    @torch.inference_mode()
    def predict(self, rung: Source, rows: I64, inputs: F64) -> Prediction:
        """Answer questions float64 [m, q]; NaN in, NaN out, in that row alone."""
        n_out, q = self._problem.outputs.size, self._problem.question.size
        if rung is not Source.SURROGATE_COARSE:
            raise ValueError(f"{self.path}: has no rung {rung.name.lower()}")
        if inputs.shape != (len(rows), q):
            raise ValueError(f"surrogate: got questions of shape {inputs.shape}, expected {(len(rows), q)}")
        outputs, score = np.empty((len(rows), n_out)), np.empty(len(rows))
        question = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float64))
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            answer, deviation = self.module.answer(question[part], self._given)
            outputs[part], score[part] = answer.numpy(), deviation.numpy()
        return Prediction(rows, outputs, np.empty((len(rows), n_out, 0)), score)

    def fields(self, rows: I64, inputs: F64) -> None:
        """None: there are no fields."""
        return None

    # -- leaders

    @torch.inference_mode()
    def lead(self, question: F64, fresh: Bool, limit: float) -> I64:
        """See `Surrogate.lead`: as many as the scores need, fresh ones first.

        Where nothing is remembered, what the artifact keeps is as good as leaders, and they answer together.
        """
        none = np.zeros(0, dtype=np.int64)
        if not len(question) or not limit > 0.0 or not np.isfinite(question).all():
            self._led = None
            return none  # nothing would be accepted
        asked = torch.from_numpy(np.ascontiguousarray(question))
        outputs, _ = self.module.answer(asked, self._given)
        size = self.module.relative(outputs, self._given.amplitude)
        prefer = torch.from_numpy(np.where(fresh, FRESH, 1.0))
        z, kept = self.module.place(asked), self._kept.basis
        if self._problem.remembers:
            first = torch.zeros(0, dtype=torch.int64)
            rows = cover(z, first, size, prefer, SHARE * limit, min(LEAST, len(z)), MOST)
        else:
            zero = kept.new_zeros(len(kept))
            first = torch.arange(len(kept))
            rows = cover(torch.cat([kept, z]), first, torch.cat([zero, size]), torch.cat([zero, prefer]), SHARE * limit,
                         0, len(kept) + MOST)  # fmt: skip
            rows = rows[rows >= len(kept)] - len(kept)
        self.leaders = np.asarray(rows.numpy())
        if not len(self.leaders):
            self._led, self._given = None, self._kept
        return self.leaders

    @torch.inference_mode()
    def lead_on(self, question: F64, fresh: Bool, limit: float) -> I64:
        """See `Surrogate.lead_on`: leaders were chosen by what the answers were about to be, and may prove too few.

        A leader more brings many scores below the limit; each is one of those above it, so none is solved in vain.
        """
        none = np.zeros(0, dtype=np.int64)
        if self._led is None or not limit > 0.0:
            return none
        rows = np.setdiff1d(np.arange(len(question)), self._led[0])
        prediction = self.predict(Source.SURROGATE_COARSE, rows, question[rows])
        if not (prediction.score > limit).any() or not np.isfinite(prediction.score).all():
            return none
        z, known = self.module.place(torch.from_numpy(question[rows])), self._given.basis
        size = self.module.relative(torch.from_numpy(prediction.outputs), self._given.amplitude)
        prefer = torch.from_numpy(np.where(fresh[rows], FRESH, 1.0))
        zero = known.new_zeros(len(known))
        chosen = cover(torch.cat([known, z]), torch.arange(len(known)), torch.cat([zero, size]),
                       torch.cat([zero, prefer]), limit, 0, len(known) + MOST)  # fmt: skip
        return np.asarray(rows[(chosen[chosen >= len(known)] - len(known)).numpy()])

    @torch.inference_mode()
    def condition(self, rows: I64, question: F64, outputs: F64, again: bool = False) -> None:
        """See `Surrogate.condition`; the first iteration's answers stay known: they show the slope at a given past."""
        if not len(rows):
            return
        self.leaders, self._led = rows, (rows, question.copy(), outputs.copy())
        if not again:
            self._first = self._led
        asked, answers = (torch.from_numpy(values) for values in self._led[1:])
        if again and self._first is not None and not np.array_equal(self._first[1], question):
            asked, answers = (
                torch.cat([torch.from_numpy(one), two])
                for one, two in zip(self._first[1:], (asked, answers), strict=True)
            )
        if self._problem.remembers:
            self._given = self.module.condition(asked, answers)
        else:
            self._given = self.module.extend(self._kept, asked, answers)

    def evidence(self, rows: I64, question: F64, outputs: F64) -> F64:
        """Score and error, float64 [k, 2], of answers to questions whose fine answer is known now; not of leaders."""
        led = np.isin(rows, self._led[0]) if self._led is not None else np.zeros(len(rows), dtype=np.bool_)
        prediction = self.predict(Source.SURROGATE_COARSE, rows[~led], question[~led])
        error = self._problem.relative_error(prediction.outputs, outputs[~led])
        return np.column_stack([prediction.score, error])

    @property
    def idle(self) -> bool:
        """Whether the last window had no leaders although the problem remembers: what is known is out of date."""
        return self._problem.remembers and self._led is None

    @torch.inference_mode()
    def cross_validate(self, question: F64, outputs: F64) -> F64:
        """Score and error, float64 [m, 2], of each of these answers from some of the others, at most `MOST`."""
        rows = np.linspace(0, len(question) - 1, min(MOST, len(question))).astype(np.int64)
        given = self.module.condition(torch.from_numpy(question[rows]), torch.from_numpy(outputs[rows]))
        answer, score = self.module.left_out(given)
        return np.column_stack([score.numpy(), self._problem.relative_error(answer.numpy(), outputs[rows])])

    def inherit(self, before: Surrogate | None) -> None:
        """See `Surrogate.inherit`."""
        if isinstance(before, OpaqueSurrogate) and self._problem.remembers:
            self.leaders = before.leaders
            if before._led is not None:
                self.condition(*before._led)

    def get_state(self) -> Mapping[str, Any]:
        """The leaders with their last questions and answers."""
        rows, question, outputs = self._led or (np.zeros(0, dtype=np.int64), np.zeros((0, 0)), np.zeros((0, 0)))
        return {"leaders": self.leaders, "led": rows, "led_question": question, "led_outputs": outputs}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` gave."""
        if state:
            self.leaders = np.asarray(state["leaders"], dtype=np.int64)
            led, question, outputs = (np.asarray(state[name]) for name in ("led", "led_question", "led_outputs"))
            self.condition(led, question, outputs)
