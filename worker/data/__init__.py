"""Training data: from a specification such as ``flights`` or a folder of logs to batches."""

from worker.data.batch import Batch
from worker.data.catalog import open_dataset
from worker.data.dataset import Dataset

__all__ = ["Batch", "Dataset", "open_dataset"]
