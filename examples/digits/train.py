"""Teach a small neural network to read handwritten digits, on as many machines as the job has shards.

Every worker trains on its own rows, then all of them average what they learned, thirty times. It needs numpy and
nothing else. The random numbers of a round depend on the seed, the worker and the round only, so a run that goes on
from a checkpoint does what it would have done anyway.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray as Array  # noqa: N812 - it reads better below

from hansa.worker.context import Context

Model = dict[str, dict[str, Array]]
HELD_OUT_ROWS = 360
PIXELS, DIGITS, SIDE = 64, 10, 8


def load(seed: int) -> tuple[Array, Array, Array, Array]:
    """Images and labels to train on, then those to test with, in an order that depends on the seed alone."""
    with gzip.open(Path(__file__).with_name("digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    table = table[np.random.default_rng(seed).permutation(len(table))]
    images, labels = table[:, :PIXELS] / 16.0, table[:, PIXELS].astype(int)
    # The first rows are held out: no worker of any shard ever trains on them.
    return images[HELD_OUT_ROWS:], labels[HELD_OUT_ROWS:], images[:HELD_OUT_ROWS], labels[:HELD_OUT_ROWS]


def fresh_model(hidden: int, seed: int) -> Model:
    """The same beginning everywhere."""
    random = np.random.default_rng(seed)
    return {
        "hidden": {"weights": random.normal(0, (2 / PIXELS) ** 0.5, (PIXELS, hidden)), "bias": np.zeros(hidden)},
        "output": {"weights": random.normal(0, (1 / hidden) ** 0.5, (hidden, DIGITS)), "bias": np.zeros(DIGITS)},
    }


def forward(model: Model, images: Array) -> tuple[Array, Array]:
    """What the hidden layer sees in the images, and how likely each digit is."""
    seen = np.maximum(images @ model["hidden"]["weights"] + model["hidden"]["bias"], 0)
    scores = seen @ model["output"]["weights"] + model["output"]["bias"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return seen, scores / scores.sum(axis=1, keepdims=True)


def step(model: Model, images: Array, labels: Array, rate: float) -> float:
    """One step of gradient descent on a batch, in place; gives the mean loss before it."""
    seen, likely = forward(model, images)
    rows = np.arange(len(labels))
    loss = -np.log(likely[rows, labels] + 1e-12).mean()
    wrong = likely
    wrong[rows, labels] -= 1
    wrong /= len(labels)
    back = (wrong @ model["output"]["weights"].T) * (seen > 0)
    model["output"]["weights"] -= rate * (seen.T @ wrong)
    model["output"]["bias"] -= rate * wrong.sum(axis=0)
    model["hidden"]["weights"] -= rate * (images.T @ back)
    model["hidden"]["bias"] -= rate * back.sum(axis=0)
    return float(loss)


def shifted(images: Array, random: np.random.Generator) -> Array:
    """The images moved by up to one pixel, each its own way, so that the network learns shapes and not places."""
    padded = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
    down, right = random.integers(0, 3, (2, len(images)))
    rows = down[:, None, None] + np.arange(SIDE)[None, :, None]
    columns = right[:, None, None] + np.arange(SIDE)[None, None, :]
    moved: Array = padded[np.arange(len(images))[:, None, None], rows, columns].reshape(-1, PIXELS)
    return moved


def train(ctx: Context) -> None:
    """The entry point: Hansa calls it in every worker of every shard."""
    seed, rounds = ctx.parameters["seed"], ctx.parameters["rounds"]
    images, labels, test_images, test_labels = load(seed)
    mine = ctx.share(len(images))
    images, labels = images[mine], labels[mine]
    model = ctx.restore() or fresh_model(ctx.parameters["hidden"], seed)
    print(f"worker {ctx.worker} of shard {ctx.shard}: {len(images)} rows, from round {ctx.round} on")
    accuracy = loss = 0.0
    while ctx.round < rounds:
        random = np.random.default_rng([seed, ctx.shard, ctx.worker, ctx.round])
        rate = ctx.parameters["rate"] * (1 - 0.8 * ctx.round / rounds)
        losses = []
        for _ in range(ctx.parameters["local_epochs"]):
            order = random.permutation(len(images))
            moved = shifted(images[order], random)
            for start in range(0, len(order), ctx.parameters["batch"]):
                batch = slice(start, start + ctx.parameters["batch"])
                losses.append(step(model, moved[batch], labels[order[batch]], rate))
        model = ctx.sync(model, weight=len(images))
        loss = float(np.mean(losses))
        accuracy = float((forward(model, test_images)[1].argmax(axis=1) == test_labels).mean())
        ctx.report(step=ctx.round, loss=loss, accuracy=accuracy)
        if ctx.round % ctx.parameters["checkpoint_rounds"] == 0:
            ctx.checkpoint(model)
    if ctx.shard == 0 and ctx.worker == 0:
        arrays: dict[str, Any] = {
            f"{layer}.{name}": array for layer, part in model.items() for name, array in part.items()
        }
        np.savez(ctx.outputs / "model.npz", **arrays)
        facts = {"accuracy": accuracy, "loss": loss, "rounds": ctx.round, "held_out_rows": HELD_OUT_ROWS}
        (ctx.outputs / "metrics.json").write_text(json.dumps(facts, indent=2) + "\n")
