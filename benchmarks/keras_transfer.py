"""The usual Keras recipe for a folder of photos, to compare with: a new head on a frozen network.

Frozen base, average of the last map, dropout, a dense layer, Adam at 0.001, ten epochs, validation
after each: what the guides of Keras do. `transfer.py --keras PYTHON` runs it in turns with ours; it
needs TensorFlow (``pip install tensorflow-cpu``), perhaps in an environment of its own.

    python benchmarks/keras_transfer.py photos/ --weights weights.h5 --width 0.35
"""

import argparse
import os
from pathlib import Path

os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")

import keras  # its backend is chosen above

SIDE = 224


def main() -> None:
    """Train, and print the validation accuracy of the last epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="train/CLASS/… and val/CLASS/…")
    parser.add_argument("--weights", required=True, help="a file without the classifier")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)

    train, val = (
        keras.utils.image_dataset_from_directory(
            arguments.photos / split, image_size=(SIDE, SIDE), batch_size=32, verbose=False
        )
        for split in ("train", "val")
    )
    base = keras.applications.MobileNetV2(
        (SIDE, SIDE, 3), arguments.width, include_top=False, weights=arguments.weights
    )
    base.trainable = False
    inputs = keras.Input((SIDE, SIDE, 3))
    features = base(keras.layers.Rescaling(1 / 127.5, -1)(inputs), training=False)
    pooled = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(features))
    model = keras.Model(inputs, keras.layers.Dense(len(train.class_names))(pooled))
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(train, validation_data=val, epochs=arguments.epochs, verbose=0).history
    print(f"validation accuracy {history['val_accuracy'][-1]:.2%}")


if __name__ == "__main__":
    main()
