"""What each choice of the `mnist` recipe is worth: every row changes one thing.

    python benchmarks/recipe_search.py --data-dir ~/mnist --json recipe_search.json
    python benchmarks/recipe_search.py --data-dir ~/mnist --only strides width --epochs 26

The rows were chosen by hand; the recipe is what they led to. Fewer epochs than the recipe's show
the order of the choices in less time.
"""

from typing import Any

from comparison import compare, parser
from mobilenetv2.network.mobilenetv2 import stride_plan

CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "strides": ({"strides": stride_plan(28, 28)},),
    "width": ({"width": 0.35}, {"width": 0.75}),
    "batch": ({"batch_size": 64, "lr": 0.1}, {"batch_size": 256, "lr": 0.4}),
    "rate": ({"lr": 0.1}, {"lr": 0.4}),
    "schedule": ({"schedule": "multistep"}, {"schedule": "exponential"}),
    "warm-up": ({"warmup_epochs": 0.0},),
    "smoothing": ({"label_smoothing": 0.0},),
    "average": ({"ema": 0.0},),
    "decay": ({"weight_decay": 4e-5},),
    "statistics": ({"norm_momentum": 0.1},),
    "augmentation": (
        {"rotate": 0.0, "zoom": 0.0, "shear": 0.0},
        {"shift": 0.0, "rotate": 0.0, "zoom": 0.0, "shear": 0.0},
    ),
    "mixing": ({"mixup": 0.2}, {"cutmix": 1.0}),
    "dropout": ({"dropout": 0.0},),
}


def main() -> None:
    """Run the recipe and every change to it, with every seed."""
    made = parser(__doc__, data="mnist", epochs=4)
    made.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES))
    arguments = made.parse_args()
    rows: dict[str, dict[str, Any]] = {"the recipe": {}}
    for choice in arguments.only:
        for settings in CHOICES[choice]:
            rows[", ".join(f"{name} {value}" for name, value in settings.items())] = settings
    compare(rows, arguments)


if __name__ == "__main__":
    main()
