"""Node ids of the quick start in API format, which the prompts made here keep, and the tiny checkpoints."""

PICTURE, LOADER, ENGINES, CONDITIONING, SAMPLER, DECODE, SAVE, BUILDER = "12345678"
CHECKPOINT = "tiny-random"
SVD = "tiny-svd"
WANS = {"wan21": "tiny-wan21", "a14b": "tiny-wan22", "ti2v": "tiny-ti2v"}
"""The tiny Wans by their kind."""
DYNAMICRAFTERS = {
    "1024": "tiny-dynamicrafter",
    "interp": "tiny-dynamicrafter-interp",
    "tooncrafter": "tiny-tooncrafter",
}
"""The tiny DynamiCrafters by their kind."""
