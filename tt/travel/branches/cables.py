"""What the network cards of a fork are connected to: nothing, the past, or somebody who is there now.

    off     nothing arrives, and what the guest sends is lost; the cable stays plugged in (the default)
    none    the cable is unplugged
    user, stream:...    as with `tt record --net`: somebody is there, and guest time keeps to the host's

A fork that keeps its parent's inputs gets its parent's frames again, unless it is told one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tt.errors import UsageError
from tt.net.network import Network
from tt.net.passt import Passt
from tt.net.spec import NetSpec, add_forwards, connect, parse_net
from tt.vmm.config import NetConfig

PARENTS_FRAMES = "its parent's frames"
OFF = "off"


@dataclass(frozen=True)
class Cables:
    """What each card of a fork is connected to, in words (`told`), and as `specs` of what is opened.

    `frames` says that the parent's frames come again.
    """

    told: tuple[str, ...] = ()
    specs: tuple[NetSpec, ...] = ()
    frames: bool = False

    @property
    def line(self) -> str:
        """What there is to say of it to somebody who said nothing, in a line; empty without cards."""
        if not self.told:
            return ""
        if self.frames:
            return "its network: the frames that came then come again at their ticks"
        if self.is_live:
            return f"its network is live: {'; '.join(self.told)}"
        if all(told == "none" for told in self.told):
            return "its network is unplugged"
        if set(self.told) <= {OFF, "none"}:
            return "its network is cut off: nothing arrives (--net user connects it, --net none unplugs it)"
        return f"its network: {'; '.join(self.told)}"

    @property
    def is_live(self) -> bool:
        """Whether somebody may answer now."""
        return any(spec.has_host for spec in self.specs)

    @property
    def unplugged(self) -> list[int]:
        """The cards whose cables are pulled out by hand, where nothing is opened."""
        return [] if self.is_live else [card for card, spec in enumerate(self.specs) if spec.kind == "none"]

    def open(
        self, nets: Sequence[NetConfig], links: dict[int, bool], say: Callable[[str], None]
    ) -> Network | None:
        """Open what is live; None where nothing is.  `links` says which cables were plugged in."""
        if not self.is_live:
            return None
        network = connect(self.specs, say)
        for card, cable in enumerate(network.cables):
            cable.up = links.get(card, True)
            if isinstance(cable.end, Passt):
                cable.end.introduce(nets[card].address)
        return network


def parse_cables(
    nets: Sequence[str] | None, cards: int, *, keep_inputs: bool, forwards: Sequence[str] = ()
) -> Cables:
    """Return what the `--net`s of a fork of a machine with so many `cards` say; raises `UsageError`.

    None, and no `forwards`: nothing was said.
    """
    if nets is None and not forwards:
        told = PARENTS_FRAMES if keep_inputs else OFF
        return Cables((told,) * cards, frames=keep_inputs)
    specs = add_forwards([_parse(text) for text in nets or ()], forwards)
    if len(specs) > cards:
        has = f"{cards} network card{'s' * (cards != 1)}" if cards else "no network card"
        raise UsageError(f"--net: the recorded machine has {has}, and a fork gets no new ones")
    specs += [NetSpec(OFF)] * (cards - len(specs))
    found = Cables(tuple(map(str, specs)), tuple(specs))
    if found.is_live and keep_inputs:
        raise UsageError(
            "the parent's frames and a live network do not go together: leave out --keep-inputs, or --net"
        )
    return found


def _parse(text: str) -> NetSpec:
    if text == OFF:
        return NetSpec(OFF)
    spec = parse_net(text)
    if spec.model or spec.mac:
        raise UsageError(f"--net {text}: a fork's card is the recorded one, with its model and address")
    if spec.kind == "pcap":
        raise UsageError(f"--net {text}: a fork's frames are in its trace: tt pcap writes them to a file")
    return spec
