"""Who has had how much of the device: virtual-time accounts for tenants, for shapes, for lanes.

Fair queuing (Demers et al., 1989) cut down to what a batcher needs: the account with the least time goes first. One
that is new starts from the level of those that are not, so that idling earns no credit; the level rises with the time
that is spent, shared by all, so that ever new accounts starve no old one.
"""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Account = TypeVar("Account", bound=Hashable)


class FairShare(Generic[Account]):
    """Device seconds by account, among those that have work now."""

    def __init__(self) -> None:
        self._seconds: dict[Account, float] = {}
        self._level = 0.0

    def activate(self, accounts: Iterable[Account]) -> None:
        """Say which accounts have work now; the others are forgotten, newcomers start at the common level."""
        active = set(accounts)
        staying = [self._seconds[account] for account in active if account in self._seconds]
        if staying:
            self._level = max(self._level, min(staying))
        self._seconds = {account: self._seconds.get(account, self._level) for account in active}

    def seconds(self, account: Account) -> float:
        """Virtual seconds of an active account."""
        return self._seconds[account]

    def charge(self, account: Account, seconds: float) -> None:
        """Add device seconds to an active account; one that left meanwhile is past charging."""
        if account in self._seconds:
            self._seconds[account] += seconds
            self._level += seconds / len(self._seconds)
