"""Every error a caller can meet, by what the caller can do about it.

    CascadeError
    ├── ConfigError        a setting is wrong: fix the file (all findings at once)
    │   ├── TaskNotInstalled   it names a task that another distribution brings
    │   └── NotUsableNow       what it names cannot be used now, and may be later: try again
    ├── ModelError         a model file is missing, changed, or does not fit its manifest
    ├── RuntimeMissing     a package is not installed: the message names the pip install
    ├── InputError         this example cannot be read; other examples are not affected
    ├── Unauthenticated    a server was not shown who calls
    ├── NotAllowed         the caller is known, and may not do this
    └── TierError          a tier gave no answer; `tier` names it
        ├── TierUnavailable    it cannot be reached, or went away in the call
        ├── TierTimeout        no answer within the deadline
        ├── TierOverloaded     it sheds load: try later
        ├── TierFailed         none of its members voted
        └── TierRejected       it refused the request: trying again will not help
            └── TierRefused    it refuses this caller or this task, until somebody corrects that

Nothing here knows of gRPC: `coe.protocol.status` holds the one table between these and status codes.
"""

from __future__ import annotations

from typing import Self

from .types import NO_CALL, CallCost


class CascadeError(Exception):
    """Root of every error this project raises on purpose."""


class ConfigError(CascadeError):
    """One or more settings are wrong.

    Args:
        findings: one line each: where, what was expected, what was found, how to fix it.
        source: the file or argument the settings came from.
    """

    def __init__(self, findings: list[str], source: str = "") -> None:
        self.findings = list(findings)
        self.source = source
        prefix = f"{source}: " if source else ""
        super().__init__("\n".join(prefix + finding for finding in self.findings))


class TaskNotInstalled(ConfigError):
    """A setting names a task whose distribution is not installed."""


class NotUsableNow(ConfigError):
    """What the settings name cannot be used now: in use, not there yet, a full or read-only disk. It may be later."""


class ModelError(CascadeError):
    """A model cannot be used as declared: missing, changed, or of another shape."""


class RuntimeMissing(CascadeError):
    """A runtime's package is not installed."""

    def __init__(self, runtime: str, fix: str) -> None:
        self.runtime = runtime
        self.fix = fix
        super().__init__(f"the {runtime} runtime is not installed: {fix}")


class InputError(CascadeError):
    """An example cannot be read as the task's input."""


class Unauthenticated(CascadeError):
    """The caller did not prove who it is."""


class NotAllowed(CascadeError):
    """The caller is known, and may not do this."""


class TierError(CascadeError):
    """A tier gave no answer.

    `tier` is its name, `reason` a short lower-case word for reports, `call` what the attempt cost all the same.
    """

    reason = "error"

    def __init__(self, tier: str, message: str) -> None:
        self.tier = tier
        self.message = message
        self.call: CallCost = NO_CALL
        super().__init__(f"tier {tier}: {message}")

    def with_call(self, call: CallCost) -> Self:
        """The same error, with what the attempt cost."""
        self.call = call
        return self


class TierUnavailable(TierError):
    """The tier cannot be reached, or went away during the call."""

    reason = "unavailable"


class TierTimeout(TierError):
    """The tier did not answer within the deadline."""

    reason = "timeout"


class TierOverloaded(TierError):
    """The tier sheds load; the same request may succeed later.

    `retry_after_s`: seconds after which trying again makes sense; None: not known.
    """

    reason = "overloaded"

    def __init__(self, tier: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(tier, message)
        self.retry_after_s = retry_after_s


class TooManyCalls(TierOverloaded):
    """More calls are under way at a server than it takes at once."""

    reason = "calls"


class OverQuota(TierOverloaded):
    """This caller asked for more than its share."""

    reason = "quota"


class TierFailed(TierError):
    """None of the tier's members voted on an example: each raised, or its output was not what it should be.

    `message` names the members and why; `brief` is what a caller on another machine may read.
    """

    reason = "failed"

    def __init__(self, tier: str, reasons: str) -> None:
        super().__init__(tier, f"no member voted: {reasons}")
        self.brief = f"tier {tier}: no member voted"


class TierRejected(TierError):
    """The tier refused the request; the same request will be refused again."""

    reason = "rejected"


class TierRefused(TierRejected):
    """The tier refuses this caller, has no such model, or serves another task: it answers once that is corrected."""

    reason = "refused"


def describe_error(error: BaseException) -> str:
    """An error in one line: the operating system's words where it has them, else its first line, else its type."""
    return getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]


MOST_REASON = 200  # characters


def describe_failure(error: BaseException) -> str:
    """Why a member failed, in one line with the error's type, unless it is an error of this project."""
    words = describe_error(error)
    kind = type(error).__name__
    return (words if isinstance(error, CascadeError) or words == kind else f"{kind}: {words}")[:MOST_REASON]
