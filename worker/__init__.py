"""Terrace's worker side: embedding modules, their optimizer, prefetch, models, data, training.

>>> import tempfile, torch, ps, worker
>>> ads = ps.Table("ads", dim=4, optimizer=ps.SGD(lr=0.5), init=ps.Zeros())
>>> with tempfile.TemporaryDirectory() as folder, ps.open(folder, [ads], ram="4MiB") as store:
...     bag = worker.EmbeddingBag(store, "ads")
...     sparse = worker.SparseOptimizer(store)
...     bag(torch.tensor([[7, 7, 9]])).sum().backward()
...     sparse.step()
...     store.read("ads", torch.tensor([7, 9])).tolist()
[[-1.0, -1.0, -1.0, -1.0], [-0.5, -0.5, -0.5, -0.5]]
"""

from worker.bag import EmbeddingBag
from worker.collection import EmbeddingBagCollection, Jagged, Keyed
from worker.optimizer import SparseOptimizer, clip_grad_norm_
from worker.prefetch import prefetch

__all__ = [
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "Jagged",
    "Keyed",
    "SparseOptimizer",
    "clip_grad_norm_",
    "prefetch",
]
