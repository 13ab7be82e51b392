"""Two histories of one origin among honest peers: whoever relays one is not to blame, and all void both."""

from __future__ import annotations

from collections import deque

import pytest

from murmurate.peer.lab.seeds_life import verify
from murmurate.peer.protocol.events import (
    Dropped,
    Effect,
    Envelope,
    LinkUp,
    PeerId,
    Received,
    Report,
    Rumor,
    Send,
    Turn,
)
from murmurate.peer.protocol.feeds import Judgement
from murmurate.peer.protocol.handover import Handover
from murmurate.peer.protocol.records import Batch
from murmurate.peer.protocol.rumors import Rumors

from .scene import B, C, D
from .seeds_scene import GOSSIP_S, RECORDS, batch, birth, feed, holding, key


class Line:
    """Gossip of b - c - d, without any timer: what is not asked for at once is never asked for."""

    def __init__(self) -> None:
        self.feeds = {name: holding(birth("far"), birth("me")) for name in (B, C, D)}
        self.rumors: dict[PeerId, Rumors] = {}
        self.told: deque[tuple[PeerId, Envelope]] = deque()
        self.blamed: list[Dropped] = []
        self.now = 0.0
        for name, links in ((B, (C,)), (C, (B, D)), (D, (C,))):
            handover = Handover(key(name), self.feeds[name], links, self.lives, verify, None, 1, GOSSIP_S)
            self.rumors[name] = Rumors(self.feeds[name], links, self.lives, GOSSIP_S, handover)
        for name, link in ((B, C), (C, B), (C, D), (D, C)):
            self.perform(name, self.rumors[name].handle(LinkUp(link, 1, Turn(0)), 0.0))
        self.settle()

    def lives(self, _: PeerId) -> bool:
        return True

    def perform(self, name: PeerId, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, body):
                    self.told.append((to, Envelope(name, 1, body)))
                case Report(Dropped() as fact):
                    self.blamed.append(fact)
                case _:
                    pass

    def learn(self, names: tuple[PeerId, ...], *batches: Batch) -> None:
        """What they heard before, and their other neighbours not yet."""
        for name in names:
            judgements = {self.feeds[name].accept(one) for one in batches}
            assert judgements <= {Judgement.NEW}

    def settle(self) -> None:
        self.now += 10.0
        for _ in range(1000):
            if not self.told:
                return
            to, envelope = self.told.popleft()
            self.perform(to, self.rumors[to].handle(Received(envelope), self.now))
        raise AssertionError("they never stop")


@pytest.mark.parametrize(("common", "parted"), [(1, 1), (1, 4), (5, 1), (40, 40)])
def test_whoever_relays_another_history_is_not_to_blame_and_all_void_both(common: int, parted: int) -> None:
    line = Line()
    line.learn((B, C, D), *feed("far", common)[1:])
    numbers = range(common, common + parted)
    line.learn((B, C), *(batch("far", number, round=1000 + number) for number in numbers))
    # Its next batch cannot follow in c's history; with it comes one that has nothing to do with all this.
    newest = (batch("far", common + parted), batch("me", 1))
    line.learn((D,), *(batch("far", number) for number in numbers), *newest)
    line.told.append((C, Envelope(D, 1, Rumor(newest))))
    line.settle()
    assert line.blamed == []
    assert len({feeds.digest for feeds in line.feeds.values()}) == 1
    for feeds in line.feeds.values():
        found, other = feeds.get(key("far")), feeds.get(key("me"))
        assert found is not None
        assert other is not None
        assert (found.count, found.closed, other.count) == (common, (common - 1) * RECORDS, 2)
