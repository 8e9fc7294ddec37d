"""What became of the jobs, by the job database itself: read beside the service, and without its job store."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from serve_app.image_store.store import ImageName
from serve_app.jobs.db.schema import jobs


@dataclass(frozen=True, slots=True)
class Entry:
    """One job. fence: of its last owner. images: of its result, by who wrote them."""

    job_id: str
    state: str
    fence: int
    images: tuple[ImageName, ...]

    @property
    def stale(self) -> bool:
        """Its result is that of an owner who wasn't the last."""
        return any((image.job_id, image.fence) != (self.job_id, self.fence) for image in self.images)


async def read_ledger(url: str) -> list[Entry]:
    """url: SQLAlchemy's, of the database."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        rows = (await connection.execute(select(jobs.c.id, jobs.c.state, jobs.c.fence, jobs.c.result))).all()
    await engine.dispose()
    return [Entry(row.id, row.state, row.fence, _images(row.result or {})) for row in rows]


def _images(result: dict[str, list[dict[str, str | None]]]) -> tuple[ImageName, ...]:
    names = [image["name"] for image in result.get("images", [])]
    return tuple(ImageName.parse(name) for name in names if name is not None)
