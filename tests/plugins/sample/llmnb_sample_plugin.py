"What a plugin is: plain objects; pyproject.toml gives them names."


class First:
    "A decoding strategy that always takes the token with the lowest id."
    def __init__(self, offset=0): self.offset = offset
    def __call__(self, logits, *args, **kwargs): return logits.argmax(-1) * 0 + self.offset


def haiku():
    "A corpus of one document."
    return ["An old silent pond\nA frog jumps into the pond\nSplash! Silence again.\n"]
