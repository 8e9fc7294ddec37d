"""Settings with API keys, for tests of who may do what."""

from pathlib import Path
from typing import Any

from serve_app.auth.key_file import Scope, new_key

GENERATE_READ = frozenset({Scope.GENERATE, Scope.READ})


def with_keys(raw: dict[str, Any], path: Path, **owners: frozenset[Scope]) -> dict[str, str]:
    """Write a key for each owner into a file that `raw` names from now on; the keys by their owners."""
    made = {owner: new_key(owner, scopes) for owner, scopes in owners.items()}
    path.write_text("".join(f"{line}\n" for _, line in made.values()))
    raw["access"] = {**raw.get("access", {}), "keys_file": str(path), "reload_s": 0}
    return {owner: key for owner, (key, _) in made.items()}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
