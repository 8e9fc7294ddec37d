"""The lines of native batches: the cells of a matrix, which is stored as JSON in the batch's input."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.batches.batch import Batch, BatchLine
from serve_app.batches.dialect import AnswerFiles, LineRequest
from serve_app.batches.matrix import Matrix
from serve_app.config.settings import Settings
from serve_app.image_store.store import ImageStore

ENDPOINT = "/batches"


async def read_matrix(images: ImageStore, batch: Batch) -> Matrix:
    """The matrix of a native batch. Raises UnknownFile, StoreUnavailable."""
    return Matrix.model_validate_json(b"".join([part async for part in images.read_file(batch.input_file)]))


@dataclass(frozen=True, slots=True)
class MatrixLines:
    """BatchLines of a matrix. Their answers are the jobs' own images."""

    matrix: Matrix
    comments: bool

    @property
    def total(self) -> int:
        """The number of cells."""
        return self.matrix.total

    async def request(self, line: int) -> LineRequest:
        """A cell's request. Raises InvalidRequest."""
        request = self.matrix.request(line)
        return LineRequest(request.without_comments() if self.comments else request)

    async def answer(self, _batch: Batch, _ends: Mapping[int, BatchLine]) -> AnswerFiles:
        """No files."""
        return AnswerFiles()


@dataclass(frozen=True, slots=True)
class MatrixBatches:
    """A BatchDialect."""

    images: ImageStore
    settings: Settings

    async def read(self, batch: Batch) -> MatrixLines:
        """The cells of a batch. Raises UnknownFile, StoreUnavailable."""
        return MatrixLines(await read_matrix(self.images, batch), self.settings.prompts.comments)
