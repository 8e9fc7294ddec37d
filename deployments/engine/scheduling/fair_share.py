"""Fair queuing (Demers et al., 1989): virtual time by account, for tenants and shapes; the least goes first.

A new account starts at the level of the others, so that idling earns no credit. The level rises with the time that all
spend, so that ever new accounts starve no old one.
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
        """Keep the accounts that have work now, forget the others, start new ones at the common level."""
        active = set(accounts)
        staying = [self._seconds[account] for account in active if account in self._seconds]
        if staying:
            self._level = max(self._level, min(staying))
        self._seconds = {account: self._seconds.get(account, self._level) for account in active}

    def seconds(self, account: Account) -> float:
        """Virtual seconds of an active account."""
        return self._seconds[account]

    def charge(self, account: Account, seconds: float) -> None:
        """Add device seconds to an account, if it is still active."""
        if account in self._seconds:
            self._seconds[account] += seconds
            self._level += seconds / len(self._seconds)
