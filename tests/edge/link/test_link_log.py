"""Links that go down and come back are logged once each, and not all the time."""

from __future__ import annotations

from edge.link import QUIET_S, LinkLog, LinkState, LinkStatus


def log_changes(*changes: tuple[float, str, LinkStatus]) -> None:
    """Of (second, tier, status)."""
    seconds = iter([second for second, _, _ in changes])
    link_log = LinkLog(lambda: next(seconds))
    for _, tier, status in changes:
        link_log.changed(LinkState(tier, status, error=f"tier {tier}: refused"))


def test_a_link_that_goes_down_is_logged_once_and_once_more_when_it_is_back(logged):
    log_changes(
        (1, "cloud", LinkStatus.OPEN),
        (2, "cloud", LinkStatus.OPEN),  # another probe failed
        (3, "cloud", LinkStatus.HALF_OPEN),
        (3, "cloud", LinkStatus.OPEN),
        (5.5, "cloud", LinkStatus.HALF_OPEN),
        (5.5, "cloud", LinkStatus.CLOSED),
        (6, "cloud", LinkStatus.CLOSED),
    )
    assert logged == [
        "warning: the link to tier cloud is down, the device answers by itself: refused",
        "the link to tier cloud is up again, after 4.5 s",
    ]


def test_a_link_that_comes_and_goes_is_logged_once_in_a_while_and_each_link_for_itself(logged):
    flapping = [
        (second, "cloud", (LinkStatus.OPEN, LinkStatus.CLOSED)[second % 2]) for second in range(int(3 * QUIET_S))
    ]
    log_changes(*flapping)
    assert len(logged) == 6
    logged.clear()
    log_changes((1, "a", LinkStatus.OPEN), (1, "b", LinkStatus.OPEN), (2, "a", LinkStatus.CLOSED))
    assert len(logged) == 3
