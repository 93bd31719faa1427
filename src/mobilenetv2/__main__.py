"""``python -m mobilenetv2``."""

from mobilenetv2.cli import main

main()
