"""Links that go down and come back are told of once each, and not all the time."""

from __future__ import annotations

from edge.link import QUIET_S, LinkLog, LinkState, LinkStatus


def told_of(*changes: tuple[float, str, LinkStatus]) -> list[str]:
    """The lines about (second, tier, status)."""
    lines: list[str] = []
    seconds = iter([second for second, _, _ in changes])
    news = LinkLog(lines.append, lambda: next(seconds))
    for _, tier, status in changes:
        news.changed(LinkState(tier, status, error=f"tier {tier}: refused"))
    return lines


def test_a_link_that_goes_down_is_told_of_once_and_once_more_when_it_is_back():
    assert told_of(
        (1, "cloud", LinkStatus.OPEN),
        (2, "cloud", LinkStatus.OPEN),  # another probe failed
        (3, "cloud", LinkStatus.HALF_OPEN),
        (3, "cloud", LinkStatus.OPEN),
        (5.5, "cloud", LinkStatus.HALF_OPEN),
        (5.5, "cloud", LinkStatus.CLOSED),
        (6, "cloud", LinkStatus.CLOSED),
    ) == [
        "warning: the link to tier cloud is down, the device answers by itself: refused",
        "the link to tier cloud is up again, after 4.5 s",
    ]


def test_a_link_that_comes_and_goes_is_told_of_once_in_a_while_and_each_link_for_itself():
    flapping = [
        (second, "cloud", (LinkStatus.OPEN, LinkStatus.CLOSED)[second % 2]) for second in range(int(3 * QUIET_S))
    ]
    assert len(told_of(*flapping)) == 6
    assert len(told_of((1, "a", LinkStatus.OPEN), (1, "b", LinkStatus.OPEN), (2, "a", LinkStatus.CLOSED))) == 3
