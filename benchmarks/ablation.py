"""From the first version to the default, one change at a time: accuracy and time of each step.

Every row keeps the changes of the rows above it.

    python benchmarks/ablation.py --json ablation.json
    python benchmarks/ablation.py --data mnist --data-dir ~/mnist --epochs 3
"""

from typing import Any

from comparison import compare, parser

FIRST_VERSION: dict[str, Any] = {
    "network": "first-version",
    "width": None,
    "strides": None,
    "optimizer": "adam",
    "lr": 0.001,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "batch_size": 64,
    "label_smoothing": 0.0,
    "ema": 0.0,
    "norm_momentum": 0.1,
    "crop": 1.0,
    "shift": 0.0,
    "rotate": 0.0,
    "zoom": 0.0,
    "shear": 0.0,
    "precision": "fp32",
    "fast_ops": "off",
}
CHANGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the first version: its network, Adam, constant rate", ()),
    ("the paper's network, with a stride plan", ("network", "width", "strides", "norm_momentum")),
    ("compiled operations, bf16 where the CPU has it", ("precision", "fast_ops")),
    ("SGD with Nesterov momentum, weight decay", ("optimizer", "lr", "weight_decay", "batch_size")),
    ("cosine schedule with warm-up, stepped every batch", ("schedule", "warmup_epochs")),
    ("label smoothing", ("label_smoothing",)),
    ("augmentation", ("crop", "shift", "rotate", "zoom", "shear")),
    ("moving average of the weights: the default", ("ema",)),
)


def main() -> None:
    """Run every row with every seed."""
    arguments = parser(__doc__, data="digits", epochs=20).parse_args()
    compare(rows(), arguments)


def rows() -> dict[str, dict[str, Any]]:
    """The settings of each row: what has changed so far is the recipe's, the rest the first's.

    >>> list(rows().values())[-1]  # all is as the recipe says
    {}
    """
    settings = dict(FIRST_VERSION)
    found = {}
    for change, names in CHANGES:
        for name in names:
            del settings[name]
        found[change] = dict(settings)
    return found


if __name__ == "__main__":
    main()
