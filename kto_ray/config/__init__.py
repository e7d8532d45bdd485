"""One configuration tree, a section a room.

Every field has a default that suits the embedded, two-core machine; the files in configs/ hold only differences.
Nothing here imports torch, ray or vllm: a wrong config is told before anything heavy starts.
"""

from kto_ray.config.base import EMBEDDED_MODEL
from kto_ray.config.load import ConfigError, load_config, read, validated
from kto_ray.config.whole import Config

__all__ = ["EMBEDDED_MODEL", "Config", "ConfigError", "load_config", "read", "validated"]
