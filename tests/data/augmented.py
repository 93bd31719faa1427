"""Both halves of augmentation, as `Batches` puts them together."""

from torch import Tensor

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data.augment import Batch, changed, mixed


def augment(
    batch: Batch,
    size: tuple[int, int],
    indices: Tensor,
    config: AugmentConfig,
    key: tuple[int, int, int],
) -> Batch:
    """The batch with every configured change; the key is seed, epoch and step."""
    seed, epoch, _ = key
    pictures = changed(batch.pictures, size, indices, config, seed, epoch)
    return mixed(batch._replace(pictures=pictures), config, key)
