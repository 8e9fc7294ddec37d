"""Why a command ends without what was asked for."""

from typing import Any


class Failure(Exception):
    """The service, the job or a checkpoint failed, or can't be reached: exit code 1.

    code: one of docs/api.md's, or one of this command line's own (docs/cli.md). field: the part of the request that is
    wrong, where there is one. document: what --json prints; None for the error alone, in the form of the service's.
    """

    def __init__(self, code: str, message: str, field: str | None = None, document: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.document = document
