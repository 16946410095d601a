"""READ FIRST: what happens to a point, every iteration and every window.

    receive -> admit -> predict -> accept -> solve_fine -> correct -> send      every iteration  (`evaluate`)
                                                  commit -> learn               a converged window (`commit`)

Within a window a point only ever moves up the ladder (coarse head -> fine head -> fine solver) and the surrogate
never changes, so Newton and quasi-Newton iterations of the macro solver see one map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuroscale_couple import kernels, parallel
from neuroscale_couple.errors import FineSolverError, NeuroscaleError
from neuroscale_couple.learning.base import Learner
from neuroscale_couple.ledger import Counts
from neuroscale_couple.memory import Memory
from neuroscale_couple.parts import Parts
from neuroscale_couple.reasons import Reason, Source
from neuroscale_couple.surrogate.base import Surrogate
from neuroscale_couple.timers import Timers
from neuroscale_couple.transport.base import State
from neuroscale_couple.values import F64, I64, U8, Audit, Batch, FineAnswer, Points, Reply, finite_rows

__all__ = ["Loop", "Parts"]

NEVER = -(10**9)
ROUNDS = 5
"""Times that leaders are chosen in a window, at most."""


class Loop:
    """Answers the points of one service rank; implements `transport.base.Service`.

    Collective: evaluate, commit, rollback, close.
    """

    def __init__(self, parts: Parts, points: Points, comm: Any = None) -> None:
        self.parts, self.points, self.comm = parts, points, comm
        self.inputs, self.outputs = parts.problem.inputs, parts.problem.outputs
        self.surrogate = parts.surrogate
        self.timers, self.window = Timers(), 0
        n = len(points)
        self.rung: U8 = np.zeros(n, dtype=np.uint8)  # lowest rung that may answer a point in this window
        self.score: F64 = np.zeros(n)
        self.leaders: I64 = np.zeros(0, dtype=np.int64)  # see `Surrogate.lead`
        self.last_fine: I64 = np.full(n, NEVER)  # window of a point's last fine answer
        self.batch: Batch | None = None
        self.reply: Reply | None = None
        self.memory = Memory(parts.problem, n, wanted=parts.gate.settings.open or parts.learner is not None)
        self.question: F64 = np.zeros((n, parts.problem.question.size))  # what the surrogate is asked with
        self.counts = Counts()
        self.start: dict[str, Any] | None = None  # the fine solver's state at the start of a window of several steps
        self.resumed_from: tuple[int, State] | None = None
        parts.fine.attach(points)
        for correction in parts.corrections:
            correction.attach(points)
        if parts.learner is not None:
            parts.learner.attach(points)
        self._install(self.surrogate)

    # -- every iteration -------------------------------------------------------------------------------------

    def evaluate(self, batch: Batch) -> Reply:
        """Answer one iteration. Raises: FineSolverError, NeuroscaleError. Collective: yes."""
        reply = Reply.blank(len(batch), self.outputs.size, self.parts.problem.tangent_columns)
        self.question = self.memory.question(batch)
        cause: BaseException | None = None
        try:
            self.parts.fine.begin(batch)
            self._admit(batch, reply)
            self._lead(batch, reply)
            self._predict(batch, reply)
            self._solve_fine(batch, reply)
        except Exception as error:  # agreed below, so that no rank is left waiting in a collective
            cause = error
        parallel.agree(self.comm, cause, f"window {batch.window}, iteration {batch.iteration}")
        self._correct(batch, reply)
        return self._send(batch, reply)

    def _admit(self, batch: Batch, reply: Reply) -> None:
        with self.timers("gate"):
            reply.reason[self.rung == Source.FINE] = Reason.HELD
            self.parts.gate.limit(batch.iteration, reply.reason)
            self.parts.gate.admit(self.question, reply.reason)

    def _lead(self, batch: Batch, reply: Reply) -> None:
        """Solve the points whose fine answers the surrogate answers the others from; the same ones all window."""
        if self.surrogate is None:
            return
        if self.reply is not None or self.start is not None:
            return self._solve_leaders(self.leaders, batch, reply)
        limit = -np.inf if self.parts.gate.closed else self.parts.gate.largest_score(self.surrogate.rungs[0])
        for turn in range(ROUNDS):  # what the first leaders leave in doubt, a few more make known
            choose = self.surrogate.lead_on if turn else self.surrogate.lead
            with self.timers("surrogate"):
                rows = choose(self.question, self.last_fine == self.window - 1, limit)
            self.leaders = np.union1d(self.leaders, rows) if turn else rows
            if not len(rows):
                return
            self._solve_leaders(rows, batch, reply)

    def _solve_leaders(self, rows: I64, batch: Batch, reply: Reply) -> None:
        if not len(rows):
            return
        answer = self._fine_answer(rows, batch)
        self._take(answer if answer.converged.all() else answer.take(np.flatnonzero(answer.converged)), reply)
        reply.reason[answer.rows[answer.converged]] = Reason.LEADER
        led = np.flatnonzero(reply.reason == Reason.LEADER)
        again = self.reply is not None and self.start is None
        assert self.surrogate is not None
        with self.timers("surrogate"):
            self.surrogate.condition(led, self.question[led], reply.outputs[led], again)

    def _predict(self, batch: Batch, reply: Reply) -> None:
        """Climb the ladder: each rung answers the points that no lower rung could."""
        if self.surrogate is None:
            return
        rows = np.flatnonzero(reply.reason == 0)
        rungs = [rung for rung in self.surrogate.rungs if self.parts.gate.asks(rung)]
        if not rungs:
            reply.reason[rows] = Reason.UNCERTAIN
        for rung in rungs:
            here = rows[self.rung[rows] <= rung] if self.rung.any() else rows
            if not len(here):
                continue
            refused = self._answer_on(rung, here, batch, reply)
            rows = refused if len(here) == len(rows) else np.union1d(np.setdiff1d(rows, here), refused)

    def _answer_on(self, rung: Source, rows: I64, batch: Batch, reply: Reply) -> I64:
        """One rung: predict and accept. Returns the rows that were refused; their reason is set."""
        assert self.surrogate is not None
        everyone = len(rows) == len(batch)
        question = self.question if everyone else self.question[rows]
        with self.timers("surrogate"), self.counts.asking(rung, len(rows)):
            prediction = self.surrogate.predict(rung, rows, question)
        with self.timers("gate"):
            reason: U8 = np.zeros(len(rows), dtype=np.uint8)
            error: F64 = np.zeros(len(rows))
            self.parts.gate.accept(rung, question, prediction, error, reason)
            at: Any = slice(None) if everyone else rows
            reply.outputs[at], reply.tangent[at] = prediction.outputs, prediction.tangent
            reply.error[at], reply.reason[at], self.score[at] = error, reason, prediction.score
            reply.source[at] = rung
            self.rung[at] = rung
            return rows[np.flatnonzero(reason)]

    def _solve_fine(self, batch: Batch, reply: Reply) -> None:
        rows = np.flatnonzero((reply.reason != 0) & (reply.reason != Reason.LEADER))
        if not len(rows):
            return
        answer = self._fine_answer(rows, batch)
        self._take(answer if answer.converged.all() else self._without_failures(answer, batch, reply), reply)

    def _take(self, answer: FineAnswer, reply: Reply) -> None:
        """These points are answered by the fine solver now."""
        rows: Any = slice(None) if len(answer.rows) == len(reply.source) else answer.rows
        reply.outputs[rows], reply.tangent[rows] = answer.outputs, answer.tangent
        reply.source[rows], reply.error[rows] = Source.FINE, 0.0
        self.rung[rows] = Source.FINE

    def _fine_answer(self, rows: I64, batch: Batch, audit: bool = False) -> FineAnswer:
        """The fine solver's answer; started from the fine head where its own last solve is old.

        audit: owe nothing to the surrogate, not even the start
        """
        everyone = len(rows) == len(batch)
        inputs = batch.inputs if everyone else batch.inputs[rows]
        guess = None
        if self.surrogate is not None and not self.parts.gate.closed and not audit:
            stale = np.flatnonzero(self.last_fine[rows] < self.window - 1)
            with self.timers("surrogate"):
                guess = self.surrogate.guess(rows, inputs, stale)
        with self.timers("fine"), self.counts.asking(Source.FINE, 0 if audit else len(rows)):
            answer = (self.parts.fine.solve_apart if audit else self.parts.fine.solve)(rows, inputs, guess)
        if not np.isfinite(answer.outputs.sum() + answer.tangent.sum()):  # such an answer is not sent or learnt from
            answer.converged[:] &= finite_rows(answer.outputs, answer.tangent)
        self.counts.fine(answer)
        own = answer if answer.own is None else answer.take(answer.solved)
        solved: Any = slice(None) if len(own.rows) == len(batch) and own.converged.all() else own.rows[own.converged]
        self.last_fine[solved] = self.window
        if self.parts.learner is not None and not batch.blank:
            with self.timers("learning"):
                question = self.question if len(own.rows) == len(batch) else self.question[own.rows]
                self.parts.learner.observe(self.window, question, own)
        return answer

    def _without_failures(self, answer: FineAnswer, batch: Batch, reply: Reply) -> FineAnswer:
        """Apply the policy to points whose fine solve did not converge. Raises: FineSolverError."""
        failed = answer.rows[~answer.converged]
        row = int(failed[0])
        answered = reply.source[failed] != Source.FINE
        usable = answered & np.isfinite(reply.outputs[failed]).all(axis=1)
        if self.parts.on_failure == "stop" or not usable.all():
            kept = "" if self.parts.on_failure == "stop" else " and no surrogate answer can be kept for it"
            load = self.inputs.text(batch.inputs[row])
            what = "" if np.isfinite(answer.outputs[~answer.converged][0]).all() else ", whose answer is not finite"
            where = f"point {self.points.ids[row]}{what} ({len(failed)} point(s) in all){kept}"
            raise FineSolverError(
                f"window {batch.window}, iteration {batch.iteration}: the fine solver did not converge at {where}; "
                f"load: {load}; {self.parts.fine.diagnosis(row)}. {self.parts.fine.advice}"
            )
        reply.reason[failed] = Reason.NOT_CONVERGED
        return answer.take(np.flatnonzero(answer.converged))

    def _correct(self, batch: Batch, reply: Reply) -> None:
        with self.timers("correction"):
            for correction in self.parts.corrections:
                correction.apply(batch, reply.outputs, reply.tangent, reply.error, reply.source)

    def _send(self, batch: Batch, reply: Reply) -> Reply:
        finite = np.isfinite(reply.outputs.sum()) and np.isfinite(reply.tangent.sum())
        cause = None if finite else self._not_finite(batch, reply)
        parallel.agree(self.comm, cause, f"window {batch.window}, iteration {batch.iteration}")
        self.batch, self.reply = batch, reply
        self.counts.answered(reply)
        return reply

    def _not_finite(self, batch: Batch, reply: Reply) -> NeuroscaleError | None:
        bad = np.flatnonzero(~finite_rows(reply.outputs, reply.tangent))
        if not len(bad):  # finite numbers whose sum overflows
            return None
        row = int(bad[0])
        return NeuroscaleError(
            f"window {batch.window}, iteration {batch.iteration}: the answer for point {self.points.ids[row]} "
            f"({Source(int(reply.source[row])).name.lower()}) is not finite and was not sent; add 'physical' to "
            "gate.stages so that such points go to the fine solver"
        )

    # -- every converged window ------------------------------------------------------------------------------

    def commit(self, macro_state: State | None = None) -> None:
        """The window has converged: audit, learn, maybe promote, write down. Collective: yes."""
        if self.batch is None or self.reply is None:
            raise NeuroscaleError(f"window {self.window}: commit was called before evaluate")
        audit = self._audit(self.batch, self.reply)
        with self.timers("gate"):
            self.parts.gate.learn(audit)
        parallel.together(self.comm, f"window {self.window}, commit", self.parts.fine.commit)
        self.memory.step(self.batch)
        self.memory.commit()
        version = self.model_version  # the one that answered this window
        self._learn()
        if self.parts.ledger is not None:
            self._write_down(self.batch, self.reply, audit, version)
        self.window += 1
        if self.parts.checkpoint is not None:
            self._save(macro_state or {})
        self._begin_window()

    def _audit(self, batch: Batch, reply: Reply) -> Audit:
        """Solve a share of the accepted points with the fine solver; the true error of what was sent."""
        rows = self.parts.gate.select_audits(self.window, self.points.ids, reply.source)
        if batch.blank:
            rows = rows[:0]
        error: F64 = np.zeros(0)
        cause: BaseException | None = None
        try:
            if len(rows):
                answer = self._fine_answer(rows, batch, audit=True)
                rows = answer.rows[answer.converged]
                truth = answer.outputs[answer.converged]
                error = self.parts.problem.relative_error(reply.outputs[rows], truth)
                if self.parts.ledger is not None:
                    self.parts.ledger.add_audits(
                        self.window, self.points.ids[rows], reply.source[rows], reply.error[rows], error,
                        reply.outputs[rows], truth,
                    )  # fmt: skip
        except Exception as problem:
            cause = problem
        parallel.agree(self.comm, cause, f"window {batch.window}, audit")
        return Audit(rows, reply.source[rows], self.score[rows], reply.error[rows], error)

    def _learn(self) -> None:
        if self.parts.learner is None:
            return
        self._explore(self.parts.learner)
        with self.timers("learning"):
            better = self.parts.learner.propose(self.window, self.surrogate)
        if better is not None:
            self._install(better)

    def _explore(self, learner: Learner) -> None:
        """Answer what the learner asks for; the fine solver's own state stays what it was."""
        assert self.batch is not None and self.reply is not None
        with self.timers("learning"):
            questions = learner.ask(self.window, self.surrogate, self.batch.inputs, self.reply.source)

        def solve() -> None:
            for rows, inputs in questions:
                with self.timers("fine"):
                    self.counts.fine(answer := self.parts.fine.solve(rows, inputs))
                learner.observe(self.window, inputs, answer)

        parallel.together(self.comm, f"window {self.window}, exploring", solve)
        if questions:
            self.parts.fine.rollback()

    def _install(self, surrogate: Surrogate | None) -> None:
        """Make a surrogate the running one: encode this rank's points, tell the gate."""
        before, self.surrogate = self.surrogate, surrogate
        if surrogate is not None:
            with self.timers("surrogate"):
                surrogate.attach(self.points)
                surrogate.inherit(before)
        self.parts.gate.attach(self.points, surrogate.card if surrogate is not None else None)

    def rollback(self) -> None:
        """Start the window afresh: every point may be answered by the surrogate again. Collective: yes."""
        self.repeat()
        self.parts.fine.rollback()
        self._begin_window()

    def repeat(self) -> None:
        """Iterate on the window from its start; points stay on the rung that they have reached. Collective: yes."""
        start, self.start = self.start, None
        self.memory.rewind()
        if start is not None:
            self.parts.fine.restore(start)

    def next_step(self) -> None:
        """Go on inside the window: the next evaluate starts from where the last one has ended. Collective: yes."""
        if self.start is None:
            self.start = self.parts.fine.snapshot()
        self.parts.fine.next_step()
        assert self.batch is not None
        self.memory.step(self.batch)

    def _begin_window(self) -> None:
        self.start = self.batch = self.reply = None
        self.rung[:] = Source.SURROGATE_COARSE

    # -- written down ----------------------------------------------------------------------------------------

    def _write_down(self, batch: Batch, reply: Reply, audit: Audit, version: int) -> None:
        assert self.parts.ledger is not None
        counts, self.counts = self.counts, Counts()
        self.parts.ledger.add(
            window=self.window, time=batch.time, iterations=batch.iteration + 1, points=len(self.points),
            counts=counts, audit=audit, reply=reply, seconds=self.timers.take() | {"kernels": kernels.seconds_spent()},
            model_version=version, inputs=None if batch.blank else batch.inputs,
        )  # fmt: skip

    def _save(self, macro_state: State) -> None:
        assert self.parts.checkpoint is not None
        state = parallel.together(self.comm, f"window {self.window}, checkpoint", lambda: self._state(macro_state))
        path = str(getattr(self.surrogate, "path", "") or "")
        meta = {"window": self.window, "model_path": path, "model_version": self.model_version}
        meta["model_sha256"] = getattr(self.surrogate, "sha256", "")
        self.parts.checkpoint.save(self.window, state, meta)

    def _state(self, macro_state: State) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps of this rank: arrays by part and name."""
        learner = self.parts.learner
        parts: dict[str, Mapping[str, Any]] = {
            "macro": macro_state,
            "fine": self.parts.fine.get_state(),
            "gate": self.parts.gate.get_state(),
            "learner": learner.get_state() if learner is not None else {},
            "surrogate": self.surrogate.get_state() if self.surrogate is not None else {},
            "loop": {"ids": self.points.ids, "last_fine": self.last_fine, **self.memory.get_state()},
        }
        return {name: {key: np.asarray(value) for key, value in part.items()} for name, part in parts.items()}

    def restore(self, parts: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; the surrogate named in it must be installed already."""
        self.window = int(meta["window"])
        self.last_fine[:] = parts["loop"]["last_fine"]
        self.memory.set_state(parts["loop"])
        if self.surrogate is not None:
            self.surrogate.version = int(meta["model_version"])
            self.surrogate.set_state(parts.get("surrogate", {}))
        self.parts.fine.set_state(parts.get("fine", {}))
        self.parts.gate.set_state(parts.get("gate", {}))
        if self.parts.learner is not None:
            self.parts.learner.set_state(parts.get("learner", {}))
        self.resumed_from = (self.window, dict(parts.get("macro", {})))
        if self.parts.ledger is not None:
            self.parts.ledger.truncate(self.window)

    def resumed(self) -> tuple[int, State] | None:
        """(number of committed windows, macro state) when this run was resumed, else None."""
        return self.resumed_from

    def close(self) -> None:
        """End of the run."""
        self.parts.fine.close()
        if self.parts.ledger is not None:
            self.parts.ledger.close()

    @property
    def model_version(self) -> int:
        """Version of the surrogate that answers now; -1 without one."""
        return self.surrogate.version if self.surrogate is not None else -1
