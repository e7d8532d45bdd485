"""`python -m kto_ray` is `kto-ray`."""

from kto_ray.cli import main

main()
