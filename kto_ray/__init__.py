"""kto_ray: thumbs on a served chat model become a better model, continuously."""

__version__ = "0.1.0"
