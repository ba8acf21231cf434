"""The model card of an exported model, as the Hugging Face Hub shows it.

The metadata on top are described at https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fixbn_flwr.app.inference.loading import Which
from fixbn_flwr.app.inference.trained_model import TrainedModel
from fixbn_flwr.app.runs.summary import (
    RoundMetrics,
    best_round,
    best_tested_round,
    freeze_round_of,
)
from fixbn_flwr.method.schedule import Phase

_CARD = """\
---
license: other
license_name: to-be-chosen
library_name: fixbn-flwr
pipeline_tag: {pipeline}
tags: [federated-learning, batch-normalization, fixbn, flower]
{model_index}---

# {name}

{summary}

## Licence

**To be chosen.** Before you publish this model, write its licence here and in the metadata on top.
The terms of the training data can restrict the choice.

## Data

| | |
| --- | --- |
| task | `{task}` |
| images | {images} |
| classes | {classes} |
| partition | {partition} |
| clients | {clients} |

## Training

| | |
| --- | --- |
| network | `{network}`, `norm={norm}` |
| method | {method} |
| T\\*, the last round before the statistics freeze | {freeze} |
| rounds | {rounds} |

{statistics} All settings are in `config.json`.

## Metrics

| | round | {metric} | loss |
| --- | ---: | ---: | ---: |
{metrics}

{tests}

## Use

The input is float32 images in [0, 1], `[n, {channels}, {height}, {width}]` with any `n`. The output
is logits, `{output}`. Their softmax gives probabilities, in the order of the classes above.

| file | written by | read by |
| --- | --- | --- |
| `model.onnx` | `fixbn export --format onnx` | ONNX Runtime and other programs |
| `model.pt` | `fixbn export --format torchscript` | `torch.jit.load` |
| `model.safetensors` | `fixbn export --format safetensors` | `fixbn_flwr.load` with this folder |

The normalisation is a part of the model: it subtracts the mean {mean} and divides by the standard
deviation {std} per channel. Only the bare weights in `model.safetensors`, loaded into the network
without `fixbn_flwr.load`, take images that are already normalised.
"""

_METHODS = {
    "FixBN": "federated learning with FixBN ([arXiv 2303.06530](https://arxiv.org/abs/2303.06530))",
    "centralised": "centralised training on all data in one place",
}

_UNTESTED = "The server did not test this model."


def model_card(
    name: str,
    config: Mapping[str, Any],
    metrics: Sequence[RoundMetrics],
    model: TrainedModel,
    which: Which,
) -> str:
    """Return the model card, in Markdown.

    Args:
        name: The name of the run.
        config: The content of the run's config.json.
        metrics: The metrics of its rounds.
        model: The model.
        which: Which model of the run it is.
    """
    settings, classes = config["run_config"], len(model.class_names)
    channels, height, width = model.input_size
    images = f"{'grey' if channels == 1 else 'colour'}, {height}x{width} pixels"
    method = _METHODS.get(config["method"], f"federated learning, {config['method']}")
    # A run that gave up freezing ends in exploration.
    frozen = bool(metrics) and metrics[-1].phase is Phase.CALIBRATION
    freeze_round = freeze_round_of(metrics) if frozen else None
    here = next(reversed(metrics), None)
    if which == "best":
        here = best_round(metrics) or best_tested_round(metrics)
    rows = {"this model": here}
    if freeze_round is not None:
        rows["at T\\*"] = next((m for m in metrics if m.round == freeze_round), None)
    return _CARD.format(
        pipeline="image-segmentation" if model.per_pixel else "image-classification",
        model_index=_model_index(name, settings["task"], here, model),
        name=name,
        summary=f"It classifies {'pixels' if model.per_pixel else 'images'} ({images}) into"
        f" {classes} classes. It was trained by {method}, using fixbn-flwr.",
        task=settings["task"],
        images=images,
        classes=", ".join(model.class_names),
        partition=_partition(config),
        clients=config["clients"],
        network=settings["model"],
        norm=settings["norm"],
        method=method,
        freeze="none" if freeze_round is None else freeze_round,
        rounds=f"{len(metrics)} of {settings['num-server-rounds']}",
        statistics="" if freeze_round is None else _statistics(here, freeze_round),
        metric=_metric(model),
        tests=_tests(here, which),
        metrics="\n".join(_row(label, of) for label, of in rows.items() if of is not None),
        channels=channels,
        height=height,
        width=width,
        output=f"[n, {classes}, {height}, {width}]" if model.per_pixel else f"[n, {classes}]",
        mean=_numbers(model.mean),
        std=_numbers(model.std),
    )


def _partition(config: Mapping[str, Any]) -> str:
    settings = config["run_config"]
    if config["method"] == "centralised":
        return "none: all images are in one place, in batches as large as those of all clients"
    if config.get("own_data"):
        return "each client has its own data"
    return {
        "iid": "`iid`: at random",
        "dirichlet": f"`dirichlet`: unequal classes, concentration {settings['partition-alpha']:g}",
        "classes": f"`classes`: {settings['partition-classes']} classes per client",
        "natural": "`natural`: by the origin of the images",
    }[settings["partition"]]


def _statistics(here: RoundMetrics | None, freeze_round: int) -> str:
    if here is None:
        return ""
    if here.phase is Phase.CALIBRATION:
        return (
            f"Its statistics are those of round {freeze_round}, frozen since. So it is an ordinary"
            " inference model, the same on all clients."
        )
    return f"It is from round {here.round}, before the statistics froze."


def _tests(here: RoundMetrics | None, which: Which) -> str:
    """Return how the metrics came about, and the model."""
    if here is None:
        return _UNTESTED
    tested = here.test_accuracy is not None
    sentences = [
        "The server tested the global model on the test images of its task."
        if tested
        else _UNTESTED
    ]
    if here.validation_accuracy is not None:
        sentences.append(
            "On images that the clients held out, this model reaches"
            f" {here.validation_accuracy:.1%} on average and {here.validation_worst:.1%} at the"
            " worst client."
        )
    if which == "best" and here.validation_accuracy is not None:
        sentences.append(
            f"That average chose it among the rounds{'; the tests did not' if tested else ''}."
        )
    elif which == "best":
        sentences.append(
            "These tests also chose the model, so its result is better than on new images."
        )
    return " ".join(sentences)


def _metric(model: TrainedModel) -> str:
    return "mean IoU" if model.per_pixel else "accuracy"


def _row(label: str, metrics: RoundMetrics) -> str:
    score = "-" if metrics.test_accuracy is None else f"{metrics.test_accuracy:.1%}"
    loss = "-" if metrics.test_loss is None else f"{metrics.test_loss:.3f}"
    return f"| {label} | {metrics.round} | {score} | {loss} |"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _model_index(name: str, task: str, here: RoundMetrics | None, model: TrainedModel) -> str:
    """Return the metrics as the Hub lists them; nothing without a tested model."""
    if here is None or here.test_accuracy is None or not math.isfinite(here.test_accuracy):
        return ""
    kind = "image-segmentation" if model.per_pixel else "image-classification"
    metric = "mean_iou" if model.per_pixel else "accuracy"
    return f"""\
model-index:
- name: {json.dumps(name)}
  results:
  - task:
      type: {kind}
    dataset:
      name: {json.dumps(task)}
      type: {json.dumps(task)}
    metrics:
    - type: {metric}
      value: {here.test_accuracy:.4f}
"""
