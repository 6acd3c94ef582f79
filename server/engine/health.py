"""Whether an engine computes: judged by its steps, by what they should take, and by canaries. Pure.

Clients' jobs alone never make an engine look sick: an input may fail by its own fault, and a row of NaN may come of
what somebody asked for. But failing steps call for a canary, which is nobody's, and canaries that fail are the
engine's.
"""

from dataclasses import dataclass

PATIENCE_FACTOR = 10.0
LEAST_PATIENCE_S = 5.0
FIRST_PATIENCE_S = 120.0
"""Where nothing is known of what a step takes."""
MAX_FAILED_CANARIES = 3
"""In a row; then the engine will not recover by itself, and its process should be started again."""
SUSPICIOUS_FAILURES = 3
"""Failed steps in a row, after which a canary should say whose fault that is."""
FAILING_CANARY_INTERVAL_S = 0.5


@dataclass(slots=True)
class Health:
    """Mutable: what the last steps were like. `started_s` of the step that runs, if one does, and what it should take.

    `canary_interval_s`: how often an idle engine proves itself.
    """

    canary_interval_s: float
    last_success_s: float = 0.0
    last_canary_s: float = 0.0
    num_failed_canaries: int = 0
    num_failed_steps: int = 0
    started_s: float | None = None
    predicted_s: float = 0.0

    def begin(self, now_s: float, predicted_s: float) -> None:
        """A step starts on the device."""
        self.started_s, self.predicted_s = now_s, predicted_s

    def end(self, now_s: float, *, is_good: bool, is_canary: bool) -> None:
        self.started_s = None
        if is_good:
            self.last_success_s, self.num_failed_steps = now_s, 0
        else:
            self.num_failed_steps += 1
        if is_canary:
            self.num_failed_canaries = 0 if is_good else self.num_failed_canaries + 1

    @property
    def patience_s(self) -> float:
        """How long the step that runs may take before it counts as hung."""
        if self.predicted_s <= 0:
            return FIRST_PATIENCE_S
        return max(LEAST_PATIENCE_S, PATIENCE_FACTOR * self.predicted_s)

    def explain_hang(self, now_s: float) -> str | None:
        """Why the step that runs will not end, or None."""
        if self.started_s is None or now_s - self.started_s <= self.patience_s:
            return None
        return (
            f"a step has run for {now_s - self.started_s:.1f} s and should have taken {self.predicted_s:.2f} s; the "
            "engine hangs"
        )

    def explain_failures(self) -> str | None:
        """Why the engine should be started again, or None."""
        if self.num_failed_canaries < MAX_FAILED_CANARIES:
            return None
        return f"{self.num_failed_canaries} canaries in a row have failed"

    def is_canary_due(self, now_s: float, *, is_idle: bool) -> bool:
        """Idle for long, or failing for whatever reason."""
        is_failing = self.num_failed_canaries > 0 or self.num_failed_steps >= SUSPICIOUS_FAILURES
        if is_failing:
            return now_s - self.last_canary_s >= FAILING_CANARY_INTERVAL_S
        return is_idle and now_s - max(self.last_success_s, self.last_canary_s) >= self.canary_interval_s

    def explain_unready(self, now_s: float) -> str | None:
        """Why no work should be sent here, or None. A step that takes no longer than it should is no reason."""
        if self.last_success_s == 0:
            return "starting"
        if self.num_failed_canaries:
            return f"the last {self.num_failed_canaries} canaries have failed"
        if self.started_s is not None:
            return self.explain_hang(now_s)
        age_s = now_s - self.last_success_s
        if age_s >= 3 * self.canary_interval_s:
            return f"no forward pass has succeeded for {age_s:.0f} s"
        return None
