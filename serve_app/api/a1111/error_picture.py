"""A refusal as a picture of its text, for clients that look at an answer's images alone.

Open WebUI reads `images` of every answer, whatever its status: without them its user is shown "KeyError: 'images'".
"""

import base64
import io
import textwrap
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _MARGIN, _FONT_SIZE = 512, 24, 20
_COLUMNS, _MOST_LINES = 44, 12


@lru_cache(maxsize=64)
def error_picture(message: str) -> str:
    """The message, black on white, as a small PNG file in base64."""
    lines = textwrap.wrap(message, _COLUMNS)[:_MOST_LINES]
    line_height = _FONT_SIZE * 3 // 2
    image = Image.new("1", (_WIDTH, 2 * _MARGIN + line_height * max(1, len(lines))), 1)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT_SIZE)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * line_height), line, fill=0, font=font)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
