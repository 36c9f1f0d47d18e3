"""Passive health: what the attempts themselves say about a backend, and what the keeper's probes add. Pure; time is passed in.

    closed ── 5 failures in a row, or half of at least 20 attempts within 30 s ──> open (5 s, +-20 %)
      ^                                                                              │ its time is over
      └── a trial succeeds ── half_open (one trial at a time) <──────────────────────┘
                                  └── the trial fails ──> open, twice as long (at most 60 s)

    resting: the backend asked for a pause (429). It is alive: nothing is counted against it.

An attempt that begins at a target whose breaker is not closed is its trial if no other is out; `began` says so by a number, and the
attempt hands that number back with its verdict. Only the trial's verdict moves a breaker that is not closed: attempts from before it
opened (long streams, clocks that run out late) say nothing about now.

The 30 s window begins with the first failure: while all is well nothing is counted, and a request pays one attribute read.
All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Literal

from gateway.routing.verdict import Verdict
from gateway.routing.window import Window

if TYPE_CHECKING:
    from gateway.routing.table import BackendSpec, Target

FAILURES_IN_A_ROW: Final = 5
WINDOW_ATTEMPTS: Final = 20  # below this a share says nothing
OPEN_S: Final = 5.0
OPEN_MAX_S: Final = 60.0
JITTER: Final = 0.2  # so that the processes of an installation do not all try at the same moment
TRIAL_S: Final = 60.0  # a trial that has not reported by then holds its place no longer
REST_S: Final = 1.0  # a 429 that does not say when to come back
REST_MAX_S: Final = 300.0
FORGET_S: Final = 300.0  # failures in a row are forgotten when nothing was tried for so long
PROBE_VALID_S: Final = 30.0

State = Literal["closed", "open", "half_open", "resting"]
CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half_open"
RESTING: Final = "resting"


def no_jitter() -> float:
    """The middle of the spread."""
    return 0.5


class Health:
    """What is known of one (backend, upstream model). Lives over revisions; targets of several routes may share it.

    `marked` False: plainly closed and nothing remembered; then no other member needs to be looked at.
    `last_failure`, `last_failure_at_s`: for people; kept when all is well again. `failures`: in a row.
    """

    __slots__ = (
        "_board",
        "_changed_at_s",
        "_draw",
        "_open",
        "_open_s",
        "_open_until_s",
        "_rest_until_s",
        "_rested_at_s",
        "_trial",
        "_trial_until_s",
        "_trials",
        "_tried_at_s",
        "_window",
        "failures",
        "last_failure",
        "last_failure_at_s",
        "marked",
        "verdict",
    )

    def __init__(self, board: HealthBoard | None = None, draw: Callable[[], float] = no_jitter) -> None:
        """`draw`: uniform in [0, 1), for the jitter."""
        self._board = board
        self._draw = draw
        self.marked = False
        self.failures = 0
        self.last_failure = ""
        self.last_failure_at_s = 0.0
        self.verdict = Verdict()
        self._window = Window()
        self._open = False
        self._open_s = OPEN_S
        self._open_until_s = 0.0
        self._changed_at_s = 0.0
        self._tried_at_s = 0.0
        self._trials = 0
        self._trial = 0
        self._trial_until_s = 0.0
        self._rest_until_s = 0.0
        self._rested_at_s = 0.0

    # what is asked

    def state(self, now_s: float) -> State:
        """What a probe finds dead counts as open."""
        if self.verdict.dead(now_s) or (self._open and now_s < self._open_until_s):
            return OPEN
        if now_s < self._rest_until_s:
            return RESTING
        return HALF_OPEN if self._open else CLOSED

    def available(self, now_s: float) -> bool:
        """May a request be sent there now? Closed, or half-open with no trial out."""
        state = self.state(now_s)
        return state == CLOSED or (state == HALF_OPEN and not self._on_trial(now_s))

    def back_at_s(self, now_s: float) -> float:
        """When it may be tried again; `now_s` where that is now."""
        at_s = max(now_s, self.verdict.dead_until_s(), self._rest_until_s)
        if self._open:
            at_s = max(at_s, self._open_until_s)
            if self._on_trial(now_s):
                at_s = max(at_s, self._trial_until_s)
        return at_s

    def since_s(self, now_s: float) -> float | None:
        """When the present state began; None: it has never been in another."""
        state = self.state(now_s)
        if state == RESTING:
            return self._rested_at_s
        if state == HALF_OPEN:
            return max(self._open_until_s, self._rest_until_s)
        if state == OPEN:
            return self._changed_at_s if self._open else self.verdict.since_s()
        since_s = max(self._changed_at_s, self._rest_until_s)
        return since_s or None

    # what is told

    def began(self, now_s: float) -> int:
        """An attempt starts. The trial's number if it is the trial, else 0; the attempt reports with it. Called where `marked`."""
        self._tried_at_s = now_s
        if not self._open or self._on_trial(now_s):
            return 0
        self._trials += 1
        self._trial = self._trials
        self._trial_until_s = now_s + TRIAL_S
        return self._trial

    def succeeded(self, now_s: float, trial: int) -> None:
        """The backend did its part. `trial`: what `began` said, 0 where it was not asked. Called where `marked`."""
        if self._open:
            if trial and trial == self._trial:
                self._close(now_s)
            return
        self.failures = 0
        self._window.add(True, now_s)
        self.settle(now_s)

    def failed(self, reason: str, now_s: float, trial: int) -> None:
        """An attempt failed through the backend's fault. `reason`: one fixed word. Always called; marks."""
        self.last_failure = reason
        self.last_failure_at_s = now_s
        if self._open:
            if trial and trial == self._trial:
                self._trial_failed(now_s)
            return
        self._mark()
        self._tried_at_s = now_s
        self.failures += 1
        window = self._window
        window.add(False, now_s)
        attempts = window.good + window.bad
        if self.failures >= FAILURES_IN_A_ROW or (attempts >= WINDOW_ATTEMPTS and 2 * window.bad >= attempts):
            self._open = True
            self._open_s = OPEN_S
            self._changed_at_s = now_s
            self._wait(now_s)

    def abandoned(self, now_s: float, trial: int) -> None:
        """An attempt ended without a verdict (the client left, a 4xx): another may be the trial. Called where `marked`."""
        if trial and trial == self._trial:
            self._trial = 0

    def rest(self, until_s: float, now_s: float, trial: int) -> None:
        """It asked for a pause in an answer: a trial has succeeded. Always called; marks."""
        self.pause(until_s, now_s)
        if self._open:
            if trial and trial == self._trial:
                self._close(now_s)
        else:
            self.failures = 0

    def pause(self, until_s: float, now_s: float) -> None:
        """It asked for a pause, of which at most 300 s are granted. Whether that was a failure is said beside it. Marks."""
        self._mark()
        if now_s >= self._rest_until_s:
            self._rested_at_s = now_s
        self._rest_until_s = max(self._rest_until_s, min(until_s, now_s + REST_MAX_S))

    def probed(self, ok: bool, now_s: float, valid_s: float = PROBE_VALID_S, reason: str = "") -> None:
        """What the keeper's probe found. Holds for `valid_s` unless it is said again: a keeper that died must not keep anyone out."""
        if self.verdict.say(ok, now_s, valid_s, reason):
            self._open_until_s = min(self._open_until_s, now_s)  # it is back: its trial need not wait
        if ok:
            self.settle(now_s)
        else:
            self._mark()

    def unprobed(self, now_s: float) -> None:
        """Nothing probes it any more."""
        self.verdict.clear()
        self.settle(now_s)

    def settle(self, now_s: float) -> None:
        """Forget what is over; unmarks where nothing is left to remember."""
        if not self.marked or self._open or self.verdict.dead(now_s) or now_s < self._rest_until_s:
            return
        if self.failures and now_s - self._tried_at_s < FORGET_S:
            return
        self._window.advance(now_s)
        if self._window.bad:
            return
        self.failures = 0
        self._window.clear()
        self.marked = False
        if self._board is not None:
            self._board.troubled -= 1

    def leave(self) -> None:
        """No board counts it any more."""
        if self._board is not None and self.marked:
            self._board.troubled -= 1
        self._board = None

    # inside

    def _mark(self) -> None:
        if not self.marked:
            self.marked = True
            if self._board is not None:
                self._board.troubled += 1

    def _on_trial(self, now_s: float) -> bool:
        return self._trial != 0 and now_s < self._trial_until_s

    def _wait(self, now_s: float) -> None:
        self._trial = 0
        self._open_until_s = now_s + self._open_s * (1 - JITTER + 2 * JITTER * self._draw())

    def _trial_failed(self, now_s: float) -> None:
        # A trial before its time (nobody better was there) begins the same wait again: doubling at every request would soon be 60 s.
        if now_s >= self._open_until_s:
            self._open_s = min(OPEN_MAX_S, 2 * self._open_s)
        self._wait(now_s)

    def _close(self, now_s: float) -> None:
        self._open = False
        self._trial = 0
        self._changed_at_s = now_s
        self.failures = 0
        self._window.clear()
        self.settle(now_s)


