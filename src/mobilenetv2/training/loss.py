"""The forward pass of training: a batch to its loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.data.augment import Batch
from mobilenetv2.training.device import Device


def batch_loss(
    classifier: Classifier,
    batch: Batch,
    device: Device,
    label_smoothing: float,
    class_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a batch, with gradients, and how many pictures were right.

    Args:
        classifier: its network runs in the mode it is in.
        batch: on the device; mixed pictures count for both of their labels.
        device: gives the precision of the forward pass; the loss itself is float32.
        label_smoothing: share of the label that all classes get alike.
        class_weight: what a picture of each class counts for, float32 K; the same for all if left
            out.

    Returns:
        Mean loss (float32 scalar) and hits (int64 scalar), both still on the device.
    """
    inputs = classifier.normalize(batch.pictures).contiguous(memory_format=torch.channels_last)
    with device.autocast():
        logits = classifier.network(inputs)
    logits = logits.float()
    loss = _cross_entropy(logits, batch.labels, label_smoothing, class_weight)
    if batch.other_labels is not None:
        other = _cross_entropy(logits, batch.other_labels, label_smoothing, class_weight)
        loss = batch.weight * loss + (1 - batch.weight) * other
    hits = (logits.detach().argmax(1) == batch.labels).sum()
    return loss, hits


def _cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float, class_weight: Tensor | None
) -> Tensor:
    """The mean over the batch.

    PyTorch divides a weighted sum by the batch's own weights, so that a batch of common pictures
    would count as much as one of rare ones. Divided by the count, every picture keeps its weight.
    """
    if class_weight is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    total = F.cross_entropy(
        logits, labels, class_weight, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / len(labels)
