"""Try out settings of a small model side by side, then use the best of them on many images: two pools of tasks.

The model is a softmax regression in plain numpy. Every item is done once, also when a shard moves on the way: what is
done lies in its checkpoint.
"""

import functools
import gzip
import itertools
import json
from pathlib import Path

import numpy as np
from numpy import ndarray as Array  # noqa: N812 - it reads better below

from hansa.worker.context import Context

PIXELS, DIGITS, HELD_OUT_ROWS = 64, 10, 360
Setting = tuple[float, float]


@functools.cache
def load(file: Path, seed: int) -> tuple[Array, Array]:
    """Images with a one for the bias behind each, and labels, in an order that depends on the seed alone."""
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    table = table[np.random.default_rng(seed).permutation(len(table))]
    images = np.hstack([table[:, :PIXELS] / 16.0, np.ones((len(table), 1))])
    return images, table[:, PIXELS].astype(int)


def train(setting: Setting, file: Path, epochs: int, seed: int) -> Array:
    """The weights that a setting leads to, from the rows that are not held out."""
    rate, decay = setting
    images, labels = (part[HELD_OUT_ROWS:] for part in load(file, seed))
    random, weights = np.random.default_rng(seed), np.zeros((PIXELS + 1, DIGITS))
    for _ in range(epochs):
        for rows in np.array_split(random.permutation(len(images)), len(images) // 16):
            scores = np.exp(images[rows] @ weights)
            scores /= scores.sum(axis=1, keepdims=True)
            scores[np.arange(len(rows)), labels[rows]] -= 1
            weights -= rate * (images[rows].T @ scores / len(rows) + decay * weights)
    return weights


def try_out(setting: Setting, file: Path, epochs: int, seed: int) -> float:
    """How many of the held-out digits a setting reads right. One item of the sweep."""
    images, labels = (part[:HELD_OUT_ROWS] for part in load(file, seed))
    weights = train(setting, file, epochs, seed)
    return float(((images @ weights).argmax(axis=1) == labels).mean())


def label(weights: Array, images: Array) -> Array:
    """The digits in a batch of images. One item of the inference; the weights are made once in each worker."""
    digits: Array = (images @ weights).argmax(axis=1)
    return digits


def main(ctx: Context) -> None:
    """The entry point: Hansa calls it once in every shard, and the pools have the devices."""
    given, file = ctx.parameters, ctx.inputs / "digits.csv.gz"
    settings = list(itertools.product(given["rates"], given["decays"]))
    facts = {"file": file, "epochs": given["epochs"], "seed": given["seed"]}

    accuracy = np.zeros(len(settings))
    for result in ctx.tasks(functools.partial(try_out, **facts), settings, name="sweep"):
        accuracy[result.index] = 0.0 if result.error else result.value
    if ctx.round == 0:
        accuracy = ctx.sync(accuracy) * ctx.shards  # each shard knows its own settings and has zeros for the others
        ctx.checkpoint({"accuracy": accuracy})
    else:
        saved = ctx.restore()
        assert saved is not None, "after the first round there is a checkpoint"
        accuracy = saved["accuracy"]
    best = settings[int(accuracy.argmax())]

    images, labels = load(file, given["seed"])
    batches = [images[start : start + given["batch"]] for start in range(0, len(images), given["batch"])]
    right = seen = 0
    with (ctx.outputs / f"labels-{ctx.shard}.csv").open("w") as lines:
        for result in ctx.tasks(
            label, batches, setup=functools.partial(train, best, **facts), name="labels", ordered=True
        ):
            if result.error:
                continue
            start = result.index * given["batch"]
            right += int((result.value == labels[start : start + len(result.value)]).sum())
            seen += len(result.value)
            lines.writelines(f"{start + row},{digit}\n" for row, digit in enumerate(result.value))
    tried = {
        f"rate {rate}, decay {decay}": round(float(one), 4)
        for (rate, decay), one in zip(settings, accuracy, strict=True)
    }
    told = {"tried": tried, "best": best, "right": right, "of": seen}
    (ctx.outputs / f"sweep-{ctx.shard}.json").write_text(json.dumps(told, indent=1) + "\n")