class HealthBoard:
    """All of one process. `troubled`: how many are marked; 0 = nothing to think about."""

    __slots__ = ("_draw", "_known", "troubled")

    def __init__(self, draw: Callable[[], float] = no_jitter) -> None:
        """`draw`: uniform in [0, 1), as `random.Random().random`."""
        self.troubled = 0
        self._draw = draw
        self._known: dict[tuple[BackendSpec, str], Health] = {}

    def of(self, key: tuple[BackendSpec, str]) -> Health:
        """The health of a (backend, upstream model); made when it is first asked for."""
        health = self._known.get(key)
        if health is None:
            health = self._known[key] = Health(self, self._draw)
        return health

    def usable(self, targets: tuple[Target, ...], now_s: float) -> tuple[Target, ...]:
        """The targets that may be tried now: the very same tuple where nothing stands against any.

        Drained ones (weight 0) stay as they are. Where none that is live may be tried, the one that is back soonest: the least bad is
        better than a refusal.
        """
        if not self.troubled:
            return targets
        for target in targets:
            if target.weight > 0 and target.health.marked and not target.health.available(now_s):
                return _without_the_unavailable(targets, now_s)
        return targets

    def settle(self, now_s: float) -> None:
        """Forget what is over. For a timer, about once a second."""
        if self.troubled:
            for health in self._known.values():
                health.settle(now_s)

    def retire(self, wanted: Collection[tuple[BackendSpec, str]]) -> None:
        """Forget all but `wanted`, which is what the table in force names."""
        for key in [key for key in self._known if key not in wanted]:
            self._known.pop(key).leave()


def _without_the_unavailable(targets: tuple[Target, ...], now_s: float) -> tuple[Target, ...]:
    left: list[Target] = []
    best: Target | None = None
    best_s = 0.0
    live = False
    for target in targets:
        health = target.health
        if target.weight <= 0:
            left.append(target)
        elif not health.marked or health.available(now_s):
            left.append(target)
            live = True
        else:
            back_s = health.back_at_s(now_s)
            if best is None or back_s < best_s:
                best, best_s = target, back_s
    if live or best is None:
        return tuple(left)
    return (best,)
