"""Feeds and sets of records as text that people pass from one machine to another.

a@1f3c9d2e           a feed: the peer's name and the beginning of its key; one of both is enough where it is unique
a@1f3c9d2e:12,...    a cut: the first 12 batches of that feed, its birth included, and so on; what it does not name
                     is not in it
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from murmurate.peer.errors import LocalError
from murmurate.peer.protocol.feeds import Feed, Feeds
from murmurate.peer.protocol.records import Origin

KEY_DIGITS = 8  # of a key that we write behind a name: the few feeds of one peer do not meet in them by chance
KEY_DIGITS_MIN = 4  # of a key without a name: a shorter one is more likely a mistake
SHOWN_MAX = 16  # feeds that an error names (a guess)


def name_of(feed: Feed) -> str:
    """One feed's name for people."""
    return f"{feed.name}@{feed.origin.hex()[:KEY_DIGITS]}"


def find(feeds: Feeds, who: str) -> Feed:
    """The feed that is meant. Raises LocalError when there is none, or more than one."""
    name, at, key = who.partition("@")
    if at:
        found = [feed for feed in feeds if feed.name == name and feed.origin.hex().startswith(key.lower())]
    else:
        found = [feed for feed in feeds if feed.name == who]
        if not found and re.fullmatch("[0-9a-f]+", who.lower()) and len(who) >= KEY_DIGITS_MIN:
            found = [feed for feed in feeds if feed.origin.hex().startswith(who.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise LocalError(f"{who}: may mean {_listed(found)}; name one of them")
    raise LocalError(f"{who}: nobody of whom we hold records; known are {_listed(list(feeds)) or 'none'}")


def cut_text(feeds: Feeds, cut: Mapping[Origin, int]) -> str:
    """The text of a cut; feeds of which it has nothing are left out."""
    found = ((feeds.get(origin), count) for origin, count in sorted(cut.items()))
    return ",".join(f"{name_of(feed)}:{count}" for feed, count in found if feed is not None and count)


def read_cut(feeds: Feeds, text: str) -> dict[Origin, int]:
    """The cut that a text means. Raises LocalError for another text, and for a set that we do not hold."""
    cut: dict[Origin, int] = {}
    for part in text.split(","):
        who, _, digits = part.strip().rpartition(":")
        if not who or re.fullmatch("[0-9]{1,16}", digits) is None:
            raise LocalError(f"--at {text!r}: should be ORIGIN:BATCHES,... as `murmurate status` prints it")
        feed = find(feeds, who)
        if feed.origin in cut:
            raise LocalError(f"--at {text!r}: names {name_of(feed)} twice")
        cut[feed.origin] = int(digits)
    held = set(feeds.reached(cut.items()))
    if missing := [feed for feed in feeds if feed.origin in cut.keys() - held]:
        lacks = ", ".join(f"{name_of(feed)} has {feed.count} of {cut[feed.origin]} batches" for feed in missing)
        raise LocalError(f"--at {text!r}: we do not hold these records (yet): {lacks}")
    return cut


def _listed(feeds: list[Feed]) -> str:
    names = sorted(map(name_of, feeds))
    return ", ".join(names[:SHOWN_MAX]) + (", ..." if len(names) > SHOWN_MAX else "")
