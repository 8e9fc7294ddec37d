"""The rows in which an unfinished job's images are kept half drawn: one for each image and stage, the newest alone.

They end with their job, in its transaction. Knows nothing of what is in the bytes.
"""

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, delete, insert, select, tuple_

from serve_app.jobs.db.schema import job_states, jobs
from serve_app.jobs.states import UNFINISHED

# of a job: the image's index, the stage's
ImageStage = tuple[int, int]


def load(connection: Connection, job_id: str) -> dict[ImageStage, bytes]:
    """All that is kept of a job."""
    rows = connection.execute(select(job_states).where(job_states.c.job_id == job_id))
    return {(row.image, row.stage): row.data for row in rows}


def keep(connection: Connection, job_id: str, states: Mapping[ImageStage, bytes]) -> None:
    """Put these in the place of what was kept of the same images and stages."""
    place = tuple_(job_states.c.image, job_states.c.stage)
    connection.execute(delete(job_states).where(job_states.c.job_id == job_id, place.in_(list(states))))
    rows = [{"job_id": job_id, "image": image, "stage": stage, "data": data} for (image, stage), data in states.items()]
    connection.execute(insert(job_states), rows)


def forget(connection: Connection, job_ids: Collection[str]) -> None:
    """These jobs have ended."""
    if job_ids:
        connection.execute(delete(job_states).where(job_states.c.job_id.in_(list(job_ids))))


def forget_ended(connection: Connection) -> None:
    """Delete what is of no unfinished job: software that knew no states may have ended one."""
    unfinished = select(jobs.c.id).where(jobs.c.state.in_(sorted(UNFINISHED)))
    connection.execute(delete(job_states).where(job_states.c.job_id.not_in(unfinished)))
