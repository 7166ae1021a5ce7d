"""Continual learning without stored samples: Prototype Augmented Hypernetworks."""

import lazy_loader

# what is named in __init__.pyi is imported when it is asked for: until then nothing imports torch, which takes seconds
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
