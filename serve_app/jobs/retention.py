"""Deletes expired jobs, batches and files, and what is in the image store of none of them.

Several routers may do it at once: each deletion can be repeated, and an image is deleted before the job that names it,
so that a crash leaves nothing that isn't found again. A job that hasn't ended is never touched.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from serve_app.image_store.store import ImageName, ImageStore
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, created_at, utc_now

# jobs looked up at once
_CHUNK = 200


class Retention:
    """Deletes from both stores.

    Args:
        result_ttl_s: seconds that a job is kept after its end; 0 keeps all.
        clock: the present time, with a zone.
    """

    def __init__(
        self, store: JobStore, images: ImageStore, result_ttl_s: float, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._images = images
        self._result_ttl_s = result_ttl_s
        self._clock = clock

    async def expire(self) -> None:
        """Delete the batches, files and jobs whose time is over, and their images. Raises StoreUnavailable."""
        for file_id in await self._store.files.expire():
            await self._images.delete_job(file_id)
        if self._result_ttl_s == 0:
            return
        while ended := await self._store.batches.ended_before(self._result_ttl_s):
            for batch in ended:
                if await self._store.batches.delete(batch):
                    await self._images.delete_job(batch.input_file)
        while old := await self._store.finished_before(self._oldest_kept()):
            for job in old:
                await self._images.delete_job(job.id)
                await self._store.delete(job.id)

    async def delete_orphans(self) -> int:
        """Delete the files that no job shows; returns their number. Raises StoreUnavailable.

        They are what a lost attempt wrote of a job that has ended, and files of no job at all, once a job of their age
        would have expired. So a database restored from an old copy costs no image that it would have kept.
        """
        deleted = 0
        by_job = await self._images.files_by_job()
        job_ids = sorted(by_job)
        for start in range(0, len(job_ids), _CHUNK):
            chunk = job_ids[start : start + _CHUNK]
            known = await self._store.known(chunk)
            stored = await self._store.files.known(chunk)
            for job_id in (one for one in chunk if one not in stored):
                orphans = by_job[job_id] - self._kept(job_id, known.get(job_id), by_job[job_id])
                if orphans:
                    await self._images.delete_files(job_id, orphans)
                    deleted += len(orphans)
        return deleted

    def _kept(self, job_id: str, job: Job | None, files: frozenset[str]) -> frozenset[str]:
        """The files of a job that are, or may still be, of use; `job` is None if there is none of this id."""
        if job is not None:
            return _shown(job) if job.state.terminal else files
        try:
            created = created_at(job_id)
        except ValueError:  # nothing of ours is called so
            return files
        expired = self._result_ttl_s > 0 and created < self._oldest_kept()
        return frozenset() if expired else files

    def _oldest_kept(self) -> datetime:
        return self._clock() - timedelta(seconds=self._result_ttl_s)


def _shown(job: Job) -> frozenset[str]:
    """The files that an ended job's result names."""
    names = (image["name"] for image in (job.result or {}).get("images", ()))
    return frozenset(ImageName.parse(name).file for name in names if name is not None)
