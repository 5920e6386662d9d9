from .wire import (
    to_body as to_body,
    from_body as from_body,
    encode as encode,
    decode as decode,
    as_array as as_array,
    as_json as as_json,
    as_image as as_image,
    as_inputs as as_inputs,
    stack_inputs as stack_inputs,
)
from .handler import Handler as Handler
from .local import LocalHandler as LocalHandler
