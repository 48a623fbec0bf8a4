"""Find the little pictures that handwritten digits are made of: k-means over patches of 4 by 4 pixels.

Every shard looks at its own digits. In each round it moves every little picture to the mean of the patches that are
nearest to it, and all shards average what they found, each picture by how many patches it stands for.
"""

import gzip

import numpy as np
from einops import rearrange
from numpy import ndarray as Array  # noqa: N812 - it reads better below

from hansa.worker.context import Context

SIDE, PATCH = 8, 4


def patches_of(ctx: Context) -> Array:
    """This worker's digits, cut into patches; one patch a row."""
    with gzip.open(ctx.inputs / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    images = table[ctx.share(len(table)), : SIDE * SIDE] / 16.0
    cut: Array = rearrange(images, "n (h p w q) -> (n h w) (p q)", h=SIDE // PATCH, p=PATCH, w=SIDE // PATCH, q=PATCH)
    return cut


def nearest(patches: Array, pictures: Array) -> tuple[Array, float]:
    """Which picture is nearest to each patch, and how far that is on the mean."""
    distances = ((patches[:, None, :] - pictures[None, :, :]) ** 2).sum(axis=2)
    return distances.argmin(axis=1), float(distances.min(axis=1).mean())


def train(ctx: Context) -> None:
    """The entry point: Hansa calls it in every worker of every shard."""
    kinds = ctx.parameters["kinds"]
    patches = patches_of(ctx)
    random = np.random.default_rng(ctx.parameters["seed"])
    state = ctx.restore() or {"sums": random.random((kinds, PATCH * PATCH)), "counts": np.ones(kinds)}
    error = 0.0
    while ctx.round < ctx.parameters["rounds"]:
        # Sums and counts can be averaged over shards, and their quotient is the mean over all of them.
        pictures = state["sums"] / np.maximum(state["counts"], 1e-9)[:, None]
        kind, error = nearest(patches, pictures)
        counts = np.bincount(kind, minlength=kinds) / len(patches)
        sums = np.zeros_like(pictures)
        np.add.at(sums, kind, patches / len(patches))
        # A picture that nothing is near to stays where it is, with next to no weight.
        lonely = counts == 0
        sums[lonely], counts[lonely] = pictures[lonely] * 1e-6, 1e-6
        state = ctx.sync({"sums": sums, "counts": counts})
        ctx.report(step=ctx.round, error=error)
        ctx.checkpoint(state)
    if ctx.shard == 0 and ctx.worker == 0:
        pictures = state["sums"] / state["counts"][:, None]
        np.savez(ctx.outputs / "pictures.npz", pictures=rearrange(pictures, "k (p q) -> k p q", p=PATCH))
