"""The image pool: replicas that decode, where there are cores to decode beside the encoder."""

from configs.settings import PreprocessorSettings
from deployments.decoding import Decoder
from deployments.logs import hide_callers_mistakes


class ImagePreprocessor(Decoder):
    """A decoder as a deployment of its own."""

    def __init__(self, settings: PreprocessorSettings, max_pixels: int) -> None:
        hide_callers_mistakes()
        super().__init__(settings, max_pixels)
